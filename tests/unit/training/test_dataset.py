from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from headrace.settings import HOUR_US
from headrace.stores.lake import EventLake
from training.config import small
from training.dataset import Cuts, DatasetError, episodes, impressions, read_split, ripening_us, unripe

CONFIG = small()


def events(*rows: tuple[str, str, str, float], **columns: list[object]) -> pl.DataFrame:
    """Rows of (user, item, type, hours)."""
    nothing: list[object] = [None] * len(rows)
    return pl.DataFrame(
        {
            "event_id": [f"e{place}" for place in range(len(rows))],
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "type": [row[2] for row in rows],
            "t_us": [int(row[3] * HOUR_US) for row in rows],
            "request_id": pl.Series(columns.get("request_id", nothing), dtype=pl.String),
            "as_of": pl.Series(columns.get("as_of", nothing), dtype=pl.Int64),
            "value": pl.Series(columns.get("value", nothing), dtype=pl.Float64),
            "position": pl.Series(columns.get("position", nothing), dtype=pl.Int32),
        }
    )


def test_an_episode_starts_at_its_first_event_and_is_labelled_by_all_of_them() -> None:
    rows = episodes(
        events(("u", "a", "view", 1), ("u", "a", "add_to_cart", 2), ("u", "b", "view", 3), ("v", "a", "purchase", 4)),
        CONFIG,
    )
    assert rows.select("user_id", "item_id", "t_us", "click", "cart", "purchase").rows() == [
        ("u", "a", 1 * HOUR_US, 1, 1, 0),
        ("u", "b", 3 * HOUR_US, 1, 0, 0),
        ("v", "a", 4 * HOUR_US, 1, 0, 1),
    ]


def test_a_pair_that_meets_again_after_the_horizon_makes_a_second_episode() -> None:
    rows = episodes(events(("u", "a", "view", 0), ("u", "a", "view", 24), ("u", "a", "purchase", 48.1)), CONFIG)
    assert rows.select("t_us", "purchase").rows() == [(0, 0), (int(48.1 * HOUR_US), 1)]


def test_a_low_rating_is_no_positive() -> None:
    rated = events(("u", "a", "rate", 0), ("u", "b", "rate", 1), ("u", "c", "view", 2), value=[2.0, 3.0, None])
    assert episodes(rated, CONFIG)["item_id"].to_list() == ["b", "c"]


def test_an_impression_is_labelled_by_what_answers_its_request_and_item() -> None:
    log = events(
        ("u", "a", "impression", 1),
        ("u", "b", "impression", 1),
        ("u", "a", "click", 1.1),
        ("u", "a", "purchase", 1.2),
        ("u", "b", "view", 1.3),
        request_id=["r", "r", "r", "r", None],
        as_of=[HOUR_US - 7, HOUR_US - 7, None, None, None],
        position=[0, 1, None, None, None],
    )
    assert impressions(log, CONFIG).rows() == [
        ("u", "a", HOUR_US - 7, "r", 0, 1, 0, 1),
        ("u", "b", HOUR_US - 7, "r", 1, 0, 0, 0),
    ]


def test_an_impression_that_was_rated_low_brought_nothing() -> None:
    log = events(
        ("u", "a", "impression", 1), ("u", "b", "impression", 1), ("u", "a", "rate", 2), ("u", "b", "rate", 2),
        request_id=["r"] * 4, value=[None, None, 1.0, 5.0],
    )  # fmt: skip
    assert impressions(log, CONFIG).select("item_id", "click").rows() == [("a", 0), ("b", 1)]


def test_an_answer_after_the_horizon_does_not_count() -> None:
    log = events(("u", "a", "impression", 1), ("u", "a", "click", 25.1), request_id=["r", "r"])
    assert impressions(log, CONFIG)["click"].to_list() == [0]


def test_an_empty_lake_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run `headrace ingest` first"):
        read_split(EventLake(tmp_path), CONFIG)


def test_most_of_what_comes_has_come_when_the_slowest_of_the_known_outcomes_has() -> None:
    """21 impressions are clicked after 1 to 21 minutes, and the first of them bought after ten hours."""
    requests = [f"r{number}" for number in range(21)]
    shown = [("u", "a", "impression", 1.0) for _ in requests]
    clicks = [("u", "a", "click", 1.0 + number / 60) for number in range(1, 22)]
    log = events(*shown, *clicks, ("u", "a", "purchase", 11.0), request_id=[*requests, *requests, "r0"])
    assert ripening_us(log, CONFIG.changed(min_outcomes=21)) == pytest.approx(20 / 60 * HOUR_US, abs=1)
    assert ripening_us(log, CONFIG.changed(min_outcomes=1)) == 10 * HOUR_US
    assert ripening_us(log, CONFIG.changed(min_outcomes=22)) == 0
    assert ripening_us(log[:21], CONFIG.changed(min_outcomes=0)) == 0


