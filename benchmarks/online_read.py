"""Reading 50 features of 1, 100 and 500 entities: our reader, Feast's API on our store, and Feast's own Redis store.

Plain: 50 stored features. Mixed: 25 stored ones and 25 over sliding windows, which we compute at the read and Feast's store has
finished. All three read from one Valkey, each in a process of its own, in turns. Our reader's time ends with values (NumPy columns, and
lists of strings); that of Feast's API with its response, before `to_dict`. Every value is compared.

    python -m benchmarks.online_read [--rounds 3] [--seconds 0.5] [--entities 500]
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.children import peak_mb
from benchmarks.online_sides import serve_turns, take_turns
from benchmarks.report import percentiles, publish
from headrace.clock import system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

READERS: Final = ("reader", "feast_on_ours", "feast")
PLAIN, MIXED_PLAIN, WINDOWED, FINISHED = "plain", "mixed_plain", "windowed", "finished"
EVENTS_EACH: Final = 200
MINIMUM_CALLS: Final = 10


def main() -> None:
    options = _options()
    if options.child:
        _child(options.child, Path(options.directory), options.seconds)
        return
    sizes = sorted({1, max(1, options.entities // 5), options.entities})
    with tempfile.TemporaryDirectory(prefix="online_read_") as folder:
        from benchmarks.online_stores import valkey

        directory = Path(folder)
        with valkey(directory) as server:
            _fill(directory, server.url, sizes)
            more = ("--seconds", str(options.seconds))
            turns = take_turns("online_read", READERS, options.rounds, directory, *more)
            rounds = [{who: _with_values(who, found[who], directory) for who in READERS} for found in turns]
    _publish(options, sizes, rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="how often each reader has its turn")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each case is measured in a turn")
    parser.add_argument("--entities", type=int, default=500, help="entities of the largest case")
    parser.add_argument("--child", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _settings(directory: Path, url: str, name: str) -> Settings:
    return Settings(data=directory / name, redis_url=url)


def _fill(directory: Path, url: str, sizes: Sequence[int]) -> None:
    """The same rows in both stores, windows filled from events, and what the children need to know."""
    from benchmarks import online_stores as stores

    ids = [f"item-{number:06d}" for number in range(max(sizes))]
    t_us = system_clock()
    past = stores.at(t_us - MICROS)
    settings = _settings(directory, url, "ours")
    plain = {name: stores.plain_fields(count) for name, count in ((PLAIN, 50), (MIXED_PLAIN, 25))}
    views = [stores.plain_view(name, fields, directory) for name, fields in plain.items()]
    windowed = stores.windowed_view(WINDOWED, 25, directory)
    ours = stores.open_store(stores.OURS, url, settings, [stores.ITEM, *views, windowed])
    finished = stores.plain_view(FINISHED, windowed.features, directory)
    feasts = stores.open_store(stores.FEASTS, url, _settings(directory, url, "feast"), [stores.ITEM, *views, finished])
    for name, fields in plain.items():
        for store in (ours, feasts):
            store.push(name, stores.plain_rows(ids, fields, past))
    writer = stores.Writer(connect(settings), windowed, ids, settings.shards)
    writer.fold(stores.random_events(ids, EVENTS_EACH, t_us))
    writer.write()
    rows = OnlineReader(connect(settings), load_definitions(settings), settings).fetch({WINDOWED: ids})
    frame = stores.plain_rows(ids, [], past).assign(**rows.streams[WINDOWED].values(t_us))
    feasts.push(FINISHED, frame)
    (directory / "cases.json").write_text(json.dumps({"url": url, "t_us": t_us, "ids": ids, "sizes": list(sizes)}))


def _with_values(who: str, found: dict[str, Any], directory: Path) -> dict[str, Any]:
    return found | {"values": pickle.loads((directory / f"{who}.pickle").read_bytes())}


def _child(who: str, directory: Path, seconds: float) -> None:
    """Measure each case at each turn; values go into a file, times and memory are the answer."""
    known = json.loads((directory / "cases.json").read_text())
    read = _reader(known, directory) if who == "reader" else _feast(who, known, directory)

    def measure() -> dict[str, Any]:
        times: dict[str, list[float]] = {}
        values: dict[str, Mapping[str, list[Any]]] = {}
        for kind in ("plain", "mixed"):
            for size in known["sizes"]:
                call, value_of = read(kind, known["ids"][:size])
                values[f"{kind}_{size}"] = value_of(call())
                times[f"{kind}_{size}"] = _timed(call, seconds)
        (directory / f"{who}.pickle").write_bytes(pickle.dumps(values))
        return {"times": times, "peak_mb": peak_mb()}

    serve_turns(measure)


Case = tuple[Callable[[], Any], Callable[[Any], Mapping[str, list[Any]]]]
"""A call to measure, and how its result becomes Python values by feature."""


def _reader(known: Mapping[str, Any], directory: Path) -> Callable[[str, Sequence[str]], Case]:
    settings = _settings(directory, known["url"], "ours")
    reader = OnlineReader(connect(settings), load_definitions(settings), settings)
    t_us = known["t_us"]

    def case(kind: str, ids: Sequence[str]) -> Case:
        wanted = {PLAIN: ids} if kind == "plain" else {MIXED_PLAIN: ids, WINDOWED: ids}

        def call() -> dict[str, Any]:
            rows = reader.fetch(wanted)
            found = {name: rows.plain[name].values(t_us) for name in wanted if name in rows.plain}
            return {**{name: each.values(t_us) for name, each in rows.streams.items()}, **found}

        return call, _by_feature

    return case


def _feast(who: str, known: Mapping[str, Any], directory: Path) -> Callable[[str, Sequence[str]], Case]:
    from benchmarks import online_stores as stores  # Feast: only for those who pay for it anyway

    kind_of_store, name = (stores.OURS, "ours") if who == "feast_on_ours" else (stores.FEASTS, "feast")
    store = stores.open_store(kind_of_store, known["url"], _settings(directory, known["url"], name))
    if who == "feast_on_ours":
        store._get_provider().online_store.clock = lambda: known["t_us"]
    windows = WINDOWED if who == "feast_on_ours" else FINISHED

    def case(kind: str, ids: Sequence[str]) -> Case:
        views = [PLAIN] if kind == "plain" else [MIXED_PLAIN, windows]
        refs = [f"{view}:{name}" for view in views for name in stores.features_of(store, view)]
        entities = {"item_id": list(ids)}
        return lambda: store.get_online_features(refs, entities, full_feature_names=True), _from_feast

    return case


def _by_feature(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    found = {f"{view}.{name}": column for view, each in columns.items() for name, column in each.items()}
    return {name: _plain(column) for name, column in found.items()}


def _from_feast(response: Any) -> dict[str, list[Any]]:
    values = response.to_dict()
    return {
        name.replace("__", ".").replace(FINISHED, WINDOWED): _plain(column)
        for name, column in values.items()
        if name != "item_id"
    }


def _plain(column: Any) -> list[Any]:
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if value != value else value for value in values]


def _timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, after three that warm up."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < MINIMUM_CALLS:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def _publish(options: argparse.Namespace, sizes: Sequence[int], rounds: Sequence[dict[str, dict[str, Any]]]) -> None:
    expected = rounds[0]["feast"]["values"]
    for each in rounds:
        for who in READERS:
            assert each[who]["values"] == expected, f"{who} has other values than Feast's store"
    cases: dict[str, Any] = {}
    table = []
    for case in (f"{kind}_{size}" for kind in ("plain", "mixed") for size in sizes):
        found = {who: percentiles([t for each in rounds for t in each[who]["times"][case]]) for who in READERS}
        ratio = found["feast"]["p50_ms"] / found["reader"]["p50_ms"]
        api = found["feast"]["p50_ms"] / found["feast_on_ours"]["p50_ms"]
        cases[case] = {**found, "ratio": round(ratio, 1), "feast_api_ratio": round(api, 2)}
        table.append([
            case.replace("_", ", "),
            *[found[who][part] for who in READERS for part in ("p50_ms", "p99_ms")],
            f"{ratio:.1f}", f"{api:.2f}",
        ])  # fmt: skip
    largest = cases[f"plain_{sizes[-1]}"]
    peaks = {who: round(max(each[who]["peak_mb"] for each in rounds), 1) for who in READERS}
    publish(
        "online_read",
        ["case", "reader p50 ms", "p99", "Feast on ours p50", "p99", "Feast's Redis p50", "p99", "ratio", "API ratio"],
        table,
        {
            "p50_ms": largest["reader"]["p50_ms"],
            "p99_ms": largest["reader"]["p99_ms"],
            "baseline_p50_ms": largest["feast"]["p50_ms"],
            "baseline_p99_ms": largest["feast"]["p99_ms"],
            "ratio": largest["ratio"],
            "peak_mb": peaks["reader"],
            "baseline_peak_mb": peaks["feast"],
            "feast_on_ours_peak_mb": peaks["feast_on_ours"],
            "features": 50,
            "values_compared": sum(len(column) for values in expected.values() for column in values.values()),
            "rounds": options.rounds,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
