"""The two training loops. Deterministic on a CPU for one seed and one number of threads."""

import ctypes
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from headrace.models.config import ModelConfig
from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.ranker import Ranker, outcome_loss
from headrace.models.towers import TwoTowers, full_softmax_loss, in_batch_softmax_loss
from training.config import TrainConfig


def fit_towers(
    preprocessing: Preprocessing,
    model: ModelConfig,
    users: UserInputs,
    target_B: npt.NDArray[np.int64],
    catalogue: Catalogue,
    config: TrainConfig,
    *,
    progress: bool,
) -> TwoTowers:
    """Towers that give each row's item (`target_B`, rows of the catalogue table) the highest score for its user.

    Softmax over the whole catalogue up to `full_softmax_items`, above that over the batch with logQ correction.
    """
    torch.manual_seed(config.seed)
    towers: TwoTowers = TwoTowers(preprocessing, model).to(config.device).train()
    table, users, targets = catalogue.inputs.to(config.device), users.to(config.device), _on(target_B, config)
    full = len(catalogue) <= config.full_softmax_items
    rate_I = torch.bincount(targets, minlength=len(catalogue)) / len(targets)
    for batch, optimizer, schedule in _steps(
        "two towers", towers, len(target_B), config.tower_epochs, config, progress=progress
    ):
        user_BD = towers.users(users.rows(batch), table)
        if full:
            item_ID = towers.items(table.rows(torch.arange(Catalogue.FIRST, len(catalogue), device=config.device)))
            loss = full_softmax_loss(user_BD, item_ID, targets[batch] - Catalogue.FIRST)
        else:
            item_BD = towers.items(table.rows(targets[batch]))
            loss = in_batch_softmax_loss(user_BD, item_BD, targets[batch], rate_I[targets[batch]].log())
        _learn(towers, loss, optimizer, schedule)
    towers.eval()
    return towers


def fit_ranker(
    preprocessing: Preprocessing,
    model: ModelConfig,
    users: UserInputs,
    items: ItemInputs,
    retrieved_B: npt.NDArray[np.float32],
    labels_BO: npt.NDArray[np.float32],
    catalogue: Catalogue,
    config: TrainConfig,
    *,
    progress: bool,
) -> Ranker:
    """A ranker of rows: one user, one item, the towers' score of the two, and what came of it."""
    torch.manual_seed(config.seed)
    ranker: Ranker = Ranker(preprocessing, model).to(config.device).train()
    table, users, items = catalogue.inputs.to(config.device), users.to(config.device), items.to(config.device)
    labels, retrieved = torch.from_numpy(labels_BO).to(config.device), torch.from_numpy(retrieved_B).to(config.device)
    for batch, optimizer, schedule in _steps(
        "ranker", ranker, len(labels), config.ranker_epochs, config, progress=progress
    ):
        logits_BNO = ranker(users.rows(batch), items.rows(batch[:, None]), retrieved[batch][:, None], table)
        _learn(ranker, outcome_loss(logits_BNO[:, 0], labels[batch]), optimizer, schedule)
    ranker.eval()
    return ranker


_TRIM_EVERY = 50
_Step = tuple[Tensor, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


def _steps(
    name: str, model: torch.nn.Module, rows: int, epochs: int, config: TrainConfig, *, progress: bool
) -> Iterator[_Step]:
    """Batches of row numbers in a fresh order each epoch, with the optimizer; the rate warms up, then falls."""
    torch.set_num_threads(config.threads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = -(-rows // config.batch)
    epochs = max(epochs, -(-config.min_steps // per_epoch))
    total = epochs * per_epoch
    warm = max(1, total // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(total - step, 1) / total)
    )
    order = torch.Generator().manual_seed(config.seed)
    with Progress(console=Console(file=sys.stderr), disable=not progress, transient=True) as bar:
        task = bar.add_task(f"training {name}", total=total)
        step = 0
        for _ in range(epochs):
            for batch in torch.randperm(rows, generator=order).split(config.batch):
                yield batch.to(config.device), optimizer, schedule
                bar.advance(task)
                step += 1
                if step % _TRIM_EVERY == 0:
                    _trim_heap()


def _trim_heap() -> None:
    """Give freed memory back: a batch has as many distinct items as it happens to, and blocks of ever new sizes would
    leave glibc's heap in pieces and let it grow by gigabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _learn(
    model: torch.nn.Module,
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _on(values: npt.NDArray[np.int64], config: TrainConfig) -> Tensor:
    return torch.from_numpy(values).to(config.device)
