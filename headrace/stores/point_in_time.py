"""The point-in-time join behind the offline store: label rows, and a column for each feature as it stood at each row's time.

One answer for each label row, in the order given: of plain views the newest row (offline_plain.py), of stream views what the
as-of batch engine computes. Of a source only what the labels' entities need is read; where that is more than the memory
bound, entities are taken in ranges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
from feast import FeatureView, StreamFeatureView

from headrace import names
from headrace.aggregates.batch import as_of
from headrace.aggregates.batch_events import bytes_per_event
from headrace.aggregates.batch_tables import put_back
from headrace.aggregates.spec import ViewSpec
from headrace.events import RECORD_SCHEMA
from headrace.stores.offline_labels import Labels
from headrace.stores.offline_memory import key_ranges
from headrace.stores.offline_plain import plain_features
from headrace.stores.sources import OfflineStoreError, Source


@dataclass(frozen=True)
class Wanted:
    """One feature that was asked for, and the name of its column in the answer."""

    view: FeatureView
    name: str
    output: str


def wanted_features(views: Sequence[FeatureView], refs: Sequence[str], full_feature_names: bool) -> list[Wanted]:
    """Features in the order of their references; those of on-demand views are Feast's to add."""
    by_name = {view.projection.name_to_use(): view for view in views}
    wanted = []
    for ref in dict.fromkeys(refs):
        view_name, _, feature = ref.partition(":")
        if view_name in by_name:
            view = by_name[view_name]
            prefix = view.projection.name_alias or view.name
            wanted.append(Wanted(view, feature, f"{prefix}__{feature}" if full_feature_names else feature))
    return wanted


def check_columns(labels: Labels, wanted: Sequence[Wanted]) -> None:
    """Raises OfflineStoreError where two columns of the answer would have one name."""
    outputs = [one.output for one in wanted]
    twice = sorted(
        {name for name in outputs if outputs.count(name) > 1} | (set(outputs) & set(labels.table.column_names))
    )
    if twice:
        raise OfflineStoreError(
            f"the answer would hold the column '{twice[0]}' twice: rename it, or set full_feature_names=True"
        )


def join(
    labels: Labels,
    wanted: Sequence[Wanted],
    specs: Mapping[str, ViewSpec],
    sources: Mapping[str, Source | None],
    bound: int,
    arrived_only: bool,
) -> pa.Table:
    """The label rows with a column for each feature wanted.

    `specs` of the stream views and `sources` of all, by view name. With `arrived_only`, from plain rows created and events
    received by each row's time. `bound` in bytes, see key_ranges.
    """
    answers: dict[str, pa.ChunkedArray] = {}
    for view in {id(one.view): one.view for one in wanted}.values():
        features = list(dict.fromkeys(one.name for one in wanted if one.view is view))
        source = sources[view.name]
        if isinstance(view, StreamFeatureView):
            columns = stream_features(view, specs[view.name], source, features, labels, bound, arrived_only)
        else:
            columns = plain_features(view, source, features, labels, bound, arrived_only)
        answers |= {one.output: columns[one.name] for one in wanted if one.view is view}
    table = labels.table
    for one in wanted:
        table = table.append_column(one.output, answers[one.output])
    return table


def stream_features(
    view: FeatureView,
    spec: ViewSpec,
    source: Source | None,
    features: Sequence[str],
    labels: Labels,
    bound: int,
    arrived_only: bool,
) -> pa.Table:
    """The features of a stream view for each label row."""
    asked, times_us = labels.key(view, spec.join_key).cast(pl.String), labels.times_us
    if source is None:
        return as_of(spec, pl.DataFrame(RECORD_SCHEMA.empty_table()), asked, times_us, features)
    _check_events(source, spec)
    keys = labels.keys(view, source, {spec.join_key: spec.entity_column})
    counted = source.rows.filter(pl.col(names.TYPE).is_in(list(spec.types)))
    size = bytes_per_event([spec.aggregate(name) for name in features], arrived_only)
    parts, tables = [], []
    for rows in key_ranges(source, counted, keys, [spec.entity_column], size, bound):
        with source.reading():
            tables.append(as_of(spec, source.rows, asked.gather(rows), times_us[rows], features, arrived_only))
        parts.append(rows)
    return put_back(tables, parts)


def _check_events(source: Source, spec: ViewSpec) -> None:
    """Raises OfflineStoreError where a column that the view reads is missing or of another type than events have."""
    for name in spec.columns:
        source.column(name, "a column of events")
        declared = pl.DataFrame(RECORD_SCHEMA.empty_table().select([name])).schema[name]
        actual = source.schema[name]
        if actual != declared and not (actual.is_numeric() and declared.is_numeric()):
            raise OfflineStoreError(
                f"{source.name}: column '{name}' is {actual}, events have {declared}: write the lake with its own schema"
            )
