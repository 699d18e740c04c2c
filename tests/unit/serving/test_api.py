"""Bodies of the three questions: what is well formed becomes a request, what is not is refused with field and reason."""

from typing import Any

import pytest

from serving.api import AskIn, RankIn, RecommendIn, SimilarIn, parse
from serving.candidates import EVERYTHING, RANK, RECOMMEND, SIMILAR, Filter, RecommendationRequest
from serving.web import Problem


def test_a_body_of_very_many_fields_is_refused_without_a_look_at_each() -> None:
    for body in (
        dict.fromkeys(map(str, range(300_000)), 1),
        {"user_id": "u", "filter": dict.fromkeys(map(str, range(300_000)), 1)},
    ):
        with pytest.raises(Problem, match="300000 fields in one object"):
            parse(RecommendIn, body)


def test_the_least_that_can_be_asked() -> None:
    assert parse(RecommendIn, {"user_id": "u"}).to_request() == RecommendationRequest("u", 20, RECOMMEND)
    assert parse(RecommendIn, {"anonymous_id": "a"}).to_request().user_key == "anon:a"
    assert parse(RankIn, {"user_id": "u", "items": ["b", "a"]}).to_request() == RecommendationRequest(
        "u", 2, RANK, items=("b", "a")
    )
    assert parse(SimilarIn, {"items": ["a"]}).to_request() == RecommendationRequest(None, 20, SIMILAR, items=("a",))


def test_everything_that_can_be_asked() -> None:
    asked = parse(
        SimilarIn,
        {
            "user_id": "u", "anonymous_id": "a", "session_id": "s", "n": 5, "context": {"device": "phone"},
            "exclude": ["x", "x"], "deadline_ms": 30, "explain": True, "after": "e.0-1", "items": ["b", "a", "b"],
            "filter": {"category": ["shoes"], "brand": ["y"], "min_price": 1, "max_price": 2.5, "include_unavailable": True},
        },
    )  # fmt: skip
    wanted = Filter(frozenset({"shoes"}), frozenset({"y"}), 1, 2.5, True)
    assert asked.to_request() == RecommendationRequest("u", 5, SIMILAR, frozenset({"x"}), wanted, ("b", "a"))
    assert asked.who == {"user_id": "u", "anonymous_id": "a", "session_id": "s"}
    assert (asked.deadline_ms, asked.explain, asked.after) == (30, True, "e.0-1")


def test_an_item_given_twice_is_ranked_once_and_n_may_be_smaller() -> None:
    assert parse(RankIn, {"user_id": "u", "items": ["b", "a", "b"]}).to_request().items == ("b", "a")
    assert parse(RankIn, {"user_id": "u", "items": ["b", "a"], "n": 1}).to_request().n == 1


def test_a_filter_that_says_nothing_wants_everything() -> None:
    assert parse(RecommendIn, {"user_id": "u", "filter": {}}).to_request().wanted == EVERYTHING
    assert not EVERYTHING.narrows
    assert not Filter(include_unavailable=True).narrows
    assert Filter(min_price=0.0).narrows


