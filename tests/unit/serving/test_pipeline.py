"""Law 5, always a slate: whatever is missing, min(n, eligible) items come back and what was missing is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis

from serving.candidates import RecommendationRequest, Slate, Trace
from serving.catalogue import LIVE, SNAPSHOT, Catalogue
from serving.pipeline import last_resort, recommend
from serving.state import ServingState

NOW = 1_000_000_000
CATALOGUE = Catalogue(
    popular=("a", "b", "c", "d", "e"),
    trending=("c", "a"),
    newest=("e",),
    unavailable=frozenset({"b"}),
    popularity={"a": 9.0, "b": 8.0, "c": 7.0},
    origin=LIVE,
    as_of_us=NOW,
)


@dataclass
class Rows:
    columns: dict[str, list[Any]]

    def values(self, t_us: int) -> Mapping[str, Any]:
        return {**self.columns, "t": [t_us]}


@dataclass
class State:
    streams: dict[str, Rows]
    plain: dict[str, Rows]
    newest_us: int = NOW - 5
    complete_us: int = NOW - 2_000
    waiting: tuple[str, ...] = ()


@dataclass
class Reader:
    """The user did `history`; items are available unless named; `errors` are raised by what is fetched."""

    history: list[str] = field(default_factory=lambda: ["a"])
    types: list[str] = field(default_factory=lambda: ["view"])
    sold_out: frozenset[str] = frozenset()
    newest_user_us: int = NOW - 5
    newest_item_us: int = NOW - 5
    complete_us: int = NOW - 2_000
    errors: dict[str, Exception] = field(default_factory=dict)

    def fetch(self, wanted: Mapping[str, Sequence[str]]) -> State:
        for view in wanted:
            if view in self.errors:
                raise self.errors[view]
        if "user_activity" in wanted:
            activity = Rows({"recent_items": [self.history], "recent_types": [self.types]})
            return State({"user_activity": activity}, {}, self.newest_user_us, self.complete_us)
        available = Rows({"available": [item not in self.sold_out for item in wanted["item_catalogue"]]})
        return State({"item_activity": Rows({})}, {"item_catalogue": available}, self.newest_item_us)


@dataclass
class Model:
    """Finds d, then a; neighbours of anything are c; ranks the later letter higher. `broken` names a failing method."""

    broken: str = ""
    version: str = "v1"
    seen_t_us: list[int] = field(default_factory=list)

    def knows(self, item_id: str) -> bool:
        return item_id in "abcd"

    def retrieve(self, user: dict[str, Any], t_us: int, k: int) -> list[tuple[str, float]]:
        self._check("retrieve")
        return [("d", 0.9), ("a", 0.8)]

    def similar_items(self, item_ids: Sequence[str], k: int) -> list[tuple[str, float]]:
        return [("c", 0.7), ("a", 0.6)]

    def rank(self, user: dict[str, Any], item_ids: Sequence[str], items: dict[str, Any], t_us: int) -> Sequence[float]:
        self._check("rank")
        self.seen_t_us += [t_us, *user["user_activity__t"], *items["item_activity__t"]]
        return [float(ord(item)) for item in item_ids]

    def _check(self, method: str) -> None:
        if self.broken == method:
            raise RuntimeError(f"{method} is broken")


def request_for(n: int = 3, exclude: frozenset[str] = frozenset()) -> RecommendationRequest:
    return RecommendationRequest("u", n, exclude)


def slate_of(
    request: RecommendationRequest | None = None,
    state: ServingState | None = None,
    reader: Any = "default",
    deadline_ms: float = 10_000,
) -> Slate:
    return recommend(
        request or request_for(),
        state or ServingState(Model(), CATALOGUE),
        Reader() if reader == "default" else reader,
        lambda: NOW,
        30_000_000,
        Trace(deadline_ms),
    )


def shown(slate: Slate) -> list[tuple[str, str]]:
    return [(candidate.item_id, candidate.source) for candidate in slate.items]


def stage(slate: Slate, name: str) -> Any:
    return next(stage for stage in slate.trace.stages if stage.name == name)


def test_the_ranker_orders_what_the_sources_found_and_each_item_keeps_the_source_that_found_it_first():
    slate = slate_of(request_for(4))
    assert shown(slate) == [("e", "new"), ("d", "two_tower"), ("c", "neighbours"), ("a", "two_tower")]
    assert [candidate.score for candidate in slate.items] == [101.0, 100.0, 99.0, 97.0]
    assert (slate.trace.degraded, slate.model_version, slate.features_age_us) == ([], "v1", 2_000)


def test_stages_report_counts_and_removals_by_reason():
    slate = slate_of(
        request_for(9, frozenset({"d"})),
        ServingState(Model(), replace(CATALOGUE, popular=("a", "b", "c"), newest=("b",))),
        Reader(history=["c"], types=["dislike"]),
    )
    assert [stage.name for stage in slate.trace.stages] == [
        "hydrate",
        "retrieve",
        "filter",
        "features",
        "rank",
        "select",
    ]
    assert stage(slate, "retrieve").count == 4
    assert stage(slate, "filter").removed == {"excluded": 1, "hidden": 1, "unavailable": 1}
    assert shown(slate) == [("a", "two_tower")]


def test_an_item_that_the_catalogue_does_not_know_is_removed():
    slate = slate_of(state=ServingState(Model(), replace(CATALOGUE, popular=("a", "c", "e"))))
    assert stage(slate, "filter").removed == {"unknown": 1}


def test_what_the_store_says_is_sold_out_is_not_shown_although_the_catalogue_still_has_it():
    slate = slate_of(request_for(5), reader=Reader(sold_out=frozenset({"d"})))
    assert [item for item, _ in shown(slate)] == ["e", "c", "a"]
    assert stage(slate, "features").removed == {"unavailable": 1}


def test_too_few_candidates_are_filled_up_from_popularity_to_the_eligible_items():
    slate = slate_of(
        request_for(10, frozenset({"e"})), ServingState(None, replace(CATALOGUE, newest=(), trending=("c",)))
    )
    assert shown(slate) == [("c", "trending"), ("a", "popular"), ("d", "popular")]
    assert [candidate.score for candidate in slate.items] == [7.0, 9.0, 0.0]


def test_features_are_read_as_of_one_time_the_clocks_or_just_after_the_newest_event():
    model = Model()
    assert slate_of(state=ServingState(model, CATALOGUE)).as_of_us == NOW
    assert set(model.seen_t_us) == {NOW}
    assert slate_of(reader=Reader(newest_user_us=NOW + 10)).as_of_us == NOW + 11


def test_an_item_event_ahead_of_the_clock_moves_the_time_of_the_user_too():
    model = Model()
    slate = slate_of(state=ServingState(model, CATALOGUE), reader=Reader(newest_item_us=NOW + 70))
    assert set(model.seen_t_us) == {NOW + 71}
    assert slate.as_of_us == NOW + 71


def test_an_unknown_user_is_marked_and_answered():
    slate = slate_of(reader=Reader(history=[], types=[], newest_user_us=0))
    assert len(slate.items) == 3
    assert slate.trace.degraded == ["unknown_user"]


def test_an_unknown_item_in_the_history_is_marked_and_answered():
    slate = slate_of(reader=Reader(history=["gone", "a"], types=["view", "view"]))
    assert len(slate.items) == 3
    assert slate.trace.degraded == ["unknown_item_in_history"]


def test_an_empty_store_is_marked_and_has_no_age():
    slate = slate_of(reader=Reader(history=[], types=[], newest_user_us=0, complete_us=0))
    assert len(slate.items) == 3
    assert slate.trace.degraded == ["unknown_user", "store_empty"]
    assert slate.features_age_us is None


def test_features_past_the_age_bound_are_marked():
    slate = slate_of(reader=Reader(complete_us=NOW - 30_000_001))
    assert slate.trace.degraded == ["features_stale"]
    assert slate.features_age_us == 30_000_001


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("gone"), redis.TimeoutError("slow"), ValueError("damaged row")]
)
def test_without_the_users_features_the_answer_is_what_trends(error: Exception):
    slate = slate_of(reader=Reader(errors={"user_activity": error}))
    assert shown(slate) == [("c", "trending"), ("a", "trending"), ("e", "new")]
    assert slate.trace.degraded == ["user_features_unavailable"]
    assert slate.trace.errors == {"user_features_unavailable": error}


def test_without_a_reader_the_answer_is_what_trends():
    slate = slate_of(reader=None)
    assert shown(slate) == [("c", "trending"), ("a", "trending"), ("e", "new")]
    assert slate.trace.degraded == ["user_features_unavailable"]


def test_without_item_features_the_order_of_retrieval_holds():
    slate = slate_of(reader=Reader(errors={"item_activity": redis.TimeoutError("slow")}))
    assert shown(slate) == [("d", "two_tower"), ("a", "two_tower"), ("c", "neighbours")]
    assert slate.trace.degraded == ["item_features_unavailable"]


def test_a_broken_ranker_leaves_the_order_of_retrieval():
    slate = slate_of(state=ServingState(Model(broken="rank"), CATALOGUE))
    assert shown(slate) == [("d", "two_tower"), ("a", "two_tower"), ("c", "neighbours")]
    assert slate.trace.degraded == ["ranker_failed"]


def test_a_score_that_is_not_finite_is_a_broken_ranker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Model, "rank", lambda self, user, ids, items, t_us: [float("nan")] * len(ids))
    assert slate_of().trace.degraded == ["ranker_failed"]


def test_a_broken_retrieval_leaves_what_trends_and_the_ranker_still_orders_it():
    slate = slate_of(state=ServingState(Model(broken="retrieve"), CATALOGUE))
    assert shown(slate) == [("e", "new"), ("c", "trending"), ("a", "trending")]
    assert slate.trace.degraded == ["retrieval_failed"]


def test_without_a_model_the_answer_is_what_trends():
    slate = slate_of(state=ServingState(None, CATALOGUE))
    assert shown(slate) == [("c", "trending"), ("a", "trending"), ("e", "new")]
    assert (slate.trace.degraded, slate.model_version) == (["no_model"], None)


def test_past_the_deadline_models_and_item_features_are_left_out():
    slate = slate_of(deadline_ms=0)
    assert shown(slate) == [("c", "trending"), ("a", "trending"), ("e", "new")]
    assert slate.trace.degraded == ["deadline", "user_features_unavailable"]


def test_the_snapshot_on_disk_answers_and_is_marked():
    slate = slate_of(state=ServingState(None, replace(CATALOGUE, origin=SNAPSHOT)), reader=None)
    assert len(slate.items) == 3
    assert slate.trace.degraded == ["user_features_unavailable", "no_model", "catalogue_from_snapshot"]


def test_a_catalogue_that_is_not_refreshed_any_more_is_marked():
    slate = slate_of(state=ServingState(Model(), replace(CATALOGUE, as_of_us=NOW - 30_000_001)))
    assert slate.trace.degraded == ["catalogue_stale"]


def test_with_nothing_at_all_the_slate_is_empty_and_says_so():
    slate = slate_of(state=ServingState(), reader=None)
    assert slate.items == []
    assert slate.trace.degraded == ["user_features_unavailable", "no_model", "catalogue_empty"]


def test_the_last_resort_is_the_order_of_popularity_without_what_is_excluded():
    slate = last_resort(request_for(2, frozenset({"a"})), ServingState(Model(), CATALOGUE), lambda: NOW, Trace(100))
    assert shown(slate) == [("c", "popular"), ("d", "popular")]
    assert slate.trace.degraded == ["pipeline_failed"]


@pytest.mark.parametrize("n", [1, 2, 4, 5, 1_000])
@pytest.mark.parametrize("reader", [Reader(), None, Reader(errors={"item_activity": redis.TimeoutError()})])
@pytest.mark.parametrize("model", [None, Model(), Model(broken="rank"), Model(broken="retrieve")])
def test_the_slate_always_holds_the_smaller_of_n_and_the_eligible_items(
    n: int, reader: Reader | None, model: Model | None
):
    items = [item for item, _ in shown(slate_of(request_for(n), ServingState(model, CATALOGUE), reader))]
    assert len(items) == min(n, 4)
    assert len(set(items)) == len(items)
    assert "b" not in items
