"""How `feast materialize` fills plain views from the lake, and why it leaves stream views alone.

`batch_engine: {type: headrace.stores.online_engine.PlainViewsEngine}` in feature_store.yaml. Feast's own engine would pass rows
through pandas, where a large integer beside a null loses digits, and would fail on a stream view in words of its own.
"""

import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import click
import pyarrow as pa
from feast import FeatureView, StreamFeatureView, utils
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from headrace.clock import Clock, from_micros, system_clock
from headrace.stores.online_writes import FeastRow

_ROWS_AT_ONCE = 10_000
_REMEDY = "send events to `POST /v1/events`; to rebuild its state from the lake run `headrace backfill`"


class StreamViewMaterializeError(click.ClickException, ValueError):
    """`materialize` names a stream view. Feast's command line prints it as one line and ends with exit code 1."""


class StreamViewLeftOutWarning(UserWarning):
    """`materialize` of everything leaves stream views out."""


class PlainViewsEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """No options."""

    type: Literal["headrace.stores.online_engine.PlainViewsEngine"] = "headrace.stores.online_engine.PlainViewsEngine"


class PlainViewsEngine(LocalComputeEngine):  # type: ignore[misc]
    """Writes the newest rows of plain views online; views with transformations or checks of Feast's go the way of Feast's engine."""

    clock: Clock = staticmethod(system_clock)

    def __init__(self, type: str = "", **parts: Any) -> None:
        super().__init__(**parts)

    @property
    def supports_batch(self) -> bool:
        """So that Feast hands over all views at once: only then can it be seen whether they were named."""
        return True

    def materialize(
        self, registry: BaseRegistry, tasks: MaterializationTask | list[MaterializationTask], **kwargs: Any
    ) -> list[LocalMaterializationJob]:
        """One job a task. Raises StreamViewMaterializeError where a stream view is named.

        Of everything, stream views are left out with a warning. To name each view there is counts as everything.
        """
        tasks = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        streams = [task.feature_view.name for task in tasks if isinstance(task.feature_view, StreamFeatureView)]
        if streams and (len(streams) == len(tasks) or not _is_everything(registry, tasks)):
            raise StreamViewMaterializeError(f"'{streams[0]}' is a stream view, which is not materialized: {_REMEDY}")
        if streams:
            warnings.warn(f"stream views are left out: {', '.join(streams)}; {_REMEDY}", StreamViewLeftOutWarning, 2)
        return [
            _left_out(task) if task.feature_view.name in streams else self._materialize_one(registry, task, **kwargs)
            for task in tasks
        ]

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if view.offline or getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None):
            return super()._materialize_one(registry, task, **kwargs)
        if getattr(view, "source_views", None) or getattr(view, "enable_validation", False):
            return super()._materialize_one(registry, task, **kwargs)
        try:
            self._copy_newest(registry, task)
        except Exception as error:  # noqa: BLE001 - Feast raises it once the other views are done
            return LocalMaterializationJob(_job_id(task), MaterializationJobStatus.ERROR, error)
        return LocalMaterializationJob(_job_id(task), MaterializationJobStatus.SUCCEEDED)

    def _copy_newest(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        """The newest row of each entity in the task's span, from the offline store to the online store."""
        view = task.feature_view
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        join_keys, features, timestamp, created = utils._get_column_names(view, entities)
        job = self.offline_store.pull_latest_from_table_or_query(
            self.repo_config, view.batch_source, join_keys, features, timestamp, created, task.start_time, task.end_time
        )
        table = utils._run_pyarrow_field_mapping(job.to_arrow(), view.batch_source.field_mapping or {})
        at = from_micros(self.clock()) if task.disable_event_timestamp else None
        with task.tqdm_builder(table.num_rows) as progress:
            for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
                rows = list(rows_of(batch, view, at))
                self.online_store.online_write_batch(self.repo_config, view, rows, progress.update)


def rows_of(batch: pa.RecordBatch, view: FeatureView, at: datetime | None = None) -> Iterator[FeastRow]:
    """Feast's rows of a plain view's columns, value by value; `at` stands for every row's timestamp if given."""
    source = view.batch_source
    keys = {column.name: _protos(batch, column) for column in view.entity_columns}
    features = {field.name: _protos(batch, field) for field in view.features if field.name not in keys}
    times = [at] * batch.num_rows if at else _times(batch.column(source.timestamp_field))
    made = source.created_timestamp_column
    created = _times(batch.column(made)) if made else [None] * batch.num_rows
    for row, (timestamp, arrived) in enumerate(zip(times, created, strict=True)):
        if timestamp is None:
            raise ValueError(f"view '{view.name}': a row of its source has no {source.timestamp_field}")
        entity = EntityKey(join_keys=keys, entity_values=[column[row] for column in keys.values()])
        yield entity, {name: column[row] for name, column in features.items()}, timestamp, arrived


def _protos(batch: pa.RecordBatch, field: Any) -> Sequence[Any]:
    if field.name == DUMMY_ENTITY_ID and field.name not in batch.schema.names:
        return python_values_to_proto_values([DUMMY_ENTITY_VAL] * batch.num_rows, ValueType.STRING)  # type: ignore[no-any-return]
    return python_values_to_proto_values(batch.column(field.name).to_pylist(), field.dtype.to_value_type())  # type: ignore[no-any-return]


def _times(column: pa.Array) -> list[datetime | None]:
    """To the microsecond; times without a zone are UTC."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    found = column.cast(pa.timestamp("us", tz=zone), safe=False).to_pylist()
    return [None if time is None else time if zone else time.replace(tzinfo=UTC) for time in found]


def _is_everything(registry: BaseRegistry, tasks: Sequence[MaterializationTask]) -> bool:
    project = tasks[0].project
    views = [*registry.list_feature_views(project), *registry.list_stream_feature_views(project)]
    return {view.name for view in views if view.online and view.enabled} <= {task.feature_view.name for task in tasks}


def _left_out(task: MaterializationTask) -> LocalMaterializationJob:
    """Neither done nor an error to raise: Feast then records no span as materialized."""
    return LocalMaterializationJob(_job_id(task), MaterializationJobStatus.ERROR)


def _job_id(task: MaterializationTask) -> str:
    return f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
