"""What can be recommended: known items most popular first, what trends, what is new, what is not available. Immutable.

It is also the last good snapshot on disk, which answers requests when nothing else is left.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import orjson

# Origins: the lake's catalogue with popularity from the store; the file on disk; what the bundle carries; the lake's
# catalogue alone; nothing.
LIVE: Final = "live"
SNAPSHOT: Final = "snapshot"
BUNDLE: Final = "bundle"
LAKE: Final = "lake"
NONE: Final = "none"


class SnapshotError(ValueError):
    """A snapshot file that cannot be used."""


@dataclass(frozen=True)
class Catalogue:
    """`popular` holds every known item. `popularity` scores those that have one. `origin`: where it is from, below."""

    popular: tuple[str, ...] = ()
    trending: tuple[str, ...] = ()
    newest: tuple[str, ...] = ()
    unavailable: frozenset[str] = frozenset()
    popularity: Mapping[str, float] = field(default_factory=dict)
    origin: str = NONE
    as_of_us: int = 0

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.popular)


def save(catalogue: Catalogue, path: Path) -> None:
    """Replace the file in one step: a reader sees the old snapshot or the new one, never half of it."""
    content = {
        "as_of_us": catalogue.as_of_us,
        "popular": catalogue.popular,
        "trending": catalogue.trending,
        "newest": catalogue.newest,
        "unavailable": sorted(catalogue.unavailable),
        "popularity": dict(catalogue.popularity),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    with draft.open("wb") as file:
        file.write(orjson.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def load(path: Path) -> Catalogue | None:
    """The snapshot, or None if there is none. Raises SnapshotError when it is damaged."""
    try:
        content = orjson.loads(path.read_bytes())
        return Catalogue(
            popular=tuple(content["popular"]),
            trending=tuple(content["trending"]),
            newest=tuple(content["newest"]),
            unavailable=frozenset(content["unavailable"]),
            popularity={str(item): float(score) for item, score in content["popularity"].items()},
            origin=SNAPSHOT,
            as_of_us=int(content["as_of_us"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{path} is no snapshot of a catalogue ({error}); delete it") from error
