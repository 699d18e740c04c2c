"""Operations on items through the log and both flows: what they become in each store, and that neither store is ever left with half."""

import random
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import run_main
from deltalake import DeltaTable

from flows.features import get_flow as feature_flow
from flows.lake import get_flow as lake_flow
from flows.recovery import StopFlag
from flows.source import Pace
from flows.split import DUPLICATES, ITEMS
from headrace import names
from headrace.clock import from_micros, system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.ingest.plain_rows import item_table
from headrace.ingest.source import ItemRow
from headrace.item_operations import ItemOperation, status, to_record, upsert
from headrace.ops.apply import apply
from headrace.ops.backfill import backfill
from headrace.ops.verify import verify
from headrace.settings import Settings
from headrace.stores.change_feed import ChangeFeed
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.item_lake import ItemTable
from headrace.stores.lake import EventLake, append_rows
from headrace.stores.log import open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status
from tests.conftest import wait_until
from tests.integration.conftest import feast_applied
from tests.integration.small_repo import apply_views, feature, make_settings, stream_view

Start = Callable[[str], "subprocess.Popen[bytes]"]
AT = 1_790_000_000_000_000
WATCH = {
    "title": "Steel watch", "category": "watches", "brand": "Acme", "price": 129.0, "available": True,
    "attributes": ["steel", "round"], "listed_at": 1_700_000_000_000_000,
}  # fmt: skip


def append(settings: Settings, *operations: ItemOperation | Mapping[str, Any]) -> None:
    """Each in an entry of its own. An operation's event id is made of its content, so that the same one again is a duplicate."""
    log = open_log(connect(settings), settings)
    for each in operations:
        record = (
            to_record(each, f"{each.kind}-{each.item_id}-{each.timestamp_us}")
            if isinstance(each, ItemOperation)
            else dict(each)
        )
        partition = shard_of(record["user_key"], log.partitions)
        log.append({partition: encode_records([record])}, {partition: 1})


def run_both(settings: Settings) -> None:
    run_main(feature_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))
    run_main(lake_flow(settings, system_clock, StopFlag(), until_end=True))


def wait_for_both(settings: Settings) -> None:
    """Until both stores have what the log holds."""
    client = connect(settings)
    end, shards = open_log(client, settings).end(), range(settings.shards)
    wait_until(lambda: all(each.positions == end for each in read_status(client, shards).values()), timeout_s=150.0)
    EventLake(settings.lake_dir).wait_for(end, 60.0)


def online(settings: Settings, view: str, *items: str) -> list[dict[str, Any]]:
    reader = OnlineReader(connect(settings), load_definitions(settings), settings)
    columns = reader.fetch({view: list(items)}).plain[view].values()
    return [
        {name: None if (value := column[row]) is None or value != value else value for name, column in columns.items()}
        for row in range(len(items))
    ]


def table_of(settings: Settings, view: str) -> pl.DataFrame:
    path = str(settings.lake_dir / names.ITEM_TABLES[view])
    return (
        pl.read_delta(path).sort("event_timestamp", names.ITEM_ID) if DeltaTable.is_deltatable(path) else pl.DataFrame()
    )


def test_an_upsert_and_a_status_become_full_rows_in_both_stores(stack: Settings) -> None:
    append(
        stack,
        upsert("i1", AT, WATCH),
        upsert("i2", AT + 1, {"available": False}),
        status("i1", AT + 2, available=False),
        status("i3", AT + 3, available=False, deleted=True),
    )
    run_both(stack)
    nothing = dict.fromkeys(("title", "category", "brand", "price", "attributes", "listed_at"))
    assert online(stack, names.ITEM_CATALOGUE, "i1", "i2") == [WATCH, nothing | {"available": False}]
    gone = {"available": False, "deleted": True}
    assert online(stack, names.ITEM_STATUS, "i1", "i3") == [gone | {"deleted": False}, gone]
    rows = table_of(stack, names.ITEM_CATALOGUE)
    assert rows.drop("created").rows(named=True) == [
        {"item_id": "i1", **WATCH, "event_timestamp": from_micros(AT)},
        {"item_id": "i2", **nothing, "available": False, "event_timestamp": from_micros(AT + 1)},
    ]
    assert (rows["created"] > rows["event_timestamp"]).all()
    assert table_of(stack, names.ITEM_STATUS)["item_id"].to_list() == ["i1", "i3"]
    assert EventLake(stack.lake_dir).scan().collect().is_empty()
    assert sum(each.counters.get(ITEMS, 0) for each in read_status(connect(stack), range(stack.shards)).values()) == 4


