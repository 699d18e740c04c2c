"""Retrieval without an entity frame: every entity that did something between two times, as of the second."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl
import pyarrow as pa
from feast import FeatureView, StreamFeatureView

from headrace import names
from headrace.aggregates.spec import ViewSpec
from headrace.stores.offline_labels import EVENT_TIMESTAMP, join_keys, key_column
from headrace.stores.sources import Source


def entities_between(
    views: Sequence[FeatureView],
    specs: Mapping[str, ViewSpec],
    sources: Mapping[str, Source | None],
    start: datetime,
    end: datetime,
) -> pa.Table:
    """Keys with a row (an event, of a stream view) from `start` to `end`, and `end` as their time.

    Views with the same keys share their rows; the keys of other views are null there. Views without keys alone give one row.
    """
    frames: dict[tuple[str, ...], list[pl.DataFrame]] = {}
    for view in views:
        source, keys = sources[view.name], {key: key_column(view, key) for key in join_keys(view)}
        if source is None:
            seen = pl.DataFrame(schema=dict.fromkeys(keys.values(), pl.Null))
        else:
            seen = _seen(view, specs.get(view.name), source, keys, start, end)
        if keys:
            frames.setdefault(tuple(sorted(keys.values())), []).append(seen)
    columns = sorted({column for keys in frames for column in keys})
    found = [pl.concat(same, how="vertical_relaxed").unique().sort(keys) for keys, same in frames.items()]
    rows = pl.concat(found, how="diagonal_relaxed").select(columns) if found else pl.DataFrame([None])
    moment = pl.lit(end).dt.cast_time_unit("us").alias(EVENT_TIMESTAMP)
    return rows.with_columns(moment).select(*columns, EVENT_TIMESTAMP).to_arrow()


def _seen(
    view: FeatureView,
    spec: ViewSpec | None,
    source: Source,
    keys: Mapping[str, str],
    start: datetime,
    end: datetime,
) -> pl.DataFrame:
    """The different keys of a view's rows between two times, under the names of the entity frame."""
    if isinstance(view, StreamFeatureView):
        assert spec is not None
        columns = {key: spec.entity_column for key in keys}
        when = source.rows.filter(
            pl.col(names.TYPE).is_in(list(spec.types)), pl.col(names.TIMESTAMP).is_between(start, end, closed="left")
        )
    else:
        time = source.time(view.batch_source.timestamp_field, "the timestamp")
        renamed = {name: column for column, name in (view.batch_source.field_mapping or {}).items()}
        columns = {key: renamed.get(key, key) for key in keys}
        when = source.rows.filter(time.is_between(start, end))
    selected = when.select(source.column(columns[key], "a join key").alias(keys[key]) for key in keys)
    return source.collect(selected.drop_nulls().unique())
