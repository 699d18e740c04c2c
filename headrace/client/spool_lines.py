"""A spooled event as a line of a file: a checksum, a space, the event's JSON, a line feed. What a crash left of one is told apart."""

import zlib
from collections.abc import Iterator
from pathlib import Path


def line_of(text: bytes) -> bytes:
    """`text` must hold no line feed."""
    return b"%08x %b\n" % (zlib.crc32(text), text)


def text_of(line: bytes) -> bytes | None:
    """The text of a line without its line feed; None where the checksum does not fit."""
    text = line[9:]
    return text if line[:9] == b"%08x " % zlib.crc32(text) else None


def lines_in(data: bytes) -> Iterator[tuple[bytes | None, int]]:
    """(text, offset after it) of each line that ends in `data`; None for a damaged one."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield text_of(data[start:end]), end + 1
        start = end + 1


def count_lines(path: Path, offset: int) -> tuple[int, int, int]:
    """(whole lines, damaged ones, offset after the last that ends) from `offset` on; a last one cut short is damaged."""
    whole = damaged = 0
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return whole, damaged + 1, offset
            offset += len(line)
            if text_of(line[:-1]) is None:
                damaged += 1
            else:
                whole += 1
    return whole, damaged, offset
