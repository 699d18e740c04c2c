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
from headrace.aggregates.spec import AggregateSpec
from headrace.clock import from_micros
from headrace.settings import MICROS
from headrace.stores.online_values import ValueColumn, message_values, number_values, text_values
from headrace.stores.plain_rows import NUMBERS, STRING, Mask, PlainRows
from headrace.stores.state_rows import MixedRows

_PRESENT, _NOT_FOUND, _TOO_OLD = FieldStatus.PRESENT, FieldStatus.NOT_FOUND, FieldStatus.OUTSIDE_MAX_AGE
_LISTS: Final = {
    "Array(String)": "string_list_val",
    "Array(Int64)": "int64_list_val",
    "Array(Float64)": "double_list_val",
}


@dataclass(frozen=True)
class Columns:
    """Features of n entities of one view: Feast's values by feature, and of each entity a status and a time (or none)."""

    values: Mapping[str, ValueColumn]
    statuses: Sequence["FieldStatus.ValueType"]
    times_us: Sequence[int | None]

    def rows(self) -> list[tuple[Any, dict[str, Value] | None]]:
        """As `OnlineStore.online_read` gives them: (time, values by feature), (None, None) where there is nothing."""
        return [
            (None if at is None else from_micros(at), {name: column.value(row) for name, column in self.values.items()})
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

        Entity i goes to `places[i]`. A feature that the columns lack is null.
        """
        entities = np.zeros(length, np.int64)
        for entity, destinations in enumerate(places):
            entities[destinations] = entity
        order = entities.tolist()
        shared = GetOnlineFeaturesResponse.FeatureVector(
            statuses=[self.statuses[entity] for entity in order],
            event_timestamps=[_timestamp(self.times_us[entity]) for entity in order],
        ).SerializeToString()
        nothing = message_values([None] * len(self.statuses))
        for feature, called in names.items():
            column = self.values.get(feature, nothing)
            response.results.add().MergeFromString(column.vector(entities) + shared)
            response.metadata.feature_names.val.append(called)


def columns_of(rows: PlainRows | StreamRows | MixedRows | int, features: Sequence[str], t_us: int) -> Columns:
    """Some features of a view's rows at t; of so many entities nothing, where there are no rows to read."""
    if isinstance(rows, int):
        return Columns({}, [_NOT_FOUND] * rows, [None] * rows)
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
    place = {name: index for index, name in enumerate(kinds)}
    values = {
        name: _plain_values(rows, name, kinds[name], present[:, place[name]]) for name in features if name in kinds
    }
    return Columns(values, statuses, times)


def stream_columns(rows: StreamRows | MixedRows, features: Sequence[str], t_us: int) -> Columns:
    """Features of a stream view as of t. An entity that was never seen, or whose state has ended, has values too."""
    spec = rows.layout.spec
    wanted = [each for each in spec.aggregates if each.name in set(features)]
    values = rows.values(t_us, [each.name for each in wanted])
    columns = {each.name: _stream_values(values[each.name], each) for each in wanted}
    oldest = t_us - spec.ttl_us if spec.ttl_us is not None else NEVER + 1
    times = [at if at >= oldest else None for at in rows.newest_each_us.tolist()]
    return Columns(columns, [_PRESENT] * len(times), times)


def _plain_values(rows: PlainRows, name: str, kind: str, present: Mask) -> ValueColumn:
    if kind in NUMBERS:
        return number_values(rows.numbers(name), present, kind)
    bodies = rows.bodies(name, present)
    return text_values(bodies) if kind == STRING else ValueColumn(bodies)


def _stream_values(values: Any, aggregate: AggregateSpec) -> ValueColumn:
    """Feast's values of one feature; None and NaN are null."""
    kind = str(feast_type(aggregate))
    if kind in _LISTS:
        return message_values([None if each is None else _list(_LISTS[kind], each) for each in values])
    if kind == "String":
        return message_values([None if each is None else Value(string_val=each) for each in values])
    if isinstance(values, np.ndarray):
        return number_values(values, ~np.isnan(values), "INT64" if kind == "Int64" else "DOUBLE")
    make = _integer if kind == "Int64" else _float
    return message_values([None if each is None or each != each else make(each) for each in values])


def _integer(value: Any) -> Value:
    return Value(int64_val=int(value))


def _float(value: Any) -> Value:
    return Value(double_val=float(value))


def _list(field: str, values: Any) -> Value:
    proto = Value()
    filled = getattr(proto, field)
    filled.val.extend(values)
    filled.SetInParent()  # an empty list is a value too
    return proto


def _timestamp(at_us: int | None) -> Timestamp:
    if at_us is None:
        return Timestamp()
    seconds, rest = divmod(at_us, MICROS)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
