"""Features of the online store as Feast's response: values, statuses and times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.aggregates.compile import feast_type
from headrace.aggregates.read import StreamRows
from headrace.aggregates.rows import NEVER
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import from_micros
from headrace.settings import MICROS
from headrace.stores.online_values import NULL, ValueTable
from headrace.stores.plain_rows import PlainRows
from headrace.stores.state_rows import MixedRows

_PRESENT, _NOT_FOUND, _TOO_OLD = FieldStatus.PRESENT, FieldStatus.NOT_FOUND, FieldStatus.OUTSIDE_MAX_AGE
_NOTHING: Final = ValueTable(
    (), np.zeros((0, 0), np.uint64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64), np.zeros(0, np.uint8)
)
_LISTS: Final = {
    "Array(String)": "string_list_val",
    "Array(Int64)": "int64_list_val",
    "Array(Float64)": "double_list_val",
}
_SCALARS: Final = {"Int64": "int64_val", "Float64": "double_val", "String": "string_val"}
_DTYPES: Final = {"INT64": np.int64, "DOUBLE": np.float64}


@dataclass(frozen=True)
class Columns:
    """Features of n entities of one view: their values, a row for each of `features`; of each entity a status and a time (or none)."""

    features: Sequence[str]
    values: ValueTable
    statuses: Sequence["FieldStatus.ValueType"]
    times_us: Sequence[int | None]

    def rows(self) -> list[tuple[Any, dict[str, Value] | None]]:
        """As `OnlineStore.online_read` gives them: (time, values by feature), (None, None) where there is nothing."""
        vectors = self.values.results(np.arange(len(self.features)), np.arange(len(self.statuses)), b"")
        results = GetOnlineFeaturesResponse.FromString(vectors).results
        columns = {name: vector.values for name, vector in zip(self.features, results, strict=True)}
        return [
            (None if at is None else from_micros(at), {name: column[row] for name, column in columns.items()})
            if status == _PRESENT
            else (None, None)
            for row, (at, status) in enumerate(zip(self.times_us, self.statuses, strict=True))
        ]

    def add_to(
        self,
        response: GetOnlineFeaturesResponse,
        names: Mapping[str, str],
        places: Sequence[Sequence[int]],
        length: int,
    ) -> None:
        """Append a vector of `length` for each of `names` (feature: as it is called in the response).

        Entity i goes to `places[i]`. A feature that is not among these is null.
        """
        entities = np.zeros(length, np.int64)
        for entity, destinations in enumerate(places):
            entities[destinations] = entity
        order = entities.tolist()
        shared = GetOnlineFeaturesResponse.FeatureVector(
            statuses=[self.statuses[entity] for entity in order],
            event_timestamps=[_timestamp(self.times_us[entity]) for entity in order],
        ).SerializeToString()
        place = {feature: row for row, feature in enumerate(self.features)}
        features = np.array([place.get(feature, -1) for feature in names], np.int64)
        response.MergeFromString(self.values.results(features, entities, shared))
        response.metadata.feature_names.val.extend(names.values())


def columns_of(rows: PlainRows | StreamRows | MixedRows | int, features: Sequence[str], t_us: int) -> Columns:
    """Some features of a view's rows at t; of so many entities nothing, where there are no rows to read."""
    if isinstance(rows, int):
        return Columns([], _NOTHING, [_NOT_FOUND] * rows, [None] * rows)
    if isinstance(rows, PlainRows):
        return plain_columns(rows, features, t_us)
    return stream_columns(rows, features, t_us)


def plain_columns(rows: PlainRows, features: Sequence[str], t_us: int) -> Columns:
    """Features of a plain view at t. Past the view's TTL values are null and the status says so."""
    gone, times = rows.expired(t_us), rows.timestamps_us()
    present = rows.present(t_us)
    statuses = [
        _NOT_FOUND if at is None else _TOO_OLD if past else _PRESENT
        for at, past in zip(times, gone.tolist(), strict=True)
    ]
    kinds = dict(rows.layout.fields)
    wanted = [name for name in features if name in kinds]
    starts, ends = rows.bodies(wanted)
    here = present[:, [rows.layout.place(name) for name in wanted]]
    table = ValueTable(
        tuple(kinds[name] for name in wanted),
        rows.bits(wanted),
        starts,
        np.where(here.T, ends - starts, NULL),
        rows.buffer,
    )
    return Columns(wanted, table, statuses, times)


def stream_columns(rows: StreamRows | MixedRows, features: Sequence[str], t_us: int) -> Columns:
    """Features of a stream view as of t. An entity that was never seen, or whose state has ended, has values too."""
    spec, asked = rows.layout.spec, frozenset(features)
    wanted = [each for each in spec.aggregates if each.name in asked]
    values = rows.values(t_us, [each.name for each in wanted])
    oldest = t_us - spec.ttl_us if spec.ttl_us is not None else NEVER + 1
    times = [at if at >= oldest else None for at in rows.newest_each_us.tolist()]
    table = _stream_table(spec, [(each, values[each.name]) for each in wanted], len(times))
    return Columns([each.name for each in wanted], table, [_PRESENT] * len(times), times)


def _stream_table(spec: ViewSpec, columns: Sequence[tuple[AggregateSpec, Any]], count: int) -> ValueTable:
    """Feast's values of some features of `count` entities; None and NaN are null."""
    kinds = ["INT64" if each.name in spec.whole else "DOUBLE" for each, _ in columns]
    bits, starts = np.zeros((len(columns), count), np.uint64), np.zeros((len(columns), count), np.int64)
    lengths = np.zeros((len(columns), count), np.int64)
    numbers = [row for row, (_, values) in enumerate(columns) if isinstance(values, np.ndarray)]
    for kind, dtype in _DTYPES.items():
        rows = [row for row in numbers if kinds[row] == kind]
        if rows:
            found = np.array([columns[row][1] for row in rows])
            null = np.isnan(found)
            bits[rows] = np.where(null, 0, found).astype(dtype, copy=False).view(np.uint64)
            lengths[rows] = np.where(null, NULL, 0)
    messages: list[bytes] = []
    end = 0
    for row in set(range(len(columns))).difference(numbers):
        aggregate, values = columns[row]
        kind, kinds[row] = str(feast_type(aggregate)), "message"
        for entity, value in enumerate(values):
            message = b"" if value is None or value != value else _message(kind, value).SerializeToString()
            starts[row, entity], lengths[row, entity] = end, len(message) or NULL
            messages.append(message)
            end += len(message)
    return ValueTable(tuple(kinds), bits, starts, lengths, np.frombuffer(b"".join(messages), np.uint8))


def _message(kind: str, value: Any) -> Value:
    if kind not in _LISTS:
        return Value(**{_SCALARS[kind]: value})
    message = Value()
    filled = getattr(message, _LISTS[kind])
    filled.val.extend(value)
    filled.SetInParent()  # an empty list is a value too
    return message


def _timestamp(at_us: int | None) -> Timestamp:
    if at_us is None:
        return Timestamp()
    seconds, rest = divmod(at_us, MICROS)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
