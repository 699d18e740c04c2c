"""xxh64 over columns of strings: the hash that places entities, without a Python object for each string.

The algorithm is Yann Collet's XXH64 (specification 0.1.1), so that a column and `xxhash.xxh64` give the same numbers.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from headrace.kernel import kernel

Hashes = npt.NDArray[np.uint64]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


def xxh64(strings: "pa.Array | pl.Series", seed: int = 0) -> Hashes:
    """Hash of each string's UTF-8 bytes; what stands at nulls means nothing. Shape (len(strings),)."""
    offsets, data = string_buffers(strings)
    return np.asarray(hash_slices(data, offsets, np.uint64(seed)))


def shards_of(keys: "Iterable[str] | pl.Series", shards: int) -> npt.NDArray[np.int64]:
    """`headrace.identity.shard_of` for many keys. Shape (len(keys),)."""
    column = keys if isinstance(keys, pl.Series) else pl.Series(list(keys), dtype=pl.String)
    return (xxh64(column) % np.uint64(shards)).astype(np.int64)


def string_buffers(strings: "pa.Array | pl.Series") -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """(len + 1,) int64 offsets and the UTF-8 bytes that they cut, without a copy of the bytes where Arrow has them so."""
    column: Any = strings.to_arrow() if isinstance(strings, pl.Series) else strings
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_large_string(column.type):
        column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    cut = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return cut, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)


@kernel
def hash_slices(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seed: np.uint64) -> Hashes:
    """xxh64 of data[offsets[i]:offsets[i + 1]] for each i."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        hashes[i] = hash_slice(data, offsets[i], offsets[i + 1], seed)
    return hashes


@kernel
def hash_slice(data: npt.NDArray[np.uint8], start: int, end: int, seed: np.uint64) -> np.uint64:
    """xxh64 of data[start:end]."""
    at = start
    if end - start >= 32:
        v1, v2, v3, v4 = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at <= end - 32:
            v1 = _round(v1, _read64(data, at))
            v2 = _round(v2, _read64(data, at + 8))
            v3 = _round(v3, _read64(data, at + 16))
            v4 = _round(v4, _read64(data, at + 24))
            at += 32
        h = _rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18)
        for v in (v1, v2, v3, v4):
            h = (h ^ _round(np.uint64(0), v)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(end - start)
    while at <= end - 8:
        h = _rotl(h ^ _round(np.uint64(0), _read64(data, at)), 27) * _P1 + _P4
        at += 8
    if at <= end - 4:
        h = _rotl(h ^ (_read32(data, at) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotl(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    return mix(h)


@kernel
def mix(h: np.uint64) -> np.uint64:
    """The last step of xxh64: spreads every bit over all."""
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@kernel
def _rotl(x: np.uint64, r: int) -> np.uint64:
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@kernel
def _round(accumulator: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotl(accumulator + lane * _P2, 31) * _P1


@kernel
def _read64(data: npt.NDArray[np.uint8], at: int) -> np.uint64:
    return _read32(data, at) | (_read32(data, at + 4) << np.uint64(32))


@kernel
def _read32(data: npt.NDArray[np.uint8], at: int) -> np.uint64:
    first = np.uintp(at)  # an index without a sign is not looked at, and the four reads become one
    return (
        np.uint64(data[first])
        | (np.uint64(data[first + np.uintp(1)]) << np.uint64(8))
        | (np.uint64(data[first + np.uintp(2)]) << np.uint64(16))
        | (np.uint64(data[first + np.uintp(3)]) << np.uint64(24))
    )
