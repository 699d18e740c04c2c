"""What a source of data yields, and what every loader shares: opening files, event ids, times.

A source is one stream of typed rows. Ids are made from a row's content, before any shift of time, so the same file
gives the same ids on every load.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import xxhash

from headrace.clock import from_micros, to_micros


class SourceError(ValueError):
    """The path given holds nothing that the loader can read."""


class ItemRow(NamedTuple):
    """What the catalogue says of an item from `event_timestamp_us` on (Unix microseconds)."""

    item_id: str
    event_timestamp_us: int
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    price: float | None = None
    available: bool = True
    attributes: tuple[str, ...] | None = None
    listed_at: int | None = None
    """When it came out, in Unix microseconds."""


class ProfileRow(NamedTuple):
    """What is known of a user from `event_timestamp_us` on (Unix microseconds)."""

    user_id: str
    event_timestamp_us: int
    country: str | None = None
    age: int | None = None
    segment: str | None = None


class RawEvent(NamedTuple):
    """An event in the shape of the contract, not validated yet, and what its row says of the item.

    `item` counts only if the event is accepted. `origin` is `file:line`.
    """

    raw: object
    origin: str
    item: ItemRow | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that gives no event: where it stands, which field, and why."""

    file: str
    line: int
    field: str
    reason: str
    raw: str

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}"


SourceRow = RawEvent | ItemRow | ProfileRow | BadRow


class Source(Protocol):
    """A source of history; `read` may be called again and yields the same rows."""

    @property
    def name(self) -> str: ...

    def read(self) -> Iterator[SourceRow]: ...


def content_id(prefix: str, content: str) -> str:
    """`<prefix>-` and the 128-bit hash of a row's content as 32 hex digits."""
    return f"{prefix}-{xxhash.xxh3_128_hexdigest(content.encode())}"


def iso(micros: int) -> str:
    """Unix microseconds as ISO 8601 with six decimals and Z."""
    return from_micros(micros).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def files_under(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or the files of a folder whose names end with one of `suffixes` or that and `.gz`, by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SourceError(f"{path} does not exist: name a file or a folder")
    endings = tuple(suffixes) + tuple(f"{suffix}.gz" for suffix in suffixes)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(endings))
    if not files:
        raise SourceError(f"{path} holds no file that ends with {' or '.join(endings)}")
    return files


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[io.TextIOWrapper]:
    """The file as text, unpacked if its name ends with .gz. Bytes that the encoding lacks become U+FFFD."""
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as raw:
            yield io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{path} is no complete gzip file ({error}): fetch it again") from error


def delimited_rows(
    text: Iterable[str], file: str, columns: Sequence[str], delimiter: str = ",", first_line: int = 1
) -> Iterator[tuple[int, list[str]] | BadRow]:
    """Line number and cells of each line that is not empty; a line without one cell for each column is a BadRow.

    Between commas a cell may be quoted, but it never holds a newline: a stray quote spoils one line, not the file.
    """
    for line, written in enumerate(text, start=first_line):
        content = written.rstrip("\r\n")
        if not content:
            continue
        try:
            quoted = delimiter == "," and '"' in content
            cells = next(csv.reader([content], strict=True)) if quoted else content.split(delimiter)
        except csv.Error as error:
            yield BadRow(file, line, columns[0], f"the line is no CSV: {error}", content)
            continue
        if len(cells) == len(columns):
            yield line, cells
        else:
            field = columns[min(len(cells), len(columns) - 1)]
            yield BadRow(file, line, field, f"the line has {len(cells)} columns and not {len(columns)}", content)


def read_header(text: Iterator[str], file: str, columns: Sequence[str], delimiter: str = ",") -> None:
    """Consume the first line. Raises SourceError if it does not name exactly `columns`."""
    found = next(text, "").rstrip("\r\n").removeprefix("\ufeff")
    if found.split(delimiter) != list(columns):
        raise SourceError(f"{file} begins with {found[:200]!r}, expected the header {delimiter.join(columns)!r}")


def csv_events(
    path: Path,
    suffixes: Sequence[str],
    columns: Sequence[str],
    to_event: Callable[[str, int, Sequence[str]], RawEvent | BadRow],
    header: bool = True,
) -> Iterator[SourceRow]:
    """The rows of CSV files that hold one event a line; `to_event` is given the file's name, the line and its cells."""
    for file in files_under(path, suffixes):
        with open_text(file) as text:
            if header:
                read_header(text, file.name, columns)
            for row in delimited_rows(text, file.name, columns, first_line=2 if header else 1):
                yield row if isinstance(row, BadRow) else to_event(file.name, *row)


def parse_micros(timestamp: str) -> int:
    """Unix microseconds of an ISO 8601 time with a time zone. Raises ValueError."""
    return to_micros(datetime.fromisoformat(timestamp))


def number(cell: str) -> float | None:
    """A cell as a number, an empty one as None. Raises ValueError with the cell's text."""
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is not a number") from None


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}