def test_an_older_operation_that_comes_later_changes_nothing_now_but_history(stack: Settings) -> None:
    append(stack, upsert("i1", AT + 5, WATCH), upsert("i1", AT, WATCH | {"price": 1.0}))
    run_both(stack)
    assert online(stack, names.ITEM_CATALOGUE, "i1") == [WATCH]
    assert table_of(stack, names.ITEM_CATALOGUE)["price"].to_list() == [1.0, 129.0]


def test_the_change_feed_names_the_items_with_the_positions_that_include_them(stack: Settings) -> None:
    feed = ChangeFeed(connect(stack), stack.shards)
    feed.start()
    append(stack, upsert("i1", AT, WATCH), status("i2", AT, available=False))
    run_both(stack)
    told = feed.poll()
    assert (told.keys, told.reload) == ({names.ITEM_CATALOGUE: {"i1"}, names.ITEM_STATUS: {"i2"}}, frozenset())
    end = open_log(connect(stack), stack).end()
    assert told.statuses[shard_of("i1", stack.shards)].positions == end


def test_a_repeated_operation_counts_once_whatever_the_flows_were_asked_to_read_again(stack: Settings) -> None:
    operations = [upsert(f"i{n}", AT + n, WATCH | {"price": float(n)}) for n in range(20)]
    append(stack, *operations)
    run_both(stack)
    append(stack, *operations[:5])
    run_both(stack)
    assert table_of(stack, names.ITEM_CATALOGUE).height == 20
    counters = [each.counters for each in read_status(connect(stack), range(stack.shards)).values()]
    assert sum(each.get(DUPLICATES, 0) for each in counters) == 5


