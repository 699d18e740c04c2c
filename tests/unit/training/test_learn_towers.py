"""Batches of the towers: some have to do without the items' IDs, the same ones in every process and at every run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US
from training.learn_towers import TowerObjective, differ_in_content, reader
from training.windows import Windows, write_windows

SHOP = Catalogue(tiny_shop.preprocessing(), columns.by_name(tiny_shop.catalogue()))
TARGETS = np.array([2, 0, 3])


def windows(folder: Path) -> Windows:
    rows = pl.DataFrame({"user_id": ["u", "v", "w"], "t_us": [T_US] * 3})
    return write_windows(folder / "rows", rows, iter([tiny_shop.users()]), tiny_shop.preprocessing(), SHOP.row)


@pytest.mark.parametrize("drawn", [None, 2])
def test_what_is_drawn_for_a_batch_depends_on_the_batch_alone(tmp_path: Path, drawn: int | None) -> None:
    read = reader(windows(tmp_path), TARGETS, 4, drawn, "cpu", without_ids=0.5)
    batches = [np.array([a, b, a]) for a in range(3) for b in range(3)]
    first, again, other = (
        [read(batch, batch[share]) for batch in batches] for share in (slice(None), slice(None), slice(1))
    )
    assert {batch.with_ids for batch in first} == {True, False}
    for one, two, three in zip(first, again, other, strict=True):
        assert one.with_ids == two.with_ids == three.with_ids
        for drawn_for in (two, three):
            same = one.candidates_S is drawn_for.candidates_S is None
            assert same or torch.equal(one.candidates_S, drawn_for.candidates_S)


def test_without_a_share_every_batch_has_ids(tmp_path: Path) -> None:
    read = reader(windows(tmp_path), TARGETS, 4, None, "cpu")
    assert all(read(np.array([unit]), np.array([unit])).with_ids for unit in range(3))


def test_a_batch_without_ids_teaches_content_and_no_id(tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers = tiny_shop.stirred(TwoTowers(tiny_shop.preprocessing(), tiny_shop.MODEL))
    objective = TowerObjective(towers, SHOP.inputs, torch.ones(4))
    batch = reader(windows(tmp_path), TARGETS, 4, None, "cpu")(np.arange(3), np.arange(3))
    encoder = towers.item_encoder
    for with_ids in (True, False):
        towers.zero_grad()
        objective(batch._replace(with_ids=with_ids)).backward()
        assert bool(encoder.ids.table.weight.grad.any()) == with_ids
        assert encoder.categories[0].table.weight.grad.any()
        assert encoder.content_FD.grad.any()


def test_items_differ_in_content_where_any_column_does() -> None:
    assert differ_in_content(SHOP.inputs)
    bare = pa.table({"item_id": ["a", "b"]})
    assert not differ_in_content(Catalogue(tiny_shop.preprocessing(), columns.by_name(bare)).inputs)


def test_a_number_that_all_items_share_is_no_input() -> None:
    def fitted(prices: list[float | None]) -> Preprocessing:
        catalogue = tiny_shop.catalogue()
        place = catalogue.column_names.index("item_catalogue__price")
        changed = catalogue.set_column(place, "item_catalogue__price", pa.array(prices, pa.float64()))
        return Preprocessing.fit(tiny_shop.users(), changed, tiny_shop.activity(), {"a": 1}, length=3)

    for same in ([None] * 4, [5.0] * 4):
        assert (fitted(same).content_numbers, fitted(same).content_width) == ((), 0)
        TwoTowers(fitted(same), replace(tiny_shop.MODEL, layers=1))
    for differing in ([5.0, 5.0, 5.0, None], [5.0, 5.0, 5.0, 6.0]):
        assert fitted(differing).content_width == 2
