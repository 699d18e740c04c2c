"""The two fits of a run: towers, judged by what users turned to next among all items, and the ranker, by the order of lists held out."""

from typing import Final

import polars as pl
import torch

from headrace.arrays import Ints
from headrace.models.architectures import ranker_of, towers_of
from headrace.models.base import RankingModel, Towers
from headrace.models.inputs import UserInputs
from training import learn_ranker, learn_towers
from training.config import TrainConfig
from training.fit import Epoch, Schedule, fit
from training.lists import Lists
from training.ranks import best_unseen, ndcg, target_ranks
from training.requests import Requests
from training.run import Run
from training.scoring import shop_vectors, user_vectors
from training.warm_start import begin_from
from training.windows import Windows

TOWERS, RANKER = "towers", "ranker"
JUDGED_BY: Final = {TOWERS: "ndcg_at_10", RANKER: "ndcg_at_10_less_error"}
"""What `Epoch.judged` is of each. The ranker's is less the standard error of its gain over retrieval: `learn_ranker.order_quality`."""


def learn_retrieval(
    run: Run, windows: Windows, positives: pl.DataFrame, asked: Requests, users: UserInputs
) -> tuple[Towers, list[Epoch]]:
    """Towers at their best epoch by NDCG@10 over all items, on up to `max_validation` requests of the validation."""
    config, shop, device = run.config, run.shop, run.device
    torch.manual_seed(config.seed)
    towers: Towers = towers_of(shop.preprocessing, run.model).to(device)
    if run.warm_start is not None:
        begin_from(run.warm_start, run.warm_start.towers, towers, shop.preprocessing, run.model)
    target_R, drawn = shop.places(positives), None if shop.items <= config.full_softmax_items else config.drawn_items
    judged = asked.head(min(config.max_validation or len(asked), len(asked)))
    judged_users = users.rows(torch.arange(len(judged)))

    def quality() -> float:
        user_TD = torch.from_numpy(user_vectors(towers, shop.catalogue, judged_users, device))
        item_ID = torch.from_numpy(shop_vectors(towers, shop.catalogue, device))
        return float(ndcg(target_ranks(user_TD, item_ID, judged.target_T, judged.history), 10).mean())

    epochs = fit(
        TOWERS,
        towers,
        learn_towers.TowerObjective(towers, shop.catalogue.inputs.to(device)),
        learn_towers.units(windows, target_R, shop.items, drawn, device),
        schedule_of(config, config.tower_epochs, max(1, round(config.batch * len(windows) / windows.rows))),
        judge=quality if len(judged) else None,
        processes=run.us,
        device=device,
        checkpoint=run.folder.path / f"{TOWERS}.pt",
        progress=run.progress,
        noted=run.noted,
    )
    return towers, epochs


def offer(run: Run, towers: Towers, asked: Requests, users: UserInputs) -> Ints:
    """What retrieval offers each request. Shape (T, K)."""
    shop, device = run.shop, run.device
    user_TD = torch.from_numpy(user_vectors(towers, shop.catalogue, users, device))
    item_ID = torch.from_numpy(shop_vectors(towers, shop.catalogue, device))
    offered_TK: Ints = best_unseen(user_TD, item_ID, asked.history, run.config.candidates)
    return offered_TK


def learn_ranking(
    run: Run, towers: Towers, learnt: Lists | None, held: Lists | None
) -> tuple[RankingModel, list[Epoch]]:
    """A ranker at its best epoch by the order of lists held out, its probabilities scaled by these: each epoch is judged as it would be
    kept. Without lists it stays as it begins, with the order of retrieval or with the champion's weights.
    """
    config, shop, device = run.config, run.shop, run.device
    torch.manual_seed(config.seed)
    ranker: RankingModel = ranker_of(shop.preprocessing, run.model).to(device)
    if run.warm_start is not None:
        begin_from(run.warm_start, run.warm_start.ranker, ranker, shop.preprocessing, run.model)
    ranker.take_encoders(towers)
    if learnt is None:
        return ranker.eval(), []
    table = shop.catalogue.inputs.to(device)

    def quality() -> float:
        assert held is not None, "judged by lists held out"
        judged: float = learn_ranker.calibrated_quality(ranker, table, held, device)
        return judged

    epochs = fit(
        RANKER,
        ranker,
        learn_ranker.RankerObjective(ranker, table),
        learn_ranker.units(learnt, device),
        schedule_of(config, config.ranker_epochs, config.list_batch),
        judge=quality if held is not None and held.has_choices else None,
        processes=run.us,
        device=device,
        checkpoint=run.folder.path / f"{RANKER}.pt",
        progress=run.progress,
        noted=run.noted,
    )
    if held is not None:
        learn_ranker.calibrate(ranker, table, held, device)
    return ranker, epochs


def schedule_of(config: TrainConfig, epochs: int, batch: int) -> Schedule:
    return Schedule(
        epochs=epochs,
        patience=config.patience,
        batch=batch,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warm_up=config.warm_up,
        averaging=config.averaging,
        seed=config.seed,
    )
