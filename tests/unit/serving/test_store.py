"""Rows of items read into changes: the later of two rows counts; a store that has failed is left alone for a moment."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from deltalake import write_deltalake
from feast.protos.feast.types.Value_pb2 import Value

from headrace import names
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.online_raw import RawRows
from headrace.stores.plain_rows import PlainLayout
from serving import catalogue as cat
from serving import store
from serving.catalogue import BRAND, CATEGORY, PRICE, ItemChanges
from serving.interfaces import STORE_ERRORS
from serving.store import READ_BY_NAME, GuardedReader, StoreRestsError, chunks, first_listed, missing_features

CATALOGUE = PlainLayout(
    names.ITEM_CATALOGUE,
    (("title", "STRING"), ("category", "STRING"), ("brand", "STRING"), ("price", "DOUBLE"), ("available", "BOOL")),
)
STATUS = PlainLayout(names.ITEM_STATUS, (("available", "BOOL"), ("deleted", "BOOL")))
PLAIN = {names.ITEM_CATALOGUE: CATALOGUE, names.ITEM_STATUS: STATUS}


def row(at_us: int, available: bool | None = None, price: float | None = None, category: str | None = None) -> bytes:
    values = {"title": Value(string_val="a title")}
    values |= {} if available is None else {"available": Value(bool_val=available)}
    values |= {} if price is None else {"price": Value(double_val=price)}
    values |= {} if category is None else {"category": Value(string_val=category)}
    return CATALOGUE.pack(values, at_us, at_us)


def status(at_us: int, available: bool | None = None, deleted: bool | None = None) -> bytes:
    said = {"available": available, "deleted": deleted}
    return STATUS.pack({name: Value(bool_val=value) for name, value in said.items() if value is not None}, at_us, at_us)


def read(
    *rows: tuple[bytes | None, bytes | None], listed: Mapping[str, int] | None = None, without_row: bool = False
) -> ItemChanges:
    """Of items a, b, ...: (catalogue row, status row)."""
    ids = [chr(ord("a") + place) for place in range(len(rows))]
    raws = {
        names.ITEM_CATALOGUE: RawRows.join([each[0] for each in rows]),
        names.ITEM_STATUS: RawRows.join([each[1] for each in rows]),
    }
    return store._changes(ids, raws, PLAIN, listed or {}, without_row=without_row)


@pytest.mark.parametrize(
    ("catalogue_row", "status_row", "expected"),
    [
        (row(5), None, cat.AVAILABLE),
        (row(5, True), None, cat.AVAILABLE),
        (row(5, False), None, cat.UNAVAILABLE),
        (row(5, True), status(6, available=False), cat.UNAVAILABLE),
        (row(5, False), status(6, available=True), cat.AVAILABLE),
        (row(5, True), status(6, deleted=True), cat.DELETED),
        (row(5, True), status(6, available=True, deleted=True), cat.DELETED),
        (row(5, False), status(6), cat.AVAILABLE),
        (row(6, True), status(5, deleted=True), cat.AVAILABLE),
        (row(6, False), status(5, available=True), cat.UNAVAILABLE),
        (row(5, True), status(5, available=False), cat.UNAVAILABLE),
        (row(5, True), status(5, deleted=True), cat.DELETED),
        (None, status(1, available=False), cat.UNAVAILABLE),
        (None, status(1, deleted=True), cat.DELETED),
        (None, status(0, available=True, deleted=False), cat.AVAILABLE),
    ],
)
def test_the_later_of_an_items_two_rows_says_whether_it_is_there_and_at_a_tie_the_status_row(
    catalogue_row: bytes | None, status_row: bytes | None, expected: int
) -> None:
    assert read((catalogue_row, status_row)).state.tolist() == [expected]


def test_content_is_the_catalogue_rows_without_what_nothing_reads() -> None:
    found = read((row(5, price=1.5, category="shoes"), status(9)), (row(5), None), (None, status(9)))
    assert found.item_ids == ["a", "b", "c"]
    assert found.content == {CATEGORY: ["shoes", None, None], BRAND: [None] * 3, PRICE: [1.5, None, None]}


def test_an_item_with_neither_row_is_left_out_unless_it_is_wanted_without() -> None:
    assert read((None, None), (row(5), None)).item_ids == ["b"]
    found = read((None, None), (row(5), None), without_row=True)
    assert (found.item_ids, found.state.tolist(), found.content[PRICE]) == (
        ["a", "b"],
        [cat.AVAILABLE] * 2,
        [None, None],
    )


def test_an_item_was_first_heard_of_when_the_lake_says_else_when_its_newest_row_does() -> None:
    found = read((row(5), status(9)), (row(7), None), (row(7), status(6)), listed={"b": 3})
    assert found.listed_us.tolist() == [9, 3, 7]


def test_the_lake_says_when_each_item_was_first_heard_of(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    assert first_listed(settings) == {}
    times = [from_micros(7), from_micros(3), from_micros(9)]
    frame = pl.DataFrame(
        {"item_id": ["a", "a", "b"], "event_timestamp": times},
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    write_deltalake(str(settings.lake_dir / names.ITEMS_TABLE), frame.to_arrow())
    assert first_listed(settings) == {"a": 3, "b": 9}


class Flaky:
    """Answers, or raises what it is told to."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0

    def ask(self, wanted: Mapping[str, Sequence[str]], /) -> Any | None:
        return None

    def fetch(
        self, wanted: Mapping[str, Sequence[str]], /, within_s: float | None = None, sent: Any | None = None
    ) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "rows"


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), redis.TimeoutError("stalled"), OSError("no route")])
def test_a_store_that_failed_twice_in_a_row_is_not_asked_again_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = 100.0
    monkeypatch.setattr("serving.store.time.monotonic", lambda: now)
    behind = Flaky(error)
    reader = GuardedReader(behind)
    for _ in range(2):
        with pytest.raises(type(error)):
            reader.fetch({"user_activity": ["u"]})
    with pytest.raises(StoreRestsError, match="failed a moment ago"):
        reader.fetch({"user_activity": ["u"]})
    assert behind.asked == 2
    assert issubclass(StoreRestsError, STORE_ERRORS)
    now += store.CLOSED_S
    behind.error = None
    assert reader.fetch({"user_activity": ["u"]}) == "rows"


