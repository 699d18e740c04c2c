"""Numbers and identifiers come back as they were written, and a read that would leave its bytes says so."""

from itertools import pairwise
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.aggregates import wire
from headrace.aggregates.wire import BROKEN

A_UUID = "0189f7ea-ae2c-7b4a-9a3c-2f1d5e6b7c80"
NEARLY = [A_UUID.upper(), A_UUID[:-1] + "g", A_UUID.replace("-", "0"), A_UUID[:-1], A_UUID + "0", "-" * 36]
IDENTIFIERS = st.one_of(st.uuids().map(str), st.text(max_size=40), st.sampled_from(["", A_UUID, *NEARLY]))


def written(text: str) -> np.ndarray:
    """The bytes of an identifier."""
    utf8 = np.frombuffer(text.encode() + b"?", np.uint8)
    out = np.full(200, 255, np.uint8)
    return out[: wire.put_identifier(out, 0, utf8, 0, len(utf8) - 1)].copy()


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
@example(127)
@example(128)
@example(-1)
def test_numbers_come_back_and_are_broken_when_cut_short(value: int) -> None:
    for put, get in (
        (wire.put_varint, wire.get_varint),
        (wire.put_signed, wire.get_signed),
        (wire.put_word, wire.get_word),
    ):
        out = np.zeros(12, np.uint8)
        end = put(out, 1, value)
        assert get(out, 1, end) == (value, end)
        for cut in range(1, int(end)):
            assert get(out, 1, cut)[1] == BROKEN
        assert get(out, BROKEN, end)[1] == BROKEN


@pytest.mark.parametrize(("value", "size"), [(0, 1), (127, 1), (128, 2), (2**14, 3), (2**63 - 1, 9), (-1, 10)])
def test_small_numbers_are_short(value: int, size: int) -> None:
    assert wire.varint_size(value) == wire.put_varint(np.zeros(12, np.uint8), 0, value) == size


def test_a_varint_that_never_ends_is_broken() -> None:
    assert wire.get_varint(np.full(30, 255, np.uint8), 0, 30)[1] == BROKEN


@settings(deadline=None)
@given(IDENTIFIERS)
def test_an_identifier_comes_back_as_its_text(text: str) -> None:
    data, out = written(text), np.zeros(200, np.uint8)
    assert wire.identifier_end(data, 0, len(data)) == len(data)
    assert wire.identifier_end(data, 0, len(data) - 1) == BROKEN
    assert out[: wire.put_identifier_text(out, 0, data, 0)].tobytes().decode() == text


def test_a_canonical_uuid_takes_seventeen_bytes_and_what_is_nearly_one_its_text() -> None:
    assert written(A_UUID).tobytes() == b"\0" + UUID(A_UUID).bytes
    assert [len(written(text)) for text in NEARLY] == [1 + len(text) for text in NEARLY]


@settings(deadline=None)
@given(IDENTIFIERS, IDENTIFIERS)
@example(A_UUID, A_UUID)
@example(A_UUID, A_UUID[:-1])
@example(A_UUID, A_UUID + "0")
def test_identifiers_order_as_their_texts_do(one: str, other: str) -> None:
    assert wire.precedes(written(one), 0, written(other), 0) == (one.encode() < other.encode())
    assert wire.precedes(written(one), 0, written(one), 0) is False


def test_uuids_order_as_their_texts_do() -> None:
    texts = sorted(str(uuid4()) for _ in range(50))
    data = [written(text) for text in texts]
    assert all(wire.precedes(a, 0, b, 0) for a, b in pairwise(data))
