"""What Feast asks of the online store, view by view, and how its answer is put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from feast import FeatureView, StreamFeatureView, utils
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from headrace.stores.online_keys import entity_key, key_of
from headrace.stores.online_protos import Columns
from headrace.stores.online_wire import ViewKeys

_PRESENT: Final = FieldStatus.PRESENT  # protobuf looks an enum's name up each time


@dataclass(frozen=True)
class Asked:
    """Some features of one view for some entities, each of them once; entity i goes to `places[i]` of `length` rows."""

    table: FeatureView
    features: list[str]
    keys: ViewKeys
    places: Sequence[Sequence[int]]
    length: int


def asked_directly(table: FeatureView, entity_keys: list[EntityKey], features: list[str] | None, shards: int) -> Asked:
    wanted = [feature.name for feature in table.features] if features is None else features
    keys = ViewKeys.place(table.name, [key_of(key) for key in entity_keys], shards)
    return Asked(table, wanted, keys, [], len(entity_keys))


def asked_of(
    grouped_refs: list[tuple[FeatureView, list[str]]],
    join_key_values: Mapping[str, Sequence[Value]],
    join_key_of: Mapping[str, str],
    shards: int,
) -> list[Asked]:
    """What Feast asks of each view: the entities of its rows, each once."""
    asked: list[Asked] = []
    known: dict[tuple[int, ...], tuple[ViewKeys, list[list[int]]]] = {}
    for table, features in grouped_refs:
        values = utils._get_table_entity_values(table, join_key_of, join_key_values)
        missing = sorted({join_key_of[entity] for entity in table.entities} - {key for key in values if values[key]})
        if missing:
            raise KeyError(f"view '{table.name}': no values of {missing}; each entity row needs one")
        same = tuple(id(column) for _, column in sorted(values.items()))
        if same not in known:
            places: dict[str, list[int]] = {}
            for row, entity in enumerate(zip(*values.values(), strict=True)):
                places.setdefault(entity_key([*values], entity), []).append(row)
            known[same] = ViewKeys.place(table.name, [*places], shards), [*places.values()]
        keys, destinations = known[same]
        asked.append(Asked(table, features, keys.of(table.name), destinations, sum(map(len, destinations))))
    return asked


def shards_of_streams(asked: Sequence[Asked]) -> list[int]:
    """Shards that stream views are read from: their status comes with the rows."""
    return sorted({n for each in asked if isinstance(each.table, StreamFeatureView) for n in each.keys.shards})


def respond(
    response: GetOnlineFeaturesResponse, asked: Sequence[Asked], columns: Sequence[Columns], full: bool, versions: bool
) -> None:
    for each, found in zip(asked, columns, strict=True):
        view = each.table.projection.name_to_use()
        names = {feature: f"{view}__{feature}" if full else feature for feature in each.features}
        found.add_to(response, names, each.places, each.length)
        if versions:  # of no features: it adds the view's version alone
            utils._populate_response_from_feature_data([], [], [], response, full, each.table, each.length, True)
        present = sum(len(at) for at, s in zip(each.places, found.statuses, strict=True) if s == _PRESENT)
        track_feature_statuses(each.table.name, present * len(names), (each.length - present) * len(names))
