"""The left side of training, and its features.

Keys and labels come from the event lake; features come from Feast alone, each row's as they stood at its time. A user
and an item make an *episode*: their events, none more than `outcome_hours` after the one before. The episode's first
event is the row's time and everything that was done in it is the row's label, so no feature sees the label.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pandas as pd
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from feast import FeatureStore

from headrace import names
from headrace.clock import from_micros
from headrace.models.config import CART, CLICK, PURCHASE
from headrace.settings import DAY_US, HOUR_US
from headrace.stores.lake import EventLake, scan_table
from training.config import TrainConfig

T_US: Final = "t_us"
POSITIVE_TYPES: Final = (names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.RATE)
LABELS: Final = (CLICK, CART, PURCHASE)
"""What came of an item: a click is any positive event, a cart or a purchase one of that type."""
_TYPES_OF: Final = {CLICK: POSITIVE_TYPES, CART: (names.ADD_TO_CART,), PURCHASE: (names.PURCHASE,)}
_RIPE: Final = 0.95
_ANSWER: Final = ("request_id", names.ITEM_ID)
_KEYS: Final = (names.USER_ID, names.ITEM_ID, T_US)
_EVENT_COLUMNS: Final = (
    names.EVENT_ID,
    names.TYPE,
    names.USER_KEY,
    names.ITEM_ID,
    names.TIMESTAMP,
    "request_id",
    "as_of",
    "value",
    "position",
)

Read = TypeVar("Read")


class DatasetError(ValueError):
    """Events that cannot be trained on; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Split:
    """Episodes by time, oldest first: what the towers learn from; what chooses among their weights, and what the ranker learns from; what
    both are judged by.

    Frames have columns user_id, item_id, t_us, request_id and 0/1 columns of LABELS; no side knows an event at or after its end,
    not even as a label. Impressions are rows of the same columns and `position`, from 0, of what was shown, by the same cuts: those of
    which what comes of them had come by their side's end (`ripening_us`), or all of a side where it had of none.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    validation_impressions: pl.DataFrame
    test_impressions: pl.DataFrame
    start_us: int
    validation_us: int
    cut_us: int
    end_us: int
    ripening_us: int = 0

    @property
    def before_cut(self) -> pl.DataFrame:
        return pl.concat([self.train, self.validation])

    @property
    def everything(self) -> pl.DataFrame:
        return pl.concat([self.train, self.validation, self.test])


@dataclass(frozen=True)
class Cuts:
    """Where a window, its validation and its test begin, in Unix microseconds."""

    start_us: int
    validation_us: int
    cut_us: int


def read_split(lake: EventLake, config: TrainConfig, cuts: Cuts | None = None) -> Split:
    """Episodes of the last `config.days`, split by time, or those from the start of `cuts` on, split as these say.

    The test begins `test_days` before the end, else where `test_share` of the episodes lie behind it; the validation in the same way
    before that. Raises DatasetError where the window, or the side before or after the cut, is empty; there may be no validation.
    """
    events = events_on_items(lake)
    interactions = events.filter(pl.col(names.TYPE).is_in(list(POSITIVE_TYPES)))
    if interactions.is_empty():
        raise DatasetError(f"the event lake {lake.path} holds no view, click, cart, purchase or rating: load some")
    end_us = int(interactions[T_US].max()) + 1  # type: ignore[arg-type]
    oldest_us = int(events[T_US].min())  # type: ignore[arg-type]
    start_us = cuts.start_us if cuts else max(end_us - int(config.days * DAY_US), oldest_us)
    events = events.filter(pl.col(T_US).is_between(start_us, end_us, closed="left")).sort(T_US, names.EVENT_ID)
    everything = episodes(events, config)
    window = f"{from_micros(start_us).isoformat()} to {from_micros(end_us).isoformat()}"
    if everything.is_empty():
        raise DatasetError(
            f"the window from {window} holds no interaction to learn from: take more days (`headrace train --set days=N`)"
        )
    cuts = cuts or _cuts(everything, start_us, end_us, config)
    validation_us, cut_us = cuts.validation_us, cuts.cut_us
    shown = impressions(events, config)
    ripening = _before(events, cut_us, config, ripening_us)
    split = Split(
        train=_before(events, validation_us, config, episodes),
        validation=_before(events, cut_us, config, episodes).filter(pl.col(T_US) >= validation_us),
        test=everything.filter(pl.col(T_US) >= cut_us),
        validation_impressions=_ripe(
            _before(events, cut_us, config, impressions).filter(pl.col(T_US) >= validation_us), cut_us - ripening
        ),
        test_impressions=_ripe(shown.filter(pl.col(T_US) >= cut_us), end_us - ripening),
        start_us=start_us,
        validation_us=validation_us,
        cut_us=cut_us,
        end_us=end_us,
        ripening_us=ripening,
    )
    for side, rows in (("before", split.train), ("after", split.test)):
        if rows.is_empty():
            raise DatasetError(
                f"no interaction {side} the cut between training and test (test_share {config.test_share}): "
                f"in the window from {window}, the newest interaction; "
                "load more of that time, or take more days (`headrace train --set days=N`)"
            )
    return split


def events_on_items(lake: EventLake, more: Sequence[str] = ()) -> pl.DataFrame:
    """Interactions and impressions, in no order, with `more` columns of the event's. Raises DatasetError where there is none."""
    events = (
        lake.scan(tuple(dict.fromkeys((*_EVENT_COLUMNS, *more))))
        .filter(pl.col(names.TYPE).is_in([*POSITIVE_TYPES, names.IMPRESSION]) & pl.col(names.ITEM_ID).is_not_null())
        .with_columns(pl.col(names.TIMESTAMP).dt.epoch("us").alias(T_US), pl.col("as_of").dt.epoch("us"))
        .rename({names.USER_KEY: names.USER_ID})
        .collect()
    )
    if events.is_empty():
        raise DatasetError(f"the event lake {lake.path} holds no event on an item: run `headrace ingest` first")
    return events


