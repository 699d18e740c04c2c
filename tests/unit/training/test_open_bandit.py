"""One policy's clicks from another's logs, on a few rows by hand and on the data set itself."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from training.estimators import OffPolicyError
from training.off_policy import IPS, of_open_bandit
from training.open_bandit import Shown, chances, click_rates, expectations, numbered, read

HEADER = ",timestamp,item_id,position,click,propensity_score\n"


def write(folder: Path, policy: str, *rows: tuple[int, int, int, float]) -> None:
    """Rows of (item, position, click, propensity)."""
    (folder / policy).mkdir(parents=True)
    text = HEADER + "".join(f"{n},2019-11-24 00:00:00+00:00,{i},{p},{c},{q}\n" for n, (i, p, c, q) in enumerate(rows))
    (folder / policy / "women.csv.gz").write_bytes(gzip.compress(text.encode()))


def shown(*rows: tuple[int, int, float]) -> Shown:
    """Rows of (item, position, click)."""
    item, position, click = (np.array(column) for column in zip(*rows, strict=True))
    return Shown(item, position, click.astype(np.float64), np.full(len(rows), 0.5))


def test_the_target_s_chances_are_how_often_it_shows_an_item_at_a_position() -> None:
    logs, items, positions = numbered(shown((7, 1, 0), (7, 1, 0), (9, 1, 0), (9, 3, 0)))
    assert chances(logs[0], items, positions, "bts").tolist() == [[2 / 3, 1 / 3], [0.0, 1.0]]


def test_a_policy_that_was_never_seen_at_a_position_is_named_with_the_position() -> None:
    logs, items, positions = numbered(shown((7, 1, 0)), shown((7, 1, 0), (7, 2, 0)))
    with pytest.raises(
        OffPolicyError, match=r"policy bts was never seen at position 2 of the 2 .*: take more of its logs"
    ):
        chances(logs[0], items, positions, "bts")


def test_items_and_positions_are_numbered_over_both_logs() -> None:
    logs, items, positions = numbered(shown((7, 1, 0), (9, 3, 0)), shown((8, 2, 0)))
    assert (items, positions) == (3, 3)
    assert [each.item_R.tolist() for each in logs] == [[0, 2], [1]]
    assert [each.position_R.tolist() for each in logs] == [[0, 2], [1]]


def test_a_click_rate_of_few_impressions_is_near_that_of_the_position() -> None:
    rates = click_rates(shown((0, 0, 1), (0, 0, 0), (1, 0, 0), (1, 0, 0)), 3, 1)
    assert rates[0] == pytest.approx([(1 + 25) / 102, 25 / 102, 0.25])


def test_a_model_speaks_of_no_impression_that_it_has_learnt_from() -> None:
    """One click among ten: the four fifths that the clicked one is not of know of none."""
    log = shown(*[(0, 0, float(number == 3)) for number in range(10)])
    predicted, expected = expectations(log, np.array([[1.0]]))
    assert predicted.tolist() == expected.tolist()
    assert predicted[3] == predicted[8] == 0.0
    assert predicted[0] == pytest.approx(1 / 8)


def test_a_policy_that_shows_what_was_clicked_earns_more(tmp_path: Path) -> None:
    write(tmp_path, "random", (0, 1, 1, 0.5), (0, 1, 0, 0.5), (1, 1, 0, 0.5), (1, 1, 0, 0.5))
    write(tmp_path, "bts", (0, 1, 1, 0.75), (0, 1, 1, 0.75), (0, 1, 0, 0.75), (1, 1, 0, 0.25))
    report = of_open_bandit(tmp_path)
    assert report.logged.value == 0.25
    assert report.estimates[IPS].value == pytest.approx(1.5 / 4)
    assert report.truth is not None
    assert report.truth.value == 0.5
    assert of_open_bandit(tmp_path, clip=1.0).estimates[IPS].value == pytest.approx(1 / 4)


def test_a_folder_without_the_policy_and_a_file_without_its_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OffPolicyError, match=r"holds no random/women.csv.gz: name the folder that holds random/"):
        read(tmp_path, "random")
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / "women.csv").write_text("item_id,position\n1,2\n")
    with pytest.raises(OffPolicyError, match="is no Open Bandit file with columns item_id, position, click"):
        read(tmp_path, "random")
    (tmp_path / "random" / "women.csv").write_text("item_id,position,click,propensity_score\n1,2,0,\n")
    with pytest.raises(OffPolicyError, match="has empty cells in propensity_score"):
        read(tmp_path, "random")


@pytest.mark.data
def test_bts_from_random_logs_agrees_with_its_own_click_rate_as_far_as_46_clicks_tell(datasets: Path) -> None:
    report = of_open_bandit(datasets / "open-bandit")
    assert (report.impressions, report.logged.value) == (10_000, 0.0046)
    assert report.truth is not None
    assert report.truth.value == 0.0046
    for estimate in report.estimates.values():
        assert estimate.low <= report.truth.value <= estimate.high
        assert estimate.low <= report.truth.high
        assert report.truth.low <= estimate.high
        assert estimate.mean_weight == pytest.approx(1.0, abs=0.05)
