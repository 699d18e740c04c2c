"""How good `train --config default` is on public data, by the protocols that published tables use.

`python -m benchmarks.quality --data FOLDER [--sets beauty,...] [--seeds 0,1,2]`; FOLDER has a folder for each set.

A run takes minutes to an hour. Each leaves `results/quality/<set>-<seed>.json`, with its command, commit and settings, and is not
made again while these, the data and the code that trains are the same; the table is of the sets and seeds that were asked for. With
`--kept` it is of the kept runs as they are, whatever code made them, which the result names by its commits, and nothing runs.

beauty, sports   Amazon 5-core in their order: each user's last interaction is the test, the one before it the validation; all items are
                 ranked, those that the user has met left out.
ml-100k          by time: weights from before 80 % of the ratings, each later one predicted from everything before its own time.
cold             beauty with 5 % of the items held out: of these the data has nothing but last interactions, which are to be foretold.
simulator        a simulated shop, where the ranker has impressions to learn from.
NAME:FORMAT      data of one's own in FOLDER/NAME, in a format of `headrace ingest`: sequences as beauty, all else as ml-100k.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from benchmarks.recommend_site import SERVING, digest
from benchmarks.report import CONSOLE, RESULTS, circumstances, publish
from headrace.clock import system_clock
from headrace.ingest.formats import FORMATS
from headrace.ingest.load import ingest
from headrace.ingest.movielens import MovieLens
from headrace.ingest.sequences import END_US, Sequences
from headrace.ingest.shop import ShopConfig
from headrace.ingest.simulator import simulate
from headrace.ingest.source import RawEvent, Source, SourceRow, parse_micros
from headrace.ops.apply import apply
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import DAY_US, Settings
from training.measures import RANKED, TOWERS
from training.rivals import ITEM_KNN, POPULAR

_LEAVE_ONE_OUT: Final = ("test_days=1", "validation_days=1")
_BY_TIME: Final = ("test_share=0.2",)
_EVERYTHING: Final = (
    "days=36500",
    "max_positives=1000000",
    "max_validation=6000",
    "max_test=0",
    "max_ranked_requests=0",
)
_CODE: Final = (
    "training",
    *(f"headrace/{room}" for room in ("models", "ingest", "aggregates", "stores")),
    "feature_repo",
)
# Of those, what only shows, serves, or takes into service what has been trained and measured.
_AFTER: Final = (
    *SERVING,
    *("page.py", "plots.py", "figures.py", "track.py", "stages.py", "job.py", "train_command.py"),
    *("gate.py", "gate_measures.py", "made_up.py", "promote.py", "rollback.py", "champion.py"),
    *("retrain.py", "retrain_command.py", "drift.py", "drift_signals.py", "staleness.py"),
    *("off_policy.py", "open_bandit.py", "estimators.py", "logged_slates.py"),
)
_HELD_OUT: Final = 0.05


@dataclass(frozen=True)
class DataSet:
    """`open` gives its events from its folder; `changes` are of the config, the same whatever the data's size or name."""

    name: str
    open: Callable[[Path], Source]
    changes: tuple[str, ...]
    folder: str = ""


@dataclass(frozen=True)
class WithoutColdItems:
    """Sequences in which some items come in the last day alone, and so only as what is to be foretold."""

    path: Path
    name: str = "sequences"

    def read(self) -> Iterator[SourceRow]:
        for row in Sequences(self.path).read():
            if not (isinstance(row, RawEvent) and is_cold(row.raw["item_id"]) and _is_before_test(row)):  # type: ignore[index]
                yield row


def is_cold(item_id: str) -> bool:
    return xxhash.xxh64_intdigest(f"held out {item_id}".encode()) < _HELD_OUT * 2**64


def _is_before_test(row: RawEvent) -> bool:
    assert isinstance(row.raw, dict)
    return parse_micros(row.raw["timestamp"]) < END_US - DAY_US


