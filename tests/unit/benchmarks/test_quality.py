"""What the tables of quality say of runs, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality
from training.measures import RANKED, TOWERS
from training.rivals import ITEM_KNN, POPULAR


def values(**of: float) -> dict[str, Any]:
    return {name: {"value": value, "low": value - 0.01, "high": value + 0.01} for name, value in of.items()}


def run(seed: int, recall: float, gain: float) -> dict[str, Any]:
    """Of 200 items; the gain's interval is .01 wide on each side."""
    of_all = values(recall_at_10=recall, ndcg_at_10=recall / 2)
    few = values(ndcg_at_10=0.2, recall_at_50=0.5)
    report = {
        "retrieval": {"methods": {TOWERS: of_all}},
        "methods": {RANKED: values(recall_at_10=recall + gain, ndcg_at_10=recall / 2 + gain)},
        "gains": {name: values(gain=gain)["gain"] for name in (TOWERS, ITEM_KNN, POPULAR)},
        "segments": [
            {"of": "user", "name": "new", "methods": {RANKED: few, ITEM_KNN: values(ndcg_at_10=0.1)}},
            {"of": "item", "name": "cold", "methods": {TOWERS: few}},
            {"of": "item", "name": "head", "methods": {TOWERS: few}},
        ],
    }
    return {
        "set": "shop",
        "seed": seed,
        "report": report,
        "index": {"count": 200},
        "wall_s": 60.0,
        "commit": f"c{seed}",
    }


def test_figures_of_a_run_are_those_of_its_report() -> None:
    found = quality.figures(run(0, 0.4, 0.02))
    assert found["retrieval recall@10"] == 0.4
    assert found["ranked NDCG@10"] == pytest.approx(0.22)
    assert (found["gain over item-kNN"], found["clear over item-kNN"]) == (0.02, 1.0)
    assert (found["new users NDCG@10"], found["new users, item-kNN's"]) == (0.2, 0.1)
    assert (found["cold items recall@50"], found["cold items, times random"]) == (0.5, pytest.approx(2.0))
    assert "head" not in " ".join(found)


def test_a_gain_within_its_error_is_not_clear() -> None:
    assert quality.figures(run(0, 0.4, 0.005))["clear over retrieval"] == 0.0


def test_a_set_has_mean_and_spread_over_its_seeds_and_counts_the_clear_ones() -> None:
    [row], result = quality.summary([run(0, 0.4, 0.02), run(1, 0.6, 0.005)])
    assert row[:3] == ["shop", 2, "0.5000 ± 0.1414"]
    assert row[-1] == "+0.0125 ± 0.0106, 1 of 2 clear"
    assert (result["shop"]["seeds"], result["shop"]["commits"]) == ([0, 1], ["c0", "c1"])
    assert result["shop"]["retrieval recall@10"] == {"mean": 0.5, "std": pytest.approx(0.1414, abs=1e-4)}
    [alone], result = quality.summary([run(0, 0.4, 0.02)])
    assert alone[2] == "0.4000"
    assert result["shop"]["retrieval recall@10"]["std"] is None


def test_a_kept_run_counts_while_code_and_settings_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def once(which: quality.DataSet, changes: list[str], data: Path) -> dict[str, Any]:
        made.append(1)
        return {"index": {}, "report": {}}

    monkeypatch.setattr(quality, "run", once)
    which = quality.SETS["ml-100k"]
    first = quality.measured(which, 0, tmp_path, tmp_path)
    assert quality.measured(which, 0, tmp_path, tmp_path) == json.loads(json.dumps(first))
    assert len(made) == 1
    quality.measured(which, 1, tmp_path, tmp_path)
    file = tmp_path / "ml-100k-0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "code": "another"}))
    quality.measured(which, 0, tmp_path, tmp_path)
    assert len(made) == 3
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "ratings.csv").write_text("of another shop")
    quality.measured(which, 0, tmp_path, tmp_path)
    assert len(made) == 4


def test_a_kept_run_is_shown_whatever_code_made_it_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    which = quality.SETS["ml-100k"]
    (tmp_path / "ml-100k-0.json").write_text(json.dumps({"code": "another", "commit": "abc"}))
    assert quality.kept(which, 0, tmp_path)["commit"] == "abc"
    with pytest.raises(ValueError, match=r"ml-100k-1.json is not there: leave --kept out"):
        quality.kept(which, 1, tmp_path)


def test_a_set_of_ones_own_is_left_one_out_where_it_has_order_alone_and_split_by_time_where_it_has_times() -> None:
    books, shop = quality.set_called("books:sequences"), quality.set_called("shop:jsonl")
    assert (books.name, books.folder, books.changes) == ("books-sequences", "books", quality.SETS["beauty"].changes)
    assert (shop.name, shop.folder, shop.changes) == ("shop-jsonl", "shop", quality.SETS["ml-100k"].changes)
    for unknown in ("books", "books:csv", ":jsonl"):
        with pytest.raises(ValueError, match=f"no set is called '{unknown}': choose of beauty"):
            quality.set_called(unknown)


def test_one_item_in_twenty_is_held_out_whichever_file_it_is_of() -> None:
    held = sum(quality.is_cold(str(number)) for number in range(10_000))
    assert 400 < held < 600
