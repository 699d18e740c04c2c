"""Law 5, always a slate: whatever is missing, min(n, eligible) items come back and what was missing is named.

Long because one law has many ways to be short of something.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.arrays import Floats, Ints, Mask
from serving import candidates as c
from serving import catalogue as cat
from serving import pipeline
from serving.activity import Activity
from serving.candidates import RANK, RECOMMEND, SIMILAR, Candidates, Filter, RecommendationRequest, Slate, Trace
from serving.catalogue import Catalogue
from serving.explore import Exploration
from serving.pipeline import Means, answer, last_resort, popular_slate, shortlist
from serving.state import ServingState
from tests import policies
from tests.unit.aggregates.test_batch import MINUTE, NOON, aggregate
from tests.unit.serving.small_shop import COUNTS, VIEWS, StoredState, catalogue, changes, event, item_view

BOUND_US = 30_000_000


@dataclass
class Rows:
    columns: Mapping[str, Any]
    error: Exception | None = None

    def values(self, t_us: int | None = None) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        return {**self.columns, "t": [t_us]}


@dataclass
class Fetched:
    streams: dict[str, Any]
    plain: dict[str, Any]
    newest_us: int
    complete_us: int
    waiting: Sequence[str] = ()


@dataclass
class Reader:
    """The user did `types` to the items of `history`, oldest first. `error` is raised when the store is asked, `damage` by the rows."""

    history: Sequence[str] = ("a",)
    types: Sequence[str] = ("view",)
    newest_us: int = NOON - 5
    complete_us: int = NOON - 2_000
    waiting: Sequence[str] = ()
    error: Exception | None = None
    damage: Exception | None = None
    asked: list[tuple[Any, float | None]] = field(default_factory=list)

    def ask(self, wanted: Mapping[str, Sequence[str]], /) -> Any | None:
        return None

    def fetch(
        self, wanted: Mapping[str, Sequence[str]], /, within_s: float | None = None, sent: Any | None = None
    ) -> Fetched:
        self.asked.append((wanted, within_s))
        if self.error is not None:
            raise self.error
        acts = {"recent_items": [list(self.history)], "recent_types": [list(self.types)]}
        streams = {"user_activity": Rows(acts, self.damage)}
        return Fetched(
            streams, {"user_profile": Rows({"age": [30]})}, self.newest_us, self.complete_us, tuple(self.waiting)
        )


@dataclass
class Model:
    """Finds d, then a; neighbours of anything are c; ranks the later row higher. `broken` names a method that fails with `error`."""

    broken: str = ""
    error: Exception = field(default_factory=lambda: RuntimeError("broken"))
    version: str = "v1"
    activity_features: Sequence[str] = (VIEWS,)
    read: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)
    activity: list[Floats] = field(default_factory=list)

    def read_user(self, user: Mapping[str, Any], t_us: int) -> Any:
        self._check("read_user")
        self.read.append((user, t_us))
        return "the user as read"

    def retrieve(self, user: Any, k: int, allowed: Mask | None) -> tuple[Ints, Floats]:
        self._check("retrieve")
        return self._allowed(np.array([3, 0]), allowed)

    def neighbours(self, rows: Ints, k: int) -> tuple[Ints, Floats]:
        self._check("neighbours")
        return (np.array([2]), np.array([0.7])) if len(rows) else (np.zeros(0, np.int64), np.zeros(0))

    def similar(self, rows: Ints, k: int, allowed: Mask | None) -> tuple[Ints, Floats]:
        self._check("similar")
        return self._allowed(np.array([1, 4, 0]), allowed)

    def rank(self, user: Any, rows: Ints, activity: Floats) -> Floats:
        self._check("rank")
        assert user == "the user as read"
        self.activity.append(activity)
        return rows.astype(np.float64)

    def explain(self, user: Any, rows: Ints, activity: Floats) -> list[dict[str, Any]]:
        self._check("explain")
        return [{"feature": VIEWS, "weight": float(row)} for row in rows]

    def _allowed(self, rows: Ints, allowed: Mask | None) -> tuple[Ints, Floats]:
        rows = rows if allowed is None else rows[allowed[rows]]
        return rows, 0.9 - np.arange(len(rows)) / 10

    def _check(self, method: str) -> None:
        if self.broken == method:
            raise self.error


def shop(**options: Any) -> Catalogue:
    """a to e, the most popular first; b cannot be had, c and a trend, e is new."""
    return catalogue(*"abcde", **{"unavailable": ["b"], "trending": ["c", "a"], "newest": ["e"], **options})


def state_of(
    model: Model | None = None, items: Catalogue | None = None, activity: Activity | None = None
) -> ServingState:
    return ServingState(model or Model(), items or shop(), activity)


def ask(n: int = 3, kind: str = RECOMMEND, *items: str, **options: Any) -> RecommendationRequest:
    return RecommendationRequest(options.pop("user_key", "u"), n, kind, items=items, **options)


def slate_of(
    request: RecommendationRequest | None = None,
    state: ServingState | None = None,
    reader: Any = "default",
    deadline_ms: float = 1_000_000,
    **means: Any,
) -> Slate:
    found = Reader() if reader == "default" else reader
    return answer(
        request or ask(), state or state_of(), Means(found, lambda: NOON, BOUND_US, **means), Trace(deadline_ms)
    )


def shown(slate: Slate) -> list[tuple[str, str]]:
    return list(zip(slate.item_ids, slate.sources, strict=True))


def stage(slate: Slate, name: str) -> Any:
    return next(stage for stage in slate.trace.stages if stage.name == name)


# What happens when all is well.


def test_the_ranker_orders_what_the_sources_found_and_each_item_remembers_who_found_it() -> None:
    slate = slate_of(ask(4), explain=True)
    assert shown(slate) == [("e", "new"), ("d", "two_tower"), ("c", "neighbours"), ("a", "two_tower")]
    assert slate.items.scores.tolist() == [4.0, 3.0, 2.0, 0.0]
    assert (slate.trace.degraded, slate.model_version, slate.features_age_us, slate.as_of_us) == ([], "v1", 2_000, NOON)
    assert {each["item_id"]: each["sources"] for each in slate.trace.explained["items"]} == {
        "e": ["new"],
        "d": ["two_tower"],
        "c": ["neighbours", "trending"],
        "a": ["two_tower", "category_trending", "trending"],
    }


def test_stages_report_counts_and_removals_by_reason() -> None:
    items = shop(newest=["b", "e"])
    items.put(changes("c", state=cat.DELETED))
    request = ask(9, exclude=frozenset({"d"}), wanted=Filter(max_price=5))
    priced = [1.0, 1.0, 9.0]
    items.put(changes("a", "f", "g", price=priced))
    items.announce(items.rows(["f", "g"]))
    slate = slate_of(request, state_of(items=items), Reader(["a", "f"], ["view", "hide"]), explain=True)
    assert [each.name for each in slate.trace.stages] == ["hydrate", "retrieve", "filter", "rank", "select"]
    assert stage(slate, "hydrate").count == 2
    assert stage(slate, "filter").removed == {"hidden": 1, "deleted": 1}
    assert shown(slate) == [("a", "two_tower")]
    assert slate.trace.explained["removed"] == {"hidden": ["f"], "deleted": ["c"]}


def test_too_few_candidates_are_filled_up_from_popularity_to_the_eligible_items() -> None:
    items = shop(newest=[], trending=["c"])
    slate = slate_of(ask(10, exclude=frozenset({"e"})), ServingState(None, items))
    assert shown(slate) == [("c", "trending"), ("a", "popular"), ("d", "popular")]
    assert slate.items.scores.tolist() == [3.0, 5.0, 2.0]


def test_items_that_came_since_the_last_orders_fill_up_the_slate_too() -> None:
    items = shop()
    new = [f"new-{number}" for number in range(50)]
    items.announce(items.put(changes(*new)))
    slate = slate_of(ask(1_000), state_of(items=items))
    assert sorted(slate.item_ids) == sorted([*"acde", *new])


# One t, after every event.


def test_the_model_gets_all_features_as_of_one_time_which_the_answer_names() -> None:
    stored = StoredState(item_view(aggregate("interest", "view", "decayed_sum", span=MINUTE)))
    stored.fold(event("d", NOON - 90), event("a", NOON - 70))
    columns = stored.columns()
    columns.grow(5)
    columns.put(np.array([3, 0]), [stored.rows["d"], stored.rows["a"]], NOON - 70)
    model = Model(activity_features=("item_activity__interest",))
    slate = slate_of(state=state_of(model, shop(trending=[], newest=[]), columns))
    [(user, t_us)] = model.read
    assert (t_us, user["user_activity__t"], user["user_profile__t"], slate.as_of_us) == (NOON, [NOON], [NOON], NOON)
    ranked = [stored.rows["d"], stored.rows["a"], None]
    assert model.activity[0][:, 0].tolist() == list(stored.read(ranked).values(NOON)["interest"])


@pytest.mark.parametrize(
    ("newest_of_user", "newest_of_items", "expected"),
    [(NOON - 5, NOON - 7, NOON), (NOON + 10, NOON - 7, NOON + 11), (NOON, NOON + 70, NOON + 71), (0, NOON, NOON + 1)],
)
def test_t_is_after_every_event_in_the_users_rows_and_in_the_columns(
    newest_of_user: int, newest_of_items: int, expected: int
) -> None:
    stored = StoredState(item_view())
    stored.fold(event("a", newest_of_items))
    columns = stored.columns()
    columns.grow(5)
    columns.put(np.array([0]), [stored.rows["a"]], newest_of_items)
    model = Model()
    slate = slate_of(state=state_of(model, activity=columns), reader=Reader(newest_us=newest_of_user))
    assert slate.as_of_us == expected
    assert model.read[0][1] == expected
    assert model.activity[0][-1].tolist() == [0.0]  # e has no events
    assert 1.0 in model.activity[0]


def test_a_feature_that_the_columns_do_not_have_is_null_and_without_columns_all_are() -> None:
    model = Model(activity_features=(VIEWS, "item_activity__never_defined"))
    columns = StoredState(item_view(*COUNTS)).columns()
    columns.grow(5)
    slate_of(state=state_of(model, activity=columns))
    slate_of(state=state_of(model))
    np.testing.assert_array_equal(model.activity[0], [[0.0, np.nan]] * 4)
    np.testing.assert_array_equal(model.activity[1], [[np.nan, np.nan]] * 4)


# Every fallback, in order.

RETRIEVED = [("d", "two_tower"), ("a", "two_tower"), ("c", "neighbours")]
CATEGORY_FIRST = [("a", "category_trending"), ("c", "trending"), ("e", "new")]
TRENDING_FIRST = [("c", "trending"), ("a", "trending"), ("e", "new")]
POPULAR = [("a", "popular"), ("c", "popular"), ("d", "popular")]


def test_a_broken_ranker_leaves_the_order_of_retrieval() -> None:
    slate = slate_of(state=state_of(Model(broken="rank")))
    assert (shown(slate), slate.trace.degraded) == (RETRIEVED, ["ranker: failed"])


def test_without_a_model_what_trends_in_the_users_main_category_comes_first() -> None:
    slate = slate_of(state=ServingState(None, shop()))
    assert (shown(slate), slate.trace.degraded) == (CATEGORY_FIRST, ["retrieval: no model"])
    assert slate.model_version is None


def test_without_the_users_features_what_trends_anywhere_comes_first() -> None:
    slate = slate_of(reader=None)
    assert (shown(slate), slate.trace.degraded) == (TRENDING_FIRST, ["hydrate: user features unavailable"])


def test_where_nothing_trends_and_nothing_is_new_the_order_of_popularity_is_left() -> None:
    slate = slate_of(state=ServingState(None, shop(trending=[], newest=[])), reader=None)
    assert shown(slate) == POPULAR
    assert slate.trace.degraded == ["hydrate: user features unavailable", "retrieval: no model"]


@pytest.mark.parametrize(
    ("origin", "named"), [(cat.SNAPSHOT, "catalogue: from snapshot"), (cat.BUNDLE, "catalogue: from bundle")]
)
def test_a_catalogue_that_is_not_the_stores_answers_and_is_named(origin: str, named: str) -> None:
    slate = slate_of(state=ServingState(None, shop(origin=origin, trending=[], newest=[])), reader=None)
    assert shown(slate) == POPULAR
    assert slate.trace.degraded == ["hydrate: user features unavailable", "retrieval: no model", named]


def test_a_catalogue_whose_orders_are_old_or_were_never_made_is_named() -> None:
    old = slate_of(state=state_of(items=shop(as_of_us=NOON - BOUND_US - 1)))
    assert old.trace.degraded == ["catalogue: stale"]
    assert slate_of(state=state_of(items=shop(as_of_us=NOON - BOUND_US))).trace.degraded == []
    assert slate_of(state=state_of(items=shop(as_of_us=0))).trace.degraded == ["catalogue: popularity unavailable"]


def test_with_nothing_at_all_the_slate_is_empty_and_says_so() -> None:
    slate = slate_of(state=ServingState(), reader=None)
    assert slate.item_ids == []
    assert slate.trace.degraded == [
        "hydrate: user features unavailable",
        "retrieval: no model",
        "catalogue: empty",
    ]


# The store.


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("gone"), redis.TimeoutError("stalled"), OSError("no route"), LookupError("view")]
)
def test_a_store_that_fails_or_stalls_is_named_and_its_error_kept(error: Exception) -> None:
    slate = slate_of(reader=Reader(error=error))
    assert (shown(slate), slate.trace.degraded) == (TRENDING_FIRST, ["hydrate: user features unavailable"])
    assert slate.trace.errors == {"hydrate: user features unavailable": error}


def test_rows_that_cannot_be_read_count_as_none() -> None:
    slate = slate_of(reader=Reader(damage=ValueError("a damaged row")))
    assert (shown(slate), slate.trace.degraded) == (TRENDING_FIRST, ["hydrate: user features unavailable"])
    assert slate.features_age_us == 2_000


def test_the_store_gets_half_of_the_time_that_is_left() -> None:
    reader = Reader()
    slate_of(reader=reader, deadline_ms=10_000)
    [(wanted, within_s)] = reader.asked
    assert wanted == {"user_activity": ["u"], "user_profile": ["u"]}
    assert within_s == pytest.approx(5, abs=1)


def test_features_past_the_age_bound_count_as_unavailable() -> None:
    slate = slate_of(reader=Reader(complete_us=NOON - BOUND_US - 1))
    assert (shown(slate), slate.trace.degraded) == (TRENDING_FIRST, ["hydrate: features stale"])
    assert slate.features_age_us == BOUND_US + 1
    assert slate_of(reader=Reader(complete_us=NOON - BOUND_US)).trace.degraded == []


def test_a_user_who_has_been_quiet_for_a_year_is_not_old() -> None:
    assert slate_of(reader=Reader(newest_us=NOON - 365 * 24 * 60 * MINUTE)).trace.degraded == []


def test_an_unknown_user_is_named_and_the_model_still_answers() -> None:
    slate = slate_of(reader=Reader([], [], newest_us=0))
    assert shown(slate) == [("e", "new"), ("d", "two_tower"), ("c", "trending")]
    assert slate.trace.degraded == ["hydrate: unknown user"]


def test_an_empty_store_is_named_and_has_no_age() -> None:
    slate = slate_of(reader=Reader([], [], newest_us=0, complete_us=0))
    assert len(slate.item_ids) == 3
    assert slate.trace.degraded == ["hydrate: store empty", "hydrate: unknown user"]
    assert slate.features_age_us is None


def test_features_that_await_a_backfill_are_named() -> None:
    assert slate_of(reader=Reader(waiting=["user_activity.new"])).trace.degraded == ["hydrate: features await backfill"]


# The deadline, at each stage.


class Ends:
    """A trace whose deadline has passed from the nth look on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.looks = 0
        self.after = after
        monkeypatch.setattr(Trace, "left_s", lambda _: self.look())

    def look(self) -> float:
        self.looks += 1
        return 1.0 if self.looks <= self.after else -0.001


