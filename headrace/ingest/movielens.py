"""MovieLens ratings (GroupLens): each becomes an event of type `rate`, each film's first genre its category, all of them
its attributes, the year behind its title when it came out.

Three layouts: atomic files with a typed header (`ml-100k.inter`, `.item`, `.user`, gzip or not), `ml-1m`
(`ratings.dat`) and `ml-25m` (`ratings.csv`), the last two as a folder or as the zip that GroupLens publishes. Films and
users carry no date, so the catalogue and the profiles hold from the first rating on.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from headrace import names
from headrace.clock import to_micros
from headrace.ingest.source import (
    BadRow,
    ItemRow,
    ProfileRow,
    RawEvent,
    SourceError,
    SourceRow,
    content_id,
    delimited_rows,
    iso,
    open_text,
)


@dataclass(frozen=True)
class _Layout:
    """How a layout is written. Columns that are None stand in the file's first line, as `name` or `name:type`."""

    ratings: str
    items: str
    users: str
    delimiter: str
    genre_delimiter: str
    rating_columns: tuple[str, ...] | None = None
    item_columns: tuple[str, ...] | None = None
    user_columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"


_LAYOUTS: Final = (
    _Layout(".inter", ".item", ".user", "\t", " "),
    _Layout("ratings.csv", "movies.csv", "users.csv", ",", "|"),
    _Layout(
        "ratings.dat",
        "movies.dat",
        "users.dat",
        "::",
        "|",
        rating_columns=("user_id", "item_id", "rating", "timestamp"),
        item_columns=("item_id", "movie_title", "class"),
        user_columns=("user_id", "gender", "age", "occupation", "zip_code"),
        encoding="latin-1",
    ),
)
_YEAR: Final = re.compile(r"\(([1-9]\d{3})\)$", re.ASCII)
_CANONICAL: Final = {"userId": "user_id", "movieId": "item_id", "title": "movie_title", "genres": "class"}


@dataclass(frozen=True)
class MovieLens:
    """A folder or zip in one of the layouts; a single file stands for its folder."""

    path: Path
    name: str = "movielens"

    def read(self) -> Iterator[SourceRow]:
        files = _files(self.path)
        layout = next((layout for layout in _LAYOUTS if _named(files, layout.ratings)), None)
        if layout is None:
            endings = ", ".join(layout.ratings for layout in _LAYOUTS)
            raise SourceError(f"{self.path} holds no ratings: expected a file that ends with one of {endings}")
        first_us: int | None = None
        for row in _rows(files, layout, layout.ratings, layout.rating_columns):
            rating = row if isinstance(row, BadRow) else _rating(row)
            if isinstance(rating, BadRow):
                yield rating
            else:
                timestamp_us, event = rating
                first_us = timestamp_us if first_us is None else min(first_us, timestamp_us)
                yield event
        if first_us is None:
            return
        for row in _rows(files, layout, layout.items, layout.item_columns):
            yield row if isinstance(row, BadRow) else _item(row, layout.genre_delimiter, first_us)
        for row in _rows(files, layout, layout.users, layout.user_columns):
            yield row if isinstance(row, BadRow) else _profile(row, first_us)


@dataclass(frozen=True)
class _Line:
    file: str
    number: int
    cells: Mapping[str, str]

    def bad(self, field: str, reason: str) -> BadRow:
        return BadRow(self.file, self.number, field, reason, "\t".join(self.cells.values()))


def _rating(line: _Line) -> tuple[int, RawEvent] | BadRow:
    user, item, rating, seconds = (line.cells[name] for name in ("user_id", "item_id", "rating", "timestamp"))
    field = "timestamp"
    try:
        timestamp_us = int(float(seconds)) * 1_000_000
        timestamp = iso(timestamp_us)
        field = "rating"
        value = float(rating)
    except (ValueError, OverflowError) as error:
        return line.bad(field, str(error))
    raw = {
        "event_id": content_id("movielens", "\x1f".join((user, item, rating, seconds))),
        "type": names.RATE,
        "user_id": user,
        "item_id": item,
        "timestamp": timestamp,
        "value": value,
    }
    return timestamp_us, RawEvent(raw, f"{line.file}:{line.number}")


def _item(line: _Line, genre_delimiter: str, first_us: int) -> ItemRow:
    genres = [genre for genre in line.cells["class"].split(genre_delimiter) if genre and not genre.startswith("(")]
    title, year = line.cells["movie_title"], line.cells.get("release_year")
    title = f"{title} ({year})" if year else title
    return ItemRow(
        line.cells["item_id"],
        first_us,
        title=title,
        category=genres[0] if genres else None,
        attributes=tuple(genres) or None,
        listed_at=_year_us(title),
    )


def _year_us(title: str) -> int | None:
    """When the year began that a title ends with, in Unix microseconds; None where it ends with none."""
    year = _YEAR.search(title)
    return to_micros(datetime(int(year[1]), 1, 1, tzinfo=UTC)) if year else None


def _profile(line: _Line, first_us: int) -> ProfileRow | BadRow:
    age = line.cells["age"]
    if age and not age.isdecimal():
        return line.bad("age", f"{age!r} is not a whole number")
    return ProfileRow(
        line.cells["user_id"], first_us, age=int(age) if age else None, segment=line.cells["occupation"] or None
    )


def _rows(
    files: Mapping[str, Path], layout: _Layout, ending: str, columns: tuple[str, ...] | None
) -> Iterator[_Line | BadRow]:
    """The lines of the file whose name ends so, cells by column; none if there is no such file."""
    file = _named(files, ending)
    if file is None:
        return
    with _open(files[file], file, layout.encoding) as text:
        first_line = 1
        if columns is None:
            cells = next(text, "").rstrip("\r\n").split(layout.delimiter)
            columns = tuple(_CANONICAL.get(cell.split(":")[0], cell.split(":")[0]) for cell in cells)
            first_line = 2
        for row in delimited_rows(text, file, columns, layout.delimiter, first_line):
            yield row if isinstance(row, BadRow) else _Line(file, row[0], dict(zip(columns, row[1], strict=True)))


def _named(files: Mapping[str, Path], ending: str) -> str | None:
    return next((name for name in files if name.removesuffix(".gz").endswith(ending)), None)


def _files(path: Path) -> dict[str, Path]:
    """Name of each file in the folder or zip, and the path it is opened by."""
    if path.is_dir():
        return {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return {member: path for member in sorted(archive.namelist())}
    if path.is_file():
        return _files(path.parent)
    raise SourceError(f"{path} does not exist: name a folder or a zip")


@contextmanager
def _open(path: Path, name: str, encoding: str) -> Iterator[io.TextIOWrapper]:
    if not zipfile.is_zipfile(path):
        with open_text(path, encoding) as text:
            yield text
        return
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        yield io.TextIOWrapper(member, encoding=encoding, errors="replace")
