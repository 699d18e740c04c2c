"""The loop that both models are fitted by: epochs over rows, the best of them by what it is judged by, a checkpoint after each.

What is learnt is an *objective*: a module whose `forward(batch)` is the mean loss of a batch's rows, or some means that add up. A copy of
it takes the steps; the model follows as the running mean of the copy's weights, and that is what is judged and kept: much of what one step
learns is noise, which the next ones take back (Polyak and Juditsky, 1992). On a CPU a seed and the numbers of threads and processes give
one model, through a kill and `resume` too: what an epoch draws at random depends on nothing else. Under `torchrun` each process takes an
equal share of every batch and gradients are averaged, so that several learn what one would.

Shapes: U units that batches are made of, K means that a loss is the sum of.
"""

import copy
import io
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from headrace.arrays import Ints
from headrace.room import no_room
from training.batches import epoch_of
from training.processes import Processes
from training.run_files import reading


class TrainError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Units:
    """What batches are made of: each of so many rows, and a history of such a length."""

    lengths_U: Ints
    sizes_U: Ints
    counts_UK: Ints
    """Of how many things of a unit each part of the loss is the mean: of its rows, say."""
    read: Callable[[Ints, Ints], Any]
    """What the objective takes, from the units of a batch and the share of them that is this process' own."""


@dataclass(frozen=True)
class Schedule:
    """At most so many epochs, ended after `patience` of them that were no better than the best."""

    epochs: int
    patience: int
    batch: int
    learning_rate: float
    weight_decay: float
    warm_up: int
    """Steps in which the rate rises to its height."""
    averaging: float
    """What of the running mean stays at each step, in the first ones less."""
    seed: int


@dataclass(frozen=True)
class Epoch:
    """What one pass over the rows came to."""

    number: int
    """From 1; 0 is the model as it began."""
    loss: float
    judged: float
    """Higher is better; NaN where there is nothing to judge by."""
    seconds: float
    rows_per_second: float
    input_share: float
    """Of the time of its steps, what they waited for rows."""


Noted = Callable[[str, Epoch], None]
"""Told of each epoch as it ends, by the name of the fit."""


@dataclass
class Fit:
    """How far a fit is, and its best state so far."""

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_judged: float = float("-inf")
    best_number: int = 0

    def note(self, epoch: Epoch, model: nn.Module) -> None:
        """Without a judgement the last epoch counts as the best."""
        self.history.append(epoch)
        if np.isnan(epoch.judged) or epoch.judged > self.best_judged:
            self.best_judged = -np.inf if np.isnan(epoch.judged) else epoch.judged
            self.best_number = epoch.number
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def said(self) -> str:
        """For the bar: the last judgement beside the best; nothing where there was nothing to judge by."""
        last = self.history[-1].judged
        if np.isnan(last):
            return ""
        # Of both models; the ranker's is less the error of its gain (`learn_ranker.order_quality`).
        return f"NDCG@10 {last:.4f} (best {self.best_judged:.4f}, epoch {self.best_number})"

    def is_over(self, schedule: Schedule) -> bool:
        number = self.history[-1].number
        return number >= schedule.epochs or number - self.best_number >= schedule.patience