@pytest.mark.parametrize(
    ("looks", "degraded", "expected"),
    [
        (0, ["hydrate: deadline", "retrieval: deadline"], POPULAR),
        (1, ["retrieval: deadline"], POPULAR),
        (2, ["retrieval: deadline", "ranker: deadline"], [("d", "two_tower"), ("a", "two_tower"), ("c", "popular")]),
        (7, ["ranker: deadline"], RETRIEVED),
        (8, [], [("e", "new"), ("d", "two_tower"), ("c", "neighbours")]),
    ],
)
def test_a_deadline_is_named_by_the_stage_that_it_passed_in_and_the_slate_is_full_all_the_same(
    monkeypatch: pytest.MonkeyPatch, looks: int, degraded: list[str], expected: list[tuple[str, str]]
) -> None:
    Ends(monkeypatch, looks)
    slate = slate_of()
    assert (slate.trace.degraded, shown(slate)) == (degraded, expected)


def test_the_ranker_is_left_out_where_it_is_expected_to_take_longer_than_is_left() -> None:
    slate = slate_of(deadline_ms=10_000, rank_s=60)
    assert (shown(slate), slate.trace.degraded) == (RETRIEVED, ["ranker: deadline"])


def test_what_weighed_is_left_out_where_no_time_is_left_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    Ends(monkeypatch, 8)
    slate = slate_of(explain=True)
    assert slate.trace.degraded == ["explain: deadline"]
    assert [each["features"] for each in slate.trace.explained["items"]] == [[], [], []]


