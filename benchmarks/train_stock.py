"""The usual way to a training set: Feast's file offline store, and a loop over the rows of a pandas frame.

The store cannot compute windows, so it is given their values finished beforehand: a table of features that it joins point in time.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headrace import names
from headrace.models.inputs import OneUser, UserInputs
from headrace.models.preprocessing import Preprocessing
from training.dataset import T_US

_TIME: Final = "event_timestamp"
_NUMBER: Final = "number"


@dataclass(frozen=True)
class Built:
    """Tensors of some rows, in their order, and how long the join and the loop took."""

    users: UserInputs
    join_seconds: float
    loop_seconds: float

    def figures(self) -> dict[str, float]:
        rows = len(self.users.numbers_BF)
        return {
            "rows": rows,
            "join_seconds": self.join_seconds,
            "loop_seconds": self.loop_seconds,
            "rows_per_s": rows / (self.join_seconds + self.loop_seconds),
        }


class StockBuild:
    """A Feast store of its own over finished features of rows (user_id, t_us)."""

    def __init__(self, folder: Path, features: pa.Table, rows: pl.DataFrame) -> None:
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
        from feast.repo_config import RegistryConfig
        from feast.type_map import pa_to_feast_value_type
        from feast.types import from_value_type

        folder.mkdir()
        # A name of ours is a view's and its feature's; here there is one view, and no feature may have two underscores.
        self._names = {name.replace("__", "_of_"): name for name in features.column_names if "__" in name}
        plain = {name: features[full] for name, full in self._names.items()}
        keys = pa.array(rows[names.USER_ID].to_list(), pa.string())
        table = pa.table({names.USER_ID: keys, _TIME: rows.select(_moments())[_TIME].to_arrow(), **plain})
        pq.write_table(table, folder / "features.parquet")
        self._folder = folder
        self._store = FeatureStore(
            config=RepoConfig(
                project="stock",
                provider="local",
                registry=RegistryConfig(path=str(folder / "registry.db")),
                online_store={"type": "sqlite", "path": str(folder / "online.db")},
                offline_store={"type": "file"},
                entity_key_serialization_version=3,
                repo_path=folder,
            )
        )
        user = Entity(name="user", join_keys=[names.USER_ID], value_type=ValueType.STRING)
        schema = [
            Field(name=name, dtype=from_value_type(pa_to_feast_value_type(str(column.type))))
            for name, column in plain.items()
        ]
        source = FileSource(name="rows", path=str(folder / "features.parquet"), timestamp_field=_TIME)
        view = FeatureView(name="stock", entities=[user], ttl=timedelta(days=365), schema=schema, source=source)
        self._store.apply([user, view])

    def run(self, asked: pl.DataFrame, preprocessing: Preprocessing, code_of_item: Callable[[object], int]) -> Built:
        """Join, encode row by row, write a file."""
        labels = asked.with_row_index(_NUMBER).select(names.USER_ID, _moments(), _NUMBER).to_pandas()
        wanted = [f"stock:{name}" for name in self._names]
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = self._store.get_historical_features(labels, features=wanted).to_df()
        joined = time.perf_counter()
        made: dict[int, OneUser] = {}
        for row in frame.to_dict("records"):
            features = {full: [_plain(row[name])] for name, full in self._names.items()}
            made[row[_NUMBER]] = preprocessing.user(features, row[_TIME].value // 1_000, code_of_item)
        stacked = zip(*(made[number] for number in range(len(made))), strict=True)
        users = UserInputs(*(torch.from_numpy(np.stack(part)) for part in stacked))
        torch.save(tuple(users), self._folder / "rows.pt")
        return Built(users, joined - began, time.perf_counter() - joined)


def _moments() -> pl.Expr:
    return pl.from_epoch(T_US, time_unit="us").dt.replace_time_zone("UTC").alias(_TIME)


def _plain(value: Any) -> Any:
    """None for what pandas writes as NaN, lists for arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and np.isnan(value) else value
