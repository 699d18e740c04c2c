"""Loading into a real Valkey and a real lake: what is sent, what is refused, and that a second load changes nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest
import redis

from headrace import names
from headrace.clock import from_micros
from headrace.decoding import decode_payload
from headrace.events import EVENT_SCHEMA
from headrace.identity import shard_of
from headrace.ingest.feed import ENTRY_EVENTS
from headrace.ingest.jsonl import JsonLines
from headrace.ingest.load import IngestError, ingest
from headrace.ingest.rees46 import Rees46
from headrace.ingest.replay import ReplayError, replay
from headrace.ingest.simulator import ShopConfig, simulate
from headrace.ingest.source import ItemRow
from headrace.ops.apply import apply
from headrace.settings import MICROS, Settings
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake, LakeBehindError
from headrace.stores.log import EventLog, open_log

NOW_US = 1_800_000_000 * MICROS


def clock() -> int:
    return NOW_US


@pytest.fixture
def stack(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey})


@pytest.fixture
def log(stack: Settings) -> Iterator[EventLog]:
    with redis.Redis.from_url(stack.redis_url) as client:
        yield open_log(client, stack)


@pytest.fixture
def letters(stack: Settings) -> Iterator[DeadLetters]:
    with redis.Redis.from_url(stack.redis_url) as client:
        yield DeadLetters(client)


def view(event_id: str, second: int, user: str = "u", **fields: Any) -> dict[str, Any]:
    timestamp = from_micros(second * MICROS).isoformat()
    return {"event_id": event_id, "type": "view", "user_id": user, "item_id": "i", "timestamp": timestamp, **fields}


def write(path: Path, *rows: object) -> JsonLines:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return JsonLines(path)


def logged(log: EventLog) -> pl.DataFrame:
    """All that the log holds, entry by entry."""
    tables = []
    for entry in log.read(dict.fromkeys(range(log.partitions), 0), 10_000):
        table, bad = decode_payload(entry.payload)
        assert not bad
        assert table.num_rows <= ENTRY_EVENTS
        assert {shard_of(key, log.partitions) for key in table["user_key"].to_pylist()} == {entry.partition}
        tables.append(table)
    frame = pl.DataFrame(pa.concat_tables(tables)) if tables else pl.DataFrame()
    return frame


def move_log_into_lake(log: EventLog, stack: Settings) -> None:
    """What the lake flow does, in one go."""
    tables, positions = [], dict.fromkeys(range(log.partitions), 0)
    for entry in log.read(positions, 10_000):
        table, _ = decode_payload(entry.payload)
        stood = {
            names.INGESTED_AT: pa.array([entry.ingested_at_us] * table.num_rows, pa.timestamp("us", tz="UTC")),
            names.LOG_PARTITION: pa.array([entry.partition] * table.num_rows, pa.int32()),
            names.LOG_POSITION: pa.array([entry.position] * table.num_rows, pa.int64()),
        }
        for name, column in stood.items():
            table = table.append_column(name, column)
        tables.append(table.select(EVENT_SCHEMA.names))
        positions[entry.partition] = entry.position
    EventLake(stack.lake_dir).append(pa.concat_tables(tables), positions)


def test_events_reach_the_log_in_order_of_time_and_id_with_arrival_at_their_own_time(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", view("c", 20), view("b", 10), view("a", 20), view("d", 15, user="other"))
    report = ingest(source, stack, clock=clock)
    assert (report.path, report.read, report.appended, report.types) == ("log", 4, 4, {"view": 4})
    assert report.last_event_us == 20 * MICROS
    events = logged(log)
    assert events.filter(pl.col("user_key") == "u")["event_id"].to_list() == ["b", "a", "c"]
    assert (events["received_at"] == events["timestamp"]).all()


def test_a_repeated_event_goes_to_the_log_where_the_flow_drops_it(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    report = ingest(write(tmp_path / "a.jsonl", view("a", 10), view("a", 10)), stack, clock=clock)
    assert (report.read, report.duplicates, report.appended) == (2, 1, 2)
    assert logged(log)["event_id"].to_list() == ["a", "a"]


def test_refused_rows_are_kept_with_line_field_and_reason_and_only_once(
    stack: Settings, letters: DeadLetters, tmp_path: Path
) -> None:
    bad = view("b", 10) | {"type": "stare"}
    source = write(
        tmp_path / "a.jsonl", view("a", 10), bad, view("c", 10, price=-1.0), view("d", NOW_US // MICROS + 301)
    )
    for _ in range(2):
        report = ingest(source, stack, clock=clock)
        assert (report.read, report.refused) == (4, 3)
        found = {letter.origin: letter for letter in letters}
        assert sorted(found) == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    assert (found["a.jsonl:2"].field, orjson.loads(found["a.jsonl:2"].raw)) == ("type", bad)
    assert (found["a.jsonl:3"].field, found["a.jsonl:3"].reason) == (
        "price",
        "Input should be greater than or equal to 0",
    )
    assert found["a.jsonl:4"].field == "timestamp"
    assert "ahead of the clock" in found["a.jsonl:4"].reason


def test_an_item_that_no_event_could_name_is_refused(stack: Settings, letters: DeadLetters) -> None:
    class Catalogue:
        name = "catalogue"

        def read(self) -> Iterator[ItemRow]:
            yield ItemRow("i" * 129, 10)
            yield ItemRow("i", 10)

    report = ingest(Catalogue(), stack, clock=clock)
    assert (report.items, report.refused) == (1, 1)
    assert [(letter.field, letter.reason) for letter in letters] == [
        ("item_id", "String should have at most 128 characters")
    ]


def test_an_event_larger_than_the_bound_is_refused(stack: Settings, letters: DeadLetters, tmp_path: Path) -> None:
    small = stack.model_copy(update={"max_event_bytes": 500})
    report = ingest(write(tmp_path / "a.jsonl", view("a", 10, query="x" * 400)), small, clock=clock)
    assert (report.refused, report.appended) == (1, 0)
    assert [letter.field for letter in letters] == ["event"]


def test_loading_again_what_the_lake_holds_changes_nothing(stack: Settings, log: EventLog, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", view("a", 10), view("b", 20))
    ingest(source, stack, clock=clock)
    move_log_into_lake(log, stack)
    end = log.end()
    days_later = NOW_US + 5 * 86_400 * MICROS
    again = ingest(source, stack, clock=lambda: days_later)
    assert (again.already_loaded, again.appended, log.end()) == (2, 0, end)
    by_bulk = ingest(source, stack, bulk=True, clock=clock)
    assert (by_bulk.already_loaded, by_bulk.appended, by_bulk.bulk_position) == (2, 0, None)


def test_the_shift_takes_the_last_event_to_now_moves_all_times_alike_and_leaves_ids(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    shown = view("b", 20, as_of=from_micros(19 * MICROS).isoformat(), score=0.5) | {"type": "impression"}
    source = write(tmp_path / "a.jsonl", view("a", 10), shown)
    report = ingest(source, stack, shift_to_now=True, clock=clock)
    assert (report.shift_us, report.last_event_us) == (NOW_US - 20 * MICROS, NOW_US)
    events = logged(log).sort("timestamp")
    times = events.select(pl.col("timestamp", "received_at", "as_of").dt.epoch("us")).rows()
    first, last = NOW_US - 10 * MICROS, NOW_US
    assert times == [(first, first, None), (last, last, NOW_US - MICROS)]
    assert events["event_id"].to_list() == ["a", "b"]


def test_a_later_load_with_a_shift_keeps_the_shift_of_what_is_loaded(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    first = ingest(
        write(tmp_path / "a.jsonl", view("a", 10), view("b", 20)), stack, bulk=True, shift_to_now=True, clock=clock
    )
    more = write(tmp_path / "a.jsonl", view("a", 10), view("b", 20), view("c", 15))
    later = ingest(more, stack, shift_to_now=True, clock=lambda: NOW_US + 3_600 * MICROS)
    assert (later.already_loaded, later.appended, later.shift_us) == (2, 1, first.shift_us)


def test_a_bulk_load_goes_to_the_lake_once_under_the_next_bulk_position(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    report = ingest(
        write(tmp_path / "a.jsonl", view("b", 20), view("a", 10), view("a", 10)), stack, bulk=True, clock=clock
    )
    assert (report.path, report.duplicates, report.appended, report.bulk_position) == ("bulk", 1, 2, 1)
    report = ingest(write(tmp_path / "a.jsonl", view("c", 30), view("a", 10)), stack, bulk=True, clock=clock)
    assert (report.already_loaded, report.appended, report.bulk_position) == (1, 1, 2)
    lake = EventLake(stack.lake_dir)
    stood = lake.scan(["event_id", "log_partition", "log_position", "log_index"]).sort("event_id").collect().rows()
    assert stood == [("a", -1, 1, 0), ("b", -1, 1, 1), ("c", -1, 2, 0)]
    assert lake.positions([names.BULK_PARTITION]) == {names.BULK_PARTITION: 2}
    assert lake.scan(["ingested_at"]).collect()["ingested_at"].unique().to_list() == [from_micros(NOW_US)]
    assert not any(log.end().values())


def test_a_bulk_load_is_refused_while_the_lake_lags_behind_the_log(
    stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.ingest.load._LAKE_WAIT_S", 0.1)
    source = write(tmp_path / "a.jsonl", view("a", 10))
    ingest(source, stack, clock=clock)
    with pytest.raises(LakeBehindError, match="is the lake flow running"):
        ingest(source, stack, bulk=True, clock=clock)


def test_what_exceeds_the_logs_bound_is_refused_whole_and_bulk_is_named(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", *(view(f"e{n}", n) for n in range(100)))
    small = stack.model_copy(update={"log_max_bytes": 10_000})
    with pytest.raises(IngestError, match=r"its bound is 10000 .*--bulk.*headrace backfill"):
        ingest(source, small, clock=clock)
    assert not any(log.end().values())
    assert not small.lake_dir.exists()
    assert ingest(source, small, bulk=True, clock=clock).appended == 100


def test_the_shops_catalogue_and_profiles_are_loaded_once_with_the_same_shift(stack: Settings, log: EventLog) -> None:
    shop = simulate(ShopConfig(users=20, items=30, categories=3, events=500, days=1))
    report = ingest(shop, stack, shift_to_now=True, clock=clock)
    assert (report.appended, report.items, report.profiles) == (len(shop.events), shop.catalogue.num_rows, 17)
    items = pl.read_delta(str(stack.lake_dir / names.ITEMS_TABLE))
    oldest = min(row.event_timestamp_us for row in shop.items)
    assert items.select(pl.col("event_timestamp").dt.epoch("us").min()).item() == oldest + report.shift_us
    again = ingest(shop, stack, shift_to_now=True, clock=clock)
    assert (again.items, again.profiles) == (0, 0)


def test_a_lake_is_replayed_into_an_empty_stack_and_only_there(stack: Settings, log: EventLog, tmp_path: Path) -> None:
    origin = stack.model_copy(update={"data": tmp_path / "origin"})
    shop = simulate(ShopConfig(users=20, items=30, categories=3, events=500, days=1))
    ingest(shop, origin, bulk=True, clock=clock)
    report = replay(origin.lake_dir, stack, speed=None)
    assert report.events == len(shop.events)
    columns = ["event_id", "timestamp", "received_at", "as_of", "price", "context_device", "request_id", "position"]
    stored = EventLake(origin.lake_dir).scan(columns).sort("event_id").collect()
    assert logged(log).select(columns).sort("event_id").equals(stored)
    assert pl.read_delta(str(stack.lake_dir / names.ITEMS_TABLE)).height == shop.catalogue.num_rows
    with pytest.raises(ReplayError, match=r"the event log of .* is not empty"):
        replay(origin.data, stack, speed=None)
    with pytest.raises(ReplayError, match="holds no event lake"):
        replay(tmp_path, stack.model_copy(update={"data": tmp_path / "third"}), speed=None)


def test_a_stack_whose_lake_holds_events_is_not_replayed_into(stack: Settings, tmp_path: Path) -> None:
    ingest(write(tmp_path / "a.jsonl", view("a", 10)), stack, bulk=True, clock=clock)
    with pytest.raises(ReplayError, match=r"the event lake at .* is not empty"):
        replay(stack.lake_dir, stack, speed=None)


def test_a_replay_keeps_the_gaps_of_the_history_divided_by_the_speed(
    stack: Settings, log: EventLog, tmp_path: Path
) -> None:
    origin = stack.model_copy(update={"data": tmp_path / "origin"})
    ingest(write(tmp_path / "a.jsonl", view("a", 0), view("b", 60), view("c", 180)), origin, bulk=True, clock=clock)
    now_us = [NOW_US]

    def sleep(seconds: float) -> None:
        now_us[0] += round(seconds * MICROS)

    report = replay(origin.lake_dir, stack, speed=60, clock=lambda: now_us[0], sleep=sleep)
    assert report.seconds == pytest.approx(3.0)
    assert sorted(logged(log)["event_id"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="speed is -1"):
        replay(origin.lake_dir, stack, speed=-1)


def test_the_newest_catalogue_row_is_read_online_after_plain_views_are_materialized(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Feast's plugins are configured by the environment of their process.
    monkeypatch.setenv("HEADRACE_DATA", str(stack.data))
    monkeypatch.setenv("HEADRACE_REDIS_URL", str(stack.redis_url))
    shop = simulate(ShopConfig(users=5, items=30, categories=3, events=50, days=1))
    ingest(shop, stack, bulk=True, clock=clock)
    apply(stack)
    newest = shop.items[-1]
    answer = open_feature_store(stack).get_online_features(
        features=["item_catalogue:title", "item_catalogue:price"], entity_rows=[{"item_id": newest.item_id}]
    )
    assert answer.to_dict() == {"item_id": [newest.item_id], "title": [newest.title], "price": [newest.price]}


@pytest.mark.data
def test_the_public_sample_is_loaded_to_the_last_good_row(
    stack: Settings, log: EventLog, letters: DeadLetters, datasets: Path
) -> None:
    report = ingest(Rees46(datasets / "rees46"), stack, shift_to_now=True, clock=clock)
    assert (report.read, report.refused, report.duplicates, report.appended) == (17_435, 1, 5, 17_434)
    assert report.types == {"add_to_cart": 164, "purchase": 214, "view": 17_051}
    assert (report.items, report.last_event_us) == (6_493, NOW_US)
    events = logged(log)
    assert (events.height, events["event_id"].n_unique()) == (17_434, 17_429)
    [letter] = letters
    assert (letter.origin, letter.field) == ("2019-Oct.csv.gz:17436", "user_session")
    assert letter.reason == "the line has 8 columns and not 9"
    assert letter.raw.endswith("elenberg,25.71,52040330")
    plain = ingest(Rees46(datasets / "rees46"), stack, bulk=False, clock=clock)
    assert logged(log)["event_id"].n_unique() == 17_429
    assert plain.shift_us == 0