def test_a_row_that_cannot_be_read_closes_nothing() -> None:
    behind = Flaky(ValueError("a damaged row"))
    reader = GuardedReader(behind)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            reader.fetch({"user_activity": ["u"]})
    assert behind.asked == 2


def test_chunks_hold_everything_once_in_order() -> None:
    items = [str(number) for number in range(store.CHUNK * 2 + 1)]
    assert [len(chunk) for chunk in chunks(items)] == [store.CHUNK, store.CHUNK, 1]
    assert [item for chunk in chunks(items) for item in chunk] == items
    assert list(chunks([])) == []


def test_features_that_serving_knows_by_name_and_nobody_defines_are_found() -> None:
    def counting(view: str, *features: str) -> ViewSpec:
        week = int(timedelta(days=7).total_seconds()) * 1_000_000
        counts = tuple(AggregateSpec(name, ("view",), None, "count", 0, week, week) for name in features)
        return ViewSpec(view, names.USER_ID, names.USER_KEY, counts, None, 0, 0)

    defined = [name.split("__") for name in READ_BY_NAME if name != "item_activity__carts_7d"]
    views = {
        view: counting(view, *(feature for of, feature in defined if of == view))
        for view in (names.USER_ACTIVITY, names.ITEM_ACTIVITY)
    }
    without_available = PlainLayout(names.ITEM_CATALOGUE, (("price", "DOUBLE"),))
    assert missing_features(Definitions(views, {names.ITEM_CATALOGUE: without_available})) == [
        "item_activity__carts_7d",
        "item_catalogue__available",
    ]
