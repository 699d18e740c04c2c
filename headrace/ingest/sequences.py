"""Interactions of which only the order is known: a line for each user, `user item item ...`, oldest first.

It is how papers on sequential recommendation share their data (the Amazon files of S3-Rec, and others since). Beside it may lie
`*item2attributes.json`: for each item's id those of its attributes.

What has order but no clock is given one: everybody's last interaction lies in the last day of the history, the one before it in
the day before, and so on, at a time of day that is the user's own. So a split by time is the usual leave-one-out: with
`--set test_days=1 --set validation_days=1` each user's last interaction is the test and the one before validation.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from headrace import names
from headrace.ingest.source import (
    BadRow,
    ItemRow,
    RawEvent,
    SourceError,
    SourceRow,
    content_id,
    files_under,
    iso,
    open_text,
)
from headrace.settings import DAY_US

END_US: Final = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC: no interaction is at or after it."""
_MOST_DAYS: Final = 20_000
"""As far back as times reach: 54 years, which is before 1972."""
_ATTRIBUTES: Final = "*item2attributes.json"


@dataclass(frozen=True)
class Sequences:
    """One file of sequences, gzip or not, or a folder that holds one. Each interaction is a `view`."""

    path: Path
    name: str = "sequences"

    def read(self) -> Iterator[SourceRow]:
        files = files_under(self.path, [".txt"])
        if len(files) > 1:
            raise SourceError(f"{self.path} holds {', '.join(file.name for file in files)}: name one of them")
        attributes = _attributes(files[0].parent)
        items, longest = set(attributes), 1
        with open_text(files[0]) as text:
            for line, written in enumerate(text, start=1):
                user, *sequence = written.split() or [""]
                if not sequence or len(sequence) > _MOST_DAYS:
                    if user:
                        reason = f"a line is a user and 1 to {_MOST_DAYS} items, this one has {len(sequence)}"
                        yield BadRow(files[0].name, line, names.ITEM_ID, reason, written[:1_000])
                    continue
                items.update(sequence)
                longest = max(longest, len(sequence))
                yield from _events(f"{files[0].name}:{line}", user, sequence)
        for item in sorted(items):
            yield ItemRow(item, END_US - longest * DAY_US, attributes=attributes.get(item))


def _events(origin: str, user: str, sequence: list[str]) -> Iterator[RawEvent]:
    time_of_day_us = xxhash.xxh64_intdigest(user.encode()) % DAY_US
    first_us = END_US - len(sequence) * DAY_US + time_of_day_us
    for place, item in enumerate(sequence):
        event = {
            "event_id": content_id("sequences", "\x1f".join((user, item, str(place)))),
            "type": names.VIEW,
            "user_id": user,
            "item_id": item,
            "timestamp": iso(first_us + place * DAY_US),
        }
        yield RawEvent(event, origin)


def _attributes(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """By item, those that it has any of; none where there is no such file. Raises SourceError for one that is none."""
    found = sorted(folder.glob(_ATTRIBUTES))
    if len(found) > 1:
        raise SourceError(f"{folder} holds {', '.join(file.name for file in found)}: leave one of them there")
    if not found:
        return {}
    with open_text(found[0]) as text:
        try:
            return {item: tuple(map(str, values)) for item, values in json.load(text).items() if values}
        except (ValueError, AttributeError, TypeError) as error:
            raise SourceError(f"{found[0].name} is no JSON object of lists ({error})") from error
