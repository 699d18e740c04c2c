"""Data directories that the recommend benchmark serves from, kept between runs: a shop that happened, and its models.

What takes minutes is done once: simulate, `ingest --bulk`, `backfill`, `train`, `promote`. A run gets a copy, so what it logs is not
there for the next. A directory is made again when its options, the features or (its models alone) the training code have changed, or
when its newest event is older than `FRESH_S`: windows of an old history are empty.

`python -m benchmarks.recommend_site ...` is the step that loads, in a process of its own.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from headrace import names
from headrace.clock import Clock, system_clock
from headrace.ingest.load import ingest
from headrace.ingest.plain_rows import add_rows, item_table
from headrace.ingest.shop import stock_shop
from headrace.ingest.simulator import ShopConfig, simulate
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake

ROOT: Final = Path(__file__).parent.parent
FRESH_S: Final = 12 * 3_600.0
# Some visitors never come; of those that did, `Shop.users` are asked for.
SPARE_VISITORS: Final = 1.3
_NOT_KEPT: Final = ("run", "log", "ray", "serving")
_FEATURES: Final = ("feature_repo", "headrace/aggregates")
_MODELS: Final = ("training", "headrace/models")
# Of those, what only serves a bundle that is there.
SERVING: Final = ("shelf.py", "fused.py", "fused_kernels.py", "packed_items.py", "explain.py")


@dataclass(frozen=True)
class Shop:
    """What happened, and the training config of its models."""

    items: int = 100_000
    users: int = 20_000
    events: int = 1_000_000
    config: str = "default"
    changes: tuple[str, ...] = ()
    """Of the config, as `train --set` takes them."""
    seed: int = 0

    @property
    def history(self) -> ShopConfig:
        categories = min(200, max(20, self.items // 500))
        visitors = int(self.users * SPARE_VISITORS)
        return ShopConfig(visitors, self.items, categories, self.events, seed=self.seed)

    @property
    def label(self) -> str:
        return f"{self.items}-{self.users}-{self.events}-{self.seed}"

    @property
    def models(self) -> str:
        return "-".join([self.config, *self.changes])


class Sites:
    """The kept directories, under `home`."""

    def __init__(self, home: Path, interrupts: Interrupts, say: Callable[[str], None], clock: Clock) -> None:
        self._home = home
        self._interrupts = interrupts
        self._say = say
        self._clock = clock

    def prepared(self, shop: Shop) -> Path:
        """The data directory of this shop, with a promoted model."""
        folder = self._home / shop.label
        filled = {**asdict(shop), "code": digest(_FEATURES)}
        del filled["config"], filled["changes"]
        self._once(folder, "filled", filled, lambda: self._fill(folder / "var", shop), anew=True)
        trained = {**filled, "models": shop.models, "training": digest(_MODELS), "filled": _stamp(folder, "filled")}
        self._once(folder, "trained", trained, lambda: self._train(folder / "var", shop))
        return folder / "var"

    def grown(self, shop: Shop, items: int) -> Path:
        """The same with a catalogue of `items`: the rest nobody has met, of which the model knows the content alone."""
        source = self.prepared(shop)
        folder = self._home / f"{shop.label}-{items}"
        options = {"items": items, "source": _stamp(source.parent, "trained")}
        self._once(folder, "grown", options, lambda: self._grow(source, folder / "var", shop, items), anew=True)
        return folder / "var"

    def _once(
        self, folder: Path, step: str, options: dict[str, Any], do: Callable[[], None], anew: bool = False
    ) -> None:
        stamp = _stamp(folder, step)
        age_s = (self._clock() - stamp.get("at_us", 0)) / MICROS
        if {**stamp, "at_us": 0} == {**options, "at_us": 0} and age_s < FRESH_S:
            return
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        do()
        (folder / f"{step}.json").write_text(json.dumps({**options, "at_us": self._clock()}, indent=1))

    def _fill(self, data: Path, shop: Shop) -> None:
        with Stack(_settings(data), self._say, self._interrupts) as stack:
            stack.start_valkey()
            self._say(f"simulating and loading {shop.events:,} events on {shop.items:,} items")
            stack.run("load", "benchmarks.recommend_site", json.dumps(asdict(shop)))
            self._say("applying the features, bringing catalogue and profiles online")
            stack.run("apply", "headrace.ops.apply")
            self._say("backfilling")
            stack.run("backfill", "headrace.cli", "backfill", "--json")

    def _train(self, data: Path, shop: Shop) -> None:
        with Stack(_settings(data), self._say, self._interrupts) as stack:
            stack.start_valkey()
            self._say(f"training, config {shop.models}")
            changes = [argument for change in shop.changes for argument in ("--set", change)]
            stack.run("train", "training.train", "--config", shop.config, *changes)
            # What is measured is speed: a smaller model than the one before is as good a subject.
            stack.run("promote", "training.promote", "--force")

    def _grow(self, source: Path, data: Path, shop: Shop, items: int) -> None:
        copy(source, data)
        with Stack(_settings(data), self._say, self._interrupts) as stack:
            stack.start_valkey()
            self._say(f"growing the catalogue to {items:,} items")
            stack.run("load", "benchmarks.recommend_site", json.dumps(asdict(shop)), "--grow-to", str(items))
            stack.run("apply", "headrace.ops.apply")


def copy(source: Path, data: Path) -> None:
    """A data directory without what belongs to one run of its stack."""
    shutil.copytree(source, data, ignore=lambda folder, _: _NOT_KEPT if Path(folder) == source else ())


def visitors(settings: Settings, count: int, seed: int) -> list[dict[str, str]]:
    """The identity of `count` visitors drawn from those that the lake has events of; all of them where they are fewer."""
    identity = ["user_id", "anonymous_id"]
    seen = EventLake(settings.lake_dir).scan(identity).unique().collect().sort(identity)
    drawn = seen.sample(min(count, seen.height), seed=seed, shuffle=True)
    return [{name: value for name, value in row.items() if value is not None} for row in drawn.iter_rows(named=True)]


def load(settings: Settings, shop: Shop, grow_to: int | None) -> None:
    """The shop's history straight into the lake, its last event now; or, with `grow_to`, items that come after its own."""
    if grow_to is None:
        ingest(simulate(shop.history), settings, bulk=True, shift_to_now=True, clock=system_clock)
        return
    # A day: what is drawn for each hour of it takes 8 bytes an item and segment. The last state of an item is its only one.
    config = ShopConfig(1, grow_to, shop.history.categories, 1, days=1, seed=shop.seed + 1, end_us=system_clock())
    rows = stock_shop(config, np.random.default_rng(config.seed)).rows
    newest = {row.item_id: row for row in rows if int(row.item_id.removeprefix("item-")) >= shop.items}
    add_rows(settings.lake_dir, names.ITEMS_TABLE, item_table(list(newest.values())))


def _settings(data: Path) -> Settings:
    return Settings(data=data, feature_repo=ROOT / "feature_repo", http_port=free_port(), exploration=0.0)


def _stamp(folder: Path, step: str) -> dict[str, Any]:
    path = folder / f"{step}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def digest(rooms: Sequence[str], besides: Sequence[str] = SERVING) -> str:
    """Of all their source files but those of these names."""
    digest = xxhash.xxh3_128()
    for path in sorted(path for room in rooms for path in (ROOT / room).rglob("*.py")):
        if path.name not in besides:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shop", help="its fields as JSON")
    parser.add_argument("--grow-to", type=int)
    given = parser.parse_args()
    load(Settings(), Shop(**json.loads(given.shop)), given.grow_to)


if __name__ == "__main__":
    main()
