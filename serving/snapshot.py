"""The last good snapshot on disk: catalogue, availability, popularity order. What answers when nothing else is left."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import ipc

from headrace.arrays import Floats, Ints
from serving import catalogue as cat
from serving.catalogue import Catalogue, ItemChanges, Orders

_NAMES: Final = {cat.CATEGORY: "category", cat.BRAND: "brand", cat.PRICE: "price"}
_SCHEMA: Final = pa.schema(
    [
        ("item_id", pa.string()),
        ("state", pa.int8()),
        ("listed_us", pa.int64()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("overall", pa.float64()),
        ("trending", pa.int32()),
        ("newest", pa.int32()),
    ]
)
"""Items in the order of popularity; `trending` and `newest` are places in those orders, null for items that are not in them."""
_NUMBERS: Final = ("state", "listed_us", "overall", "trending", "newest")
_AT_ONCE: Final = 512
_AS_OF: Final = b"as_of_us"
_CHECK_BYTES: Final = 8
"""At the end of the file: xxh64 of what comes before."""


class SnapshotError(ValueError):
    """A snapshot file that cannot be used."""


def save(catalogue: Catalogue, path: Path, pause: Callable[[], object] = lambda: None) -> None:
    """Replace the file in one step: a reader sees the old snapshot or the new one, never half of it.

    A few items at a time become columns, with a `pause` after each: no other thread runs Python meanwhile, and requests would wait.
    """
    orders = catalogue.orders
    rows = catalogue.most_popular_first()
    columns = [
        pa.array(catalogue.state[rows]),
        pa.array(catalogue.listed_us[rows]),
        pa.array(_popularity(orders, rows)),
        *(_places(order, rows) for order in (orders.trending, orders.newest)),
    ]
    numbers = pa.table(columns, names=_NUMBERS)
    schema = _SCHEMA.with_metadata({_AS_OF: str(orders.as_of_us).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        content = pa.BufferOutputStream()
        with ipc.new_file(content, schema) as writer:
            for start in range(0, len(rows), _AT_ONCE):
                found = catalogue.content_of(rows[start : start + _AT_ONCE], list(_NAMES))
                part = {_NAMES.get(name, name): values for name, values in found.items()}
                part |= {name: numbers[name][start : start + _AT_ONCE].combine_chunks() for name in _NUMBERS}
                writer.write_batch(pa.RecordBatch.from_pydict(part, schema))
                pause()
        with draft.open("wb") as file:
            file.write(content.getvalue())
            file.write(xxhash.xxh64_digest(content.getvalue()))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path) -> Catalogue | None:
    """The snapshot, or None if there is none. Raises SnapshotError when it is damaged."""
    try:
        stored = path.read_bytes()
        content, check = stored[:-_CHECK_BYTES], stored[-_CHECK_BYTES:]
        if xxhash.xxh64_digest(content) != check:
            raise ValueError("it is damaged")
        table = ipc.open_file(content).read_all()
        if not table.schema.equals(_SCHEMA):
            raise ValueError(f"its columns are {table.schema.names}")
        catalogue = Catalogue(cat.SNAPSHOT)
        rows = catalogue.put(
            ItemChanges(
                table["item_id"].to_pylist(),
                {name: table[column].to_pylist() for name, column in _NAMES.items()},
                table["state"].to_numpy(),
                table["listed_us"].to_numpy(),
            )
        )
        catalogue.orders = Orders(
            rows,
            _order(table["trending"]),
            _order(table["newest"]),
            table["overall"].to_numpy(),
            int(table.schema.metadata[_AS_OF]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise SnapshotError(f"{path} is no snapshot of a catalogue ({error}); delete it") from error
    return catalogue


def _popularity(orders: Orders, rows: Ints) -> Floats:
    """Of an item that came after the orders were made: none yet."""
    found = np.zeros(len(rows))
    known = rows < len(orders.overall)
    found[known] = orders.overall[rows[known]]
    return found


def _places(order: Ints, rows: Ints) -> pa.Array:
    """For each of the rows its place in an order, null if it is not in it."""
    place_of = np.full(int(rows.max(initial=-1)) + 1, -1, np.int32)
    held = order[order < len(place_of)]
    place_of[held] = np.arange(len(held))
    places = place_of[rows]
    return pa.array(places, pa.int32(), mask=places < 0)


def _order(places: pa.ChunkedArray) -> Ints:
    given = places.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(given >= 0)
    return np.asarray(rows[np.argsort(given[rows], kind="stable")])