RIVALS_SHOWN: Final = {"retrieval": TOWERS, "item-kNN": ITEM_KNN, "most popular": POPULAR}
RELEVANCE: Final = ("retrieval recall@10", "retrieval NDCG@10", "ranked recall@10", "ranked NDCG@10")
GAINS: Final = tuple(f"gain over {name}" for name in RIVALS_SHOWN)
SHOP: Final = ShopConfig(users=8_000, items=5_000, categories=50, events=400_000, days=14)
SETS: Final = {
    each.name: each
    for each in (
        DataSet("beauty", Sequences, _LEAVE_ONE_OUT),
        DataSet("sports", Sequences, _LEAVE_ONE_OUT),
        DataSet("ml-100k", MovieLens, _BY_TIME),
        DataSet("cold", WithoutColdItems, _LEAVE_ONE_OUT, folder="beauty"),
        DataSet("simulator", lambda _: simulate(SHOP), ()),
    )
}


def set_called(name: str) -> DataSet:
    """One of SETS, or one of one's own. Raises ValueError."""
    folder, _, form = name.partition(":")
    if name in SETS:
        return SETS[name]
    if not folder or form not in FORMATS:
        raise ValueError(
            f"no set is called {name!r}: choose of {', '.join(SETS)}, or NAME:FORMAT of {', '.join(FORMATS)}"
        )
    return DataSet(
        f"{folder}-{form}", FORMATS[form], _LEAVE_ONE_OUT if FORMATS[form] is Sequences else _BY_TIME, folder
    )


def data_of(which: DataSet, data: Path) -> Path:
    """Its folder, which a simulated set has no use for."""
    return data / (which.folder or which.name)


def content_digest(folder: Path) -> str:
    """Of the names and bytes of all files; of a single file as well."""
    digest = xxhash.xxh3_128()
    for file in sorted(file for file in (folder, *folder.rglob("*")) if file.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def run(which: DataSet, changes: Sequence[str], data: Path) -> dict[str, Any]:
    """Load the set into a directory of its own, train on it, and give what `train --json` says."""
    with tempfile.TemporaryDirectory(prefix="headrace-quality-") as folder:
        server = ValkeyServer(Path(folder) / "valkey", free_port(), Path(folder) / "valkey.log")
        server.start()
        try:
            settings = Settings(data=Path(folder) / "var", redis_url=server.url)
            ingest(which.open(data_of(which, data)), settings, bulk=True, clock=system_clock)
            apply(settings)
            return train(settings, changes)
        finally:
            server.stop()


def train(settings: Settings, changes: Sequence[str]) -> dict[str, Any]:
    """`python -m training.train --config default` in a process of its own, and what it says but for where it put things. It ends this
    process where it fails.
    """
    command = [sys.executable, "-m", "training.train", "--config", "default", "--json"]
    command += [part for change in changes for part in ("--set", change)]
    environment = os.environ | {"HEADRACE_DATA": str(settings.data), "HEADRACE_REDIS_URL": str(settings.redis_url)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the training ended with exit code {done.returncode}: it says above why")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: found[name] for name in ("report", "index", "tower_rows", "ranker_lists", "epochs", "seconds")}


def measured(which: DataSet, seed: int, data: Path, results: Path) -> dict[str, Any]:
    """From its file where that is of the data, the code and the settings as they stand, else by a run."""
    file = results / f"{which.name}-{seed}.json"
    made_of = {
        "data": content_digest(data_of(which, data)),
        "code": digest(_CODE, _AFTER),
        "changes": [*_EVERYTHING, *which.changes, f"seed={seed}"],
    }
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if all(kept.get(name) == value for name, value in made_of.items()):
            return kept
    CONSOLE.print(f"{which.name}, seed {seed}")
    started, about = time.monotonic(), circumstances("quality")
    made = {"set": which.name, "seed": seed, **about, **made_of, **run(which, made_of["changes"], data)}
    made["wall_s"] = round(time.monotonic() - started, 1)
    results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=1, default=float) + "\n")
    return made