def _cuts(everything: pl.DataFrame, start_us: int, end_us: int, config: TrainConfig) -> Cuts:
    cut_us = _cut(everything, end_us, config.test_days, config.test_share)
    before = everything.filter(pl.col(T_US) < cut_us)
    return Cuts(start_us, _cut(before, cut_us, config.validation_days, config.validation_share), cut_us)


def _cut(rows: pl.DataFrame, end_us: int, days: float, share: float) -> int:
    """So many days before the end; for 0 days where a share of the rows lies behind."""
    if days > 0:
        return end_us - int(days * DAY_US)
    return end_us if share == 0 or rows.is_empty() else int(rows[T_US].quantile(1 - share, "higher"))  # type: ignore[arg-type]


def _before(
    events: pl.DataFrame, t_us: int, config: TrainConfig, read: Callable[[pl.DataFrame, TrainConfig], Read]
) -> Read:
    """What the events before t make, as if there were no others."""
    return read(events.filter(pl.col(T_US) < t_us), config)


def episodes(events: pl.DataFrame, config: TrainConfig) -> pl.DataFrame:
    """One row for each episode, in time order."""
    own = events.filter(is_positive(config)).sort(T_US, names.EVENT_ID)
    pair = [names.USER_ID, names.ITEM_ID]
    starts = (pl.col(T_US).diff() > int(config.outcome_hours * HOUR_US)).fill_null(True).cum_sum().over(pair)
    return (
        own.with_columns(starts.alias("episode"))
        .group_by(*pair, "episode", maintain_order=True)
        .agg(pl.col(T_US, "request_id").first(), *_labels(pl.col(names.TYPE)))
        .select(*_KEYS, "request_id", *LABELS)
    )


