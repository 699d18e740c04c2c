"""A personalised slate over HTTP: how long it takes and how many a second, beside a no-op and the stack built from the docs.

`python -m benchmarks.recommend [--site FOLDER] [--items 100000] [--no-million] [--no-stock]`

Ours is the whole stack of `make up` (Valkey that flushes every write, both flows, Ray Serve with collector and recommender), keys,
metrics and impression logging on, over a simulated shop: 100,000 items, about a million events, the models of `train --config default`.
Requests are of visitors at random, 20 items each. The no-op is FastAPI in the same Serve mode with the same request model and a constant
answer of 20 items. The stock stack is a script that is given (`--stock`, HEADRACE_STOCK_STACK); without it its figures are null.

The three run one after the other, each alone: closed loops of 1 and of 16 connections. Then ours alone: half of that throughput and
twice of it on a schedule, the stages of a request, the time from an event to an answer that knows it, and the same shop with a catalogue of
a million items.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.asking import Asked
from benchmarks.recommend_figures import draw
from benchmarks.recommend_freshness import Freshness, measure_freshness
from benchmarks.recommend_servers import noop, ours, stock, target_of, why_no_stock
from benchmarks.recommend_side import (
    Closed,
    Explained,
    Overload,
    Side,
    closed,
    explain,
    half,
    overload,
    processor_ms,
    rss_mb,
    side,
)
from benchmarks.recommend_site import ROOT, Shop, Sites, copy, visitors
from benchmarks.report import percentiles, publish, results, say
from headrace.clock import system_clock
from headrace.models.bundle import read_manifest
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.models import read_champion

MILLION: Final = 1_000_000
INDEX_RECALL: Final = "index_recall_at_500"
EXPLAINED: Final = 500
# A replica embeds what its model has not seen before it is ready.
READY_S: Final = 600.0
STOCK_VARIABLE: Final = "HEADRACE_STOCK_STACK"


@dataclass(frozen=True)
class Ours:
    side: Side
    half: Asked
    explained: Explained
    freshness: Freshness
    overload: Overload
    processor_ms: dict[str, float]
    rss_mb: float
    index_recall: float | None
    counters: dict[str, float]
    said_ready: Any


@dataclass(frozen=True)
class Million:
    items: int
    one: Closed
    explained: Explained
    rss_mb: float
    said_ready: Any


class Benchmark:
    """Measures the sides. `prepared` is the data directory that ours serves from a copy of, `folder` where all else goes."""

    def __init__(
        self, prepared: Path, shop: Shop, seconds: float, replicas: int, folder: Path, interrupts: Interrupts
    ) -> None:
        self._replicas = replicas
        self.visitors = visitors(Settings(data=prepared), shop.users, shop.seed)
        self._prepared = prepared
        self._seconds = seconds
        self._folder = folder
        self._interrupts = interrupts

    def noop(self) -> Side:
        say("the no-op")
        with noop(self._folder / "noop", self.visitors) as target:
            return side(target, self._seconds, self._folder / "asked-noop")

    def stock(self, script: Path) -> Side:
        say("the stock stack")
        with stock(script, self._folder / "stock", self.visitors, system_clock) as target:
            return side(target, self._seconds, self._folder / "asked-stock")

    def ours(self) -> Ours:
        say("ours")
        with self._stack(self._prepared, "ours") as settings:
            target, asked = target_of(settings, self.visitors), self._folder / "asked-ours"
            explained = explain(settings, self.visitors, EXPLAINED)
            found = side(target, self._seconds, asked)
            rate = found.sixteen.middle.rate
            processor = processor_ms(settings, target, self._seconds / 2, asked / "busy")
            say(f"{rate:.0f} requests/s at 16 connections; half of that on a schedule")
            halved = half(target, rate, self._seconds, asked / "half")
            say("from an event to an answer that knows it")
            probes = round(50 * self._seconds)
            fresh = measure_freshness(settings, target, explained.items, probes, asked / "fresh", system_clock)
            resident = rss_mb(settings)
            say("twice of what it can do")
            over = overload(settings, target, rate, 3 * self._seconds, asked / "overload")
            return Ours(
                found, halved, explained, fresh, over, processor, resident,
                index_recall(settings), counters(settings), said_ready(settings),
            )  # fmt: skip

    def million(self, prepared: Path, items: int) -> Million:
        say(f"ours with {items:,} items")
        with self._stack(prepared, "million") as settings:
            explained = explain(settings, self.visitors, EXPLAINED)
            one = closed(target_of(settings, self.visitors), 1, self._seconds, self._folder / "asked-million")
            return Million(items, one, explained, rss_mb(settings), said_ready(settings))

    @contextmanager
    def _stack(self, prepared: Path, name: str) -> Iterator[Settings]:
        data = self._folder / name
        copy(prepared, data)
        settings = Settings(
            data=data,
            feature_repo=ROOT / "feature_repo",
            http_port=free_port(),
            recommender_replicas=self._replicas,
            exploration=0.0,
        )
        with Stack(settings, say, self._interrupts) as stack, ours(stack, READY_S) as running:
            yield running


def index_recall(settings: Settings) -> float | None:
    """Of the champion's index against exact search, as its bundle says; None where it does not."""
    champion = read_champion(settings)
    assert champion is not None, "the site has a promoted model"
    return read_manifest(settings.bundles_dir / champion.path.name).metrics.get(INDEX_RECALL)


