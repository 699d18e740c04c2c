"""Training: `python -m benchmarks.train [--events 300000 --items 10000 --users 10000]`

On a simulated shop, loaded in bulk and registered as a user would; each part in a process of its own, one after the other:

- a whole `small` run (build, train, evaluate, register) by phase, and a few epochs of `default`: rows/s of both models in the loop that
  trains them, the loader's share of their time, the largest resident memory; on a GPU too where there is one
- the towers' rows/s beside the usual way of a padded history for each row
- label rows/s from Feast to a training set on disk, beside Feast's file store and a loop over a pandas frame, on a sample
- a build and an epoch under a bound of memory that the set exceeds
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.children import run_child
from benchmarks.report import CONSOLE, publish, results
from headrace.clock import system_clock
from headrace.ingest.load import ingest
from headrace.ingest.shop import ShopConfig
from headrace.ingest.simulator import simulate
from headrace.ops.apply import apply
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import Settings

COLUMNS: Final = ("what", "ours", "usual way", "ratio", "note")
SIZES: Final = ("small", "default")
LOADER_SHARE: Final = 0.1
WHOLE_SECONDS: Final = 180.0
# Epochs of a run whose speed alone is looked at, and how little of it is evaluated.
_FEW: Final = {"tower_epochs": 3, "ranker_epochs": 3, "max_test": 100, "max_ranked_requests": 50, "resamples": 100}


def main() -> None:
    options = _options()
    if options.child:
        _child(options)
        return
    shop = ShopConfig(users=options.users, items=options.items, events=options.events)
    with tempfile.TemporaryDirectory(prefix="train_") as folder:
        directory = Path(folder)
        CONSOLE.print(f"a shop of {shop.events:,} events on {shop.items:,} items by {shop.users:,} visitors ...")
        _fill(directory, shop)
        began = time.perf_counter()
        runs = {"small": run_child("train", "whole", directory, "--config", "small")}
        seconds = time.perf_counter() - began
        runs["default"] = run_child("train", "epochs", directory, "--config", "default")
        if torch.cuda.is_available():
            for size in SIZES:
                runs[f"{size}, GPU"] = run_child("train", "epochs", directory, "--config", size, "--device", "cuda")
        padded = {size: run_child("train", "padded", directory, "--config", size) for size in SIZES}
        build = run_child("train", "build", directory, "--config", "default", "--sample", str(options.sample))
        bound = ["--rows", str(options.rows), "--bound-mb", str(options.bound_mb)]
        bounded = run_child("train", "bounded", directory, *bound)
    _publish(shop, seconds, runs, padded, build, bounded)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shop = ShopConfig()
    parser.add_argument("--events", type=int, default=shop.events, help="of the simulated shop")
    parser.add_argument("--items", type=int, default=shop.items, help="of its catalogue")
    parser.add_argument("--users", type=int, default=shop.users, help="who visit it")
    parser.add_argument("--sample", type=int, default=20_000, help="label rows that are built the usual way")
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the set that memory does not hold")
    parser.add_argument(
        "--bound-mb", type=int, default=350, help="memory for it, beyond what a process has; 0: no bound"
    )
    parser.add_argument("--child", choices=("whole", "epochs", "padded", "build", "bounded"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--config", default="small", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    return parser.parse_args()


def _fill(directory: Path, shop: ShopConfig) -> None:
    """Events and catalogue into a lake, features registered. Training needs no store, so none runs meanwhile."""
    settings = Settings(
        data=directory / "var", feature_repo=Path(__file__).parent.parent / "feature_repo", http_port=free_port()
    )
    with Stack(settings, CONSOLE.print, Interrupts()) as stack:
        stack.start_valkey()
        ingest(simulate(shop), settings, bulk=True, shift_to_now=True, clock=system_clock)
        apply(settings)


def _child(options: argparse.Namespace) -> None:
    from benchmarks import train_sides
    from headrace.stores.feature_store import quieten_feast
    from training.config import by_name

    quieten_feast()
    directory, config = Path(options.directory), by_name(options.config).changed(device=options.device)
    sides = {
        "whole": lambda: train_sides.whole(directory, config),
        "epochs": lambda: train_sides.whole(directory, config.changed(**_FEW)),
        "padded": lambda: train_sides.padded(directory, config),
        "build": lambda: train_sides.build(directory, config, options.sample),
        "bounded": lambda: train_sides.bounded(directory, options.rows, options.bound_mb),
    }
    print(json.dumps(sides[options.child](), default=float))


def _publish(
    shop: ShopConfig,
    seconds: float,
    runs: dict[str, dict[str, Any]],
    padded: dict[str, dict[str, Any]],
    build: dict[str, Any],
    bounded: dict[str, Any],
) -> None:
    from benchmarks.train_figures import draw

    small = runs["small"]
    shares = [run[model]["input_share"] for run in runs.values() for model in ("towers", "ranker")]
    result = {
        "small_run_seconds": seconds,
        "towers_rows_per_s": {size: run["towers"]["rows_per_s"] for size, run in runs.items()},
        "ranker_lists_per_s": {size: run["ranker"]["rows_per_s"] for size, run in runs.items()},
        "loader_share": max(shares),
        "padded_ratio": {size: each["ratio"] for size, each in padded.items()},
        "build_rows_per_s": build["rows_per_s"],
        "baseline_build_rows_per_s": build["baseline"]["rows_per_s"],
        "build_ratio": build["ratio"],
        "peak_mb": small["peak_mb"],
        "features_over_held": bounded["features_over_held"],
        "in_time": seconds < WHOLE_SECONDS,
        "loader_keeps_up": max(shares) < LOADER_SHARE,
        "cuda": "measured" if torch.cuda.is_available() else "skipped: no GPU here",
        "shop": {"events": shop.events, "items": shop.items, "users": shop.users},
        "runs": runs,
        "padded": padded,
        "build": build,
        "bounded": bounded,
    }
    draw(results() / "train.png", small["phases"], padded, build, bounded)
    publish("train", COLUMNS, _rows(seconds, runs, padded, build, bounded, str(result["cuda"])), result)


def _rows(
    seconds: float,
    runs: dict[str, dict[str, Any]],
    padded: dict[str, dict[str, Any]],
    build: dict[str, Any],
    bounded: dict[str, Any],
    cuda: str,
) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        ("a whole small run, s", seconds, "", "", "imports, build, train, evaluate, register")
    ]
    rows += [(f"  {phase}, s", each, "", "", "") for phase, each in runs["small"]["phases"].items()]
    for size, run in runs.items():
        for model, unit in (("towers", "rows"), ("ranker", "lists")):
            speed = run[model]
            rows.append(
                (f"{model} of {size}, {unit}/s", speed["rows_per_s"], "", "", f"loader {speed['input_share']:.1%}")
            )
        rows.append((f"peak of {size}, MB", run["peak_mb"], "", "", "the whole process"))
    for size, each in padded.items():
        note = f"{each['rows']:,} rows in {each['windows']:,} windows; a padded history each"
        rows.append(
            (f"towers of {size}, rows/s", each["ours_rows_per_s"], each["padded_rows_per_s"], each["ratio"], note)
        )
    baseline = build["baseline"]
    note = f"{build['rows']:,} rows; usual: {baseline['rows']:,}, file store and pandas"
    rows.append(("training set, label rows/s", build["rows_per_s"], baseline["rows_per_s"], build["ratio"], note))
    note = f"{bounded['rows']:,} rows; {bounded['on_disk_mb']:,.0f} MB on disk; bound {bounded['bound_mb']:,} MB"
    held, whole = bounded["held_mb"], bounded["features_mb"]
    rows.append(("memory taken, MB; features, MB", held, whole, bounded["features_over_held"], note))
    rows.append(
        (
            "  its build and its epoch, rows/s",
            bounded["build_rows_per_s"],
            "",
            "",
            f"epoch {bounded['epoch']['rows_per_s']:,.0f}",
        )
    )
    rows.append(("GPU", "", "", "", cuda))
    return rows


if __name__ == "__main__":
    main()