# Items that are not known, deleted, unavailable, hidden, excluded, filtered.


def test_an_unknown_item_in_the_history_is_named_and_the_others_count() -> None:
    slate = slate_of(reader=Reader(["gone", "a"], ["view", "view"]))
    assert ("c", "neighbours") in shown(slate)
    assert slate.trace.degraded == ["hydrate: unknown item in history"]


def test_deleted_and_unavailable_items_in_the_history_seed_others_and_are_not_shown() -> None:
    items = shop(unavailable=["b"], deleted=["a"])
    slate = slate_of(ask(9), state_of(items=items), Reader(["a", "b"], ["view", "view"]))
    assert sorted(slate.item_ids) == ["c", "d", "e"]
    assert slate.trace.degraded == []
    assert stage(slate, "filter").removed == {"deleted": 1}


def test_what_the_user_hid_or_disliked_is_not_shown_and_unknown_exclusions_do_nothing() -> None:
    request = ask(9, exclude=frozenset({"d", "never heard of"}))
    slate = slate_of(request, reader=Reader(["a", "e", "c"], ["dislike", "hide", "view"]))
    assert slate.item_ids == ["c"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(category=frozenset({"books"})), {"c", "d"}),
        (Filter(category=frozenset({"books", "shoes"}), brand=frozenset({"x"})), {"a", "d"}),
        (Filter(min_price=2.0), {"c", "d"}),
        (Filter(max_price=2.0), {"a"}),
        (Filter(min_price=3.0, max_price=3.0), {"c"}),
        (Filter(category=frozenset({"toys"})), set()),
        (Filter(include_unavailable=True), {"a", "b", "c", "d", "e"}),
        (Filter(category=frozenset({"shoes"}), include_unavailable=True), {"a", "b", "e"}),
    ],
)
@pytest.mark.parametrize("kind", [RECOMMEND, RANK, SIMILAR])
def test_a_filter_leaves_what_is_wanted_from_whichever_source(wanted: Filter, expected: set[str], kind: str) -> None:
    items = shop()
    items.put(changes("a", "c", "d", "e", price=[1.0, 3.0, 4.0, None], brand=["x", None, "x", "y"]))
    given = {RECOMMEND: (), RANK: tuple("abcde"), SIMILAR: ("seed",)}[kind]
    items.put(changes("seed", state=cat.DELETED))
    slate = slate_of(ask(9, kind, *given, wanted=wanted), state_of(items=items))
    assert set(slate.item_ids) == expected