def test_what_was_shown_too_late_for_its_outcome_is_left_out_and_where_that_is_all_it_is_said(tmp_path: Path) -> None:
    """Every click comes two hours after; the validation begins at hour 10, the test at 20, and the last click is at 30."""
    rows = [
        ("u", f"i{hour}", kind, hour + later) for hour in range(29) for kind, later in (("impression", 0), ("click", 2))
    ]
    lake = lake_of(tmp_path, rows, requests=[f"r{place // 2}" for place in range(len(rows))])
    hour = 1 / 24
    config = CONFIG.changed(min_outcomes=1, test_days=10 * hour, validation_days=10 * hour)
    split = read_split(lake, config)
    assert split.ripening_us == 2 * HOUR_US
    assert [t_us // HOUR_US for t_us in split.validation_impressions["t_us"]] == list(range(11, 19))
    assert split.test_impressions["click"].to_list() == [1] * 8
    assert unripe(split) == []
    [said] = unripe(read_split(lake, config.changed(validation_days=1.5 * hour)))
    assert said.startswith("all impressions of the validation are of its last 2.0 h")


def lake_of(tmp_path: Path, rows: list[tuple[str, str, str, float]], requests: list[str] | None = None) -> EventLake:
    import pyarrow as pa

    from headrace.events import EVENT_SCHEMA

    def moment(hours: float) -> datetime:
        return datetime.fromtimestamp(hours * 3600, tz=UTC)

    table = pa.Table.from_pylist(
        [
            {"event_id": f"e{place}", "user_key": user, "item_id": item, "type": kind, "timestamp": moment(hours),
             "request_id": requests[place] if requests else None,
             "received_at": moment(hours), "log_partition": 0, "log_position": 1, "ingested_at": moment(hours)}
            for place, (user, item, kind, hours) in enumerate(rows)
        ],
        schema=EVENT_SCHEMA,
    )  # fmt: skip
    lake = EventLake(tmp_path)
    lake.append(table, {0: 1})
    return lake


def test_a_purchase_after_the_cut_is_no_label_of_an_episode_before_it(tmp_path: Path) -> None:
    lake = lake_of(
        tmp_path, [("u", "a", "view", 1), ("u", "b", "view", 2), ("u", "a", "purchase", 3), ("u", "c", "view", 4)]
    )
    cut_us = int(2.5 * HOUR_US)
    split = read_split(lake, CONFIG, Cuts(HOUR_US, cut_us, cut_us))
    assert split.train.select("item_id", "purchase").rows() == [("a", 0), ("b", 0)]
    assert split.test["item_id"].to_list() == ["c"]


def test_days_before_the_end_cut_off_test_and_validation(tmp_path: Path) -> None:
    """So that a history of one interaction a day leaves out the last for the test and the one before for validation."""
    lake = lake_of(tmp_path, [("u", item, "view", 24.0 * day) for day, item in enumerate("abcd")])
    split = read_split(lake, CONFIG.changed(test_days=1.0, validation_days=1.0))
    parts = (split.train, split.validation, split.test)
    assert [part["item_id"].to_list() for part in parts] == [["a", "b"], ["c"], ["d"]]


def test_a_lake_that_has_grown_is_cut_where_it_was_and_only_the_test_is_longer(tmp_path: Path) -> None:
    """By shares and by days from its new end, all three would lie later."""
    config = CONFIG.changed(days=2.0, test_share=0.25, validation_share=0.25)
    history = [("u", item, "view", 12.0 * place) for place, item in enumerate("abcd", start=1)]
    before = read_split(lake_of(tmp_path / "then", history), config)
    more = [("v", item, "view", 48.0 + place) for place, item in enumerate("efghij", start=1)]
    now = lake_of(tmp_path / "now", [*history, *more])
    after = read_split(now, config, Cuts(before.start_us, before.validation_us, before.cut_us))
    assert before.test["item_id"].to_list() == ["d"]
    assert after.test["item_id"].to_list() == ["d", *"efghij"]
    for side in ("train", "validation"):
        assert getattr(after, side).equals(getattr(before, side))
    assert (after.start_us, after.validation_us, after.cut_us) == (before.start_us, before.validation_us, before.cut_us)
    assert after.end_us == 54 * HOUR_US + 1
    again = read_split(now, config)
    assert (again.start_us, again.train["item_id"].to_list()) != (after.start_us, after.train["item_id"].to_list())


def test_what_comes_after_the_validation_begins_is_no_label_before_it(tmp_path: Path) -> None:
    lake = lake_of(
        tmp_path, [("u", "a", "view", 1), ("u", "b", "view", 2), ("u", "a", "purchase", 20), ("u", "c", "view", 60)]
    )
    split = read_split(lake, CONFIG.changed(test_days=1.0, validation_days=1.0))
    assert split.train.select("item_id", "purchase").rows() == [("a", 0), ("b", 0)]


def test_events_of_one_time_cannot_be_split(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [("u", "a", "view", 1), ("v", "b", "view", 1)])
    with pytest.raises(DatasetError, match="no interaction before the cut"):
        read_split(lake, CONFIG)


def test_impressions_after_the_last_interaction_do_not_move_the_window(tmp_path: Path) -> None:
    history = [("u", "a", "view", 1), ("u", "b", "view", 2), ("v", "a", "view", 3), ("v", "b", "view", 4)]
    alone = read_split(lake_of(tmp_path / "alone", history), CONFIG.changed(days=1.0))
    shown = read_split(
        lake_of(tmp_path / "shown", [*history, ("u", "b", "impression", 1_000)]), CONFIG.changed(days=1.0)
    )
    assert (alone.start_us, alone.cut_us, alone.end_us) == (shown.start_us, shown.cut_us, shown.end_us)


def test_a_window_with_too_few_interactions_is_refused_with_its_end_and_the_remedy(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [("u", "a", "view", 1), ("u", "b", "view", 100)])
    with pytest.raises(DatasetError, match=r"1970-01-05T04:00:00.*--set days=N"):
        read_split(lake, CONFIG.changed(days=1.0))