def counters(settings: Settings) -> dict[str, float]:
    """What the recommender counted of impressions and of answers with less."""
    key = settings.read_keys.split(",")[0]
    address = f"http://{settings.http_host}:{settings.http_port}/metrics"
    lines = httpx.get(address, headers={"authorization": f"Bearer {key}"}, timeout=30.0).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    wanted = ("impressions", "degraded", "_shed_")
    return {name: float(value) for name, value in samples if any(w in name for w in wanted) and "_created" not in name}


def said_ready(settings: Settings) -> Any:
    return httpx.get(f"http://{settings.http_host}:{settings.http_port}/readyz", timeout=30.0).json()


def report(
    base: Side, other: Side | None, why_not: str | None, ours: Ours, grown: Million | None, shop: dict[str, Any]
) -> None:
    """Table, plot, file and JSON line."""
    one, sixteen = percentiles(ours.side.one.middle.took_s), ours.side.sixteen.middle
    noop_p50 = percentiles(base.one.middle.took_s)["p50_ms"]
    stock_p50 = percentiles(other.one.middle.took_s)["p50_ms"] if other else None
    stock_rps = other.sixteen.middle.rate if other else None
    halved, fresh = percentiles(ours.half.took_s), ours.freshness.details()
    result: dict[str, Any] = {
        "p50_ms": one["p50_ms"],
        "p99_ms": one["p99_ms"],
        "rps_16": round(sixteen.rate, 1),
        "stock_p50_ms": stock_p50,
        "stock_rps_16": None if stock_rps is None else round(stock_rps, 1),
        "noop_p50_ms": noop_p50,
        "ratio_rps": None if stock_rps is None else round(sixteen.rate / stock_rps, 2),
        "ratio_noop": round(one["p50_ms"] / noop_p50, 2),
        "p50_ms_1m": percentiles(grown.one.middle.took_s)["p50_ms"] if grown else None,
        "index_recall": ours.index_recall,
        "rss_mb": round(ours.rss_mb, 1),
        "noop_rps_16": round(base.sixteen.middle.rate, 1),
        "p99_half_ms": halved["p99_ms"],
        "degraded": {
            "1": round(ours.side.one.degraded, 4),
            "16": round(ours.side.sixteen.degraded, 4),
            "half": round(ours.half.incomplete_share, 4),
        },
        "fresh_p50_ms": fresh["p50_ms"],
        "fresh_p99_ms": fresh["p99_ms"],
        "overload_in_time": round(ours.overload.answered_in_time, 3),
        "shop": shop,
        "model_version": ours.explained.model_version,
        "noop": base.details(),
        "stock": other.details() if other else {"skipped": why_not},
        "ours": ours.side.details() | {"processor_ms": ours.processor_ms, "counters": ours.counters, "ready": ours.said_ready},
        "half": {"rate": round(ours.half.phase.rate, 1), **halved, "statuses": ours.half.statuses,
                 "incomplete": ours.half.incomplete, "late": percentiles(ours.half.late_s)},
        "overload": ours.overload.details(),
        "fresh": fresh,
        "breakdown": ours.explained.details(),
        "million": _million_details(grown) if grown else None,
    }  # fmt: skip
    rows: list[list[object]] = [_row("no-op", base), *([_row("stock stack", other)] if other else [])]
    rows.append(_row(f"Headrace, {shop['items']:,} items", ours.side))
    if grown:
        rows.append(
            [
                f"Headrace, {grown.items:,} items",
                *_cells(percentiles(grown.one.middle.took_s)),
                "",
                "",
                f"{grown.one.degraded:.1%}",
            ]
        )
    rows.append(
        [
            f"Headrace, {ours.half.phase.rate:.0f}/s on schedule",
            *_cells(halved),
            "",
            "",
            f"{ours.half.incomplete_share:.1%}",
        ]
    )
    rows.append(["acknowledged event -> answer with it", *_cells(fresh), "", "", ""])
    columns = ["milliseconds", "p50", "p90", "p99", "max", "requests/s at 16", "p99 at 16", "degraded at 1, 16"]
    bars = {f"{shop['items']:,} items": ours.explained.shares_ms()}
    sides = {"no-op": base.one.latencies, "Headrace": ours.side.one.latencies}
    if grown:
        bars[f"{grown.items:,} items"] = grown.explained.shares_ms()
        sides[f"Headrace, {grown.items:,} items"] = grown.one.latencies
    if other:
        sides["stock stack"] = other.one.latencies
    draw(results() / "recommend.png", bars, sides)
    publish("recommend", columns, rows, result)