USER = {"user_id": "u"}
MANY = [str(number) for number in range(5_001)]


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (RecommendIn, [], "the body: Input should be"),
        (RecommendIn, None, "the body: Input should be"),
        (RecommendIn, "text", "the body: Input should be"),
        (RecommendIn, {}, "one of user_id and anonymous_id is needed"),
        (RecommendIn, {"user_id": 5}, "user_id: Input should be a valid string"),
        (RecommendIn, {"user_id": ""}, "user_id: String should have at least 1 character"),
        (RecommendIn, {"user_id": "x" * 129}, "user_id: String should have at most 128 characters"),
        (RecommendIn, {"user_id": "a\nb"}, "user_id: String should match"),
        (RecommendIn, {"user_id": "anon:x"}, "user_id must not begin with 'anon:'"),
        (SimilarIn, {"user_id": "anon:x", "items": ["a"]}, "user_id must not begin with 'anon:'"),
        (RecommendIn, USER | {"n": 0}, "n: Input should be greater than or equal to 1"),
        (RecommendIn, USER | {"n": -1}, "n: Input should be greater than or equal to 1"),
        (RecommendIn, USER | {"n": 1_001}, "n: Input should be less than or equal to 1000"),
        (RecommendIn, USER | {"n": 10_000}, "n: Input should be less than or equal to 1000"),
        (RecommendIn, USER | {"n": "5"}, "n: Input should be a valid integer"),
        (RecommendIn, USER | {"n": 5.5}, "n: Input should be a valid integer"),
        (RecommendIn, USER | {"n": True}, "n: Input should be a valid integer"),
        (RecommendIn, USER | {"n": None}, "n: Input should be a valid integer"),
        (RankIn, USER | {"items": ["a"], "n": 0}, "n: Input should be greater than or equal to 1"),
        (RecommendIn, USER | {"stages": True}, "stages: Extra inputs are not permitted"),
        (RecommendIn, USER | {"items": ["a"]}, "items: Extra inputs are not permitted"),
        (RecommendIn, USER | {"exclude": "a"}, "exclude: Input should be a valid list"),
        (RecommendIn, USER | {"exclude": [5]}, "exclude.0: Input should be a valid string"),
        (RecommendIn, USER | {"exclude": MANY}, "exclude: List should have at most 5000 items"),
        (RecommendIn, USER | {"explain": "yes"}, "explain: Input should be a valid boolean"),
        (RecommendIn, USER | {"after": 5}, "after: Input should be a valid string"),
        (RecommendIn, USER | {"after": "e" * 40_001}, "after: String should have at most 40000 characters"),
        (RecommendIn, USER | {"context": {"colour": "red"}}, "context.colour: Extra inputs are not permitted"),
        (RecommendIn, USER | {"deadline_ms": 0}, "deadline_ms: Input should be greater than 0"),
        (RecommendIn, USER | {"deadline_ms": 60_001}, "deadline_ms: Input should be less than or equal to 60000"),
        (RecommendIn, USER | {"deadline_ms": "10"}, "deadline_ms: Input should be a valid number"),
        (RecommendIn, USER | {"filter": []}, "filter: Input should be"),
        (RecommendIn, USER | {"filter": {"category": []}}, "filter.category: List should have at least 1 item"),
        (RecommendIn, USER | {"filter": {"category": "shoes"}}, "filter.category: Input should be a valid list"),
        (RecommendIn, USER | {"filter": {"brand": [""]}}, "filter.brand.0: String should have at least 1 character"),
        (RecommendIn, USER | {"filter": {"brand": MANY[:101]}}, "filter.brand: List should have at most 100 items"),
        (RecommendIn, USER | {"filter": {"min_price": -1}}, "filter.min_price: Input should be greater than or equal to 0"),
        (RecommendIn, USER | {"filter": {"min_price": 2, "max_price": 1}}, "filter: min_price 2.0 is above max_price 1.0"),
        (RecommendIn, USER | {"filter": {"include_unavailable": 1}}, "filter.include_unavailable: Input should be"),
        (RecommendIn, USER | {"filter": {"colour": ["red"]}}, "filter.colour: Extra inputs are not permitted"),
        (RankIn, USER, "items: Field required"),
        (RankIn, USER | {"items": []}, "items: List should have at least 1 item"),
        (RankIn, USER | {"items": MANY[:1_001]}, "items: List should have at most 1000 items"),
        (RankIn, {"items": ["a"]}, "one of user_id and anonymous_id is needed"),
        (SimilarIn, {"items": MANY[:51]}, "items: List should have at most 50 items"),
        (SimilarIn, {"items": [""]}, "items.0: String should have at least 1 character"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_name_and_the_reason(kind: type[Any], body: Any, said: str) -> None:
    with pytest.raises(Problem) as refused:
        parse(kind, body)
    assert refused.value.status == 422
    assert said in refused.value.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_price_is_a_finite_number(value: float) -> None:
    with pytest.raises(Problem, match="filter"):
        parse(RecommendIn, USER | {"filter": {"max_price": value}})


def test_a_long_name_of_a_field_is_not_repeated_in_full() -> None:
    with pytest.raises(Problem) as refused:
        parse(RecommendIn, USER | {"x" * 10_000: 1})
    assert len(refused.value.error) < 500


def test_every_question_describes_its_fields() -> None:
    for kind in (RecommendIn, RankIn, SimilarIn):
        assert set(AskIn.model_fields) <= set(kind.model_json_schema()["properties"])
