"""What a drawn slate is, by temperature: how many items share the first place, and how much of the best slate's score and items it keeps.

`python -m benchmarks.exploration [--users 100] [--config small]`

A model is trained on a simulated shop. For each user the towers offer 200 candidates, the ranker scores them, and slates of 20 are drawn
from the scores as `serving/explore.py` draws them.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from benchmarks.recommend_site import ROOT, Shop, Sites, visitors
from benchmarks.report import publish, say
from headrace import names
from headrace.arrays import Floats
from headrace.clock import system_clock
from headrace.exploration import log_weights
from headrace.identity import user_key
from headrace.models import columns
from headrace.models.bundle import Bundle
from headrace.ops.interrupts import Interrupts
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.models import read_champion
from serving.explore import draw
from training.dataset import T_US, item_activity, user_features

TEMPERATURES: Final = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025)
CANDIDATES: Final = 200
SLATE: Final = 20
DRAWS: Final = 50


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exploration", description=__doc__)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--config", default="small")
    options = parser.parse_args()
    interrupts, shop = Interrupts(), Shop(1_000, 2_000, 60_000, options.config)
    with interrupts.installed(), tempfile.TemporaryDirectory(prefix="hr-explore-") as temporary:
        prepared = Sites(Path(temporary), interrupts, say, system_clock).prepared(shop)
        found = list(scores_of(Settings(data=prepared, feature_repo=ROOT / "feature_repo"), shop, options.users))
    rows = {temperature: measure(found, temperature) for temperature in TEMPERATURES}
    columns_shown = ["temperature", "items at the first place", "score kept", "of the best 20"]
    table = [[temperature, *row.values()] for temperature, row in rows.items()]
    publish("exploration", columns_shown, table, {"users": len(found), "config": options.config, "temperatures": rows})


def scores_of(settings: Settings, shop: Shop, count: int) -> Iterator[Floats]:
    """Of each user's candidates, as of now, the best first. Shape (CANDIDATES,)."""
    champion = read_champion(settings)
    assert champion is not None, "the site has a promoted model"
    bundle, store, now_us = Bundle.load(champion.path), open_feature_store(settings), system_clock()
    scorer, content = bundle.scorer(), bundle.snapshot.features
    asked = visitors(settings, count, shop.seed)
    who = [user_key(visitor.get("user_id"), visitor.get("anonymous_id")) for visitor in asked]
    keys = pl.DataFrame({names.USER_ID: who, T_US: now_us})
    users = columns.by_name(user_features(store, keys))
    everything = pl.DataFrame({names.ITEM_ID: bundle.items.item_ids, T_US: now_us})
    activity = columns.by_name(item_activity(store, everything))
    for row in range(len(who)):
        user = {name: column[row].as_py() for name, column in users.items()}
        rows_1K, _ = bundle.index.search(scorer.user_vector(user, now_us)[None], CANDIDATES)
        places = rows_1K[0][rows_1K[0] >= 0]
        items = {name: [values[place] for place in places] for name, values in content.items()}
        items |= {name: column.take(places).to_pylist() for name, column in activity.items() if name not in items}
        yield -np.sort(-scorer.rank(user, items, now_us).astype(np.float64))


def measure(scores_UN: list[Floats], temperature: float) -> dict[str, float]:
    """Medians over users of the items that share the first place (exp of the entropy), means over draws of what the slate keeps."""
    sharing, kept, same = [], [], []
    for number, scores_N in enumerate(scores_UN):
        weights_N = log_weights(scores_N, temperature)
        chances_N = np.exp(weights_N - np.logaddexp.reduce(weights_N))
        sharing.append(np.exp(-(chances_N * np.log(np.maximum(chances_N, 1e-300))).sum()))
        for which in range(DRAWS):
            slate = draw(weights_N, f"{number}-{which}")[:SLATE]
            kept.append(scores_N[slate].sum() / scores_N[:SLATE].sum())
            same.append((slate < SLATE).mean())
    return {
        "items_at_the_first_place": round(float(np.median(sharing)), 1),
        "score_kept": round(float(np.mean(kept)), 3),
        "of_the_best_20": round(float(np.mean(same)), 3),
    }


if __name__ == "__main__":
    main()
