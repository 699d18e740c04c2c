"""The processes of a run: one alone, or as many as `torchrun` started, each on a device of its own where there are several."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from headrace.arrays import Ints

AUTO: Final = "auto"
_PATIENCE: Final = timedelta(hours=24)
"""How long the others wait while the first one reads the data."""

_SAID: Final = "headrace: said by the first"

Made = TypeVar("Made")


@dataclass(frozen=True)
class Processes:
    """Which of how many this one is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one reads the data, judges, and saves."""
        return self.rank == 0

    def share(self, units: Ints) -> Ints:
        """This one's own units of a batch; of fewer than processes, all of them for each."""
        return units if len(units) < self.count else units[self.rank :: self.count]

    def weights(self, units: Ints, counts_UK: Ints) -> Tensor:
        """What means over this one's share of a batch count for in the mean of the shares' means, to give those over all of the batch:
        K means, each over so many things of a unit. Shape (K,).
        """
        all_K = counts_UK[units].sum(axis=0)
        if len(units) < self.count:
            return torch.ones(len(all_K))
        own_K = counts_UK[self.share(units)].sum(axis=0)
        return torch.from_numpy(own_K * self.count / np.maximum(all_K, 1)).float()

    def mean(self, value: float) -> float:
        """Over the processes."""
        if self.count == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64, device=_home())
        dist.all_reduce(held)
        return float(held.item()) / self.count

    def of_first(self, value: float) -> float:
        """The first one's value, in all of them."""
        if self.count == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64, device=_home())
        dist.broadcast(held, src=0)
        return float(held.item())

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """What the first one makes, and the others then find made."""
        if not self.is_first:
            self.wait()
        made = make()
        if self.is_first:
            self.wait()
        return made

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def said_by_first(say: Callable[[], str]) -> str:
    """What the first process says, in all of them; once in their life, and before they are a group: on which device they compute, and so
    what kind of group they are, may hang on it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return say()
    store, rank, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    if rank == 0:
        store.set(_SAID, say())
    said: str = store.get(_SAID).decode()
    store.set(f"{_SAID} {rank}", "heard")
    store.wait([f"{_SAID} {each}" for each in range(count)])  # the first one may be where the others read it
    return said


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Those of this run: what `torchrun` says in the environment, else this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def device_of(wanted: str) -> str:
    """Where models are fitted: `auto` is a GPU where there is one. Raises ValueError for one that is not there."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if wanted == AUTO:
        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {wanted!r}, which is not there ({error}): write auto, cpu or cuda") from error
    return f"cuda:{local}" if wanted == "cuda" else wanted


def _home() -> str:
    """Where the process group wants its tensors."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
