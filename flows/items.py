"""Operations on items among a batch's records: taken out of its events, and made the rows of plain views that they stand for.

A row is made of its operation alone, never of another row, so the feature flow and the lake flow make the same ones, and after a kill
make them again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import orjson
import polars as pl

from flows.batches import Batch, place
from headrace import names
from headrace.decoding import BadRecord
from headrace.item_operations import from_columns
from headrace.stores.item_rows import ItemRow, row_of
from headrace.stores.log import LogEntry
from headrace.stores.plain_rows import PlainLayout

_COLUMNS: Final = (names.TYPE, names.ITEM_ID, names.TIMESTAMP, names.PROPERTIES)

Views = Callable[[], Mapping[str, PlainLayout]]


def take_items(views: Views) -> Callable[[Batch], Batch]:
    """A step that sets operations on items apart from events; those that no row can be made of are bad records.

    `views` gives the plain views that are applied.
    """

    def take(batch: Batch) -> Batch:
        types = batch.events[names.TYPE]
        found = (types == names.ITEM_UPSERT) | (types == names.ITEM_STATUS)  # `is_in` takes five times as long
        if not found.any():
            return batch
        chosen = np.flatnonzero(found.to_numpy())
        places = batch.places[chosen]
        wanted = set(zip(places.partition.tolist(), places.position.tolist(), strict=True))
        entries = {(e.partition, e.position): e for e in batch.slice.entries if (e.partition, e.position) in wanted}
        records = _read_records(list(entries.values()))
        layouts = views()
        rows: list[ItemRow] = []
        kept, bad = [], []
        for number, place_of in enumerate(
            zip(places.partition.tolist(), places.position.tolist(), places.index.tolist(), strict=True)
        ):
            record = records[place_of]
            try:
                rows.append(row_of(from_columns(*record), int(places.appended_us[number]), layouts))
                kept.append(number)
            except ValueError as error:
                raw = orjson.dumps(dict(zip(_COLUMNS, record, strict=True)))
                bad.append((entries[place_of[:2]], BadRecord(place_of[2], str(error), raw)))
        return replace(
            batch,
            events=batch.events.filter(~found),
            places=batch.places[~found.to_numpy()],
            bad=[*batch.bad, *bad],
            items=rows,
            item_places=places[np.array(kept, np.int64)],
        )

    return take


def _read_records(entries: Sequence[LogEntry]) -> dict[tuple[int, int, int], tuple[str, str, int, str | None]]:
    """What each record of the entries says in _COLUMNS, by partition, position and line."""
    events, places, _ = place(entries, _COLUMNS)
    said = events.with_columns(pl.col(names.TIMESTAMP).cast(pl.Int64)).select(_COLUMNS).rows()
    stands = zip(places.partition.tolist(), places.position.tolist(), places.index.tolist(), strict=True)
    return dict(zip(stands, said, strict=True))