# Orders of given items.


def test_rank_keeps_all_given_items_and_those_that_nobody_knows_come_last_in_the_order_given() -> None:
    slate = slate_of(ask(9, RANK, "x", "a", "c", "z", "d"))
    assert shown(slate) == [("d", "given"), ("c", "given"), ("a", "given")]
    assert list(slate.unknown) == ["x", "z"]
    assert slate.trace.degraded == ["retrieval: unknown item"]
    assert list(slate_of(ask(4, RANK, "x", "a", "c", "z", "d")).unknown) == ["x"]
    hid = Reader(["x", "a"], ["hide", "view"])
    assert list(slate_of(ask(4, RANK, "x", "a", "c", "z"), reader=hid).unknown) == ["z"]


def test_rank_leaves_out_what_is_excluded_and_adds_nothing_from_popularity() -> None:
    slate = slate_of(ask(9, RANK, "x", "a", "b", "c", exclude=frozenset({"a", "x"})))
    assert (slate.item_ids, list(slate.unknown)) == (["c"], [])


def test_rank_without_a_model_or_past_the_deadline_keeps_the_order_given() -> None:
    for slate in (
        slate_of(ask(9, RANK, "d", "a", "c"), ServingState(None, shop())),
        slate_of(ask(9, RANK, "d", "a", "c"), deadline_ms=10_000, rank_s=60),
        slate_of(ask(9, RANK, "d", "a", "c"), reader=None),
    ):
        assert slate.item_ids == ["d", "a", "c"]
        assert len(slate.trace.degraded) == 1


