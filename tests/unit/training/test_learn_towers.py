"""Batches of the towers, and what the items are told apart by."""

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
from tests.unit.training.test_windows import WALK, written
from training.learn_towers import TowerObjective, inclusion_chances, units
from training.processes import Processes
from training.windows import Windows, write_windows

SHOP = Catalogue(tiny_shop.preprocessing(), columns.by_name(tiny_shop.catalogue()))
TARGETS = np.array([2, 0, 3])


def windows(folder: Path) -> Windows:
    rows = pl.DataFrame({"user_id": ["u", "v", "w"], "t_us": [T_US] * 3})
    return write_windows(folder / "rows", rows, iter([tiny_shop.users()]), tiny_shop.preprocessing(), SHOP.row)


def test_what_is_drawn_for_a_batch_depends_on_the_batch_alone(tmp_path: Path) -> None:
    read = units(windows(tmp_path), TARGETS, 4, 2, "cpu").read
    for batch in (np.array([0, 1]), np.array([1, 2]), np.array([2, 0])):
        first, again, other_process = read(batch, batch), read(batch, batch), read(batch, batch[:1])
        for other in (again, other_process):
            assert all(torch.equal(*pair) for pair in zip(first.candidates, other.candidates, strict=True))
        assert set(TARGETS[batch]) <= set(first.candidates.places_S.tolist())


def test_chances_are_those_of_the_rows_that_the_batch_has(tmp_path: Path) -> None:
    """Not of its windows, of which one has many."""
    of_four_and_one, _, _ = written(tmp_path, {"u": WALK, "v": WALK[:1]}, length=4)
    targets = np.array([2, 0, 3, 2, 1])
    read = units(of_four_and_one, targets, 4, 2, "cpu").read
    for batch, rows in ((np.array([0]), 4), (np.array([1]), 1), (np.array([0, 1]), 5)):
        candidates = read(batch, batch).candidates
        share_S = np.array([1 / 5, 1 / 5, 2 / 5, 1 / 5])[candidates.places_S]
        assert candidates.log_q_S.exp().tolist() == pytest.approx(1 - np.exp(-rows * share_S - 2 / 4))


def test_processes_that_share_a_batch_of_windows_have_its_loss_together(tmp_path: Path) -> None:
    """Against a sample; an item is there twice in one window, and in two."""
    some, _, _ = written(tmp_path, {"u": WALK, "v": WALK[:1], "w": WALK[:2]}, length=4)
    assert some.sizes_W.tolist() == [4, 1, 2]
    batches = units(some, np.array([2, 0, 3, 2, 1, 2, 0]), 4, 1, "cpu")
    fitted = tiny_shop.preprocessing(4)
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    torch.manual_seed(0)
    objective = TowerObjective(tiny_shop.stirred(TwoTowers(fitted, tiny_shop.MODEL)), shop.inputs)
    batch = np.array([2, 0, 1])
    whole = objective(batches.read(batch, batch)).item()
    shares = [
        (each.weights(batch, batches.counts_UK)[0] * objective(batches.read(batch, each.share(batch)))).item()
        for each in (Processes(0, 2), Processes(1, 2))
    ]
    assert sum(shares) / 2 == pytest.approx(whole, rel=1e-5)


def test_an_item_s_chance_to_be_a_candidate_counts_it_once_however_often_it_is_drawn() -> None:
    """Of 600 rows half turned to one of 1,000 items: sure to be there. Another one came once."""
    target_R = np.array([0] * 300 + list(range(1, 301)))
    share_I = np.bincount(target_R, minlength=1_000) / 600
    chances = inclusion_chances(share_I, items=1_000, rows=60, drawn=500)
    assert chances[[0, 1, 999]].tolist() == pytest.approx([1.0, 1 - np.exp(-0.6), 1 - np.exp(-0.5)])
    rng = np.random.default_rng(0)
    there = [np.unique([*rng.choice(target_R, 60), *rng.integers(1_000, size=500)]) for _ in range(2_000)]
    shares = np.bincount(np.concatenate(there), minlength=1_000) / 2_000
    assert shares[0] == 1.0
    assert shares[1:301].mean() == pytest.approx(1 - np.exp(-0.6), abs=0.01)
    assert shares[301:].mean() == pytest.approx(1 - np.exp(-0.5), abs=0.01)


def test_items_that_nobody_has_met_teach_no_vector_that_all_new_ones_share(tmp_path: Path) -> None:
    seen = Preprocessing.fit(
        tiny_shop.users(), tiny_shop.catalogue(), tiny_shop.activity(), {"a": 2}, now_us=0, length=3
    )
    shop = Catalogue(seen, columns.by_name(tiny_shop.catalogue()))
    torch.manual_seed(0)
    towers = tiny_shop.stirred(TwoTowers(seen, tiny_shop.MODEL))
    objective = TowerObjective(towers, shop.inputs)
    read = units(windows(tmp_path), np.zeros(3, np.int64), 4, None, "cpu").read
    objective(read(np.arange(3), np.arange(3))).backward()
    taught = towers.item_encoder.ids.table.weight.grad.any(dim=1)
    assert taught.tolist() == [False, False, True]


def test_an_unknown_id_adds_nothing_so_that_content_alone_finds_a_new_item() -> None:
    towers = TwoTowers(tiny_shop.preprocessing(), tiny_shop.MODEL)
    with torch.no_grad():
        towers.item_encoder.ids.table.weight[2:] = 5.0
        towers.item_encoder.categories[0].table.weight[2] = torch.arange(8.0)
    shoes = tiny_shop.catalogue()["item_catalogue__category"][:1].to_pylist()
    new = tiny_shop.preprocessing().items(
        {"item_id": ["never seen"], "item_catalogue__category": shoes}, with_activity=False
    )
    code = int(new.categories_NC[0, 0])
    expected = towers.item_encoder.categories[0].table.weight[code]
    assert torch.allclose(towers.items(new)[0], expected / expected.norm())


def test_a_number_that_all_items_share_is_no_input() -> None:
    def fitted(prices: list[float | None]) -> Preprocessing:
        catalogue = tiny_shop.catalogue()
        place = catalogue.column_names.index("item_catalogue__price")
        changed = catalogue.set_column(place, "item_catalogue__price", pa.array(prices, pa.float64()))
        return Preprocessing.fit(tiny_shop.users(), changed, tiny_shop.activity(), {"a": 1}, now_us=0, length=3)

    for same in ([None] * 4, [5.0] * 4):
        assert (fitted(same).content_numbers, fitted(same).content_width) == ((), 0)
        TwoTowers(fitted(same), replace(tiny_shop.MODEL, layers=1))
    for differing in ([5.0, 5.0, 5.0, None], [5.0, 5.0, 5.0, 6.0]):
        assert fitted(differing).content_width == 2
