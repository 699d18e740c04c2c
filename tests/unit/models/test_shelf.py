"""The shelf gives what the plain scorer gives, which encodes everything anew."""

import numpy as np
import pytest

from headrace.models.shelf import Shelf
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US

BUNDLE = tiny_shop.bundle()
CONTENT = {name: list(BUNDLE.snapshot.features[name]) for name in ("item_id", *BUNDLE.preprocessing.content_features)}
ROW_OF = {"a": 0, "b": 1, "c": 2, "d": 3}


def shelf(content: dict[str, list[object]] = CONTENT) -> Shelf:
    return Shelf(BUNDLE.preprocessing, BUNDLE.towers, BUNDLE.ranker, content)


def one_row(row: int) -> dict[str, list[object]]:
    return {name: [value] for name, value in tiny_shop.request_of(row).items()}


@pytest.mark.parametrize("user", [0, 1, 2])
def test_vectors_and_scores_are_those_of_the_plain_scorer(user: int) -> None:
    scorer, built = BUNDLE.scorer(), shelf()
    seen = built.user(one_row(user), T_US, ROW_OF)
    assert np.allclose(seen.vector[0], scorer.user_vector(tiny_shop.request_of(user), T_US), atol=1e-6)
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
    changed.put(
        np.array([0]), changed.encode({**{n: c[:1] for n, c in CONTENT.items()}, "item_catalogue__price": [1e6]})
    )
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
    assert np.allclose(shelf().user(features, T_US, ROW_OF).vector[0], expected, atol=1e-6)


def test_what_weighed_is_named_by_feature_and_by_item_of_the_history_and_every_candidate_has_its_own() -> None:
    built = shelf()
    seen = built.user(one_row(0), T_US, ROW_OF)
    weighed = built.explain(seen, np.array([0, 2]), np.array([[5.0], [2.0]]), ["a", "b"])
    assert [len(each) for each in weighed] == [5, 5]
    known = {"user_activity__views_10m", "user_profile__age", "item_catalogue__price", "item_activity__views_1h"}
    assert {entry["feature"] for each in weighed for entry in each} <= known | {"history: a", "history: b"}
    assert weighed[0] != weighed[1]


def test_the_weight_of_an_input_is_what_a_small_change_of_it_does_to_the_score() -> None:
    built = shelf()
    seen = built.user(one_row(0), T_US, ROW_OF)
    number = BUNDLE.preprocessing.activity_numbers[0]
    views = np.array([[5.0]])
    entries = {entry["feature"]: entry["weight"] for entry in built.explain(seen, np.array([0]), views, ["a", "b"])[0]}
    scaled = (np.log1p(5.0) - number.mean) / number.std
    nearby = np.expm1((scaled + 1e-3) * number.std + number.mean)
    slope = (built.rank(seen, np.array([0]), np.array([[nearby]])) - built.rank(seen, np.array([0]), views))[0] / 1e-3
    assert entries.get("item_activity__views_1h", scaled * slope) == pytest.approx(scaled * slope, abs=2e-3)
