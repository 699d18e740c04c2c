"""Whether what happens now is still what the champion learnt from: `python -m training.drift`.

Compared are the champion's data window and the events after it, by the signals of `training.drift_signals`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl
import xxhash
from feast import FeatureStore
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from headrace import names
from headrace.clock import from_micros
from headrace.models import columns
from headrace.models.bundle import Bundle
from headrace.models.config import CLICK
from headrace.models.preprocessing import Catalogue
from headrace.settings import DAY_US, HOUR_US, Settings
from headrace.stores.feature_store import open_feature_store, quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.models import RegistryError, read_champion
from training.changes import parse_changes
from training.config import TrainConfig
from training.dataset import POSITIVE_TYPES, T_US, catalogue, events_on_items, impressions, sample, user_features
from training.drift_signals import (
    DriftConfig,
    Signal,
    of_histogram,
    of_numbers,
    of_rates,
    popularity_deciles,
)
from training.intervals import wilson
from training.job import run
from training.outcomes import probabilities
from training.scoring import Models

_CLICK_HOURS: Final = 1.0
"""Within which a click counts for the rate: it is known soon, and the same of any version."""


@dataclass(frozen=True)
class Asked:
    """What was found of one kind: its signals, or a note why nothing is said of it."""

    signals: tuple[Signal, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """Of the version in service, which is of `bundle`. `signals` is empty where there are fewer new events than it takes; times are Unix
    microseconds.
    """

    version: str
    bundle: str
    window_us: tuple[int, int]
    end_us: int
    new_events: int
    signals: tuple[Signal, ...]
    note: str = ""

    @property
    def drifted(self) -> bool:
        return any(signal.drifted for signal in self.signals)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "drifted": self.drifted}


def measure(settings: Settings, config: DriftConfig, store: FeatureStore | None = None) -> Drift:
    """Of what is in service. Raises RegistryError where nothing is, BundleError, DatasetError for a lake without events on items."""
    champion = read_champion(settings)
    if champion is None:
        raise RegistryError(
            "no version is in service whose data could be compared: `headrace train`, then `headrace promote`"
        )
    bundle = Bundle.load(champion.path)
    lake, (start_us, window_end_us) = EventLake(settings.lake_dir), bundle.manifest.window_us
    events = events_on_items(lake).filter(pl.col(T_US) >= start_us)
    own = events.filter(pl.col(names.TYPE).is_in(list(POSITIVE_TYPES)))
    before, now = own.filter(pl.col(T_US) < window_end_us), own.filter(pl.col(T_US) >= window_end_us)
    newest_us = int(events[T_US].max() or 0) if events.height else 0  # type: ignore[arg-type]
    end_us = max(newest_us + 1, window_end_us)

    def found(signals: Sequence[Signal], note: str = "") -> Drift:
        return Drift(
            champion.version, bundle.version, (start_us, window_end_us), end_us, now.height, tuple(signals), note
        )

    if min(now.height, before.height) < config.min_events:
        few = "since it" if now.height < config.min_events else "in its window"
        return found(
            (), f"events {few}: {min(now.height, before.height):,}, and nothing is said below {config.min_events:,}"
        )
    store = store or open_feature_store(settings)
    asked = [
        Asked((of_types(lake, start_us, window_end_us, config),)),
        Asked(tuple(of_items(bundle, before, now, store, end_us, config))),
        of_popularity(before, now, config),
        of_users(bundle, before, now, store, config),
        of_click_rate(events, window_end_us, end_us, bundle, config),
    ]
    if asked[-1].signals:
        asked.append(of_calibration(events, window_end_us, end_us, bundle, store, config))
    return found(
        [signal for each in asked for signal in each.signals], "; ".join(each.note for each in asked if each.note)
    )


def of_types(lake: EventLake, start_us: int, window_end_us: int, config: DriftConfig) -> Signal:
    """What users do. Impressions are left out: we make those."""
    moment = pl.col(names.TIMESTAMP).dt.epoch("us")
    own = lake.scan([names.TYPE, names.TIMESTAMP]).filter(
        (pl.col(names.TYPE) != names.IMPRESSION) & (moment >= start_us)
    )
    counted = own.group_by(names.TYPE, (moment >= window_end_us).alias("is_new")).len().collect()
    before, now = (
        dict(counted.filter(pl.col("is_new") == new).select(names.TYPE, "len").iter_rows()) for new in (False, True)
    )
    return of_histogram("event types", before, now, config)


def of_items(
    bundle: Bundle, before: pl.DataFrame, now: pl.DataFrame, store: FeatureStore, t_us: int, config: DriftConfig
) -> list[Signal]:
    """Of what items events are: unknown ones, each category of the catalogue."""
    was, is_now = _counts(before), _counts(now)
    known = set(bundle.items.item_ids)
    unknown = sum(count for item, count in is_now.items() if item not in known) / now.height
    said = f"{unknown:.1%} of events"
    signals = [
        Signal("items unknown to the champion", unknown, config.unknown_share, unknown > config.unknown_share, said)
    ]
    item_ids = sorted({*was, *is_now})
    content = columns.by_name(catalogue(store, item_ids, t_us))
    for name in bundle.preprocessing.content_categories:
        if name in content:
            value_of = dict(zip(item_ids, content[name].to_pylist(), strict=True))
            signals.append(of_histogram(name, _by(value_of, was), _by(value_of, is_now), config))
    return signals


def of_popularity(before: pl.DataFrame, now: pl.DataFrame, config: DriftConfig) -> Asked:
    """Half of the users say which items are popular, the other half how many events these had: by the same events the first tenth would
    hold whatever was popular by chance, and lose it to any other time. A note where either half did too little.
    """
    ranking = [user for user in before[names.USER_ID].unique() if xxhash.xxh64_intdigest(user.encode()) % 2 == 0]
    is_ranking = before[names.USER_ID].is_in(ranking)
    halves = before.filter(is_ranking), before.filter(~is_ranking)
    least = -(-config.min_events // 4)
    if min(half.height for half in halves) < least:
        had = " and ".join(f"{half.height:,}" for half in halves)
        return Asked(
            note=f"popularity is not compared: that takes {least:,} events of both halves of the users, and there are {had}"
        )
    ranked, was, is_now = (_counts(rows) for rows in (*halves, now))
    decile_of = {item: f"tenth {decile + 1} of popularity" for item, decile in popularity_deciles(ranked).items()}
    return Asked((of_histogram("popularity deciles", _by(decile_of, was), _by(decile_of, is_now), config),))


def _counts(rows: pl.DataFrame) -> dict[str, int]:
    return dict(rows[names.ITEM_ID].value_counts().iter_rows())


def _by(value_of: Mapping[str, Any], counts: Mapping[str, int]) -> dict[Any, int]:
    """Events by the value of their item; those of items that have none are left out."""
    found: dict[Any, int] = {}
    for item, count in counts.items():
        if item in value_of:
            found[value_of[item]] = found.get(value_of[item], 0) + count
    return found


def of_users(
    bundle: Bundle, before: pl.DataFrame, now: pl.DataFrame, store: FeatureStore, config: DriftConfig
) -> Asked:
    """Each number that the towers read of users, at one event of each; a note where there are too few, or of too short a time.

    Compared is the end of the window, as long as what came since and at least a day: where a window has just begun, its counts are small.
    """
    start_us, end_us = int(now[T_US].min()), int(now[T_US].max())  # type: ignore[arg-type]
    hours = (end_us - start_us) / HOUR_US
    if hours < config.min_hours:
        return Asked(
            note=f"users' features are not compared: that takes {config.min_hours:g} hours of new events, and there are {hours:.1f}"
        )
    recent = before.filter(pl.col(T_US) >= start_us - max(end_us - start_us, DAY_US))
    one_of_each = [
        side.sample(fraction=1.0, shuffle=True, seed=config.seed).unique(
            names.USER_ID, keep="first", maintain_order=True
        )
        for side in (recent, now)
    ]
    if min(side.height for side in one_of_each) < config.min_users:
        had = _both(*(side.height for side in one_of_each))
        return Asked(
            note=f"users' features are not compared: that takes {config.min_users:,} users on both sides, and there are {had}"
        )
    was, is_now = (columns.by_name(user_features(store, side.head(config.sample))) for side in one_of_each)
    return Asked(
        tuple(
            of_numbers(number.name, columns.numbers(was[number.name]), columns.numbers(is_now[number.name]), config)
            for number in bundle.preprocessing.user_numbers
            if number.name in was
        )
    )


def of_click_rate(events: pl.DataFrame, window_end_us: int, end_us: int, bundle: Bundle, config: DriftConfig) -> Asked:
    """A note where too few were shown on a side. What was shown so late on a side that its clicks may still come is left out."""
    training = _training_of(bundle).changed(outcome_hours=_CLICK_HOURS)
    shown = impressions(events, training)
    before, now = (
        _shown_by(shown, 0, window_end_us, _CLICK_HOURS),
        _shown_by(shown, window_end_us, end_us, _CLICK_HOURS),
    )
    clicks = int(before[CLICK].sum())
    if min(before.height, now.height) < config.min_impressions or clicks < config.min_clicks:
        return Asked(
            note=f"click rates are not compared: that takes {config.min_impressions:,} impressions on both sides and "
            f"{config.min_clicks:,} clicks before, and there are {_both(before.height, now.height)}, and {clicks:,} clicks"
        )
    was, is_now = ((int(side[CLICK].sum()), side.height) for side in (before, now))
    return Asked((of_rates("click rate lost", was, is_now, config.click_drop),))


def of_calibration(
    events: pl.DataFrame, window_end_us: int, end_us: int, bundle: Bundle, store: FeatureStore, config: DriftConfig
) -> Asked:
    """A note where too few were shown or clicked. A click counts within the bundle's own `outcome_hours`, which its probabilities speak of,
    and what was shown in the last of these is left out: its clicks may still come.
    """
    training = _training_of(bundle)
    now = _shown_by(impressions(events, training), window_end_us, end_us, training.outcome_hours)
    asked = sample(now, config.sample, config.seed)
    clicks = int(asked[CLICK].sum())
    if now.height < config.min_impressions or clicks < config.min_clicks:
        return Asked(
            note=f"clicks are not held against their probabilities: that takes {config.min_impressions:,} impressions and "
            f"{config.min_clicks:,} clicks since, {training.outcome_hours:g} hours old, and there are {now.height:,} and {clicks:,}"
        )
    shop = Catalogue(bundle.preprocessing, bundle.snapshot.features)
    models = Models(bundle.preprocessing, shop, bundle.towers, bundle.ranker, bundle.neighbours)
    place = bundle.ranker.outcomes.index(CLICK)
    predicted = float(probabilities(models, asked, store, training)[:, place].sum())
    factor = max(predicted / clicks, clicks / max(predicted, 1e-9))
    low, high = wilson(clicks / asked.height, asked.height)
    drifted = factor > config.calibration and not low <= predicted / asked.height <= high
    said = f"{predicted:.0f} clicks predicted, {clicks} came"
    return Asked((Signal("click calibration", factor, config.calibration, drifted, said),))


def _both(before: int, now: int) -> str:
    return f"{before:,} before and {now:,} since"


def _training_of(bundle: Bundle) -> TrainConfig:
    return TrainConfig.from_json(bundle.manifest.config).changed(device="cpu")


def _shown_by(shown: pl.DataFrame, start_us: int, end_us: int, hours: float) -> pl.DataFrame:
    """What was shown from the start on, and so many hours before the end."""
    return shown.filter(pl.col(T_US).is_between(start_us, end_us - int(hours * HOUR_US), closed="left"))


def as_table(found: Drift) -> Table:
    start, cut, end = (f"{from_micros(us):%Y-%m-%d %H:%M}" for us in (*found.window_us, found.end_us))
    title = (
        f"version {found.version} (bundle {found.bundle}): what it learnt from, {start} to {cut}, beside the "
        f"{found.new_events:,} interactions since, up to {end} (UTC)"
    )
    table = Table(Column("what", overflow="fold"), "value", "bound", "", "then and now", title=title)
    for each in found.signals:
        mark = Text("drifted", "bold red") if each.drifted else Text("as before", "green")
        table.add_row(each.name, f"{each.value:.3f}", f"{each.bound:g}", mark, Text(each.said))
    return table


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.drift", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a bound; repeatable")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()

    def look() -> None:
        found = measure(Settings(), DriftConfig().changed(**parse_changes(options.set, DriftConfig)))
        if options.json:
            print(json.dumps(found.to_json()))
            return
        if found.signals:
            Console().print(as_table(found))
        drifted = [signal.name for signal in found.signals if signal.drifted]
        if not found.signals:
            print(f"no verdict: {found.note}")
            return
        print(f"drifted: {', '.join(drifted)}" if drifted else "no drift")
        if found.note:
            print(f"note: {found.note}")

    return run(look)


if __name__ == "__main__":
    sys.exit(command())
