"""How shards are shared out."""

import pytest

from headrace.stores.crew import share_of


@pytest.mark.parametrize(
    ("shards", "members", "shares"),
    [(4, 1, [4]), (4, 3, [2, 1, 1]), (4, 4, [1, 1, 1, 1]), (4, 6, [1, 1, 1, 1, 0, 0]), (16, 3, [6, 5, 5])],
)
def test_shares_add_up_and_differ_by_one_at_most(shards: int, members: int, shares: list[int]) -> None:
    names = [f"worker-{number}" for number in range(members)]
    assert [share_of(name, names, shards) for name in names] == shares