def test_rank_past_the_deadline_before_retrieval_keeps_all_given_items() -> None:
    slate = slate_of(ask(9, RANK, "d", "a", "x", "c"), deadline_ms=0)
    assert (slate.item_ids, list(slate.unknown)) == (["d", "a", "c"], ["x"])


# Items like given ones.


def test_similar_never_returns_its_seeds_whatever_is_missing() -> None:
    for state in (state_of(), ServingState(None, shop()), state_of(Model(broken="similar"))):
        for deadline_ms in (0, 1_000_000):
            slate = slate_of(ask(9, SIMILAR, "a", "d", user_key=None), state, deadline_ms=deadline_ms)
            assert sorted(slate.item_ids) == ["c", "e"]
    request = ask(9, SIMILAR, "a", "d")
    for slate in (
        last_resort(request, state_of(), lambda: NOON, Trace(100)),
        popular_slate(request, state_of(), lambda: NOON, Trace(100)),
    ):
        assert slate.item_ids == ["c", "e"]


def test_similar_needs_no_user_and_asks_no_store() -> None:
    reader = Reader()
    slate = slate_of(ask(2, SIMILAR, "a", user_key=None), reader=reader)
    assert shown(slate) == [("e", "similar"), ("c", "neighbours")]
    assert (reader.asked, slate.trace.degraded) == ([], [])


