"""Items, activity and models change while a replica serves: nothing is lost, and no request sees a mix."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.models.bundle import Bundle, BundleError
from serving import catalogue as cat
from serving.catalogue import Catalogue, ItemChanges, Orders
from serving.engine import Engine
from serving.model import BundleModel
from serving.replica import Replica, missing_items
from serving.store import ItemActivityRows
from tests.unit.aggregates.test_batch import MINUTE, NOON, aggregate
from tests.unit.models.tiny_shop import T_US
from tests.unit.serving.small_shop import StoredState, changes, event, item_view
from tests.unit.serving.test_model import fitting, user

BUNDLE = fitting()


def bundle(version: str) -> Bundle:
    return replace(BUNDLE, manifest=replace(BUNDLE.manifest, version=version))


@pytest.fixture
def replica() -> Iterator[Replica]:
    engine = Engine()
    made = Replica(engine)
    made.replace_state(Catalogue(cat.LIVE), StoredState(item_view()).columns(), None)
    yield made
    engine.close()


def items_of(replica: Replica) -> list[str]:
    return replica.live.state.catalogue.item_ids


def retrieved(replica: Replica) -> list[str]:
    model = replica.model
    assert model is not None
    rows, _ = model.retrieve(model.read_user(user(), T_US), 1_000, None)
    return [items_of(replica)[row] for row in rows]


def assert_model_is_of_the_catalogue(replica: Replica) -> None:
    """As if the model had been made of the catalogue as it is now."""
    model, catalogue = replica.model, replica.live.state.catalogue
    assert model is not None
    assert replica.live.state.model is model
    anew = BundleModel(BUNDLE, catalogue)
    every = np.arange(len(catalogue))
    assert np.allclose(model._shelf.vectors(every), anew._shelf.vectors(every), atol=1e-5)
    assert retrieved(replica) == [
        items_of(replica)[r] for r in anew.retrieve(anew.read_user(user(), T_US), 1_000, None)[0]
    ]


def priced(item: str, price: float) -> ItemChanges:
    return changes(item, category=["books"], price=[price])


def test_items_go_into_catalogue_columns_and_model(replica: Replica) -> None:
    replica.swap_model(bundle("first"), T_US)
    replica.take_items(priced("new", 3.0))
    replica.take_items(priced("a", 1e6))
    state = replica.live.state
    assert items_of(replica) == ["a", "b", "c", "d", "new"]
    assert state.activity is not None
    assert len(state.activity) == 5
    assert state.catalogue.orders.newest.tolist()[0] == 4
    assert_model_is_of_the_catalogue(replica)


def test_thousands_of_items_at_once_are_taken_in_parts(replica: Replica) -> None:
    many = [f"i{number}" for number in range(1_000)]
    replica.take_items(changes(*many, price=[float(number) for number in range(1_000)], category=["books"] * 1_000))
    assert items_of(replica) == many
    assert replica.live.state.catalogue.content[cat.PRICE][999] == 999.0


def test_what_only_the_bundle_knows_is_in_the_catalogue_and_what_the_store_knows_stays(replica: Replica) -> None:
    replica.take_items(priced("a", 7.0))
    replica.swap_model(bundle("first"), T_US)
    catalogue = replica.live.state.catalogue
    assert catalogue.item_ids == ["a", "b", "c", "d"]
    assert catalogue.state.tolist() == [cat.AVAILABLE, cat.AVAILABLE, cat.UNAVAILABLE, cat.AVAILABLE]
    assert catalogue.content[cat.PRICE] == [7.0, 20.0, None, None]
    assert len(missing_items(BUNDLE, catalogue)) == 0


class Building:
    """Lets the test act while a new model is being built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        warm_up = BundleModel.warm_up

        def wait(model: BundleModel, t_us: int) -> None:
            self.begun.set()
            assert self.go_on.wait(60)
            warm_up(model, t_us)

        monkeypatch.setattr(BundleModel, "warm_up", wait)