def impressions(events: pl.DataFrame, config: TrainConfig) -> pl.DataFrame:
    """What was shown, with what came of it: events of the same request and item within `outcome_hours`, of the user or of whom the user
    has logged in as meanwhile.

    A row's time is the `as_of` that the impression was ranked at.
    """
    shown = _shown(events)
    outcomes = _came_of(shown, events, config).group_by(_ANSWER).agg(*_labels(pl.col(names.TYPE)))
    return (
        shown.join(outcomes, on=_ANSWER, how="left", maintain_order="left")
        .with_columns(pl.col(*LABELS).fill_null(0))
        .select(*_KEYS, "request_id", "position", *LABELS)
    )


def _shown(events: pl.DataFrame) -> pl.DataFrame:
    return (
        events.filter((pl.col(names.TYPE) == names.IMPRESSION) & pl.col("request_id").is_not_null())
        .with_columns(pl.col("as_of").fill_null(pl.col(T_US)))
        .unique(_ANSWER, keep="first", maintain_order=True)
        .select(names.USER_ID, *_ANSWER, "position", pl.col("as_of").alias(T_US))
    )


def _came_of(shown: pl.DataFrame, events: pl.DataFrame, config: TrainConfig) -> pl.DataFrame:
    """A row for each event that came of an impression in time, `delay_us` after it."""
    done = events.filter(is_positive(config)).select(*_ANSWER, names.TYPE, pl.col(T_US).alias("done_us"))
    timely = pl.col("delay_us").is_between(0, int(config.outcome_hours * HOUR_US))
    return (
        shown.join(done, on=_ANSWER).with_columns((pl.col("done_us") - pl.col(T_US)).alias("delay_us")).filter(timely)
    )


def ripening_us(events: pl.DataFrame, config: TrainConfig) -> int:
    """How long after an impression most of what comes of it has come: until 95 % of each label's, of those that at least `min_outcomes`
    impressions have; 0 where none has. What was shown later than so long before its side's end would count as in vain too early.
    """
    answers, found = _came_of(_shown(events), events, config), 0
    for types in _TYPES_OF.values():
        of_these = answers.filter(pl.col(names.TYPE).is_in(types))
        delays_us = of_these.group_by(_ANSWER).agg(pl.col("delay_us").min())["delay_us"]
        if delays_us.len() >= max(config.min_outcomes, 1):
            found = max(found, int(delays_us.quantile(_RIPE, "higher")))  # type: ignore[arg-type]
    return found


def _ripe(shown: pl.DataFrame, before_us: int) -> pl.DataFrame:
    """Those of before then, or all where there are none: a rate that is too low says more than none (`unripe` says so)."""
    kept = shown.filter(pl.col(T_US) < before_us)
    return shown if kept.is_empty() else kept


def is_positive(config: TrainConfig) -> pl.Expr:
    """Whether an event says that the user wants the item: a rating below `min_rating` does not."""
    rated_low = (pl.col(names.TYPE) == names.RATE) & (pl.col("value") < config.min_rating)
    return pl.col(names.TYPE).is_in(POSITIVE_TYPES) & ~rated_low.fill_null(False)


def _labels(types: pl.Expr) -> list[pl.Expr]:
    """Of positive events of one user and item."""
    return [types.is_in(those).any().cast(pl.Int8).alias(label) for label, those in _TYPES_OF.items()]


def unripe(split: Split) -> list[str]:
    """What a reader has to know of sides whose impressions are all too young."""
    hours = split.ripening_us / HOUR_US
    sides = (("validation", split.validation_impressions, split.cut_us), ("test", split.test_impressions, split.end_us))
    return [
        f"all impressions of the {side} are of its last {hours:.1f} h, within which some of what comes of them is still to come: "
        "probabilities come out too low"
        for side, shown, end_us in sides
        if not shown.is_empty() and int(shown[T_US].max()) >= end_us - split.ripening_us  # type: ignore[arg-type]
    ]


