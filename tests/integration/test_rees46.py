"""A real store's events through the whole of the feature path: counts, as-of verification, the oracle. Kills: tests/laws."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.ingest.load import ingest
from headrace.ingest.rees46 import Rees46
from headrace.ops.verify import verify
from headrace.settings import MICROS, Settings
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from headrace.stores.log import open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status
from tests import oracles
from tests.conftest import wait_until

pytestmark = [pytest.mark.data, pytest.mark.timeout(180)]

Start = Callable[[str], "subprocess.Popen[bytes]"]
AGES_US = [1] + [minutes * 60 * MICROS for minutes in (1, 9, 10, 11, 59, 61)]
BY_TYPE = {"view": 17_051, "add_to_cart": 164, "purchase": 214}


def wait_for_the_flows(stack: Settings) -> None:
    client = connect(stack)
    end = open_log(client, stack).end()
    lake = EventLake(stack.lake_dir)

    def at_the_end() -> bool:
        shards = [status.positions for status in read_status(client, range(stack.shards)).values()]
        return all(positions == end for positions in [*shards, lake.positions(end)])

    wait_until(at_the_end, timeout_s=90)


def assert_counts(stack: Settings) -> int:
    """Everything is in once; returns the time of the newest event."""
    events = EventLake(stack.lake_dir).scan().collect()
    assert dict(events[names.TYPE].value_counts().iter_rows()) == BY_TYPE
    assert events[names.EVENT_ID].n_unique() == events.height == 17_429
    return int(events.select(pl.col(names.TIMESTAMP).dt.timestamp("us").max()).item())


def assert_verified(stack: Settings, newest_us: int) -> None:
    for age_us in AGES_US:
        report = verify(stack, as_of_us=newest_us + age_us)
        assert report.ok, report.examples
        assert report.entities == {
            "user_activity": 4_504,
            "item_activity": 6_493,
        }  # one more user is in the cut row alone
        if age_us == 1:
            assert all(report.non_zero[f"user_activity.views_{window}"] > 0 for window in ("10m", "1h", "1d", "7d"))


def assert_equals_oracle(stack: Settings, t_us: int) -> None:
    """A sample of the entities, every feature, against the naive oracle."""
    frame = EventLake(stack.lake_dir).scan().collect()
    times = [name for name, kind in frame.schema.items() if kind.is_temporal()]
    rows = frame.with_columns(pl.col(times).dt.timestamp("us")).to_dicts()
    for spec in compile_views(open_feature_store(stack)).values():
        keys = sorted(frame[spec.entity_column].unique())[::97]
        by_key = {key: [row for row in rows if row[spec.entity_column] == key] for key in keys}
        values = (
            OnlineReader(connect(stack), load_definitions(stack), stack)
            .fetch({spec.name: keys})
            .streams[spec.name]
            .values(t_us)
        )
        for aggregate in spec.aggregates:
            expected = [oracles.value(spec, aggregate, by_key[key], key, t_us) for key in keys]
            assert list(values[aggregate.name]) == expected, f"{spec.name}.{aggregate.name}"


def test_every_row_is_in_once_the_cut_one_is_named_and_both_engines_agree(
    stack: Settings, datasets: Path, start_flow: Start
) -> None:
    report = ingest(Rees46(datasets / "rees46"), stack)
    assert (report.read, report.refused, report.duplicates, report.types) == (17_435, 1, 5, BY_TYPE)
    assert [letter.origin.split("/")[-1] for letter in DeadLetters(connect(stack))] == ["2019-Oct.csv.gz:17436"]
    start_flow("features")
    start_flow("lake")
    wait_for_the_flows(stack)
    newest_us = assert_counts(stack)
    assert_verified(stack, newest_us)
    assert_equals_oracle(stack, newest_us + 1)
    catalogue = pl.read_delta(str(stack.lake_dir / names.ITEMS_TABLE))
    assert catalogue[names.ITEM_ID].n_unique() == 6_493
    assert catalogue["category"].null_count() == 0