def test_similar_hides_what_the_user_hid() -> None:
    slate = slate_of(ask(9, SIMILAR, "a"), reader=Reader(["e"], ["hide"]))
    assert sorted(slate.item_ids) == ["c", "d"]


def test_similar_to_nothing_that_is_known_is_what_is_popular() -> None:
    slate = slate_of(ask(2, SIMILAR, "x", user_key=None))
    assert shown(slate) == [("a", "popular"), ("c", "popular")]
    assert slate.trace.degraded == ["retrieval: unknown item"]


def test_similar_without_a_model_is_what_trends_in_the_category() -> None:
    slate = slate_of(ask(2, SIMILAR, "e", user_key=None), ServingState(None, shop()))
    assert shown(slate) == [("a", "category_trending"), ("c", "popular")]
    assert slate.trace.degraded == ["retrieval: no model"]


# A model that fails anywhere.

FAILURES = [RuntimeError("shapes"), ValueError("nan"), KeyError("feature"), TypeError("None"), ZeroDivisionError()]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [RECOMMEND, RANK, SIMILAR])
@pytest.mark.parametrize("method", ["read_user", "retrieve", "neighbours", "similar", "rank", "explain"])
def test_a_model_that_throws_in_any_method_costs_no_item(method: str, kind: str, error: Exception) -> None:
    given = {RECOMMEND: (), RANK: tuple("acde"), SIMILAR: ("x",)}[kind]
    items = shop()
    items.put(changes("x", state=cat.DELETED))
    slate = slate_of(ask(9, kind, *given), state_of(Model(broken=method, error=error), items), explain=True)
    assert sorted(slate.item_ids) == ["a", "c", "d", "e"]
    assert set(slate.trace.errors.values()) <= {error}
    named = {"rank": "ranker: failed", "explain": "ranker: failed"}.get(method, "retrieval: failed")
    asks = {
        RECOMMEND: {"read_user", "retrieve", "neighbours", "rank", "explain"},
        RANK: {"read_user", "rank", "explain"},
        SIMILAR: {"similar", "neighbours"},
    }
    assert slate.trace.degraded == ([named] if method in asks[kind] else [])


def test_where_retrieval_fails_the_ranker_still_orders_what_others_find() -> None:
    slate = slate_of(state=state_of(Model(broken="retrieve")))
    assert shown(slate) == [("e", "new"), ("c", "neighbours"), ("a", "category_trending")]


def test_items_of_equal_score_stand_by_id_whatever_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "rank", lambda self, user, rows, activity: np.where(rows == rows.max(), 2.0, 1.0))
    found = slate_of(ask(9)).item_ids
    assert found[1:] == sorted(found[1:])
    assert len(found) > 2


def test_a_score_that_is_not_finite_is_a_failed_ranker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "rank", lambda self, user, rows, activity: np.full(len(rows), np.nan))
    slate = slate_of()
    assert (shown(slate), slate.trace.degraded) == (RETRIEVED, ["ranker: failed"])


def test_the_last_resort_is_the_order_of_popularity_without_what_is_excluded() -> None:
    request = ask(2, exclude=frozenset({"a"}))
    slate = last_resort(request, state_of(), lambda: NOON, Trace(100))
    assert shown(slate) == [("c", "popular"), ("d", "popular")]
    assert slate.trace.degraded == ["pipeline: failed"]


