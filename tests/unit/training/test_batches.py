import numpy as np

from training.batches import epoch_of

LENGTHS = np.random.default_rng(0).integers(0, 50, 1_000)


def test_an_epoch_has_every_row_once() -> None:
    batches = epoch_of(LENGTHS, 16, seed=0, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1_000))
    assert sorted(map(len, batches)) == [8, *[16] * 62]


def test_rows_of_like_length_stand_together() -> None:
    """Padded to their batch's longest, rows take less than twice their own places; in any order they would take twice as many."""
    batches = epoch_of(LENGTHS, 16, seed=0, epoch=1)
    padded = sum(len(rows) * LENGTHS[rows].max() for rows in batches)
    assert LENGTHS.sum() <= padded < 1.2 * LENGTHS.sum()


def test_seed_and_epoch_settle_the_order() -> None:
    first, again, other = (epoch_of(LENGTHS, 16, 0, epoch) for epoch in (1, 1, 2))
    assert all(np.array_equal(own, same) for own, same in zip(first, again, strict=True))
    assert not all(np.array_equal(own, same) for own, same in zip(first, other, strict=True))