def _million_details(grown: Million) -> dict[str, Any]:
    return {
        "items": grown.items,
        "connections_1": grown.one.details(),
        "breakdown": grown.explained.details(),
        "rss_mb": round(grown.rss_mb, 1),
        "ready": grown.said_ready,
    }


def _row(label: str, found: Side) -> list[object]:
    at_sixteen = percentiles(found.sixteen.middle.took_s)
    one, rate = percentiles(found.one.middle.took_s), found.sixteen.middle.rate
    degraded = f"{found.one.degraded:.1%}, {found.sixteen.degraded:.1%}"
    return [label, *_cells(one), rate, at_sixteen["p99_ms"], degraded]


def _cells(found: dict[str, float]) -> list[float]:
    return [found[name] for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Shop()
    parser.add_argument("--site", type=Path, help="where prepared data directories are kept; default: nowhere")
    parser.add_argument("--items", type=int, default=default.items)
    parser.add_argument("--users", type=int, default=default.users)
    parser.add_argument("--events", type=int, default=default.events)
    parser.add_argument("--config", default=default.config, help="of the models: small, default or large")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change that config, as `headrace train` does"
    )
    parser.add_argument("--seconds", type=float, default=20, help="of a round; three times that for the overload")
    parser.add_argument("--replicas", type=int, default=1, help="of the recommender; default: 1, as `make up` has it")
    parser.add_argument("--million", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--million-items", type=int, default=MILLION, help="the size of the large catalogue")
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument(
        "--stock",
        type=Path,
        default=Path(os.environ.get(STOCK_VARIABLE, ROOT.parent / "shared" / "stock_stack.py")),
        help=f"the stock stack's script; default: {STOCK_VARIABLE}, else ../shared/stock_stack.py",
    )
    given = parser.parse_args()
    shop = Shop(given.items, given.users, given.events, given.config, tuple(given.set))
    interrupts = Interrupts()
    with tempfile.TemporaryDirectory(prefix="hr-rec-") as temporary, interrupts.installed():
        folder = Path(temporary)
        sites = Sites((given.site or folder / "site").resolve(), interrupts, say, system_clock)
        prepared = sites.prepared(shop)
        large = sites.grown(shop, given.million_items) if given.million else None
        benchmark = Benchmark(prepared, shop, given.seconds, given.replicas, folder, interrupts)
        why_not = "--no-stock" if given.no_stock else why_no_stock(given.stock)
        base = benchmark.noop()
        if why_not:
            say(f"the stock stack is left out: {why_not}")
        other = None if why_not else benchmark.stock(given.stock)
        ours = benchmark.ours()
        grown = benchmark.million(large, given.million_items) if large else None
    shape = {**asdict(shop), "visitors": len(benchmark.visitors), "replicas": given.replicas}
    report(base, other, why_not, ours, grown, shape)


if __name__ == "__main__":
    main()
