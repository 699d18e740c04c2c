"""Whatever is asked, through HTTP on the real application with real features: an answer, or a refusal that names what is wrong."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from headrace.settings import Settings
from serving.api import MAX_EXCLUDED, MAX_ITEMS
from serving.recommender import build_recommender
from tests.conftest import wait_until
from tests.integration.client_server import served
from tests.integration.open_shop import AVAILABLE, DELETED, SHOES, UNAVAILABLE, UNKNOWN, WATCHES, Shop

QUESTIONS = ("recommend", "rank", "similar")
POSTS = (*(f"/v1/{question}" for question in QUESTIONS), "/v1/items", "/v1/events")


def asked(question: str) -> dict[str, Any]:
    """The least that a question needs."""
    return {"user_id": "u"} if question == "recommend" else {"user_id": "u", "items": [SHOES[0]]}


def test_a_user_whom_nobody_knows_gets_a_full_slate_which_says_so(open_shop: Shop) -> None:
    slate = open_shop.slate("recommend", user_id="nobody", n=50)
    assert {item["item_id"] for item in slate["items"]} == set(AVAILABLE)
    assert [item["position"] for item in slate["items"]] == list(range(len(AVAILABLE)))
    assert slate["degraded"] == ["hydrate: unknown user"]
    assert open_shop.http.get("/v1/users/nobody/profile").json()["known"] is False


def test_a_user_of_10000_events_is_counted_and_answered(open_shop: Shop) -> None:
    token = open_shop.act("view", "tireless", *(AVAILABLE[number % len(AVAILABLE)] for number in range(10_000)))
    wait_until(lambda: open_shop.slate("recommend", user_id="tireless", after=token)["degraded"] == [], 60)
    assert set(open_shop.ids("recommend", user_id="tireless", n=50)) == set(AVAILABLE)
    assert set(open_shop.ids("rank", user_id="tireless", items=list(WATCHES))) == set(WATCHES)
    activity = open_shop.http.get("/v1/users/tireless/profile").json()["features"]["user_activity"]
    assert (activity["views_1h"], len(activity["recent_items"])) == (10_000, 50)


def test_a_history_of_unknown_deleted_and_unavailable_items_shows_none_of_them(open_shop: Shop) -> None:
    token = open_shop.act("view", "historian", UNKNOWN, DELETED, UNAVAILABLE, SHOES[0])
    slate = open_shop.slate("recommend", user_id="historian", n=50, after=token)
    assert {item["item_id"] for item in slate["items"]} == set(AVAILABLE)
    assert slate["degraded"] == ["hydrate: unknown item in history"]
    token = open_shop.act("view", "lost", UNKNOWN, DELETED, UNAVAILABLE)
    assert set(open_shop.ids("recommend", user_id="lost", n=50, after=token)) == set(AVAILABLE)


@pytest.mark.parametrize("question", ["recommend", "similar"])
def test_exclude_takes_any_item_known_or_not(open_shop: Shop, question: str) -> None:
    exclude = [UNKNOWN, DELETED, UNAVAILABLE, SHOES[0], SHOES[0], WATCHES[0]]
    ids = open_shop.ids(question, **asked(question), n=50, exclude=exclude)
    assert set(ids) == set(AVAILABLE) - {SHOES[0], WATCHES[0]}
    assert open_shop.ids(question, **asked(question), exclude=list(AVAILABLE)) == []
    many = [f"x{number}" for number in range(MAX_EXCLUDED)]
    assert len(open_shop.ids(question, **asked(question), exclude=many)) >= len(AVAILABLE) - 1
    refused = open_shop.ask(question, **asked(question), exclude=[*many, "one more"])
    assert (refused.status_code, refused.json()["error"].split(":")[0]) == (422, "exclude")


def test_rank_leaves_out_what_cannot_be_had_names_nothing_twice_and_puts_the_unknown_last(open_shop: Shop) -> None:
    items = [UNKNOWN, SHOES[1], SHOES[1], UNAVAILABLE, DELETED, WATCHES[0], UNKNOWN]
    slate = open_shop.slate("rank", user_id="u", items=items)
    found = [item["item_id"] for item in slate["items"]]
    assert (set(found[:2]), found[2:]) == ({SHOES[1], WATCHES[0]}, [UNKNOWN])
    assert [(item["source"], item["score"] is None) for item in slate["items"]] == [
        ("given", False),
        ("given", False),
        ("unknown", True),
    ]
    assert "retrieval: unknown item" in slate["degraded"]
    with_it = open_shop.ids("rank", user_id="u", items=items, filter={"include_unavailable": True}, exclude=[UNKNOWN])
    assert set(with_it) == {SHOES[1], WATCHES[0], UNAVAILABLE}
    assert open_shop.ids("rank", user_id="u", items=[DELETED]) == []
    assert open_shop.ids("rank", user_id="u", items=[UNKNOWN]) == [UNKNOWN]


def test_similar_to_items_that_nobody_knows_is_what_is_popular_and_says_so(open_shop: Shop) -> None:
    slate = open_shop.slate("similar", items=[UNKNOWN], n=3)
    assert ({item["source"] for item in slate["items"]}, len(slate["items"])) == ({"popular"}, 3)
    assert slate["degraded"] == ["retrieval: unknown item"]


def test_similar_to_what_cannot_be_had_any_more_is_answered_without_it(open_shop: Shop) -> None:
    assert set(open_shop.ids("similar", items=[DELETED, UNAVAILABLE], n=50)) == set(AVAILABLE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_n_is_from_1_to_1000(open_shop: Shop, question: str) -> None:
    for n in (0, -1, MAX_ITEMS + 1, 10_000, 10**30):
        refused = open_shop.ask(question, **asked(question), n=n)
        assert (refused.status_code, refused.json()["error"].split(":")[0]) == (422, "n")
    assert len(open_shop.ids(question, **asked(question), n=1)) == 1
    everything = {"recommend": len(AVAILABLE), "rank": 1, "similar": len(AVAILABLE) - 1}[question]
    assert len(open_shop.ids(question, **asked(question), n=MAX_ITEMS)) == everything


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_filter_that_nothing_passes_leaves_an_empty_slate(open_shop: Shop, question: str) -> None:
    for wanted in ({"category": ["boats"]}, {"brand": ["nobody's"]}, {"min_price": 1e12}, {"max_price": 0.0}):
        slate = open_shop.slate(question, **asked(question), filter=wanted)
        assert slate["items"] == []


def test_a_filter_that_one_item_passes_finds_it(open_shop: Shop) -> None:
    wanted = {"category": ["watches"], "brand": ["solo"]}
    assert open_shop.ids("recommend", user_id="u", filter=wanted) == [WATCHES[0]]
    assert open_shop.ids("similar", items=[SHOES[0]], filter=wanted) == [WATCHES[0]]
    assert open_shop.ids("rank", user_id="u", items=[*AVAILABLE, UNKNOWN], filter=wanted) == [WATCHES[0]]
    assert open_shop.ids("recommend", user_id="u", filter={"min_price": 80, "max_price": 80}) == [SHOES[7]]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_deadline_of_a_millisecond_is_answered_with_a_full_slate_or_refused_at_once(
    open_shop: Shop, question: str
) -> None:
    answer = open_shop.ask(question, **asked(question), n=1, deadline_ms=1)
    assert answer.status_code in (200, 429)
    if answer.status_code == 200:
        assert len(answer.json()["items"]) == 1
    else:
        assert answer.headers["retry-after"] == "1"
    refused = open_shop.ask(question, **asked(question), deadline_ms=1e-300)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", 5),
        ("user_id", ""),
        ("user_id", "anon:x"),
        ("user_id", "tab\there"),
        ("user_id", "x" * 129),
        ("session_id", ["s"]),
        ("n", "5"),
        ("n", 2.5),
        ("n", True),
        ("exclude", "shoe-1"),
        ("exclude", [1]),
        ("exclude", [None]),
        ("context", {"colour": "red"}),
        ("context", "phone"),
        ("filter", {"category": []}),
        ("filter", {"category": "shoes"}),
        ("filter", {"min_price": "1"}),
        ("filter", {"min_price": -1}),
        ("filter", {"min_price": 2, "max_price": 1}),
        ("filter", {"size": 4}),
        ("deadline_ms", 0),
        ("deadline_ms", -5),
        ("deadline_ms", 1e9),
        ("deadline_ms", "50"),
        ("explain", "yes"),
        ("after", 5),
        ("whatever", 1),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_name(open_shop: Shop, field: str, value: Any) -> None:
    for question in QUESTIONS:
        answer = open_shop.ask(question, **{**asked(question), field: value})
        assert answer.status_code == 422
        told = answer.json()
        assert field in told["error"]
        assert told["remedy"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"user_id":"\xff"}', 400),
        (b'{"user_id":"\\ud800"}', 400),
        (b'{"n": NaN}', 400),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400),
        (b"[" * 900 + b"]" * 900, 422),
        (b'{"context":' + b'{"a":' * 900 + b"1" + b"}" * 901, 422),
        (b"null", 422),
        (b'"text"', 422),
        (b" " * (5 * 1024**2), 413),
    ],
    ids=["empty", "cut", "not-utf-8", "surrogate", "nan", "too-deep", "deep", "deep-field", "null", "text", "huge"],
)
def test_a_body_that_is_no_request_is_refused(open_shop: Shop, path: str, body: bytes, status: int) -> None:
    answer = open_shop.http.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["remedy"]


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_sent_in_pieces_without_its_length_is_cut_off_at_the_bound(open_shop: Shop, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 65_536

    assert open_shop.http.post(path, content=pieces()).status_code == 413
    assert open_shop.http.post(path, content=b"x", headers={"content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("key", ["%FF", "%ED%A0%80", "a%00b", "a%7Fb", "x" * 129, "anon:" + "x" * 129, "", "anon:"])
def test_a_profile_of_a_key_that_no_event_can_have_made_is_refused(open_shop: Shop, key: str) -> None:
    answer = open_shop.http.get(f"/v1/users/{key}/profile")
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (422, "user_key")


@pytest.mark.parametrize(
    ("key", "read"),
    [("a%2Fb", "a/b"), ("a/profile", "a/profile"), ("%C3%A9%20", "é "), ("anon:" + "x" * 128, "anon:" + "x" * 128)],
)
def test_a_profile_of_any_other_key_is_answered(open_shop: Shop, key: str, read: str) -> None:
    answer = open_shop.http.get(f"/v1/users/{key}/profile")
    assert (answer.status_code, answer.json()["user_key"]) == (200, read)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "e",
        "e.",
        "x.0-1",
        "e.0",
        "e.0-",
        "e.0-x",
        "e.0-1.",
        "e.0-1.0-2",
        "e.-1-2",
        "e.0-99999999999999999999",
        "e." * 999,
    ],
)
def test_a_damaged_token_is_refused(open_shop: Shop, token: str) -> None:
    for question in QUESTIONS:
        answer = open_shop.ask(question, **asked(question), after=token)
        assert (answer.status_code, answer.json()["error"].split(":")[0]) == (422, "after")


def test_a_token_of_a_request_to_all_of_a_thousand_partitions_is_short_enough(open_shop: Shop) -> None:
    token = ".".join(["e", *(f"{partition}-0" for partition in range(1_024))])
    assert open_shop.ask("recommend", user_id="u", after=token, deadline_ms=1_000).status_code == 200


@pytest.mark.parametrize("token", ["e.0-9223372036854775807", "i.0-9223372036854775807", "e.9-1"])
def test_a_token_that_is_never_reached_is_named_inside_the_deadline_and_the_slate_is_full(
    open_shop: Shop, token: str
) -> None:
    slate = open_shop.slate("recommend", user_id="waiting", after=token, deadline_ms=2_000, n=50)
    assert "after: not yet seen" in slate["degraded"]
    assert 500 < slate["took_ms"] < 2_000
    assert len(slate["items"]) == len(AVAILABLE)


def test_what_a_user_does_is_in_the_answer_that_asks_to_see_it(open_shop: Shop) -> None:
    """What is hidden is gone from the very next slate, each time."""
    for count, item in enumerate(SHOES[:9], start=1):
        token = open_shop.act("hide", "picky", item)
        slate = open_shop.slate("recommend", user_id="picky", n=50, after=token)
        assert {each["item_id"] for each in slate["items"]} == set(AVAILABLE) - set(SHOES[:count])
        assert "after: not yet seen" not in slate["degraded"]


def test_what_is_said_of_items_is_in_the_answer_that_asks_to_see_it(open_shop: Shop) -> None:
    asked_for = {"user_id": "u", "n": 50, "filter": {"category": ["fresh"]}}
    for number in range(5):
        fresh = f"fresh-{number}"
        token = open_shop.change_items(upsert=[{"item_id": fresh, "category": "fresh"}])
        assert open_shop.ids("recommend", **asked_for, after=token) == [fresh]
        token = open_shop.change_items(availability=[{"item_id": fresh, "available": False}])
        assert open_shop.ids("recommend", **asked_for, after=token) == []
        token = open_shop.change_items(delete=[fresh])
        assert open_shop.ids("rank", user_id="u", items=[fresh], after=token) == []


@pytest.fixture
def empty_shop(stack: Settings) -> Iterator[httpx.Client]:
    """Features are applied; nothing has ever happened, and there is no item."""
    settings = stack.model_copy(update={"read_keys": "reader", "deadline_ms": 10_000})
    with (
        served(build_recommender(settings), settings.http_port) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": "reader"}, timeout=60) as http,
    ):
        yield http


def test_a_shop_without_any_item_answers_with_an_empty_slate_and_says_why(empty_shop: httpx.Client) -> None:
    for question in QUESTIONS:
        answer = empty_shop.post(f"/v1/{question}", json=asked(question))
        assert answer.status_code == 200
        given = [SHOES[0]] if question == "rank" else []
        assert [item["item_id"] for item in answer.json()["items"]] == given
        assert "catalogue: empty" in answer.json()["degraded"]
    assert empty_shop.get("/readyz").json()["catalogue"]["items"] == 0
