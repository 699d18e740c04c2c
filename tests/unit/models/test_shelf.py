"""The shelf gives what the plain scorer gives, which encodes everything anew: by compiled kernels, and by modules that have none."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.models import shelf as of_shelf
from headrace.models.bundle import Bundle
from headrace.models.config import OUTCOME_VALUES
from headrace.models.explain import NEARNESS, RETRIEVAL
from headrace.models.fused import Fused
from headrace.models.modules import Modules
from headrace.models.preprocessing import Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.shelf import Shelf
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.foreign import Line, Mean
from tests.unit.models.tiny_shop import T_US

BUNDLE = tiny_shop.bundle()
CONTENT = {name: list(BUNDLE.snapshot.features[name]) for name in ("item_id", *BUNDLE.preprocessing.content_features)}
ROW_OF = {"a": 0, "b": 1, "c": 2, "d": 3}
HISTORY_AND_RETRIEVAL = {"history: a", "history: b", NEARNESS, RETRIEVAL}


def shelf(content: dict[str, list[object]] = CONTENT) -> Shelf:
    return Shelf(BUNDLE.preprocessing, BUNDLE.towers, BUNDLE.ranker, content, BUNDLE.neighbours)


def one_row(row: int) -> dict[str, list[object]]:
    return {name: [value] for name, value in tiny_shop.request_of(row).items()}


@pytest.mark.parametrize("user", [0, 1, 2])
def test_vectors_and_scores_are_those_of_the_plain_scorer(user: int) -> None:
    scorer, built = BUNDLE.scorer(), shelf()
    seen = built.user(one_row(user), T_US, ROW_OF)
    assert np.allclose(seen.vector[0], scorer.user_vector(tiny_shop.request_of(user), T_US), atol=1e-5)
    views = np.array([[5.0], [np.nan], [2.0]])
    items = {name: [column[2], column[0], column[3]] for name, column in CONTENT.items()}
    expected = scorer.rank(tiny_shop.request_of(user), {**items, "item_activity__views_1h": views[:, 0].tolist()}, T_US)
    assert np.allclose(built.rank(seen, np.array([2, 0, 3]), views), expected, atol=1e-6)


def test_an_item_that_is_put_reads_as_if_it_had_been_there_from_the_start() -> None:
    grown = shelf({name: column[:2] for name, column in CONTENT.items()})
    grown.put(np.array([3, 2]), grown.encode({name: [column[3], column[2]] for name, column in CONTENT.items()}))
    rows = np.arange(4)
    assert np.array_equal(grown.vectors(rows), shelf().vectors(rows))
    seen = grown.user(one_row(1), T_US, ROW_OF)
    assert np.array_equal(grown.rank(seen, rows, np.zeros((4, 1))), shelf().rank(seen, rows, np.zeros((4, 1))))


def test_a_changed_item_has_another_vector() -> None:
    changed = shelf()
    before = changed.vectors(np.array([0]))
    content = {**{name: column[:1] for name, column in CONTENT.items()}, "item_catalogue__category": ["books"]}
    changed.put(np.array([0]), changed.encode(content))
    assert not np.allclose(changed.vectors(np.array([0])), before)


def test_a_row_that_would_leave_a_gap_is_refused() -> None:
    built = shelf()
    with pytest.raises(ValueError, match=r"rows \[9\] are not on the shelf of 4"):
        built.put(np.array([9]), built.encode({name: column[:1] for name, column in CONTENT.items()}))


def test_an_item_that_nobody_knows_stands_in_the_history_as_unknown() -> None:
    features = {**one_row(0), "user_activity__recent_items": [["a", "never seen"]]}
    expected = BUNDLE.scorer().user_vector(
        {**tiny_shop.request_of(0), "user_activity__recent_items": ["a", "never seen"]}, T_US
    )
    assert np.allclose(shelf().user(features, T_US, ROW_OF).vector[0], expected, atol=1e-5)


def test_what_weighed_is_named_by_feature_and_by_item_of_the_history_and_every_candidate_has_its_own() -> None:
    built = shelf()
    seen = built.user(one_row(0), T_US, ROW_OF)
    weighed = built.explain(seen, np.array([0, 2]), np.array([[5.0], [2.0]]), ["a", "b"])
    assert [len(each) for each in weighed] == [5, 5]
    known = {"user_activity__views_10m", "user_profile__age", "item_catalogue__price", "item_activity__views_1h"}
    assert {entry["feature"] for each in weighed for entry in each} <= known | HISTORY_AND_RETRIEVAL
    assert weighed[0] != weighed[1]


def test_the_weight_of_an_input_is_what_a_small_change_of_it_does_to_the_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of_shelf, "MOST_EXPLAINED", 100)
    built = shelf()
    seen = built.user(one_row(0), T_US, ROW_OF)
    number = BUNDLE.preprocessing.activity_numbers[0]
    views = np.array([[5.0]])
    entries = {entry["feature"]: entry["weight"] for entry in built.explain(seen, np.array([0]), views, ["a", "b"])[0]}
    scaled = (np.log1p(5.0) - number.mean) / number.std
    nearby = np.expm1((scaled + 1e-3) * number.std + number.mean)
    slope = (built.rank(seen, np.array([0]), np.array([[nearby]])) - built.rank(seen, np.array([0]), views))[0] / 1e-3
    assert entries["item_activity__views_1h"] == pytest.approx(scaled * slope, abs=2e-3)


@pytest.mark.parametrize("towers", [TwoTowers, Mean], ids=lambda kind: kind.__name__)
def test_of_a_ranker_that_keeps_the_order_of_retrieval_the_towers_score_alone_is_named(towers: type) -> None:
    """Its weight is the slope of the score times how far the towers' score is from that of the shop's mean item."""
    bundle = foreign_bundle(towers, Ranker)
    bundle = replace(bundle, ranker=Ranker(bundle.preprocessing, tiny_shop.MODEL).eval())
    built, rows = foreign_shelf(bundle), np.arange(4)
    seen = built.user(one_row(0), T_US, ROW_OF)
    found = (built.vectors(rows) @ seen.vector[0]).astype(np.float64)
    slopes = sum(OUTCOME_VALUES[name] for name in tiny_shop.MODEL.outcomes) / (2 + np.exp(found) + np.exp(-found))
    weighed = built.explain(seen, rows, np.zeros((4, 1)), ["a", "b"])
    assert [[entry["feature"] for entry in each] for each in weighed] == [[RETRIEVAL]] * 4
    weights = [entry["weight"] for each in weighed for entry in each]
    assert weights == pytest.approx((found - found.mean()) * slopes, abs=1e-5)


class Renamed(TwoTowers):
    """As the towers of this package: a subclass may change anything, so no kernels are trusted with it."""


def foreign_bundle(towers: type, ranker: type) -> Bundle:
    """With tags, a list of strings, beside what the tiny shop has."""
    tags = [["new", "red"], ["red"], None, ["old", "blue", "red"]]
    catalogue = tiny_shop.catalogue().append_column("item_catalogue__tags", pa.array(tags, pa.list_(pa.string())))
    fitted = Preprocessing.fit(
        tiny_shop.users(), catalogue, tiny_shop.activity(), {"a": 3, "b": 2, "c": 1}, now_us=0, length=3
    )
    torch.manual_seed(3)
    own = replace(BUNDLE.snapshot, features={**BUNDLE.snapshot.features, "item_catalogue__tags": tags})
    made = ranker(fitted, tiny_shop.MODEL)
    return replace(
        BUNDLE,
        preprocessing=fitted,
        towers=towers(fitted, tiny_shop.MODEL).eval(),
        ranker=tiny_shop.stirred(made),
        snapshot=own,
    )


def foreign_shelf(bundle: Bundle, items: slice = slice(None)) -> Shelf:
    content = {
        name: list(bundle.snapshot.features[name])[items]
        for name in ("item_id", *bundle.preprocessing.content_features)
    }
    return Shelf(bundle.preprocessing, bundle.towers, bundle.ranker, content, bundle.neighbours)


PAIRS = [(Mean, Line), (Mean, Ranker), (TwoTowers, Line), (Renamed, Ranker)]
EACH_PAIR = pytest.mark.parametrize(("towers", "ranker"), PAIRS, ids=lambda kind: kind.__name__)


def test_only_the_very_classes_of_this_package_run_compiled() -> None:
    assert isinstance(shelf()._models, Fused)
    for pair in PAIRS:
        assert isinstance(foreign_shelf(foreign_bundle(*pair))._models, Modules)


@EACH_PAIR
@pytest.mark.parametrize("user", [0, 1, 2])
def test_an_architecture_without_kernels_is_served_as_the_plain_scorer_scores(
    towers: type, ranker: type, user: int
) -> None:
    bundle = foreign_bundle(towers, ranker)
    scorer, built, asked = bundle.scorer(), foreign_shelf(bundle), tiny_shop.request_of(user)
    if user == 0:
        asked["user_activity__recent_items"] = ["a", "never seen"]
    seen = built.user({name: [value] for name, value in asked.items()}, T_US, ROW_OF)
    assert np.allclose(seen.vector[0], scorer.user_vector(asked, T_US), atol=1e-6)
    assert np.allclose(built.vectors(np.arange(4)), scorer.item_vectors(bundle.snapshot.features), atol=1e-6)
    views, rows = np.array([[5.0], [np.nan], [2.0]]), np.array([2, 0, 3])
    items = {name: [column[row] for row in rows] for name, column in bundle.snapshot.features.items()}
    expected = scorer.rank(asked, {**items, "item_activity__views_1h": views[:, 0].tolist()}, T_US)
    assert np.ptp(expected) > 1e-3
    assert np.allclose(built.rank(seen, rows, views), expected, atol=1e-6)


def test_an_architecture_without_kernels_takes_new_items() -> None:
    bundle = foreign_bundle(Mean, Line)
    grown, whole = foreign_shelf(bundle, slice(0, 2)), foreign_shelf(bundle)
    names = ("item_id", *bundle.preprocessing.content_features)
    grown.put(np.array([2, 3]), grown.encode({name: list(bundle.snapshot.features[name])[2:] for name in names}))
    rows, views = np.arange(4), np.zeros((4, 1))
    assert np.allclose(grown.vectors(rows), whole.vectors(rows), atol=1e-6)
    ranked = [each.rank(each.user(one_row(1), T_US, ROW_OF), rows, views) for each in (grown, whole)]
    assert np.allclose(*ranked, atol=1e-6)


@EACH_PAIR
def test_what_weighed_is_told_of_every_architecture(towers: type, ranker: type) -> None:
    bundle = foreign_bundle(towers, ranker)
    built = foreign_shelf(bundle)
    seen = built.user(one_row(0), T_US, ROW_OF)
    weighed = built.explain(seen, np.array([0, 2]), np.array([[5.0], [2.0]]), ["a", "b"])
    assert [len(each) for each in weighed] == [5, 5]
    known = {"user_activity__views_10m", "user_profile__age", "item_catalogue__price", "item_activity__views_1h"}
    assert {entry["feature"] for each in weighed for entry in each} <= known | HISTORY_AND_RETRIEVAL
    if ranker is Line:  # which reads nothing of the history by a gradient
        assert not [entry for each in weighed for entry in each if entry["feature"].startswith("history: ")]


def test_more_codes_of_items_than_a_packed_row_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_shelf, "MOST_CODES", len(BUNDLE.preprocessing.ids))
    with pytest.raises(ValueError, match="5 codes of items, at most 5: train with fewer ids"):
        shelf()