def test_items_put_while_a_new_model_is_built_are_in_the_new_model_and_the_old_one_serves_until_then(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.swap_model(bundle("first"), T_US)
    building = Building(monkeypatch)
    swapping = threading.Thread(target=replica.swap_model, args=(bundle("second"), T_US))
    swapping.start()
    assert building.begun.wait(60)
    replica.take_items(priced("new", 3.0))
    replica.take_items(priced("a", 1e6))
    assert replica.live.state.model is not None
    assert replica.live.state.model.version == "first"
    assert set(retrieved(replica)) == {*"abcd", "new"}
    building.go_on.set()
    swapping.join()
    assert replica.live.state.model.version == "second"
    assert_model_is_of_the_catalogue(replica)


def test_no_change_is_lost_while_models_are_swapped_and_items_change(replica: Replica) -> None:
    over, failed = threading.Event(), []
    last: dict[str, float] = {}

    def keep_changing() -> None:
        number = 0
        while not over.is_set():
            number += 1
            item = f"i{number % 40}"
            last[item] = float(number)
            try:
                replica.take_items(priced(item, float(number)))
            except Exception as error:
                failed.append(error)
                raise

    changing = threading.Thread(target=keep_changing)
    changing.start()
    try:
        for number in range(12):
            replica.swap_model(bundle(f"v{number}"), T_US)
            replica.renew_index()
    finally:
        over.set()
        changing.join()
    assert failed == []
    catalogue = replica.live.state.catalogue
    assert {item: catalogue.content[cat.PRICE][catalogue.row_of[item]] for item in last} == last
    assert_model_is_of_the_catalogue(replica)


def test_a_bundle_that_cannot_be_put_in_service_leaves_the_old_one_and_later_changes_reach_it(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.swap_model(bundle("first"), T_US)

    def broken(*_: object) -> None:
        raise RuntimeError("shapes")

    with monkeypatch.context() as patched:
        patched.setattr(BundleModel, "rank", broken)
        with pytest.raises(BundleError, match="cannot rank: shapes"):
            replica.swap_model(bundle("second"), T_US)
    assert replica.live.state.model is not None
    assert replica.live.state.model.version == "first"
    replica.take_items(priced("new", 3.0))
    assert_model_is_of_the_catalogue(replica)
    replica.swap_model(bundle("third"), T_US)
    assert replica.live.state.model.version == "third"


def test_everything_anew_puts_the_bundle_on_the_new_catalogue(replica: Replica) -> None:
    replica.swap_model(bundle("first"), T_US)
    anew = Catalogue(cat.LIVE)
    anew.put(changes("z", category=["books"]))
    anew.put(missing_items(BUNDLE, anew))
    replica.replace_state(anew, None, bundle("first"))
    assert set(retrieved(replica)) == {"z", *"abcd"}
    replica.take_items(priced("new", 3.0))
    assert_model_is_of_the_catalogue(replica)
    before = replica.live.state
    with pytest.raises(BundleError, match="does not fit this catalogue"):
        replica.replace_state(Catalogue(), None, bundle("first"))
    assert replica.live.state is before


def test_activity_of_items_that_nobody_knows_is_left_out(replica: Replica) -> None:
    stored = StoredState(item_view())
    stored.fold(event("a", NOON), event("x", NOON + 5))
    replica.take_items(changes("b", "a"))
    replica.take_activity(ItemActivityRows(["x", "a"], [stored.rows["x"], stored.rows["a"]], NOON + 5))
    activity = replica.live.state.activity
    assert activity is not None
    assert activity.newest_us == NOON + 5
    assert activity.at(np.arange(2), NOON + 6)[:, 0].tolist() == [0, 1]


def test_a_sweep_computes_what_a_hop_made_old_at_most_so_many(replica: Replica) -> None:
    stored = StoredState(item_view())
    items = [f"i{number}" for number in range(700)]
    stored.fold(*(event(item, NOON) for item in items))
    replica.take_items(changes(*items))
    replica.take_activity(ItemActivityRows(items, [stored.rows[item] for item in items], NOON))
    activity: Any = replica.live.state.activity
    replica.sweep(NOON - 7, 600)  # a clock behind the newest event
    assert len(activity.old_rows(NOON + 1)) == 100
    replica.sweep(NOON + 1, 600)
    assert activity.old_rows(NOON + 1).tolist() == []
    assert activity.table()[:, 0].tolist() == [1] * 700
    replica.sweep(NOON + MINUTE, 2_048)
    assert activity.old_rows(NOON + MINUTE + 1).tolist() == []


def test_what_always_moves_is_swept_in_turn(replica: Replica) -> None:
    stored = StoredState(item_view(aggregate("interest", "view", "decayed_sum", span=MINUTE)))
    items = [f"i{number}" for number in range(700)]
    stored.fold(*(event(item, NOON) for item in items))
    replica.replace_state(Catalogue(cat.LIVE), stored.columns(), None)
    replica.take_items(changes(*items))
    replica.take_activity(ItemActivityRows(items, [stored.rows[item] for item in items], NOON))
    activity: Any = replica.live.state.activity
    for number in range(1, 4):
        replica.sweep(NOON + number, 300)
    assert (activity.table() > 0).all()


def test_orders_and_their_origin_are_put_in_service_together(replica: Replica) -> None:
    replica.take_items(changes("a"))
    replica.take_orders(Orders(np.array([0]), np.array([0]), np.array([0]), np.array([1.0]), 5), origin=cat.BUNDLE)
    catalogue = replica.live.state.catalogue
    assert (catalogue.origin, catalogue.orders.as_of_us) == (cat.BUNDLE, 5)
    replica.take_items(changes("b", "c"))  # while orders are made of a alone
    replica.take_orders(Orders(np.array([0]), np.array([0]), np.array([0]), np.array([1.0]), 6))
    assert (catalogue.origin, catalogue.orders.as_of_us) == (cat.BUNDLE, 6)
    assert catalogue.orders.newest.tolist() == [2, 1, 0]
    assert catalogue.most_popular_first().tolist() == [0, 1, 2]


def test_a_replica_without_activity_or_model_takes_changes_all_the_same(replica: Replica) -> None:
    replica.replace_state(Catalogue(cat.LIVE), None, None)
    replica.take_items(changes("a"))
    replica.take_activity(ItemActivityRows(["a"], [b"x"], 1))
    replica.sweep(NOON, 100)
    replica.renew_index()
    assert items_of(replica) == ["a"]
