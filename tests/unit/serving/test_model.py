"""A bundle put to work for a catalogue: its answers are by the catalogue's rows, also of items that training never saw."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.arrays import Ints
from headrace.models.bundle import Bundle, BundleError
from headrace.models.index import ItemIndex
from headrace.models.shelf import Shelf
from serving import catalogue as cat
from serving.catalogue import BRAND, CATEGORY, PRICE, Catalogue, ItemChanges
from serving.model import BundleModel
from serving.replica import missing_items
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US

BUNDLE = tiny_shop.bundle()


def fitting(bundle: Bundle = BUNDLE) -> Bundle:
    """With the vectors that its own towers give, as a trained bundle has them."""
    content = {
        name: list(bundle.snapshot.features[name]) for name in ("item_id", *bundle.preprocessing.content_features)
    }
    vectors = Shelf(bundle.preprocessing, bundle.towers, bundle.ranker, content, bundle.neighbours).vectors(
        np.arange(4)
    )
    return replace(bundle, index=ItemIndex.build(np.array(vectors), np.array(vectors)))


def changes(*items: tuple[str, str | None, float | None]) -> ItemChanges:
    """(item, category, price)."""
    ids, categories, prices = ([each[place] for each in items] for place in range(3))
    content: dict[str, list[Any]] = {CATEGORY: categories, BRAND: [None] * len(items), PRICE: prices}
    return ItemChanges(ids, content, np.zeros(len(items), np.int8), np.zeros(len(items), np.int64))


def shop(*before: str, bundle: Bundle = BUNDLE) -> Catalogue:
    """Items of the store first, then those of the bundle."""
    made = Catalogue(cat.LIVE)
    made.put(changes(*((item, "shoes", 5.0) for item in before)))
    made.put(missing_items(bundle, made))
    return made


def user(row: int = 0) -> dict[str, list[object]]:
    return {name: [value] for name, value in tiny_shop.request_of(row).items()}


def best(model: BundleModel, rows: Ints, k: int = 10) -> list[int]:
    """All rows by the product of their vectors with the user's."""
    seen = model.read_user(user(), T_US)
    scores = model._shelf.vectors(rows) @ seen.view.vector[0]
    return rows[np.argsort(-scores, kind="stable")][:k].tolist()  # type: ignore[no-any-return]


def ids(catalogue: Catalogue, rows: Ints) -> list[str]:
    return [catalogue.item_ids[row] for row in rows.tolist()]


@pytest.mark.parametrize("before", [(), ("x",), ("d", "x", "b")])
def test_retrieval_finds_all_items_by_the_rows_of_the_catalogue(before: tuple[str, ...]) -> None:
    catalogue = shop(*before)
    model = BundleModel(fitting(), catalogue)
    rows, scores = model.retrieve(model.read_user(user(), T_US), 10, None)
    assert rows.tolist() == best(model, np.arange(len(catalogue)))
    assert len(rows) == len({*"abcd", *before})
    assert (np.diff(scores) <= 0).all()
    assert (rows.dtype, scores.dtype) == (np.int64, np.float64)


def test_retrieval_looks_among_what_is_allowed() -> None:
    catalogue = shop("x", "y")
    model = BundleModel(fitting(), catalogue)
    allowed = np.zeros(len(catalogue), np.bool_)
    allowed[catalogue.rows(["x", "c"])] = True
    rows, _ = model.retrieve(model.read_user(user(), T_US), 10, allowed)
    assert sorted(ids(catalogue, rows)) == ["c", "x"]
    assert len(model.retrieve(model.read_user(user(), T_US), 1, allowed)[0]) == 1


def test_scores_are_those_of_the_plain_scorer() -> None:
    catalogue = shop("x")
    model = BundleModel(fitting(), catalogue)
    rows = catalogue.rows(["c", "a", "x"])
    content = catalogue.content_of(rows, model.content_features)
    expected = BUNDLE.scorer().rank(tiny_shop.request_of(0), {**content, "item_activity__views_1h": [5, None, 2]}, T_US)
    found = model.rank(model.read_user(user(), T_US), rows, np.array([[5.0], [np.nan], [2.0]]))
    assert np.allclose(found, expected, atol=1e-6)
    assert model.activity_features == ["item_activity__views_1h"]
    assert set(model.content_features) == {CATEGORY, BRAND, PRICE}


def test_neighbours_are_the_bundles_by_rows_of_the_catalogue_best_first() -> None:
    catalogue = shop("d", "x", "b")
    model = BundleModel(fitting(), catalogue)
    rows, scores = model.neighbours(catalogue.rows(["a"]), 10)
    assert (ids(catalogue, rows), scores.tolist()) == (["b", "c"], [0.5, 0.25])
    rows, scores = model.neighbours(catalogue.rows(["a", "b", "x", "d"]), 10)
    assert (sorted(ids(catalogue, rows)), scores.tolist()) == (["a", "b", "c"], [0.5, 0.5, 0.25])
    assert ids(catalogue, model.neighbours(catalogue.rows(["a"]), 1)[0]) == ["b"]
    for nobody in ([], ["x"], ["d"]):
        assert len(model.neighbours(catalogue.rows(nobody), 10)[0]) == 0