def kept(which: DataSet, seed: int, results: Path) -> dict[str, Any]:
    """A run from its file, whatever code made it. Raises ValueError where there is none."""
    file = results / f"{which.name}-{seed}.json"
    if not file.exists():
        raise ValueError(f"{file.name} is not there: leave --kept out, and the run is made")
    run: dict[str, Any] = json.loads(file.read_text())
    return run


def figures(found: Mapping[str, Any]) -> dict[str, float]:
    """What the tables show of a run; a gain is of NDCG@10, and clear where its interval is above 0."""
    report = found["report"]
    alone, both = report["retrieval"]["methods"][TOWERS], report["methods"][RANKED]
    shown = {
        "retrieval recall@10": alone["recall_at_10"]["value"],
        "retrieval NDCG@10": alone["ndcg_at_10"]["value"],
        "ranked recall@10": both["recall_at_10"]["value"],
        "ranked NDCG@10": both["ndcg_at_10"]["value"],
    }
    for name, method in RIVALS_SHOWN.items():
        gain = report["gains"][method]
        clear = gain["low"] is not None and gain["low"] > 0  # of a single user there is no interval
        shown |= {f"gain over {name}": gain["value"], f"clear over {name}": float(clear)}
    for group in report["segments"]:
        if group["of"] == "user":
            both = group["methods"][RANKED]
            shown[f"{group['name']} users NDCG@10"] = both["ndcg_at_10"]["value"]
            shown[f"{group['name']} users, item-kNN's"] = group["methods"][ITEM_KNN]["ndcg_at_10"]["value"]
        if (group["of"], group["name"]) == ("item", "cold"):
            shown["cold items recall@50"] = group["methods"][TOWERS]["recall_at_50"]["value"]
            shown["cold items, times random"] = shown["cold items recall@50"] / (50 / found["index"]["count"])
    return shown | {"wall s": found["wall_s"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds beauty/, sports/, ml-100k/")
    parser.add_argument(
        "--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}, or NAME:FORMAT of {', '.join(FORMATS)}"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--kept", action="store_true", help="show the kept runs, of whatever code, and make none")
    options = parser.parse_args(arguments)
    try:
        asked = [
            (which, seed, (RESULTS if which in SETS.values() else RESULTS / "smaller") / "quality")
            for which in map(set_called, options.sets.split(","))
            for seed in map(int, options.seeds.split(","))
        ]
        runs = [kept(*each) for each in asked] if options.kept else []
    except ValueError as error:
        parser.error(str(error))
    if not options.kept:
        runs = [measured(which, seed, options.data, folder) for which, seed, folder in asked]
    publish("quality", ["set", "seeds", *RELEVANCE, *GAINS], *summary(runs))


def summary(runs: Sequence[Mapping[str, Any]]) -> tuple[list[list[object]], dict[str, Any]]:
    """A row for each set, and all of its figures: their mean and spread (of a sample) over the seeds."""
    rows: list[list[object]] = []
    result: dict[str, Any] = {}
    for name in dict.fromkeys(run["set"] for run in runs):
        own = [run for run in runs if run["set"] == name]
        each = [figures(run) for run in own]
        count = len(each)
        spread = {
            key: {
                "mean": float(np.mean(of := [one[key] for one in each])),
                "std": float(np.std(of, ddof=1)) if count > 1 else None,
            }
            for key in each[0]
        }
        result[name] = {"seeds": [run["seed"] for run in own], "commits": [run["commit"] for run in own], **spread}
        rows.append(
            [
                name,
                count,
                *[_spread(spread[key], "{:.4f}") for key in RELEVANCE],
                *[
                    f"{_spread(spread[key], '{:+.4f}')}, {sum(one[key.replace('gain', 'clear')] for one in each):.0f} of {count} clear"
                    for key in GAINS
                ],
            ]
        )
    return rows, result


def _spread(of: Mapping[str, float | None], form: str) -> str:
    return form.format(of["mean"]) + ("" if of["std"] is None else f" ± {of['std']:.4f}")


if __name__ == "__main__":
    main()