def test_a_lake_flow_that_died_between_its_tables_appends_the_rest_once(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(stack, upsert("i1", AT, WATCH), status("i1", AT + 1, available=False))

    class Died(Exception):
        pass

    def die(*_: object) -> None:
        raise Died

    for where in ((ItemTable, "append", 1), (EventLake, "append", 0)):
        owner, method, after = where
        with monkeypatch.context() as patch:
            real, calls = getattr(owner, method), []

            def dying(self: Any, *args: Any, _real: Any = real, _calls: list[int] = calls, _after: int = after) -> Any:
                _calls.append(1)
                return _real(self, *args) if len(_calls) <= _after else die()

            patch.setattr(owner, method, dying)
            with pytest.raises(BytewaxRuntimeError):
                run_main(lake_flow(stack, system_clock, StopFlag(), until_end=True))
        assert set(EventLake(stack.lake_dir).positions(range(stack.log_partitions)).values()) == {0}
    assert table_of(stack, names.ITEM_CATALOGUE).height == 1
    run_both(stack)
    assert [table_of(stack, view).height for view in names.ITEM_TABLES] == [1, 1]
    append(stack, upsert("i1", AT + 9, WATCH))
    run_both(stack)
    assert [table_of(stack, view).height for view in names.ITEM_TABLES] == [2, 1]


def test_apply_backfill_and_verify_leave_the_rows_and_ignore_the_operations(stack: Settings) -> None:
    events = [
        {
            "event_id": f"e{n}",
            "type": "click",
            "user_key": "u1",
            "item_id": "i1",
            "timestamp": AT + n,
            "received_at": AT + n,
        }
        for n in range(5)
    ]
    append(stack, upsert("i1", AT, WATCH), *events, status("i1", AT + 1, available=False))
    run_both(stack)
    before = online(stack, names.ITEM_CATALOGUE, "i1") + online(stack, names.ITEM_STATUS, "i1")
    assert backfill(stack).events == 5
    assert verify(stack, as_of_us=AT + 10).ok
    applied = apply(stack)
    assert names.ITEM_STATUS in applied["plain_views"]
    assert {names.ITEM_CATALOGUE, names.ITEM_STATUS} <= set(applied["materialized"])
    assert online(stack, names.ITEM_CATALOGUE, "i1") + online(stack, names.ITEM_STATUS, "i1") == before
    append(stack, status("i1", AT + 20, available=True))
    run_both(stack)
    assert online(stack, names.ITEM_STATUS, "i1") == [{"available": True, "deleted": False}]


def test_a_user_whose_id_looks_like_an_items_key_is_a_user(stack: Settings) -> None:
    """Operations on items are no events: their key chooses a log partition and nothing else, so no user can clash with it."""
    click = {"event_id": "e1", "type": "click", "user_key": "item:i1", "user_id": "item:i1", "item_id": "i1"}
    append(stack, upsert("i1", AT, WATCH), click | {"timestamp": AT, "received_at": AT})
    run_both(stack)
    reader = OnlineReader(connect(stack), load_definitions(stack), stack)
    activity = reader.fetch({names.USER_ACTIVITY: ["item:i1"]}).streams[names.USER_ACTIVITY].values(AT + 1_000_000)
    assert activity["recent_types"] == [["click"]]
    assert EventLake(stack.lake_dir).scan([names.TYPE]).collect()[names.TYPE].to_list() == ["click"]


def test_operations_that_no_row_can_be_made_of_are_dead_letters_with_the_reason(stack: Settings) -> None:
    broken = to_record(upsert("i3", AT, {}), "broken") | {"properties": "[1]"}
    append(
        stack,
        upsert("i1", AT, {"colour": "red"}),
        upsert("i2", AT, {"price": "cheap"}),
        broken,
        status("i1", AT, available=True),
    )
    run_both(stack)
    reasons = sorted(letter.reason for letter in DeadLetters(connect(stack)))
    assert [reason[:60] for reason in reasons] == [
        "colour: view 'item_catalogue' has no such field; it has titl",
        "price: it must be a number of at most 1e+15",
        "properties of type item_upsert hold no JSON object of fields",
    ]
    assert table_of(stack, names.ITEM_CATALOGUE).is_empty()
    assert table_of(stack, names.ITEM_STATUS).height == 1


def test_without_the_views_operations_are_dead_letters_and_events_go_on(tmp_path: Any, valkey: str) -> None:
    settings = make_settings(tmp_path, valkey)
    apply_views(settings, stream_view("user_activity", feature("clicks", "click")))
    click = {"event_id": "e1", "type": "click", "user_key": "u1", "item_id": "i1", "timestamp": AT, "received_at": AT}
    append(settings, upsert("i1", AT, WATCH), click)
    run_both(settings)
    (letter,) = DeadLetters(connect(settings))
    assert "no view 'item_catalogue'" in letter.reason
    assert "headrace apply" in letter.reason
    assert EventLake(settings.lake_dir).scan().collect().height == 1


def test_a_flow_that_runs_takes_up_a_field_that_is_declared_meanwhile(
    stack: Settings, start_flow: Start, applied: Any
) -> None:
    repository = stack.feature_repo / "features.py"
    old = repository.read_text()
    try:
        start_flow("features")
        start_flow("lake")
        append(stack, upsert("i1", AT, WATCH))
        wait_for_both(stack)
        repository.write_text(
            old.replace(
                'Field(name="brand", dtype=String),',
                'Field(name="brand", dtype=String), Field(name="sizes", dtype=Array(Int64)),',
            )
        )
        apply(stack)
        append(stack, upsert("i2", AT + 1, WATCH | {"sizes": [38, 40]}))
        wait_for_both(stack)
        assert online(stack, names.ITEM_CATALOGUE, "i1", "i2") == [WATCH | {"sizes": None}, WATCH | {"sizes": [38, 40]}]
        assert table_of(stack, names.ITEM_CATALOGUE)["sizes"].to_list() == [None, [38, 40]]
    finally:
        repository.write_text(old)
        apply(stack)


def test_apply_adds_what_a_table_of_long_ago_lacks_without_a_store_too(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "var", feature_repo=feast_applied(tmp_path) / "feature_repo")
    rows = item_table([ItemRow("i1", AT, "Watch", "watches")])
    append_rows(settings.lake_dir, names.ITEMS_TABLE, rows.drop_columns(["attributes", "listed_at"]))
    apply(settings)
    assert [
        (row["item_catalogue__category"], row["item_catalogue__attributes"], row["item_catalogue__listed_at"])
        for row in as_training_sees(settings, ["i1"], from_micros(AT))
    ] == [("watches", None, None)]


def as_training_sees(settings: Settings, items: list[str], at: datetime) -> list[dict[str, Any]]:
    fields = {view: [name for name, _ in load_definitions(settings).plain[view].fields] for view in names.ITEM_TABLES}
    asked = [f"{view}:{name}" for view, found in fields.items() for name in found]
    keys = pl.DataFrame({"item_id": items, "event_timestamp": [at] * len(items)}).to_pandas()
    store = open_feature_store(settings)
    table = store.get_historical_features(keys, features=asked, full_feature_names=True).to_arrow()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.select(pl.exclude("event_timestamp")).rows(named=True)


def as_serving_sees(settings: Settings, items: list[str]) -> list[dict[str, Any]]:
    views = {view: online(settings, view, *items) for view in names.ITEM_TABLES}
    return [
        {"item_id": item}
        | {f"{view}__{name}": value for view, rows in views.items() for name, value in rows[n].items()}
        for n, item in enumerate(items)
    ]


def test_after_kills_of_both_flows_serving_and_training_see_the_same_items(stack: Settings, start_flow: Start) -> None:
    """Law 1 and law 3 for the catalogue: random operations, SIGKILL of either flow in between, one truth in both stores."""
    rng = random.Random(4)
    items = [f"i{n}" for n in range(12)]
    flows = {name: start_flow(name) for name in ("features", "lake")}
    at, sent = AT, []
    for _ in range(4):
        for _ in range(60):
            at += rng.choice([1, 1_000])
            item = rng.choice(items)
            sent.append(
                upsert(item, at, WATCH | {"price": rng.random()})
                if rng.random() < 0.6
                else status(item, at, available=rng.random() < 0.5)
            )
            append(stack, sent[-1])
            if rng.random() < 0.1:
                append(stack, rng.choice(sent))
        victim = rng.choice([*flows])
        flows[victim].kill()
        flows[victim].wait(timeout=20)
        flows[victim] = start_flow(victim)
    wait_for_both(stack)
    assert [table_of(stack, view).height for view in names.ITEM_TABLES] == [
        sum(each.view == view for each in sent) for view in names.ITEM_TABLES
    ]
    now = as_serving_sees(stack, [*items, "never"])
    assert now == as_training_sees(stack, [*items, "never"], datetime.now(UTC))
    assert {each["item_status__available"] for each in now} == {True, False, None}
    last = {each.item_id: each for each in sent if each.kind == names.ITEM_UPSERT}
    half = from_micros(at) - timedelta(milliseconds=20)
    assert {each["item_id"]: each["item_catalogue__price"] for each in now if each["item_id"] in last} == {
        item: each.fields["price"] for item, each in last.items()
    }
    assert as_training_sees(stack, items, half) != now[:-1]