def test_similar_items_are_those_of_the_nearest_direction_and_never_the_given_ones() -> None:
    catalogue = shop("x", "y")
    model = BundleModel(fitting(), catalogue)
    seeds = catalogue.rows(["a", "x"])
    rows, cosines = model.similar(seeds, 10, None)
    vectors = model._shelf.vectors(np.arange(len(catalogue)))
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = directions[seeds].mean(axis=0)
    products = directions @ (wanted / np.linalg.norm(wanted))
    expected = [row for row in np.argsort(-products, kind="stable").tolist() if row not in seeds]
    assert rows.tolist() == expected
    assert np.allclose(cosines, products[expected], atol=1e-6)
    allowed = np.isin(np.arange(len(catalogue)), catalogue.rows(["a", "d"]))
    assert ids(catalogue, model.similar(seeds, 10, allowed)[0]) == ["d"]
    assert len(model.similar(seeds, 2, None)[0]) == 2


def test_an_item_that_is_put_is_found_and_one_that_changed_is_found_where_it_is_now() -> None:
    catalogue = shop()
    model = BundleModel(fitting(), catalogue)
    for change in (changes(("new", "books", 3.0)), changes(("a", "books", 1e6), ("newer", None, None))):
        rows = catalogue.put(change)
        model.put(rows, model.encode(catalogue.content_of(rows, model.content_features)))
        found, scores = model.retrieve(model.read_user(user(), T_US), 10, None)
        assert found.tolist() == best(model, np.arange(len(catalogue)))
        vectors = model._shelf.vectors(found) @ model.read_user(user(), T_US).view.vector[0]
        assert np.allclose(scores, vectors, atol=1e-5)
    assert model.index_size == 6


def test_an_item_put_again_as_it_was_changes_nothing() -> None:
    catalogue = shop()
    model = BundleModel(fitting(), catalogue)
    rows = np.arange(4)
    model.put(rows, model.encode(catalogue.content_of(rows, model.content_features)))
    assert not model.index_is_worn


def test_an_index_of_which_much_has_changed_is_worn_and_built_anew_with_what_came_meanwhile() -> None:
    catalogue = shop()
    model = BundleModel(fitting(), catalogue)
    assert not model.index_is_worn
    rows = catalogue.put(changes(("new", "books", 3.0)))
    model.put(rows, model.encode(catalogue.content_of(rows, model.content_features)))
    assert model.index_is_worn
    index, built = model.rebuilt_index(5)
    assert built.tolist() == [0, 1, 2, 3, 4]
    rows = catalogue.put(changes(("a", "books", 1e6), ("newest", "shoes", 2.0)))
    model.put(rows, model.encode(catalogue.content_of(rows, model.content_features)))
    model.take_index(index, built, rows)
    found, _ = model.retrieve(model.read_user(user(), T_US), 10, None)
    assert found.tolist() == best(model, np.arange(6))
    model.take_index(*model.rebuilt_index(6), np.zeros(0, np.int64))
    assert not model.index_is_worn
    assert model.retrieve(model.read_user(user(), T_US), 10, None)[0].tolist() == found.tolist()


def test_an_index_that_is_built_anew_is_asked_for_what_training_asked() -> None:
    bundle = fitting()
    vectors = bundle.index.vectors_ND
    asked = ItemIndex.build(vectors, vectors, exact_below=1_000_000, recall_target=0.99, seed=3)
    index, _ = BundleModel(replace(bundle, index=asked), shop("x")).rebuilt_index(5)
    assert index.facts == replace(asked.facts, count=5)


def test_what_weighed_is_told_for_each_row() -> None:
    catalogue = shop()
    model = BundleModel(fitting(), catalogue)
    told = model.explain(model.read_user(user(), T_US), np.array([2, 0]), np.array([[1.0], [np.nan]]))
    assert [len(each) for each in told] == [5, 5]
    assert {"feature", "weight"} == set(told[0][0])
    nobody = model.explain(model.read_user({}, T_US), np.array([2]), np.array([[1.0]]))
    assert not [each for each in nobody[0] if each["feature"].startswith("history")]


def test_a_user_of_whom_nothing_is_known_is_read_and_answered() -> None:
    model = BundleModel(fitting(), shop())
    model.warm_up(T_US)
    seen = model.read_user({"user_activity__recent_items": [None]}, T_US)
    assert (len(seen.history), len(model.retrieve(seen, 10, None)[0])) == (0, 4)


def test_a_bundle_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BundleError, match="bundle first does not fit this catalogue"):
        BundleModel(BUNDLE, Catalogue())
    catalogue = shop()
    catalogue.put(changes(("odd", "shoes", None)))
    catalogue.content[PRICE][-1] = "dear"
    with pytest.raises(BundleError, match="bundle first does not fit this catalogue"):
        BundleModel(BUNDLE, catalogue)


def test_a_bundle_whose_scores_are_no_numbers_is_refused_at_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BundleModel(fitting(), shop())
    monkeypatch.setattr(model._shelf, "rank", lambda *_: np.array([0.5, np.nan, 0.1]))
    with pytest.raises(BundleError, match="bundle first cannot rank: it gave a score that is not finite"):
        model.warm_up(T_US)


def test_a_bundle_that_cannot_rank_is_refused_at_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model = BundleModel(fitting(), shop())
    monkeypatch.setattr(model._shelf, "rank", broken)
    with pytest.raises(BundleError, match="bundle first cannot rank: mat1"):
        model.warm_up(T_US)
