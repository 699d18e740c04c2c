from collections import Counter
from itertools import pairwise

import pytest

from headrace import names
from headrace.clock import to_micros
from headrace.events import EventIn, parse
from headrace.ingest.simulator import ShopConfig, ShopHistory, simulate
from headrace.settings import DAY_US

SMALL = ShopConfig(users=100, items=120, categories=6, events=4_000, days=2)


@pytest.fixture(scope="module")
def history() -> ShopHistory:
    return simulate(SMALL)


def test_the_same_config_gives_the_same_history_and_another_seed_another(history: ShopHistory) -> None:
    assert simulate(SMALL) == history
    assert (
        simulate(ShopConfig(users=100, items=120, categories=6, events=4_000, days=2, seed=1)).events != history.events
    )


def test_events_are_valid_and_stand_in_order_of_time_and_id_inside_the_span(history: ShopHistory) -> None:
    parsed = [parse(event) for event in history.events]
    assert all(isinstance(event, EventIn) for event in parsed)
    order = [(to_micros(event.timestamp), event.event_id) for event in parsed if isinstance(event, EventIn)]
    assert order == sorted(set(order))
    assert SMALL.start_us <= order[0][0] < order[-1][0] < SMALL.end_us
    assert all(event["timestamp"].endswith("Z") and len(event["timestamp"]) == 27 for event in history.events)


def test_the_number_of_events_is_met_to_within_a_session(history: ShopHistory) -> None:
    assert SMALL.events <= len(history.events) < SMALL.events + 200


def test_every_kind_of_event_that_the_models_read_is_there(history: ShopHistory) -> None:
    kinds = Counter(event["type"] for event in history.events)
    assert set(kinds) == {
        names.VIEW, names.CLICK, names.ADD_TO_CART, names.REMOVE_FROM_CART, names.PURCHASE, names.SEARCH,
        names.LIKE, names.RATE, names.DWELL, names.IMPRESSION,
    }  # fmt: skip
    assert kinds[names.VIEW] > kinds[names.CLICK] > kinds[names.ADD_TO_CART] > kinds[names.PURCHASE]


def test_clicks_that_answer_a_slate_name_an_impression_shown_before_them(history: ShopHistory) -> None:
    shown = {}
    for event in history.events:
        if event["type"] == names.IMPRESSION:
            shown[event["request_id"], event["position"]] = (event["item_id"], event["timestamp"])
    answers = [event for event in history.events if event["type"] == names.CLICK and "request_id" in event]
    assert answers
    for click in answers:
        item, shown_at = shown[click["request_id"], click["position"]]
        assert click["item_id"] == item
        assert click["timestamp"] >= shown_at


def test_a_slate_shows_each_item_once(history: ShopHistory) -> None:
    slates: dict[str, list[str]] = {}
    for event in history.events:
        if event["type"] == names.IMPRESSION:
            slates.setdefault(event["request_id"], []).append(event["item_id"])
    assert all(len(set(items)) == len(items) for items in slates.values())


def test_only_listed_and_available_items_are_looked_at(history: ShopHistory) -> None:
    listed = {row.item_id: row.event_timestamp_us for row in reversed(history.items)}
    withdrawn = {row.item_id: row.event_timestamp_us for row in history.items if not row.available}
    assert any(time >= SMALL.start_us for time in listed.values())
    for event in history.events:
        if event["type"] == names.IMPRESSION:
            shown_us = to_micros(parse(event).timestamp)  # type: ignore[union-attr]
            assert listed[event["item_id"]] <= shown_us
            # An offer may outlive its item by one visit: the shelf is looked at hour by hour.
            assert shown_us < withdrawn.get(event["item_id"], SMALL.end_us) + DAY_US


def test_anonymous_visitors_have_no_profile(history: ShopHistory) -> None:
    assert history.profiles.num_rows == 85
    known = set(history.profiles["user_id"].to_pylist())
    seen = {event["user_id"] for event in history.events if "user_id" in event}
    assert seen <= known
    assert any("anonymous_id" in event for event in history.events)


def test_prices_of_events_are_those_of_the_catalogue_at_that_time(history: ShopHistory) -> None:
    states: dict[str, list[tuple[int, float | None]]] = {}
    for row in history.items:
        states.setdefault(row.item_id, []).append((row.event_timestamp_us, row.price))
    for event in history.events:
        if event["type"] == names.VIEW:
            at_us = to_micros(parse(event).timestamp)  # type: ignore[union-attr]
            assert event["price"] == [price for since_us, price in states[event["item_id"]] if since_us <= at_us][-1]


def test_the_item_before_says_much_more_of_the_next_one_than_popularity(history: ShopHistory) -> None:
    category = {row.item_id: row.category for row in history.items}
    views: dict[str, list[str]] = {}
    for event in history.events:
        if event["type"] == names.VIEW:
            views.setdefault(event.get("user_id") or event["anonymous_id"], []).append(event["item_id"])
    ranked = [item for item, _ in Counter(item for seen in views.values() for item in seen).most_common()]
    popular = ranked[:5]
    of_category = {c: [item for item in ranked if category[item] == c][:5] for c in set(category.values())}
    steps = [step for seen in views.values() for step in pairwise(seen)]
    by_popularity = sum(after in popular for _, after in steps)
    by_category = sum(after in of_category[category[before]] for before, after in steps)
    assert by_category > 2 * by_popularity


def test_a_shop_with_fewer_items_than_categories_is_refused() -> None:
    with pytest.raises(ValueError, match="each category needs an item"):
        ShopConfig(items=3, categories=4)
