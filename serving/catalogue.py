"""What can be recommended: known items most popular first, what trends, what is new, what is not available. Immutable.

It is also the last good snapshot on disk, which answers requests when nothing else is left.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from headrace.models.snapshot import Snapshot as BundleSnapshot

if TYPE_CHECKING:
    from serving.store import CatalogueRows, Popularity

TOP: Final = 1_000
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
    """`popular` holds every known item. `popularity` scores those that have one. `origin` is one of those above."""

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


def build(
    item_ids: Sequence[str],
    rows: "CatalogueRows | None",
    popularity: "Popularity | None",
    snapshot: BundleSnapshot | None,
    previous: Catalogue,
    now_us: int,
) -> Catalogue:
    """The catalogue of `item_ids` from what could be read; what could not comes from `previous`, or the bundle."""
    if not item_ids:
        return previous
    overall = previous.popularity if popularity is None else popularity.overall
    before = {item: place for place, item in enumerate(snapshot.item_id if snapshot else previous.popular)}
    known = frozenset(item_ids)
    in_rows = frozenset(rows.item_ids) if rows else frozenset()
    unavailable = set(rows.unavailable if rows else previous.unavailable)
    if snapshot is not None:
        bundled = zip(snapshot.item_id, snapshot.available, strict=True)
        unavailable |= {item for item, available in bundled if not available and item not in in_rows}
    trending: Sequence[str] = previous.trending
    if popularity is not None:
        trending = sorted(popularity.trend, key=lambda item: (-popularity.trend[item], item))
    return Catalogue(
        popular=tuple(
            sorted(item_ids, key=lambda item: (-overall.get(item, 0.0), before.get(item, len(before)), item))
        ),
        trending=tuple(item for item in trending if item in known)[:TOP],
        newest=tuple(rows.item_ids[:TOP]) if rows else previous.newest,
        unavailable=frozenset(unavailable),
        popularity=overall,
        origin=_origin(popularity, snapshot, previous),
        as_of_us=previous.as_of_us if popularity is None else now_us,
    )


def _origin(popularity: "Popularity | None", snapshot: BundleSnapshot | None, previous: Catalogue) -> str:
    if popularity is not None:
        return LIVE
    if previous.origin != NONE:
        return previous.origin
    return BUNDLE if snapshot is not None else LAKE


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