def test_the_cheapest_answer_to_a_ranking_is_the_order_given() -> None:
    slate = popular_slate(ask(3, RANK, "d", "b", "x", "a", "c"), state_of(), lambda: NOON, Trace(100))
    assert slate.item_ids == ["d", "a", "c"]
    slate = popular_slate(ask(9, RANK, "d", "b", "x", "a"), state_of(), lambda: NOON, Trace(100))
    assert (slate.item_ids, list(slate.unknown)) == (["d", "a"], ["x"])


# Exploration.

ALWAYS = Exploration(share=1.0, temperature=100.0)


def explored(slate: Slate) -> list[str]:
    """Items of the places whose chances are known."""
    assert slate.chances is not None
    return slate.item_ids[: len(slate.chances.propensities)]


@pytest.mark.parametrize("request_", [ask(9), ask(9, RANK, "d", "a", "x", "c", "e")], ids=["recommend", "rank"])
def test_an_explored_slate_holds_the_same_items_in_an_order_that_its_request_decides(
    request_: RecommendationRequest,
) -> None:
    plain = slate_of(request_)
    slates = [slate_of(request_, exploration=ALWAYS, request_id=f"r{number}") for number in range(20)]
    assert {tuple(sorted(slate.item_ids)) for slate in slates} == {tuple(sorted(plain.item_ids))}
    assert len({tuple(slate.item_ids) for slate in slates}) > 5
    assert all(slate.is_explored for slate in slates)
    again = slate_of(request_, exploration=ALWAYS, request_id="r3")
    assert again.item_ids == slates[3].item_ids
    assert sorted(explored(again)) == ["a", "c", "d", "e"]


def test_the_chances_of_an_explored_slate_follow_from_its_scores() -> None:
    how = Exploration(share=0.4, temperature=2.0)
    for number in range(20):
        slate = slate_of(ask(4), exploration=how, request_id=f"r{number}")
        by_score = sorted(slate.items.scores.tolist(), reverse=True)
        places = [by_score.index(score) for score in slate.items.scores.tolist()]
        scores = [max(score, 1e-12) for score in by_score]
        chances = [policies.prefix(scores, places[:k], 0.4, 2.0) for k in range(5)]
        assert slate.chances is not None
        assert slate.chances.propensities == pytest.approx([chances[k + 1] / chances[k] for k in range(4)])


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (ask(9, SIMILAR, "a", "d"), {}),
        (ask(9), {"state": ServingState(None, shop())}),
        (ask(9), {"state": state_of(Model(broken="rank"))}),
        (ask(9), {"deadline_ms": 10_000, "rank_s": 60}),
        (ask(9), {"reader": None}),
    ],
    ids=["similar", "no model", "ranker failed", "ranker late", "no features"],
)
def test_what_no_ranker_has_put_in_order_is_never_explored(
    request_: RecommendationRequest, options: dict[str, Any]
) -> None:
    found = slate_of(request_, exploration=ALWAYS, request_id="r", **options)
    assert found.chances is None
    assert found.item_ids == slate_of(request_, **options).item_ids


def test_without_exploration_nothing_is_said_of_chances() -> None:
    assert slate_of(ask(9), request_id="r").chances is None


# What weighed.


def test_an_explained_answer_says_what_was_removed_who_found_each_item_and_what_weighed() -> None:
    slate = slate_of(ask(2, exclude=frozenset({"d"})), explain=True)
    assert slate.trace.explained == {
        "removed": {"excluded": ["d"]},
        "items": [
            {"item_id": "e", "sources": ["new"], "features": {"feature": VIEWS, "weight": 4.0}},
            {"item_id": "c", "sources": ["neighbours", "trending"], "features": {"feature": VIEWS, "weight": 2.0}},
        ],
    }
    assert slate_of().trace.explained == {}


def test_without_a_model_nothing_weighed_and_the_sources_are_told_all_the_same() -> None:
    slate = slate_of(ask(1), ServingState(None, shop()), explain=True)
    found = {"item_id": "a", "sources": ["category_trending", "trending"], "features": []}
    assert slate.trace.explained == {"removed": {}, "items": [found]}


# The shortlist.


def kept(*sources: str) -> Candidates:
    """One candidate of each source, in that order."""
    bits = np.array([c.BIT[source] for source in sources], np.int64)
    return Candidates(np.arange(len(sources)), bits, np.zeros(len(sources)))