def fit(
    name: str,
    model: nn.Module,
    objective: nn.Module,
    units: Units,
    schedule: Schedule,
    *,
    judge: Callable[[], float] | None,
    processes: Processes,
    device: str,
    checkpoint: Path,
    progress: bool,
    noted: Noted = lambda name, epoch: None,
) -> list[Epoch]:
    """Leaves `model`, whose parameters `objective` has, in its best state; returns the epochs, the first as it began.

    `judge` is asked before the first epoch and after each one, of the model in `eval` mode; without it the last epoch is the best. Goes
    on from `checkpoint` where there is one, and then `noted` is told of the epochs before it again. Raises TrainError where the loss is
    not finite or a checkpoint cannot be written, RunError where one cannot be read.
    """
    lengths_U, sizes_U = units.lengths_U, units.sizes_U
    learner = copy.deepcopy(objective)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    wrapped = DistributedDataParallel(learner, find_unused_parameters=True) if processes.count > 1 else learner
    state = _resumed(checkpoint, model, learner, optimizer, device)
    shown = progress and processes.is_first
    with _bar(shown) as bar:
        task = bar.add_task(name, total=len(epoch_of(lengths_U, schedule.batch, schedule.seed, 0)), said="judging")
        if not state.history:
            state.note(Epoch(0, float("nan"), _judged(model, judge, processes), 0.0, 0.0, 0.0), model)
        for epoch in state.history:
            noted(name, epoch)
        while not state.is_over(schedule):
            number = state.history[-1].number + 1
            batches = epoch_of(lengths_U, schedule.batch, schedule.seed, number)
            said = state.said()
            bar.reset(task, total=len(batches), description=f"{name} epoch {number}", said=said)
            started, waited_s, loss_so_far, rows_so_far = time.perf_counter(), 0.0, 0.0, 0
            torch.manual_seed(_seed_of(schedule.seed, number, processes.rank))
            learner.train()
            for step, some in enumerate(batches, start=(number - 1) * len(batches)):
                _set_rate(optimizer, schedule, step)
                asked = time.perf_counter()
                batch = units.read(some, processes.share(some))
                waited_s += time.perf_counter() - asked
                with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device != "cpu"):
                    weights_K = processes.weights(some, units.counts_UK).to(device)
                    loss = (torch.atleast_1d(wrapped(batch)) * weights_K).sum()
                value, rows = _learn(learner, loss, optimizer, name, number), int(sizes_U[some].sum())
                _follow(objective, learner, min(schedule.averaging, (1 + step) / (10 + step)))
                loss_so_far, rows_so_far = loss_so_far + value * rows, rows_so_far + rows
                bar.update(task, advance=1, said=_listed(f"loss {loss_so_far / rows_so_far:.3f}", said))
            spent = time.perf_counter() - started
            bar.update(task, said=_listed("judging", said))
            epoch = Epoch(
                number,
                processes.mean(loss_so_far / rows_so_far),
                _judged(model, judge, processes),
                time.perf_counter() - started,
                float(sizes_U.sum() / spent),
                waited_s / spent,
            )
            state.note(epoch, model)
            noted(name, epoch)
            if shown:
                told = _listed(f"loss {epoch.loss:.3f}", state.said(), f"{epoch.seconds:.1f} s")
                bar.console.print(f"{name} epoch {number}: {told}", highlight=False)
            if processes.is_first:
                _save(checkpoint, state, model, learner, optimizer)
            processes.wait()
    model.load_state_dict(state.best)
    model.eval()
    return state.history


def _learn(learner: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, name: str, epoch: int) -> float:
    value = float(loss.detach())
    if not np.isfinite(value):
        raise TrainError(
            f"the loss of the {name} is {value} in epoch {epoch}: take a lower learning rate (`--set learning_rate=...`), "
            "and look whether a feature has huge values"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([each for each in learner.parameters() if each.grad is not None], 1.0)
    optimizer.step()
    return value


@torch.no_grad()  # type: ignore[untyped-decorator]
def _follow(objective: nn.Module, learner: nn.Module, stays: float) -> None:
    for mean, newest in zip(objective.parameters(), learner.parameters(), strict=True):
        mean.lerp_(newest, 1 - stays)


def _seed_of(seed: int, epoch: int, rank: int) -> int:
    """Of what an epoch draws at random, in one of the processes: a resumed one draws it again."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


def _set_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate * min(1.0, (step + 1) / max(schedule.warm_up, 1))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _judged(model: nn.Module, judge: Callable[[], float] | None, processes: Processes) -> float:
    model.eval()
    return processes.of_first(judge() if judge is not None and processes.is_first else float("nan"))


def _save(file: Path, state: Fit, model: nn.Module, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """In one step: a kill leaves the checkpoint before or this one. Raises TrainError."""
    held: dict[str, Any] = {
        "history": [vars(epoch) for epoch in state.history],
        "best": state.best,
        "best_judged": state.best_judged,
        "best_number": state.best_number,
        "model": model.state_dict(),
        "learner": learner.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    content = io.BytesIO()
    torch.save(held, content)
    draft = file.with_suffix(".draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as written:
            written.write(content.getbuffer())
            written.flush()
            os.fsync(written.fileno())
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        remedy = "make room" if no_room(error) else "mend that"
        raise TrainError(
            f"checkpoint {file} of {content.tell():,} bytes cannot be written ({error.strerror}): {remedy} and go on with "
            "`headrace train --resume`; the epochs before this one are kept"
        ) from error


def _resumed(file: Path, model: nn.Module, learner: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> Fit:
    """How far the checkpoint is, models and optimizer in its state; nothing where there is none. Raises RunError for a damaged one."""
    if not file.exists():
        return Fit()
    with reading(file, file.parent):
        held = torch.load(file, map_location=device, weights_only=True)
        model.load_state_dict(held["model"])
        learner.load_state_dict(held["learner"])
        optimizer.load_state_dict(held["optimizer"])
        history = [Epoch(**epoch) for epoch in held["history"]]
        return Fit(history, held["best"], held["best_judged"], held["best_number"])


def _listed(*said: str) -> str:
    return ", ".join(part for part in said if part)


def _bar(shown: bool) -> Progress:
    """Fits into 80 columns. A line of each epoch stays above it, and alone where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=6),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(compact=True),
    )
    console = Console(file=sys.stderr)
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True)
