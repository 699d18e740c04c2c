import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.stores.tokens import EVENTS, ITEMS, MAX_TOKEN, make_token, read_token


def test_a_token_is_the_kind_and_each_partition_with_its_position() -> None:
    assert make_token(EVENTS, {3: 17, 2: 1831234567890}) == "e.2-1831234567890.3-17"


@given(st.sampled_from([EVENTS, ITEMS]), st.dictionaries(st.integers(0, 1023), st.integers(0, 2**63 - 1), min_size=1))
def test_a_token_is_read_back_as_it_was_made(kind: str, positions: dict[int, int]) -> None:
    token = make_token(kind, positions)
    assert len(token) < MAX_TOKEN
    assert read_token(token) == (kind, positions)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "e",
        "e.",
        "x.1-2",
        "e.1",
        "e.1-",
        "e.-1",
        "e.1-2.",
        "e.1-2.1-3",
        "e.1-2 ",
        "e.١-2",
        "e.1-2x",
        "e." + "1" * MAX_TOKEN,
    ],
)
def test_what_is_no_token_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="send the token of an acknowledgement as it came"):
        read_token(text)
