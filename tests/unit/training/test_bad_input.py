"""What is wrong with data leaves finite weights: NaN and infinite features, labels that are all alike, shops of next to nothing."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

from headrace.models import columns
from headrace.models.config import CART, CLICK, ModelConfig
from headrace.models.index import ItemIndex
from headrace.models.inputs import UserInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.shelf import Shelf
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US
from training import learn_ranker, learn_towers
from training.fit import Schedule, Units, fit
from training.lists import Lists
from training.processes import Processes
from training.rows import Table, UserRows, of_items, of_users
from training.windows import write_windows

MODEL = ModelConfig(width=8, heads=2, layers=1, cross_width=16, hidden=16, outcomes=(CLICK, CART))
SCHEDULE = Schedule(
    epochs=3, patience=3, batch=2, learning_rate=0.05, weight_decay=1e-2, warm_up=1, averaging=0.9, seed=0
)
ODD = [float("nan"), float("inf"), -float("inf"), 1e300]


def odd_users() -> pa.Table:
    """Those of the tiny shop and one more column whose numbers are none, or beyond all measure."""
    return (
        tiny_shop.users()
        .append_column("user_profile__spent", pa.array(ODD[:3]))
        .append_column("user_activity__mean_price_1d", pa.array([1e300, None, float("nan")], pa.float64()))
    )


def odd_catalogue() -> pa.Table:
    table = tiny_shop.catalogue().drop_columns("item_catalogue__price")
    nothing = pa.array([None] * 4, pa.float64())
    return table.append_column("item_catalogue__price", pa.array(ODD)).append_column("item_catalogue__weight", nothing)


def odd_activity() -> pa.Table:
    counts = pa.array([2**62, -(2**62), None], pa.int64())
    return pa.table({"item_id": ["a", "b", "c"], "item_activity__views_1h": counts})


def odd_shop() -> tuple[Preprocessing, Catalogue]:
    fitted = Preprocessing.fit(
        odd_users(), odd_catalogue(), odd_activity(), {"a": 3, "b": 2, "c": 1}, now_us=0, length=3
    )
    return fitted, Catalogue(fitted, columns.by_name(odd_catalogue()))


def learn(model: nn.Module, objective: nn.Module, units: Units, checkpoint: Path) -> list[float]:
    """Losses by epoch."""
    epochs = fit("model", model, objective, units, SCHEDULE, judge=None,
                 processes=Processes(), device="cpu", checkpoint=checkpoint, progress=False)  # fmt: skip
    return [epoch.loss for epoch in epochs[1:]]


def is_finite(model: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def learnt_towers(folder: Path) -> tuple[TwoTowers, Preprocessing, Catalogue]:
    fitted, shop = odd_shop()
    rows = pl.DataFrame({"user_id": ["u", "v", "w"], "t_us": [T_US] * 3})
    windows = write_windows(folder / "rows", rows, iter([odd_users()]), fitted, shop.row)
    torch.manual_seed(0)
    towers, targets = TwoTowers(fitted, MODEL), np.array([2, 0, 3])
    objective = learn_towers.TowerObjective(towers, shop.inputs)
    losses = learn(towers, objective, learn_towers.units(windows, targets, 4, None, "cpu"), folder / "towers.pt")
    assert np.isfinite(losses).all()
    return towers, fitted, shop


def test_numbers_that_are_none_or_beyond_all_measure_leave_finite_inputs() -> None:
    fitted, shop = odd_shop()
    for number in (*fitted.user_numbers, *fitted.content_numbers, *fitted.activity_numbers):
        assert np.isfinite([number.mean, number.std]).all()
    users = fitted.users(columns.by_name(odd_users()), np.full(3, T_US), shop.row)
    items = fitted.items(columns.by_name(odd_catalogue()), with_activity=True)
    assert all(bool(part.isfinite().all()) for part in (users.numbers_BF, items.content_NF, shop.inputs.content_NF))
    assert fitted.activity.apply(np.array([[np.inf], [-np.inf], [2.0**63]])).tolist() == [
        [pytest.approx(fitted.activity.apply(np.array([[0.0]])).item())],
    ] * 2 + [[pytest.approx(fitted.activity.apply(np.array([[2.0**63]])).item())]]


def test_towers_that_learn_from_odd_numbers_end_with_finite_weights_and_a_catalogue_of_finite_vectors(
    tmp_path: Path,
) -> None:
    towers, fitted, _ = learnt_towers(tmp_path)
    assert is_finite(towers)
    ranker = Ranker(fitted, MODEL)
    content = {name: odd_catalogue()[name].to_pylist() for name in ("item_id", *fitted.content_features)}
    shelf = Shelf(fitted, towers, ranker, content, tiny_shop.bundle().neighbours)
    vectors = shelf.vectors(np.arange(4))
    assert np.isfinite(vectors).all()
    ItemIndex.build(vectors, vectors)
    asked = {
        name: [None] if name.endswith("country") else [ODD[1]]
        for name in (*fitted.user_categories, "user_profile__age")
    }
    seen = shelf.user(asked, T_US, {})
    assert np.isfinite(shelf.rank(seen, np.arange(4), np.array([[each] for each in ODD]))).all()


def slates(folder: Path, labels: list[float], positions: list[int], wanted: list[bool]) -> Lists:
    """Two users, each with the four items of the odd shop."""
    fitted, shop = odd_shop()
    items = fitted.items({**columns.by_name(odd_catalogue()), "item_activity__views_1h": ODD}, with_activity=True)
    users: UserInputs = fitted.users(columns.by_name(odd_users()), np.full(3, T_US), shop.row).rows(
        torch.tensor([0, 2])
    )
    facts = {
        "labels_CO": np.repeat(np.array(labels, np.float32), 2).reshape(-1, 2), "positions_C": np.array(positions),
        "wanted_C": np.array(wanted), "retrieved_C": np.linspace(-1, 1, 8).astype(np.float32),
        "nearness_C": np.linspace(0, 2, 8).astype(np.float32),
    }  # fmt: skip
    both = {name: np.concatenate([values, values]) for name, values in of_items(items).items()}
    return Lists(
        UserRows.of(Table.write(folder / "users", 2, [of_users(users)])),
        Table.write(folder / "items", 8, [both]),
        Table.write(folder / "facts", 8, [facts]),
        np.array([0, 4, 8]),
    )


@pytest.mark.parametrize("label", [1.0, 0.0, float("nan")], ids=["all clicked", "none clicked", "none observed"])
def test_slates_whose_labels_are_all_alike_leave_finite_weights_and_probabilities(tmp_path: Path, label: float) -> None:
    fitted, shop = odd_shop()
    torch.manual_seed(0)
    ranker = Ranker(fitted, MODEL)
    lists = slates(tmp_path, [label] * 8, [1, 2, 3, 4] * 2, [False] * 8)
    objective, units = learn_ranker.RankerObjective(ranker, shop.inputs), learn_ranker.units(lists, "cpu")
    losses = learn(ranker, objective, units, tmp_path / "ranker.pt")
    assert np.isfinite(losses).all()
    observed = lists if label == label else slates(tmp_path / "held", [1.0] * 8, [1, 2, 3, 4] * 2, [False] * 8)
    learn_ranker.calibrate(ranker, shop.inputs, observed, "cpu")
    assert is_finite(ranker)
    batch = lists.take(np.array([0, 1]))
    chances = torch.sigmoid(ranker(batch.users, batch.items, batch.retrieved, shop.inputs))
    assert bool(chances.isfinite().all())
    if label == label:
        assert bool(((chances > 0.5) == bool(label)).all())


def test_lists_of_one_candidate_that_is_wanted_teach_no_order_and_do_no_harm(tmp_path: Path) -> None:
    fitted, shop = odd_shop()
    ranker = Ranker(fitted, MODEL)
    one = slates(tmp_path, [1.0] * 8, [0] * 8, [True] * 8)
    alone = Lists(one.users, one.items, one.facts, np.array([0, 1, 2]))
    objective, units = learn_ranker.RankerObjective(ranker, shop.inputs), learn_ranker.units(alone, "cpu")
    losses = learn(ranker, objective, units, tmp_path / "ranker.pt")
    assert np.isfinite(losses).all()
    assert is_finite(ranker)
    assert learn_ranker.order_quality(ranker, shop.inputs, alone, "cpu") == 1.0


def test_a_shop_of_one_item_and_a_user_without_a_history_have_a_loss_of_nothing(tmp_path: Path) -> None:
    fitted, _ = odd_shop()
    shop = Catalogue(fitted, {name: column[:1] for name, column in columns.by_name(odd_catalogue()).items()})
    rows = pl.DataFrame({"user_id": ["w"], "t_us": [T_US]})
    windows = write_windows(tmp_path / "rows", rows, iter([odd_users().slice(2)]), fitted, shop.row)
    towers = TwoTowers(fitted, MODEL)
    objective = learn_towers.TowerObjective(towers, shop.inputs)
    units = learn_towers.units(windows, np.array([0]), 1, None, "cpu")
    losses = learn(towers, objective, units, tmp_path / "towers.pt")
    assert losses == pytest.approx([0.0] * 3, abs=1e-6)
    assert is_finite(towers)


def test_a_weight_that_is_no_number_is_told_before_it_is_learnt_from(tmp_path: Path) -> None:
    fitted, shop = odd_shop()
    ranker = Ranker(fitted, MODEL)
    with torch.no_grad():
        ranker.out_crossed.bias.fill_(float("nan"))
    lists = slates(tmp_path, [1.0] * 8, [1, 2, 3, 4] * 2, [False] * 8)
    with pytest.raises(RuntimeError, match="the loss of the model is nan in epoch 1: take a lower learning rate"):
        learn(ranker, learn_ranker.RankerObjective(ranker, shop.inputs), learn_ranker.units(lists, "cpu"),
              tmp_path / "ranker.pt")  # fmt: skip
