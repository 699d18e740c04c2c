import re
from xml.etree import ElementTree

import numpy as np
import pytest

from training import plots
from training.fit import Epoch
from training.intervals import Estimate
from training.metrics import Bin

ESTIMATES = {"first": Estimate(0.5, 0.4, 0.6), "alone": Estimate(0.25)}
FIGURES = {
    "dots": lambda: plots.dots(ESTIMATES, "NDCG@10"),
    "differences": lambda: plots.dots(ESTIMATES, "NDCG@10", zero=True),
    "groups": lambda: plots.groups({name: [each] for name, each in ESTIMATES.items()}, ["0"], "episodes", "recall@20"),
    "lines": lambda: plots.lines(
        {"towers": list(ESTIMATES.values())}, ["0s", "1h"], "age", "NDCG@10", {"popular": 0.1}
    ),
    "reliability": lambda: plots.reliability({"click": [Bin(0.1, 0.2, 4)], "cart": []}),
    "lorenz": lambda: plots.lorenz({"first": np.array([0, 3, 1]), "nothing": np.zeros(3, np.int64)}),
    "learning": lambda: plots.learning(
        {
            "towers": [Epoch(0, float("nan"), 0.1, 0, 0, 0), Epoch(1, 2.0, 0.2, 1, 9, 0)],
            "ranker": [Epoch(0, *[float("nan")] * 2, 0, 0, 0)],
        },
        {"towers": "NDCG@10", "ranker": "NDCG@10 less error"},
    ),
    "map": lambda: plots.embedding_map(np.eye(3, 4, dtype=np.float32), np.array([0, -1, 1]), ["a", "b"], np.ones(3)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_svg_element_with_labels_that_names_nothing_elsewhere_and_is_the_same_each_time(
    name: str,
) -> None:
    text = plots.svg(FIGURES[name]())
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "metadata" not in text
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert len(re.findall(r"<text", text)) >= 2
    assert text == plots.svg(FIGURES[name]())


def test_a_rare_outcome_has_fewer_points_of_more_impressions() -> None:
    """15 bins of 10: of 60 outcomes there are enough for 12 points, of 2 for two, and nothing is lost."""
    often = plots._wider([Bin(0.1 * place, 0.4, 10) for place in range(15)])
    rare = plots._wider([Bin(0.01 * place, 0.2 if place == 14 else 0.0, 10) for place in range(15)])
    assert (len(often), sum(part.rows for part in often)) == (12, 150)
    assert [part.rows for part in rare] == [80, 70]
    assert [part.predicted for part in rare] == pytest.approx([0.035, 0.11])
    assert [part.observed for part in rare] == pytest.approx([0, 2 / 70])
    assert plots._wider([]) == []


def test_the_map_says_how_many_items_have_no_colour_of_their_own() -> None:
    category = np.array([*range(13), *range(12), -1])
    text = plots.svg(
        plots.embedding_map(np.eye(26, dtype=np.float32), category, [f"c{n}" for n in range(13)], np.ones(26))
    )
    assert "other (2 items)" in text
    assert ">c11<" in text
    assert ">c12<" not in text


def test_principal_axes_are_those_of_the_largest_variance() -> None:
    vectors = np.array([[3, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]], np.float32)
    xy, shares = plots.principal_axes(vectors)
    assert np.abs(xy).round(6).tolist() == [[3, 0], [3, 0], [0, 1], [0, 1]]
    assert shares == pytest.approx((18 / 20, 2 / 20))


def test_the_exposure_curve_rises_from_nothing_to_all() -> None:
    share, exposure = plots._lorenz_curve(np.array([6, 0, 2, 0]))
    assert share.tolist() == [0, 1 / 4, 2 / 4, 3 / 4, 1]
    assert exposure.tolist() == [0, 0, 0, 2 / 8, 1]
