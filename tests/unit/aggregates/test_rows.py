"""A stored row is read as what it is or refused: never misread, never a crash, whatever its bytes."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.rows import CHECK, NEWEST, STARTS, StateMismatchError
from headrace.aggregates.spec import ViewSpec
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate, event, view
from tests.unit.aggregates.test_fold import EVERYTHING, fold

SPEC = view(*EVERYTHING)
LATER = NOON + 30 * 24 * HOUR


def a_row(spec: ViewSpec = SPEC) -> bytes:
    """A row with something in each part."""
    events = [
        event(f"{kind}{i}", NOON + 7 * i * MINUTE, kind, price=i / 3, quantity=i + 1, position=i, query="q", as_of=NOON)
        for i in range(6)
        for kind in ("view", "click", "purchase", "like")
    ]
    row = fold(spec, events)[0]
    assert row is not None
    return row


def checked(row: bytes) -> bytes:
    """The row with the check that its bytes ask for."""
    check = xxhash.xxh64_intdigest(row[NEWEST:]) & 0xFFFFFFFF
    return row[:CHECK] + check.to_bytes(4, "little") + row[NEWEST:]


def load_and_read(row: bytes, spec: ViewSpec = SPEC) -> None:
    rows = StreamRows(Layout(spec), [row])
    rows.values(max(LATER, rows.newest_us + 1))
    state = ViewState(Layout(spec))
    state.load("u1", row)


def test_a_row_of_another_definition_is_never_misread() -> None:
    ten_minutes = view(aggregate("views", "view", "count", window=10 * MINUTE))
    an_hour = view(aggregate("views", "view", "count", window=HOUR))
    row = fold(ten_minutes, [event("a", NOON)])
    for read in (lambda: StreamRows(Layout(an_hour), row), lambda: ViewState(Layout(an_hour)).load("u1", row[0])):
        with pytest.raises(
            StateMismatchError, match=f"definition has {an_hour.fingerprint:016x}: run `headrace backfill`"
        ):
            read()


def test_a_row_cut_short_anywhere_is_refused() -> None:
    row, layout = a_row(), Layout(SPEC)
    for length in range(len(row)):
        with pytest.raises(StateMismatchError, match="headrace backfill"):
            StreamRows(layout, [None, row[:length]])
        with pytest.raises(StateMismatchError, match="headrace backfill"):
            ViewState(layout, capacity=1).load("u1", row[:length])


def test_a_row_with_any_byte_changed_is_refused() -> None:
    row, layout = a_row(), Layout(SPEC)
    for place in range(len(row)):
        damaged = row[:place] + bytes([row[place] ^ 0x10]) + row[place + 1 :]
        with pytest.raises(StateMismatchError, match="headrace backfill"):
            StreamRows(layout, [row, damaged])


def test_a_row_longer_than_it_should_be_is_refused() -> None:
    with pytest.raises(
        StateMismatchError, match="a stored row of view 'user_activity' is damaged: run `headrace backfill`"
    ):
        StreamRows(Layout(SPEC), [a_row() + b"\0"])


def refused_or_read(row: bytes) -> None:
    """Neither a crash nor any other error."""
    with suppress(StateMismatchError):
        load_and_read(checked(row))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 60))
@example([(1773, 0)], 0)  # a weight next to nothing under a deviation
def test_even_a_damaged_row_with_a_true_check_is_refused_or_read(changes: list[tuple[int, int]], cut: int) -> None:
    row = bytearray(a_row())
    for place, byte in changes:
        row[STARTS + place % (len(row) - STARTS)] = byte
    refused_or_read(bytes(row[: len(row) - cut]))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_even_noise_with_a_true_check_is_refused_or_read(noise: bytes) -> None:
    parts = len(Layout(SPEC).parts)
    start = STARTS + 4 * parts
    starts = b"".join((start + len(noise) * p // parts).to_bytes(4, "little") for p in range(1, parts + 1))
    refused_or_read(a_row()[:STARTS] + starts + noise)


@pytest.mark.slow
def test_no_kernel_reads_or_writes_outside_its_arrays(tmp_path: Path) -> None:
    """The unit tests of kernels once more, with every index of an array checked against its bounds (headrace.memory has none)."""
    unit = Path(__file__).parents[1]
    others = [
        "flows/test_fingerprints",
        "stores/test_online_wire",
        "stores/test_online_values",
        "stores/test_plain_rows",
    ]
    others += ["stores/test_commits", "test_decoding", "test_hashing"]
    chosen = [str(unit / "aggregates"), *(str(unit / f"{name}.py") for name in others)]
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--timeout=900", *chosen],
        env=environment, check=True, timeout=1_200,
    )  # fmt: skip


@pytest.mark.parametrize("query", ["zzzz", "zäz"])
def test_text_that_is_no_text_is_refused(query: str) -> None:
    events = [event(f"e{i}", NOON + i, query=text, item_id="i") for i, text in enumerate([query, "é"])]
    row = fold(SPEC, events)[0]
    assert row is not None
    damaged = checked(row.replace(query.encode(), b"z\xffzz"))
    for read in (StreamRows(Layout(SPEC), [damaged]).values, StreamRows(Layout(SPEC), [damaged]).table):
        with pytest.raises(StateMismatchError, match="headrace backfill"):
            read(LATER, ["queries"])


def test_rows_that_are_not_there_read_as_never_seen() -> None:
    values = StreamRows(Layout(SPEC), [None, a_row(), None]).values(LATER)
    alone = StreamRows(Layout(SPEC), [None]).values(LATER)
    for name, column in values.items():
        for place in (0, 2):
            np.testing.assert_equal(column[place], alone[name][0], err_msg=name)


def test_packing_what_was_unpacked_gives_the_same_bytes() -> None:
    row, state = a_row(), ViewState(Layout(SPEC))
    state.load_rows(["u1", "u2"], [row, None])
    state._changed[:1] = True
    assert state.take_changed() == {"u1": row}


def test_the_row_of_an_entity_with_little_history_is_small() -> None:
    windows = [(10 * MINUTE, MINUTE), (HOUR, 5 * MINUTE), (24 * HOUR, HOUR), (7 * 24 * HOUR, 6 * HOUR)]
    counts = [
        aggregate(f"{kind}_{hop}", kind, "count", window=window, hop=hop)
        for kind in ("view", "click", "add_to_cart", "purchase")
        for window, hop in windows
    ]
    row = fold(view(*counts), [event("a", NOON)])[0]
    assert row is not None
    assert len(row) == STARTS + 5 + 4 * 2  # 39 groups of counts, no words; four of them hold one count
