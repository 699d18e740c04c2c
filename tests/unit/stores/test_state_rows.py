"""Stored rows of several definitions, read by what is known already."""

from typing import Any

import pytest

from headrace.aggregates.rows import StateMismatchError
from headrace.settings import Settings
from headrace.stores.state_rows import StateReader
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate
from tests.unit.serving.small_shop import StoredState, event, item_view

NEW, OLD, OTHER = (
    StoredState(item_view(aggregate(name, "view", "count", window=HOUR, hop=MINUTE))) for name in ("views", "seen", "x")
)


class NoStore:
    """Nobody is to be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


@pytest.fixture
def reader() -> StateReader:
    made = StateReader(NoStore(), Settings())  # type: ignore[arg-type]
    made._layouts = {"items": NEW.layout}
    for layout in (NEW.layout, OLD.layout):
        made._layout(layout.spec)
    return made


def row(stored: StoredState) -> bytes:
    fresh = StoredState(stored.layout.spec)
    fresh.fold(event("a", NOON))
    return fresh.rows["a"]


def test_rows_of_two_known_definitions_are_each_read_by_their_own(reader: StateReader) -> None:
    rows = reader.known_rows("items", [row(NEW), None, row(OLD)])
    assert rows is not None
    views = rows.values(NOON + 1)["views"]
    assert [None if value != value else float(value) for value in views] == [1.0, 0.0, None]
    alone = reader.known_rows("items", [row(NEW)])
    assert alone is not None
    assert list(alone.values(NOON + 1)["views"]) == [1]


def test_a_view_that_the_state_does_not_have_has_no_rows(reader: StateReader) -> None:
    assert reader.known_rows("users", [None]) is None


@pytest.mark.parametrize("raws", [[row(OTHER)], [row(NEW), row(OTHER)], [row(NEW)[:-1]]], ids=["one", "mixed", "cut"])
def test_what_is_not_known_or_damaged_is_refused_and_nobody_is_asked(reader: StateReader, raws: list[bytes]) -> None:
    with pytest.raises(StateMismatchError):
        reader.known_rows("items", raws)


def test_rows_of_an_older_definition_alone_are_read(reader: StateReader) -> None:
    rows = reader.known_rows("items", [row(OLD)])
    assert rows is not None
    assert [value != value for value in rows.values(NOON + 1)["views"]] == [True]
