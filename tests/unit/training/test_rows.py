"""Rows on disk are the rows that were written, in any order asked for."""

from pathlib import Path

import numpy as np
import torch

from headrace.models import columns
from headrace.models.inputs import UserInputs
from headrace.models.preprocessing import Catalogue
from tests.unit.models import tiny_shop
from training.rows import Table, TableWriter, UserRows, of_items, of_users


def users() -> UserInputs:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    return fitted.users(columns.by_name(tiny_shop.users()), np.full(3, tiny_shop.T_US), shop.row)


def test_users_come_back_as_they_were_without_the_places_that_none_of_them_fills(tmp_path: Path) -> None:
    given = users()
    parts = [given.rows(torch.tensor([0, 1])), given.rows(torch.tensor([2]))]
    rows = UserRows.of(Table.write(tmp_path, 3, (of_users(part) for part in parts)))
    assert rows.lengths_R.tolist() == [2, 1, 0]
    taken = rows.take(np.array([2, 0]))
    expected = given.rows(torch.tensor([2, 0])).trimmed(2)
    assert all(torch.equal(own, wanted) for own, wanted in zip(taken, expected, strict=True))
    assert rows.take(np.array([2])).items_BL.shape == (1, 1)


def test_room_for_rows_is_taken_before_they_are_written_and_no_more(tmp_path: Path) -> None:
    """A page of a mapped file for which there is none would end the process, where a file that is asked for room says so."""
    block = 4_096
    writer = TableWriter(tmp_path, 1_000)
    writer.put({"some": np.zeros((10, block), np.uint8)})
    file = tmp_path / "some.npy"
    assert 10 * block <= 512 * file.stat().st_blocks < 100 * block < file.stat().st_size
    writer.put({"some": np.ones((20, block), np.uint8)})
    assert 512 * file.stat().st_blocks >= 30 * block
    assert writer.close().columns["some"].sum(axis=1).tolist() == [0] * 10 + [block] * 20


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    given = tiny_shop.preprocessing().items(columns.by_name(tiny_shop.catalogue()), with_activity=True)
    table = Table.write(tmp_path, 4, [of_items(given)])
    order = np.array([[3, 1], [0, 0]])
    taken = table.take(order)
    for name, wanted in given._asdict().items():
        assert torch.equal(taken[name], wanted[torch.from_numpy(order)])
        assert taken[name].dtype == wanted.dtype