@pytest.mark.parametrize(
    ("sources", "most", "first"),
    [
        (["two_tower"] * 3, 3, [0, 1, 2]),
        (["two_tower"] * 6 + ["new"], 4, [0, 1, 2, 6]),
        (["two_tower"] * 6 + ["new"] * 9, 4, [0, 1, 6, 7]),
        (["new"] * 9, 4, [0, 1, 2, 3]),
        (["two_tower"] + ["new"] * 9, 4, [0, 1, 2, 3]),
    ],
)
def test_the_index_makes_room_on_the_shortlist_for_every_other_source(
    sources: list[str], most: int, first: list[int]
) -> None:
    chosen, rest = shortlist(kept(*sources), most)
    assert chosen.rows.tolist() == first
    assert rest.rows.tolist() == [row for row in range(len(sources)) if row not in first]


def test_a_slate_longer_than_the_shortlist_goes_on_in_the_order_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RANKED", 2)
    slate = slate_of(ask(9))
    assert shown(slate) == [("d", "two_tower"), ("c", "neighbours"), ("a", "two_tower"), ("e", "new")]
    assert stage(slate, "rank").count == 2


# The law.

READERS: dict[str, Callable[[], Reader | None]] = {
    "good": lambda: Reader(["a", "gone", "b"], ["view", "view", "add_to_cart"]),
    "hiding": lambda: Reader(["d", "c"], ["hide", "dislike"]),
    "none": lambda: None,
    "failing": lambda: Reader(error=redis.TimeoutError()),
    "damaged": lambda: Reader(damage=ValueError()),
    "stale": lambda: Reader(complete_us=1),
}
MODELS = [None, *(Model(broken=method) for method in ("", "read_user", "retrieve", "neighbours", "similar", "rank"))]
STATES = st.sampled_from([cat.AVAILABLE, cat.AVAILABLE, cat.UNAVAILABLE, cat.DELETED])


@settings(max_examples=150, deadline=None)
@given(
    states=st.lists(STATES, max_size=30),
    kind=st.sampled_from([RECOMMEND, RANK, SIMILAR]),
    n=st.sampled_from([1, 2, 5, 29, 1_000]),
    exclude=st.sets(st.sampled_from([*"abcde", "5", "7", "x"])),
    asked=st.lists(st.sampled_from([*"abcde", "5", "6", "7", "x", "y"]), min_size=1, unique=True),
    reader=st.sampled_from(sorted(READERS)),
    model=st.sampled_from(MODELS),
    deadline_ms=st.sampled_from([0, 1_000_000]),
    books=st.booleans(),
    unavailable_too=st.booleans(),
    ordered=st.integers(0, 35),
)
def test_the_slate_always_holds_the_smaller_of_n_and_the_eligible_items(
    states: list[int], kind: str, n: int, exclude: set[str], asked: list[str], reader: str, model: Model | None,
    deadline_ms: float, books: bool, unavailable_too: bool, ordered: int,
) -> None:  # fmt: skip
    """Law 5. Eligible: known to the catalogue, there, wanted, and neither excluded, hidden nor a seed; of a ranking, given."""
    ids = [*"abcde", *(str(number) for number in range(5, 5 + len(states)))]
    items = catalogue(*ids[:ordered], trending=ids[: ordered // 2], newest=ids[: ordered // 3])
    whole = [cat.AVAILABLE] * 5 + states
    for item, state in zip(ids, whole, strict=True):
        known = item in items.row_of
        row = items.put(changes(item, state=state))
        items.announce(row[:0] if known else row)
    category = frozenset({"books"}) if books else None
    wanted = Filter(category, include_unavailable=unavailable_too)
    given = tuple(asked) if kind != RECOMMEND else ()
    request = ask(n, kind, *given, exclude=frozenset(exclude), wanted=wanted)
    slate = slate_of(
        request, state_of(model, items) if model else ServingState(None, items), READERS[reader](), deadline_ms
    )

    hidden = {"d", "c"} if reader == "hiding" and deadline_ms else set()
    eligible = {
        item
        for item, state in zip(ids, whole, strict=True)
        if state == cat.AVAILABLE or (unavailable_too and state == cat.UNAVAILABLE)
        if item not in exclude | hidden and (not books or item in "cd")
        if item in asked or kind != RANK
        if item not in asked or kind != SIMILAR
    }
    unknown = [item for item in asked if item not in ids and item not in exclude] if kind == RANK and not books else []
    assert len(slate.item_ids) == min(n, len(eligible))
    assert len(set(slate.item_ids)) == len(slate.item_ids)
    assert set(slate.item_ids) <= eligible
    assert list(slate.unknown) == unknown[: n - len(slate.item_ids)]
