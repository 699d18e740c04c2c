"""Which event ids a log partition has held of late: an open-addressing table of 128-bit fingerprints.

A fingerprint is two xxh64 hashes under seeds that the process draws at random, so nobody can make two ids that collide, and two ids that
differ are taken for one with a probability of 2^-128. The table is made from the log, so its answers are a function of the log.
"""

import secrets
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace.arrays import Ints, Mask
from headrace.hashing import xxh64
from headrace.kernel import kernel

_Keys = npt.NDArray[np.uint64]

_SEEDS: Final = (secrets.randbits(64), secrets.randbits(64))
_FULL, _ROOMY = 0.75, 0.55
_SMALLEST: Final = 1_024
_SLOT_BYTES: Final = 24


class Fingerprints:
    """The ids of one partition, each with the newest time it was appended at."""

    def __init__(self, horizon_us: int) -> None:
        self._horizon_us = horizon_us
        self._keys: _Keys = np.zeros((_SMALLEST, 2), np.uint64)
        self._times: Ints = np.zeros(_SMALLEST, np.int64)
        self._used = 0
        self._newest_us = 0

    def __len__(self) -> int:
        """Ids held. Those beyond the horizon are dropped when the table would have to grow."""
        return self._used

    @property
    def size_bytes(self) -> int:
        return len(self._times) * _SLOT_BYTES

    def seen(self, event_ids: pl.Series, appended_us: Ints) -> Mask:
        """Take in ids in the log's order; for each, whether one before it, within the horizon, was the same. Shape (len(event_ids),)."""
        if not len(appended_us):
            return np.zeros(0, np.bool_)
        if self._used + len(appended_us) > _FULL * len(self._times):
            self._make_room(len(appended_us), min(self._newest_us, int(appended_us.min())))
        self._newest_us = max(self._newest_us, int(appended_us.max()))
        first, second = (xxh64(event_ids, seed) for seed in _SEEDS)
        seen = np.empty(len(appended_us), np.bool_)
        self._used += _take_in(self._keys, self._times, first, second, appended_us, self._horizon_us, seen)
        return seen

    def _make_room(self, coming: int, now_us: int) -> None:
        """Drop what is beyond the horizon; a larger table if the rest needs one."""
        oldest_us = now_us - self._horizon_us
        kept = int(np.count_nonzero(self._times >= max(oldest_us, 1)))
        capacity = max(_SMALLEST, int((kept + coming) / _ROOMY))
        keys, times = np.zeros((capacity, 2), np.uint64), np.zeros(capacity, np.int64)
        self._used = _move(self._keys, self._times, keys, times, max(oldest_us, 1))
        self._keys, self._times = keys, times


@kernel
def _slot(keys: _Keys, times: Ints, first: np.uint64, second: np.uint64) -> np.intp:
    """Where an id is, or the empty slot (time 0) where it would be."""
    capacity = len(times)
    at = np.intp(((first >> np.uint64(32)) * np.uint64(capacity)) >> np.uint64(32))
    while times[at] != 0 and (keys[at, 0] != first or keys[at, 1] != second):
        at = at + 1 if at + 1 < capacity else np.intp(0)
    return at


@kernel
def _take_in(keys: _Keys, times: Ints, first: _Keys, second: _Keys, appended: Ints, horizon: int, seen: Mask) -> int:
    """Fills `seen`; returns how many slots were taken."""
    taken = 0
    for i in range(len(appended)):
        at = _slot(keys, times, first[i], second[i])
        time = times[at]
        seen[i] = time != 0 and time >= appended[i] - horizon
        if time == 0:
            keys[at, 0], keys[at, 1] = first[i], second[i]
            taken += 1
        times[at] = max(time, appended[i], 1)
    return taken


@kernel
def _move(keys: _Keys, times: Ints, to_keys: _Keys, to_times: Ints, oldest: int) -> int:
    """Copy the slots that are not older than `oldest` into an empty table; returns how many."""
    moved = 0
    for i in range(len(times)):
        if times[i] >= oldest:
            at = _slot(to_keys, to_times, keys[i, 0], keys[i, 1])
            to_keys[at, 0], to_keys[at, 1] = keys[i, 0], keys[i, 1]
            to_times[at] = times[i]
            moved += 1
    return moved
