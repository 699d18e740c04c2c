"""Feast's online store on packed rows in Redis or Valkey: `type: headrace.stores.online.PackedRedisOnlineStore`.

Stream views are computed when they are read, from state that flows alone write; plain views are written through Feast. Connects at
the first read or write, so `feast apply` needs no server.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import redis
from feast import Entity, FeatureView, RepoConfig, StreamFeatureView, ValueType
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values

from headrace.aggregates import spec as sp
from headrace.aggregates.compile import compile_view, feast_type
from headrace.aggregates.layout import NEVER, Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import from_micros, system_clock, to_micros
from headrace.identity import shard_of
from headrace.settings import MICROS, Settings
from headrace.stores.feast_registry import data_dir
from headrace.stores.feature_store import plain_layout
from headrace.stores.plain_rows import PlainRows
from headrace.stores.redis_client import connect
from headrace.stores.shards import row_key, scan_keys

# Each row is written only where it is as new as what is there: (timestamp, created), the later write winning a tie.
_PUT_SCRIPT = """
local written = 0
for i = 1, #KEYS do
  local new, old = ARGV[i], redis.call('GETRANGE', KEYS[i], 8, 23)
  local keep = false
  if #old == 16 then
    local ot, oc = struct.unpack('>i8i8', old)
    local nt, nc = struct.unpack('>i8i8', string.sub(new, 9, 24))
    keep = nt < ot or (nt == ot and nc < oc)
  end
  if not keep then redis.call('SET', KEYS[i], new); written = written + 1 end
end
return written
"""
_BATCH = 1_000
_Row = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]


class StreamViewWriteError(ValueError):
    """Somebody tried to write values into a stream view, whose state flows alone may change."""


class FutureRowError(ValueError):
    """A plain row dated after now: it would hide every row until then."""


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The server is `HEADRACE_REDIS_URL`, else the embedded one under HEADRACE_DATA; a process that has settings passes them."""

    type: Literal["headrace.stores.online.PackedRedisOnlineStore"] = "headrace.stores.online.PackedRedisOnlineStore"
    settings: Settings | None = None


class PackedRedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """See the module's docstring."""

    _client: "redis.Redis | None" = None
    _settings: Settings | None = None

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[_Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write plain rows. Raises StreamViewWriteError for a stream view, FutureRowError for a row dated after now."""
        refuse_stream_view(table)
        client, settings = self._connect(config)
        layout = plain_layout(table)
        now = system_clock()
        for start in range(0, len(data), _BATCH):
            rows = data[start : start + _BATCH]
            keys, values = [], []
            for entity_key, features, timestamp, created in rows:
                key, at = _entity_key(entity_key), _micros(timestamp)
                if at > now:
                    raise FutureRowError(
                        f"view '{table.name}', entity '{key}': the row is dated {timestamp}, which is after now; correct its timestamp"
                    )
                keys.append(row_key(shard_of(key, settings.shards), table.name, key))
                values.append(layout.pack(features, at, _micros(created) if created else 0))
            client.eval(_PUT_SCRIPT, len(keys), *keys, *values)
            if progress:
                progress(len(rows))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, ValueProto] | None]]:
        """Values as of now, one entry for each entity in order."""
        client, settings = self._connect(config)
        keys = [_entity_key(key) for key in entity_keys]
        raws: list[bytes | None] = (
            client.mget([row_key(shard_of(key, settings.shards), table.name, key) for key in keys]) if keys else []
        )
        if isinstance(table, StreamFeatureView):
            return _read_stream(
                compile_view(table, int(settings.lateness_horizon_s * MICROS)), raws, requested_features
            )
        layout = plain_layout(table)
        return _read_plain(layout.rows(raws))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Refuse definitions that no engine can compute, before the registry is written; drop rows of deleted views."""
        for table in tables_to_keep:
            if isinstance(table, StreamFeatureView):
                compile_view(table)
        if tables_to_delete:
            self.teardown(config, tables_to_delete, entities_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete every row of the views."""
        client, settings = self._connect(config)
        for table in tables:
            for shard in range(settings.shards):
                for key in scan_keys(client, shard, table.name):
                    client.unlink(row_key(shard, table.name, key))

    def _connect(self, config: RepoConfig) -> tuple["redis.Redis", Settings]:
        if self._client is None or self._settings is None:
            settings = config.online_store.settings or Settings()
            if "data" not in settings.model_fields_set:
                settings = settings.model_copy(update={"data": data_dir(config.repo_path)})
            self._client, self._settings = connect(settings), settings
        return self._client, self._settings


def refuse_stream_view(table: FeatureView) -> None:
    if isinstance(table, StreamFeatureView):
        raise StreamViewWriteError(
            f"'{table.name}' is a stream view: its values are computed from events. Send events to `POST /v1/events`; "
            "to rebuild its state from the lake run `headrace backfill`"
        )


def _read_stream(
    spec: ViewSpec, raws: list[bytes | None], requested: list[str] | None
) -> list[tuple[datetime | None, dict[str, ValueProto] | None]]:
    rows = StreamRows(Layout(spec), raws)
    # A tile cannot subtract what was folded already, so now is never before the newest event.
    t_us = max(system_clock(), rows.newest_us + 1)
    wanted = [a for a in spec.aggregates if requested is None or a.name in requested]
    values = rows.values(t_us, [aggregate.name for aggregate in wanted])
    columns = {
        aggregate.name: [_stream_proto(value, aggregate) for value in values[aggregate.name]] for aggregate in wanted
    }
    newest = rows.newest_each_us.tolist()
    return [
        (from_micros(at) if at != NEVER else None, {name: column[row] for name, column in columns.items()})
        for row, at in enumerate(newest)
    ]


def _read_plain(rows: PlainRows) -> list[tuple[datetime | None, dict[str, ValueProto] | None]]:
    t_us = system_clock()
    columns = rows.values(t_us)
    kinds = dict(rows.layout.fields)
    protos = {name: python_values_to_proto_values(values, ValueType[kinds[name]]) for name, values in columns.items()}
    times, present = rows.timestamps_us(), rows.present_at(t_us)
    return [
        (from_micros(at), {name: column[row] for name, column in protos.items()})
        if at is not None and here
        else (None, None)
        for row, (at, here) in enumerate(zip(times, present, strict=True))
    ]


def _stream_proto(value: Any, aggregate: AggregateSpec) -> ValueProto:
    """Feast's value of one feature."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ValueProto()
    kind = str(feast_type(aggregate))
    if aggregate.function == sp.LAST_N:
        proto = ValueProto()
        field = {
            "Array(String)": "string_list_val",
            "Array(Int64)": "int64_list_val",
            "Array(Float64)": "double_list_val",
        }[kind]
        getattr(proto, field).val.extend(value)
        getattr(proto, field).SetInParent()
        return proto
    if kind == "String":
        return ValueProto(string_val=value)
    return ValueProto(int64_val=int(value)) if kind == "Int64" else ValueProto(double_val=float(value))


def _entity_key(key: EntityKeyProto) -> str:
    """The value of a single join key; several are joined in the order of their names."""
    parts = []
    for _, value in sorted(zip(key.join_keys, key.entity_values, strict=True), key=lambda pair: pair[0]):
        which = value.WhichOneof("val")
        parts.append(str(getattr(value, which)) if which else "")
    return "\x1f".join(parts)


def _micros(moment: datetime) -> int:
    """Microseconds; Feast's contract has naive times mean UTC."""
    return to_micros(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
