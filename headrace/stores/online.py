"""Feast's online store on packed rows in Redis or Valkey: `type: headrace.stores.online.PackedRedisOnlineStore`.

Stream views are computed when they are read, from state that flows alone write; plain views are written through Feast. Connects at
the first read or write, so `feast apply` needs no server. What a feature service reads, of however many views, is one round trip.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from feast import Entity, FeatureService, FeatureView, RepoConfig, StreamFeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel

from headrace.aggregates.compile import compile_view
from headrace.aggregates.read import StreamRows
from headrace.clock import Clock, system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.change_feed import is_announced
from headrace.stores.definitions import Definitions
from headrace.stores.feast_registry import data_dir, refusing
from headrace.stores.feature_store import plain_layout
from headrace.stores.online_layouts import LayoutCache
from headrace.stores.online_protos import Columns, columns_of
from headrace.stores.online_raw import RawRows
from headrace.stores.online_requests import Asked, asked_directly, asked_of, respond, shards_of_streams
from headrace.stores.online_wire import Answer, read, read_async
from headrace.stores.online_writes import FeastRow, pack_rows, queue_rows
from headrace.stores.plain_rows import PlainLayout, PlainRows
from headrace.stores.redis_client import StoreAddressError, connect, connect_async, no_cluster_as_no_connection
from headrace.stores.shards import ShardStatus, check_deployment
from headrace.stores.state_definitions import drop_views
from headrace.stores.state_rows import MixedRows, StateReader

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 20_000
_Row = tuple[datetime | None, dict[str, ValueProto] | None]


class StreamViewWriteError(ValueError):
    """Somebody tried to write values into a stream view, whose state flows alone may change."""


class PrecomputeError(ValueError):
    """A feature service asks for vectors computed ahead of the request."""


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The server is `HEADRACE_REDIS_URL`, else the embedded one under HEADRACE_DATA; a process that has settings passes them."""

    type: Literal["headrace.stores.online.PackedRedisOnlineStore"] = "headrace.stores.online.PackedRedisOnlineStore"
    settings: Settings | None = None


class PackedRedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """See the module's docstring. Not kept, and refused by name: vectors for search, precomputed vectors, several versions of a view."""

    clock: Clock = staticmethod(system_clock)

    def __init__(self) -> None:
        self._client: Any = None
        self._settings: Settings | None = None
        self._checked: set[bool] = set()
        self._async: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()
        self._plain: LayoutCache[PlainLayout] = LayoutCache(plain_layout)
        self._streams: LayoutCache[StateReader] = LayoutCache(self._state_of)

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    async def initialize(self, config: RepoConfig) -> None:
        """What the feature server does first: says at its start what is wrong with the store's address or its shards."""
        self._connected(config)

    async def close(self) -> None:
        """Close the connections of the running loop, and those of the sync client."""
        client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        if self._client is not None:
            self._client.close()
            self._client, self._streams = None, LayoutCache(self._state_of)

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """Write plain rows, all or, where one is refused, none.

        Raises StreamViewWriteError for a stream view, FutureRowError for a row dated after now, EntityKeyError, RowValueError.
        """
        client, settings = self._connected(config, writes=True)
        for keys, rows in self._packed(table, data):
            with no_cluster_as_no_connection(), client.pipeline(transaction=False) as pipeline:
                queue_rows(pipeline, table.name, keys, rows, settings.shards, announced=is_announced(table.join_keys))
                pipeline.execute()
            if progress:
                progress(len(rows))

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """As `online_write_batch`."""
        client, settings = self._connected_async(config, writes=True)
        for keys, rows in self._packed(table, data):
            with no_cluster_as_no_connection():
                async with client.pipeline(transaction=False) as pipeline:
                    queue_rows(
                        pipeline, table.name, keys, rows, settings.shards, announced=is_announced(table.join_keys)
                    )
                    await pipeline.execute()
            if progress:
                progress(len(rows))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[_Row]:
        """Values as of now, one entry for each entity in order; nothing for a plain row past its view's TTL."""
        client, settings = self._connected(config)
        asked = asked_directly(table, entity_keys, requested_features, settings.shards)
        return self._columns([asked], read(client, [asked.keys], shards_of_streams([asked])))[0].rows()

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[_Row]:
        """As `online_read`."""
        client, settings = self._connected_async(config)
        asked = asked_directly(table, entity_keys, requested_features, settings.shards)
        return self._columns([asked], await read_async(client, [asked.keys], shards_of_streams([asked])))[0].rows()

    def get_online_features(
        self, config: RepoConfig, features: list[str] | FeatureService, *args: Any, **kwargs: Any
    ) -> OnlineResponse:
        """As Feast's base class. Raises PrecomputeError for a service that asks for precomputed vectors."""
        _refuse_precomputed(features)
        return super().get_online_features(config, features, *args, **kwargs)

    async def get_online_features_async(
        self, config: RepoConfig, features: list[str] | FeatureService, *args: Any, **kwargs: Any
    ) -> OnlineResponse:
        """As `get_online_features`."""
        _refuse_precomputed(features)
        return await super().get_online_features_async(config, features, *args, **kwargs)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: Mapping[str, Sequence[ValueProto]],
        entity_name_to_join_key_map: Mapping[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """The step of Feast's read that is the store's: all views in one round trip, as of one time, with their statuses."""
        client, settings = self._connected(config)
        asked = asked_of(grouped_refs, join_key_values, entity_name_to_join_key_map, settings.shards)
        columns = self._columns(asked, read(client, [each.keys for each in asked], shards_of_streams(asked)))
        respond(online_features_response, asked, columns, full_feature_names, include_feature_view_version_metadata)

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: Mapping[str, Sequence[ValueProto]],
        entity_name_to_join_key_map: Mapping[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        client, settings = self._connected_async(config)
        asked = asked_of(grouped_refs, join_key_values, entity_name_to_join_key_map, settings.shards)
        columns = self._columns(
            asked, await read_async(client, [each.keys for each in asked], shards_of_streams(asked))
        )
        respond(online_features_response, asked, columns, full_feature_names, include_feature_view_version_metadata)

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
        if config.registry.enable_online_feature_view_versioning:
            raise ValueError(
                "this store keeps one version of a view: take enable_online_feature_view_versioning out of feature_store.yaml"
            )
        with refusing():
            for table in tables_to_keep:
                if isinstance(table, StreamFeatureView):
                    compile_view(table)
        if not tables_to_delete:
            return
        try:
            self.teardown(config, tables_to_delete, entities_to_delete)
        except (StoreAddressError, redis.ConnectionError) as error:  # an apply needs no server
            gone = ", ".join(sorted(table.name for table in tables_to_delete))
            logger.warning(
                "rows of %s stay in the store until `headrace apply` or `headrace backfill`: %s", gone, error
            )

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete every row of the views, and what shards say of them."""
        client, settings = self._connected(config)
        drop_views(client, settings, [table.name for table in tables])

    def _is_versioned_read_supported(self) -> bool:
        return False

    def _columns(self, asked: Sequence[Asked], answer: Answer) -> list[Columns]:
        """Feast's values of what was read, as of one t: a tile cannot subtract, so never before the newest event in the state."""
        statuses = [ShardStatus.parse(raw) for raw in answer.statuses]
        views = [self._view(each.table, raws, statuses) for each, raws in zip(asked, answer.rows, strict=True)]
        t_us = max([self.clock(), *[rows.newest_us + 1 for rows in views if isinstance(rows, StreamRows | MixedRows)]])
        return [columns_of(rows, each.features, t_us) for rows, each in zip(views, asked, strict=True)]

    def _view(
        self, table: FeatureView, raws: RawRows, statuses: Sequence[ShardStatus]
    ) -> PlainRows | StreamRows | MixedRows | int:
        """Rows ready to read; their number alone for a stream view that the state does not have yet."""
        if not isinstance(table, StreamFeatureView):
            return self._plain(table).rows(raws)
        state = self._streams(table)
        state.note(statuses)
        rows = state.rows(table.name, raws.to_list())
        return len(raws) if rows is None else rows

    def _packed(self, table: FeatureView, data: list[FeastRow]) -> Iterable[tuple[list[str], list[bytes]]]:
        if isinstance(table, StreamFeatureView):
            raise StreamViewWriteError(
                f"'{table.name}' is a stream view: its values are computed from events. Send events to `POST /v1/events`; "
                "to rebuild its state from the lake run `headrace backfill`"
            )
        keys, rows = pack_rows(self._plain(table), data, self.clock())
        return [
            (keys[start : start + _ROWS_AT_ONCE], rows[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]

    def _state_of(self, table: FeatureView) -> StateReader:
        assert self._settings is not None, "connected before"
        spec = compile_view(table, int(self._settings.lateness_horizon_s * MICROS))
        return StateReader(self._client, self._settings, Definitions({spec.name: spec}, {}))

    def _connected(self, config: RepoConfig, writes: bool = False) -> tuple[Any, Settings]:
        """Client and settings. The first read and the first write compare the number of shards: raises DeploymentError."""
        settings = self._settings = self._settings or _settings_of(config)
        if self._client is None:
            self._client = connect(settings)
        if writes not in self._checked:
            check_deployment(self._client, record=writes, shards=settings.shards)
            self._checked.add(writes)
        return self._client, settings

    def _connected_async(self, config: RepoConfig, writes: bool = False) -> tuple[Any, Settings]:
        """The same for the running loop: connections belong to the loop that opened them."""
        _, settings = self._connected(config, writes)
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            self._async[loop] = connect_async(settings)
        return self._async[loop], settings


def _settings_of(config: RepoConfig) -> Settings:
    settings: Settings = config.online_store.settings or Settings()
    if "data" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"data": data_dir(config.repo_path)})


def _refuse_precomputed(features: list[str] | FeatureService) -> None:
    if isinstance(features, FeatureService) and features.precompute_online:
        raise PrecomputeError(
            f"service '{features.name}' asks for precomputed vectors, which this store does not keep: windows move on with time, "
            "and a service is read in one round trip anyway; take precompute_online=True out of its definition"
        )
