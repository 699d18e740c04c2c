"""From new data to the new model serving: one round of `headrace retrain` beside a running stack.

`python -m benchmarks.retrain [--items 1000] [--users 2000] [--events 60000] [--config small]`

The whole stack of `make up` runs over a simulated shop with a champion; what visitors do is posted to it, reaches the lake, and a round
trains from the champion on, asks the gate, promotes, and waits for an answer by the new version. The stack serves all the while, with no
other load.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.posting import Poster
from benchmarks.recommend_servers import ours
from benchmarks.recommend_site import ROOT, Shop, Sites, copy, visitors
from benchmarks.report import publish, say
from headrace import names
from headrace.clock import from_micros, system_clock
from headrace.ops.demo import wait_until_filled
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.lake import EventLake

POSTS: Final = 20
EVENTS_A_POST: Final = 100
READY_S: Final = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrain", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--config", default="small")
    parser.add_argument("--site", type=Path, help="where the prepared shop is kept")
    options = parser.parse_args()
    shop = Shop(options.items, options.users, options.events, options.config)
    interrupts = Interrupts()
    with interrupts.installed(), tempfile.TemporaryDirectory(prefix="hr-retrain-") as temporary:
        prepared = Sites(options.site or Path(temporary) / "site", interrupts, say, system_clock).prepared(shop)
        report(measure(prepared, shop, Path(temporary) / "var", interrupts), shop)


def measure(prepared: Path, shop: Shop, data: Path, interrupts: Interrupts) -> dict[str, Any]:
    """What the round says of itself."""
    copy(prepared, data)
    settings = Settings(data=data, feature_repo=ROOT / "feature_repo", http_port=free_port(), exploration=0.0)
    who = visitors(Settings(data=prepared), shop.users, shop.seed)
    with Stack(settings, say, interrupts) as stack, ours(stack, READY_S) as running:
        say(f"{POSTS * EVENTS_A_POST:,} new events")
        asyncio.run(post(running, who, known_items(running)))
        wait_until_filled(running)
        say("a round of retraining")
        said = stack.run("retrain", "training.retrain_command", "--once", "--json", "--config", shop.config)
    told: dict[str, Any] = json.loads(said)
    if not told["promoted"] or not told["served"]:
        raise SystemExit(f"the round did not end with a new model in service: {said}")
    return told


def known_items(settings: Settings) -> list[str]:
    """Those of the lake's events."""
    found = EventLake(settings.lake_dir).scan([names.ITEM_ID]).drop_nulls().unique().sort(names.ITEM_ID).collect()
    return found[names.ITEM_ID].to_list()


async def post(settings: Settings, who: Sequence[dict[str, str]], items: Sequence[str]) -> None:
    """Views of these items by these visitors, now."""
    rng, now = np.random.default_rng(0), from_micros(system_clock()).isoformat()
    async with Poster(settings) as poster:
        for number in range(POSTS):
            events = [
                {
                    **who[int(rng.integers(len(who)))],
                    "event_id": f"new-{number}-{place}",
                    "type": names.VIEW,
                    "item_id": items[int(rng.integers(len(items)))],
                    "timestamp": now,
                }
                for place in range(EVENTS_A_POST)
            ]
            answer = await poster.post(orjson.dumps({"events": events}))
            if answer.status not in (200, 202):
                raise SystemExit(f"post {number} was answered {answer.status}: {answer.body!r}")


def report(told: dict[str, Any], shop: Shop) -> None:
    rows: list[list[object]] = [[step, seconds] for step, seconds in told["seconds"].items()]
    rows.append(["from new data to the new model serving", told["total_s"]])
    result = {
        "total_s": round(told["total_s"], 2),
        "seconds": told["seconds"],
        "config": shop.config,
        "shop": shop.label,
    }
    publish("retrain", ["step", "seconds"], rows, {**result, "verdicts": told["verdicts"]})


if __name__ == "__main__":
    main()
