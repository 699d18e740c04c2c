"""Writing rows of 20 features: the flow's writer, `push` into our store, and `push` into Feast's own Redis store.

The writer packs the state of changed entities (20 sliding windows) and commits it with a log position, all shards together, as the flow
does; folding the events is not counted. `push` is Feast's, of data frames with 20 stored features, in batches of 1, 100 and 1,000
rows; rows are new each time. One Valkey with every write on disk before its answer; each side in a process of its own, in turns; what was
written is read back and compared.

    python -m benchmarks.online_write [--rounds 3] [--seconds 1.0] [--entities 5000]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from benchmarks import online_stores as stores
from benchmarks.children import peak_mb
from benchmarks.online_sides import serve_turns, take_turns
from benchmarks.report import publish
from headrace import names
from headrace.clock import system_clock
from headrace.settings import DAY_US, Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

WRITERS: Final = ("writer", "push_ours", "push_feast")
FEATURES: Final = 20
BATCHES: Final = (1, 100, 1_000)
LARGEST: Final = f"rows_{BATCHES[-1]}"
EVENTS_EACH: Final = 50
WINDOWED, PLAIN = "windowed", "plain"


def main() -> None:
    options = _options()
    if options.child:
        _child(options.child, Path(options.directory), options)
        return
    with tempfile.TemporaryDirectory(prefix="online_write_") as folder:
        directory = Path(folder)
        with stores.valkey(directory) as server:
            (directory / "url").write_text(server.url)
            more = ("--seconds", str(options.seconds), "--entities", str(options.entities))
            rounds = list(take_turns("online_write", WRITERS, options.rounds, directory, *more))
    _publish(options, rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side has its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each case is measured in a turn")
    parser.add_argument("--entities", type=int, default=5_000, help="rows that the flow's writer writes at a time")
    parser.add_argument("--child", choices=WRITERS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(who: str, directory: Path, options: argparse.Namespace) -> None:
    """Measure one side at each turn, on an empty store: rates and memory."""
    settings = Settings(data=directory / who, redis_url=(directory / "url").read_text())
    side = _flow if who == "writer" else _push

    def measure() -> dict[str, Any]:
        connect(settings).flushall()
        return {"rows_per_s": side(who, settings, options), "peak_mb": peak_mb()}

    serve_turns(measure)


def _flow(who: str, settings: Settings, options: argparse.Namespace) -> dict[str, float]:
    ids = [f"item-{number:06d}" for number in range(options.entities)]
    view = stores.windowed_view(WINDOWED, FEATURES, settings.data)
    stores.open_store(stores.OURS, str(settings.redis_url), settings, [stores.ITEM, view])
    client = connect(settings, timeout_s=60.0)
    now_us = system_clock()
    history = stores.random_events(ids, EVENTS_EACH, now_us)
    writer = stores.Writer(client, view, ids, settings.shards)
    writer.fold(history)
    writer.write()
    folded = 0

    def touch() -> None:
        nonlocal folded
        writer.fold(_views(ids, now_us + folded))
        folded += 1

    rate = _rate(touch, writer.write, options.seconds)
    _check_views(settings, ids, history, folded, now_us)
    return {f"rows_{options.entities}": rate}


def _views(ids: Sequence[str], at_us: int) -> pl.DataFrame:
    """One view of each item."""
    event = stores.random_events(ids, 1, at_us)
    time_column = pl.lit(at_us).cast(pl.Datetime("us", "UTC"))
    return event.with_columns(
        pl.lit(names.VIEW).alias(names.TYPE), time_column.alias(names.TIMESTAMP), time_column.alias(names.RECEIVED_AT)
    )


def _check_views(settings: Settings, ids: Sequence[str], history: pl.DataFrame, folded: int, now_us: int) -> None:
    """The longest window holds every view: of the history, and one for each time that all were touched."""
    seen = dict(history.filter(pl.col(names.TYPE) == names.VIEW).group_by(names.ITEM_ID).len().iter_rows())
    rows = OnlineReader(connect(settings), load_definitions(settings), settings).fetch({WINDOWED: ids})
    values = rows.streams[WINDOWED].values(now_us + folded + 1)["views_7d"]
    assert list(values) == [seen.get(each, 0) + folded for each in ids], "the store has other counts than were folded"


def _push(who: str, settings: Settings, options: argparse.Namespace) -> dict[str, float]:
    fields = stores.plain_fields(FEATURES)
    view = stores.plain_view(PLAIN, fields, settings.data)
    kind = stores.OURS if who == "push_ours" else stores.FEASTS
    store = stores.open_store(kind, str(settings.redis_url), settings, [stores.ITEM, view])
    first = stores.at(system_clock() - DAY_US)
    rates = {}
    for size in BATCHES:
        ids = [f"item-{number:06d}" for number in range(size)]
        frame = stores.plain_rows(ids, fields, first)
        pushed = 0

        def renew(frame: Any = frame, first: Any = first) -> None:
            nonlocal pushed
            pushed += 1
            frame["event_timestamp"] = first + timedelta(milliseconds=pushed)
            frame["f0"] += 1.0

        def push(frame: Any = frame) -> int:
            store.push(PLAIN, frame)
            return len(frame)

        rates[f"rows_{size}"] = _rate(renew, push, options.seconds)
        refs = [f"{PLAIN}:{name}" for name in stores.features_of(store, PLAIN)]
        answer = store.get_online_features(refs, {"item_id": ids}).to_dict()
        assert {name: answer[name] for name in frame.columns if name in answer} == {
            name: frame[name].tolist() for name in frame.columns if name in answer
        }, "the store has other values than were pushed"
        first += timedelta(hours=1)
    return rates


def _rate(prepare: Callable[[], None], write: Callable[[], int], seconds: float) -> float:
    """Rows a second of the writes alone, after two that warm up."""
    for _ in range(2):
        prepare()
        write()
    rows, spent = 0, 0.0
    while spent < seconds:
        prepare()
        begin = time.perf_counter()
        rows += write()
        spent += time.perf_counter() - begin
    return rows / spent


def _publish(options: argparse.Namespace, rounds: Sequence[Mapping[str, Any]]) -> None:
    def median(who: str, case: str) -> float:
        return float(sorted(each[who]["rows_per_s"][case] for each in rounds)[len(rounds) // 2])

    ours = median("writer", f"rows_{options.entities}")
    pushes = {
        f"rows_{size}": {
            "push_rows_per_s": round(median("push_ours", f"rows_{size}")),
            "baseline_rows_per_s": round(median("push_feast", f"rows_{size}")),
        }
        for size in BATCHES
    }
    for each in pushes.values():
        each["ratio"] = round(each["push_rows_per_s"] / each["baseline_rows_per_s"], 2)  # type: ignore[assignment]
    baseline = pushes[LARGEST]["baseline_rows_per_s"]
    table: list[list[object]] = [["the flow's writer", options.entities, ours, baseline, f"{ours / baseline:.1f}"]]
    for size in BATCHES:
        found = pushes[f"rows_{size}"]
        table.append(
            ["Feast's push", size, found["push_rows_per_s"], found["baseline_rows_per_s"], f"{found['ratio']:.2f}"]
        )
    peaks = {who: round(max(each[who]["peak_mb"] for each in rounds), 1) for who in WRITERS}
    publish(
        "online_write",
        ["into our store by", "rows at a time", "rows/s", "Feast's Redis store, push, rows/s", "ratio"],
        table,
        {
            "rows_per_s": round(ours),
            "baseline_rows_per_s": baseline,
            "ratio": round(ours / baseline, 1),
            "peak_mb": peaks["writer"],
            "baseline_peak_mb": peaks["push_feast"],
            "push_peak_mb": peaks["push_ours"],
            "features": FEATURES,
            "rounds": options.rounds,
            "push": pushes,
        },
    )


if __name__ == "__main__":
    main()
