"""Laws 4 and 6 at Feast's own API: no lost rows, and no leak, for stream views and a plain view together."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from feast import FeatureStore
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headrace import names
from headrace.clock import from_micros
from headrace.events import EVENT_SCHEMA
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import append_rows
from tests.laws.agreement import Truth
from tests.laws.site import Site
from tests.laws.streams import ITEMS, MINUTE, MOMENTS, NOON, USERS, first_deliveries, logs, renamed
from tests.oracles import Event

_EXAMPLES = count(1)
_TIME = pa.timestamp("us", "UTC")
_PRICE = "item_catalogue__price"

Label = tuple[str | None, str | None, int]
"""User, item, time."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """No flow: the lake is written as the lake flow writes it."""
    site = Site(tmp_path_factory.mktemp("training"))
    site.apply(every_function=True, default_set=True)
    yield site
    site.close()


@pytest.fixture(scope="module")
def store(site: Site) -> FeatureStore:
    return open_feature_store(site.settings)


@dataclass(frozen=True)
class Price:
    """A row of the catalogue."""

    item: str
    at: int
    created: int
    price: float


MAYBE_USER = st.sampled_from([*USERS, "never", None])
MAYBE_ITEM = st.sampled_from([*ITEMS, "never", None])
LABELS = st.lists(st.tuples(MAYBE_USER, MAYBE_ITEM, MOMENTS), min_size=1, max_size=12)
PRICES = st.lists(
    st.builds(
        lambda item, at, delay, price: Price(item, at, at + delay, float(price)),
        st.sampled_from(ITEMS),
        MOMENTS,
        st.sampled_from([0, 0, 1, MINUTE, 90 * MINUTE]),
        st.integers(1, 10**9),
    ),
    max_size=8,
    unique_by=lambda row: (row.item, row.at, row.created),
)


class Lake:
    """The lake of one example: people and items have names of their own in it."""

    def __init__(self, site: Site) -> None:
        self.prefix = f"x{next(_EXAMPLES)}-"
        self._site = site

    def add_events(self, log: list[Event]) -> None:
        """One commit, at the next log position, without repeats: as the flow leaves it."""
        position = self._site.lake.positions([0])[0] + 1
        place = {names.LOG_PARTITION: 0, names.LOG_POSITION: position, names.LOG_INDEX: 0, names.INGESTED_AT: NOON}
        rows = [{column: (event | place).get(column) for column in EVENT_SCHEMA.names} for event in log]
        self._site.lake.append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), {0: position})

    def add_prices(self, prices: list[Price]) -> None:
        rows = {
            "item_id": pa.array([self.prefix + row.item for row in prices], pa.string()),
            **{name: pa.nulls(len(prices), pa.string()) for name in ("title", "category", "brand")},
            "price": pa.array([row.price for row in prices], pa.float64()),
            "available": pa.nulls(len(prices), pa.bool_()),
            "attributes": pa.nulls(len(prices), pa.list_(pa.string())),
            "listed_at": pa.nulls(len(prices), pa.int64()),
            "event_timestamp": pa.array([row.at for row in prices], _TIME),
            "created": pa.array([row.created for row in prices], _TIME),
        }
        append_rows(self._site.settings.lake_dir, names.ITEMS_TABLE, pa.table(rows))

    def labels(self, asked: list[Label]) -> pl.DataFrame:
        """The entity frame. `number` tells rows apart that are otherwise equal."""

        def own(key: str | None) -> str | None:
            return key if key is None else renamed([{names.USER_KEY: key}], self.prefix)[0][names.USER_KEY]

        columns = {
            "number": range(len(asked)),
            "user_id": [own(user) for user, _, _ in asked],
            "item_id": [item if item is None else self.prefix + item for _, item, _ in asked],
            "event_timestamp": [from_micros(t_us) for _, _, t_us in asked],
        }
        return pl.DataFrame(columns, schema_overrides={"user_id": pl.String, "item_id": pl.String})


def join(site: Site, store: FeatureStore, labels: pl.DataFrame, arrived_only: bool = False) -> pl.DataFrame:
    specs = site.definitions.streams
    features = [f"{name}:{aggregate.name}" for name, spec in specs.items() for aggregate in spec.aggregates]
    job = store.get_historical_features(
        labels, [*features, "item_catalogue:price"], full_feature_names=True, filter_by_created_timestamp=arrived_only
    )
    answer = pl.from_arrow(job.to_arrow())
    assert isinstance(answer, pl.DataFrame)
    return answer


def price_at(prices: list[Price], item: str | None, t_us: int) -> float | None:
    """The oracle of a plain view: the newest row up to t; of equal times, the one created later."""
    rows = [row for row in prices if row.item == item and row.at <= t_us]
    return max(rows, key=lambda row: (row.at, row.created)).price if rows else None


# Each example adds to one lake, so a failing one is shown as it was found: shrinking it would take minutes.
QUICK: Any = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
THOROUGH: Any = settings(QUICK, max_examples=150)


def check_rows(site: Site, store: FeatureStore, log: list[Event], prices: list[Price], asked: list[Label]) -> None:
    lake = Lake(site)
    events = first_deliveries(renamed(log, lake.prefix))
    lake.add_events(events)
    lake.add_prices(prices)
    labels = lake.labels(asked)
    answer = join(site, store, labels)
    assert answer.select(labels.columns).equals(labels)
    check_values(site, answer, events, prices, asked)


def check_values(
    site: Site, answer: pl.DataFrame, events: list[Event], prices: list[Price], asked: list[Label]
) -> None:
    """A join against the oracle over some events and rows of the catalogue."""
    assert answer[_PRICE].to_list() == [price_at(prices, item, t_us) for _, item, t_us in asked]
    for name, spec in site.definitions.streams.items():
        keys = [key or "null" for key in answer[spec.join_key].to_list()]
        pairs = [(key, t_us) for key, (_, _, t_us) in zip(keys, asked, strict=True)]
        columns = {aggregate.name: answer[f"{name}__{aggregate.name}"].to_list() for aggregate in spec.aggregates}
        Truth(spec, events).check("offline join", pairs, columns)


@QUICK
@given(logs(), PRICES, LABELS)
def test_each_row_asked_for_comes_back_in_order_with_its_own_values(
    site: Site, store: FeatureStore, log: list[Event], prices: list[Price], asked: list[Label]
) -> None:
    """Law 4. Unknown and null keys read as never seen; equal rows come back as often as they were asked for."""
    check_rows(site, store, log, prices, asked)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@THOROUGH
@given(logs(), PRICES, LABELS)
def test_each_row_asked_for_comes_back_in_order_in_many_joins(
    site: Site, store: FeatureStore, log: list[Event], prices: list[Price], asked: list[Label]
) -> None:
    check_rows(site, store, log, prices, asked)


def check_no_leak(
    site: Site, store: FeatureStore, arrived_only: bool, log: list[Event], prices: list[Price], who: list[Label]
) -> None:
    """All labels at NOON: what a join says must be the same once the lake has learnt what came later."""
    lake = Lake(site)
    asked = [(user, item, NOON) for user, item, _ in who]
    events = first_deliveries(renamed(log, lake.prefix))
    known = [row for row in prices if (row.created if arrived_only else row.at) <= NOON]
    early = [e for e in events if e["timestamp"] < NOON and (e["received_at"] <= NOON or not arrived_only)]
    for more_events, more_prices in ((early, known), (without(events, early), without(prices, known))):
        lake.add_events(more_events)
        lake.add_prices(more_prices)
        answer = join(site, store, lake.labels(asked), arrived_only)
        check_values(site, answer, early, known, asked)


def without(everything: list[Any], some: list[Any]) -> list[Any]:
    return [one for one in everything if one not in some]


@pytest.mark.parametrize("arrived_only", [False, True])
@QUICK
@given(logs(), PRICES, LABELS)
def test_what_came_later_changes_no_training_row(
    site: Site, store: FeatureStore, arrived_only: bool, log: list[Event], prices: list[Price], who: list[Label]
) -> None:
    """Law 6: by event time, or with `filter_by_created_timestamp` by arrival."""
    check_no_leak(site, store, arrived_only, log, prices, who)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arrived_only", [False, True])
@THOROUGH
@given(logs(), PRICES, LABELS)
def test_what_came_later_changes_no_training_row_in_many_joins(
    site: Site, store: FeatureStore, arrived_only: bool, log: list[Event], prices: list[Price], who: list[Label]
) -> None:
    check_no_leak(site, store, arrived_only, log, prices, who)
