"""Many values of the store in one buffer, as they came off the wire: what columnar reading starts from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.arrays import Bytes, Ints

NO_SUCH_KEY = -1  # compiled into kernels
"""Length of a value that is not there."""


@dataclass(frozen=True)
class RawRows:
    """Values of n keys in the order asked. `starts` and `lengths` have shape (n,); a length of -1 means no such key."""

    buffer: Bytes
    starts: Ints
    lengths: Ints

    @classmethod
    def join(cls, rows: Sequence[bytes | None]) -> "RawRows":
        """From values one by one."""
        lengths = np.fromiter((NO_SUCH_KEY if row is None else len(row) for row in rows), np.int64, len(rows))
        ends = np.cumsum(np.maximum(lengths, 0))
        buffer = np.frombuffer(b"".join(row for row in rows if row is not None), np.uint8)
        return cls(buffer, ends - np.maximum(lengths, 0), lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Which keys exist. Shape (n,)."""
        return np.asarray(self.lengths >= 0)

    def part(self, start: int, stop: int) -> "RawRows":
        return RawRows(self.buffer, self.starts[start:stop], self.lengths[start:stop])

    def to_list(self) -> list[bytes | None]:
        """Values one by one, None where there is no such key."""
        data = self.buffer.data
        return [
            bytes(data[start : start + length]) if length >= 0 else None
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]
