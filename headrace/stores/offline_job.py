"""What a retrieval gives back: nothing is computed until it is read, whole or batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import OnDemandFeatureView
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage

from headrace.stores.sources import OfflineStoreError, write_parquet

BATCH_ROWS: Final = 1_000_000

Evaluate = Callable[[int, int | None], pa.Table]
"""Computes rows from a start on, so many of them or all."""


class PolarsRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A lazy retrieval; on-demand views are computed by Feast's base class."""

    def __init__(
        self,
        evaluate: Evaluate,
        repo_path: Path | None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        rows: int | None = None,
    ) -> None:
        """`rows` where their number is known beforehand: only then are batches computed one by one."""
        self._evaluate = evaluate
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata
        self._rows = rows

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate(0, None)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._evaluate(0, None).to_pandas()

    def to_polars(self) -> pl.DataFrame:
        return pl.DataFrame(self.to_arrow())

    def to_arrow_batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """The answer, so many rows at a time, each computed when it is asked for: for an answer that memory does not hold."""
        if self._rows is None:
            whole = self.to_arrow()
            yield from (whole.slice(start, rows) for start in range(0, max(whole.num_rows, 1), rows))
            return
        for start in range(0, max(self._rows, 1), rows):
            yield self._slice(start, rows).to_arrow()

    def _slice(self, start: int, length: int) -> "PolarsRetrievalJob":
        return PolarsRetrievalJob(
            lambda first, _: self._evaluate(start + first, length - first),
            self._repo_path,
            self._full_feature_names,
            self._on_demand_feature_views,
            self._metadata,
        )

    def to_sql(self) -> str:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            "no SQL stands behind this retrieval: read it with to_arrow(), to_polars() or to_df()"
        )

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a Parquet file, batch by batch. Raises SavedDatasetLocationAlreadyExists."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise OfflineStoreError(f"cannot save to {type(storage).__name__}: use SavedDatasetFileStorage")
        path = Path(FileSource.get_uri_for_file_path(self._repo_path, storage.file_options.uri))
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        # An on-demand view may type a column by the values that it sees: it gets them all at once.
        write_parquet([self.to_arrow()] if self._on_demand_feature_views else self.to_arrow_batches(), path)