def newest(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    return rows.sort(T_US, maintain_order=True).tail(count)


def sample(rows: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    return rows if rows.height <= count else rows.sample(count, seed=seed).sort(T_US, maintain_order=True)


def features(store: FeatureStore, service: str, rows: pl.DataFrame) -> pa.Table:
    """Full-named features of rows (user_id, item_id, t_us), one row for each, in their order."""
    return _features(store, store.get_feature_service(service), rows)


def user_features(store: FeatureStore, rows: pl.DataFrame) -> pa.Table:
    """What retrieval knows of the users of rows (user_id, t_us), one row for each, in their order."""
    return features(store, names.RETRIEVAL_SERVICE, rows.select(names.USER_ID, T_US))


def item_activity(store: FeatureStore, rows: pl.DataFrame) -> pa.Table:
    """What the ranker knows of what items' users do, for rows (item_id, t_us), one row for each, in their order."""
    wanted = _of_views(store, (names.ITEM_ACTIVITY,))
    return _features(store, wanted, rows.select(names.ITEM_ID, T_US)) if wanted else rows.select(T_US).to_arrow()


def views_read(store: FeatureStore) -> set[str]:
    """Views that the models' services take anything of."""
    services = (store.get_feature_service(name) for name in (names.RETRIEVAL_SERVICE, names.RANKER_SERVICE))
    return {projection.name for service in services for projection in service.feature_view_projections}


def _of_views(store: FeatureStore, views: Sequence[str]) -> list[str]:
    """What the ranker's service takes of these views."""
    return [
        f"{projection.name}:{feature.name}"
        for projection in store.get_feature_service(names.RANKER_SERVICE).feature_view_projections
        if projection.name in views
        for feature in projection.features
    ]


def catalogue(store: FeatureStore, item_ids: Sequence[str], t_us: int) -> pa.Table:
    """`item_id` and `item_catalogue__*` of items as they stood at one time."""
    wanted = _of_views(store, (names.ITEM_CATALOGUE,))
    return _features(store, wanted, pl.DataFrame({names.ITEM_ID: list(item_ids), T_US: t_us}))


def historical_chunks(store: FeatureStore, service: str, rows: pl.DataFrame, size: int) -> Iterator[pa.Table]:
    """`features`, so many rows at a time, for an answer that memory does not hold."""
    job = store.get_historical_features(
        _keys(rows), features=store.get_feature_service(service), full_feature_names=True
    )
    found = 0
    for chunk in job.to_arrow_batches(size):
        found += chunk.num_rows
        yield chunk
    _check_rows(found, rows)


def _features(store: FeatureStore, wanted: Any, rows: pl.DataFrame) -> pa.Table:
    table = store.get_historical_features(_keys(rows), features=wanted, full_feature_names=True).to_arrow()
    _check_rows(table.num_rows, rows)
    return table


def _keys(rows: pl.DataFrame) -> pd.DataFrame:
    moments = pl.from_epoch(pl.col(T_US), time_unit="us").dt.replace_time_zone("UTC").alias("event_timestamp")
    return rows.select(*[name for name in _KEYS if name != T_US and name in rows.columns], moments).to_pandas()


def _check_rows(found: int, rows: pl.DataFrame) -> None:
    if found != rows.height:
        raise DatasetError(f"the offline store returned {found} rows for {rows.height} keys; a join must lose none")


def items_known_at(lake_dir: Path, split: Split, t_us: int) -> list[str]:
    """Ids of the items in the catalogue table or in an event before t, sorted. Raises DatasetError below two."""
    rows = split.everything.filter(pl.col(T_US) < t_us)
    found = set(rows[names.ITEM_ID])
    try:
        table = DeltaTable(str(lake_dir / names.ITEMS_TABLE))
    except TableNotFoundError:
        table = None  # events alone will do: such items have no content
    if table is not None:
        dated = scan_table(table).filter(pl.col("event_timestamp").dt.epoch("us") <= t_us)
        found |= set(dated.select(names.ITEM_ID).unique().collect()[names.ITEM_ID])
    if len(found) < 2:
        raise DatasetError(f"the catalogue holds {len(found)} item; there is nothing to choose between: load more")
    return sorted(found)
