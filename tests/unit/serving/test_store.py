from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from headrace import names
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.plain_rows import PlainLayout
from serving.store import READ_BY_NAME, missing_features, read_catalogue_rows

FEATURES = ("item_catalogue__weight", "item_catalogue__colour")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


def add(settings: Settings, *rows: dict[str, Any]) -> None:
    """Rows of the catalogue table; `at` is both times, in microseconds."""
    times = {"event_timestamp": pl.Datetime("us", "UTC"), "created": pl.Datetime("us", "UTC")}
    frame = pl.DataFrame(
        [{**row, **dict.fromkeys(times, from_micros(row["at"]))} for row in rows], schema_overrides=times
    )
    write_deltalake(str(settings.lake_dir / names.ITEMS_TABLE), frame.drop("at").to_arrow(), mode="append")


def row(item_id: str, at: int, weight: float, available: bool | None = True) -> dict[str, Any]:
    return {"item_id": item_id, "at": at, "weight": weight, "available": available}


def test_of_each_item_the_last_row_not_after_now_counts_and_items_seen_last_come_first(settings: Settings):
    add(settings, row("a", 1, 1.0), row("a", 3, 3.0, False), row("a", 9, 9.0), row("b", 2, 2.0, None))
    rows = read_catalogue_rows(settings, FEATURES, 5, None)
    assert rows is not None
    assert rows.columns == {"item_id": ["b", "a"], FEATURES[0]: [2.0, 3.0], FEATURES[1]: [None, None]}
    assert rows.unavailable == {"a"}


def test_of_two_rows_of_one_time_the_one_written_last_counts(settings: Settings):
    add(settings, row("a", 1, 1.0))
    add(settings, row("a", 1, 2.0))
    rows = read_catalogue_rows(settings, FEATURES[:1], 5, None)
    assert rows is not None
    assert rows.columns[FEATURES[0]] == [2.0]


def test_the_table_is_read_again_when_it_has_changed_or_another_feature_is_wanted(settings: Settings):
    add(settings, row("a", 1, 1.0))
    first = read_catalogue_rows(settings, (), 5, None)
    assert read_catalogue_rows(settings, (), 5, first) is first
    second = read_catalogue_rows(settings, FEATURES, 5, first)
    assert second is not first
    assert read_catalogue_rows(settings, (), 5, second) is second
    add(settings, row("b", 2, 2.0))
    third = read_catalogue_rows(settings, FEATURES, 5, second)
    assert third is not None
    assert third.item_ids == ["b", "a"]


def test_without_a_table_there_are_no_rows(settings: Settings):
    assert read_catalogue_rows(settings, FEATURES, 5, None) is None


def test_features_that_serving_knows_by_name_and_nobody_defines_are_found():
    def counting(view: str, *features: str) -> ViewSpec:
        counts = tuple(AggregateSpec(name, ("view",), None, "count", 0, None, None) for name in features)
        return ViewSpec(view, names.USER_ID, names.USER_KEY, counts, None, 0, 0)

    defined = [name.split("__") for name in READ_BY_NAME if name != "item_activity__carts_7d"]
    views = {
        view: counting(view, *(feature for of, feature in defined if of == view))
        for view in (names.USER_ACTIVITY, names.ITEM_ACTIVITY)
    }
    catalogue = PlainLayout(names.ITEM_CATALOGUE, (("price", "DOUBLE"),))
    assert missing_features(Definitions(views, {names.ITEM_CATALOGUE: catalogue})) == [
        "item_activity__carts_7d",
        "item_catalogue__available",
    ]
