"""Definitions as the engines read them: every view of the registry, compiled, in a JSON file beside it.

Written with each commit of the registry, and used only while it belongs to that very registry (by its hash): otherwise the registry
itself is compiled through Feast, which takes seconds more. These are the definitions that are *applied*; what the stored state
was made by may be older (headrace.stores.state_definitions).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.settings import MICROS, Settings
from headrace.stores.plain_rows import PlainLayout

FILE: Final = "definitions.json"
REGISTRY_STORE: Final = "headrace.stores.feast_registry.DataDirRegistryStore"
"""The registry store of feature_store.yaml that writes the file."""


@dataclass(frozen=True)
class Definitions:
    """Compiled views by name."""

    streams: Mapping[str, ViewSpec]
    plain: Mapping[str, PlainLayout]


def load_definitions(settings: Settings) -> Definitions:
    """What `feast apply` registered. Raises DefinitionError where the registry holds a view that cannot be computed."""
    definitions = _read(settings.registry_path) if _is_file(settings) else None
    if definitions is None:
        from headrace.stores.feature_store import compile_registry, open_feature_store

        definitions = compile_registry(open_feature_store(settings))
    lateness_us = int(settings.lateness_horizon_s * MICROS)
    streams = {name: replace(spec, lateness_us=lateness_us) for name, spec in definitions.streams.items()}
    return Definitions(streams, definitions.plain)


class PlainViews:
    """The plain views that are applied, read again when the registry's file has become another.

    With another kind of registry they are read once: a process takes a change when it is started again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read_from: object = None
        self._views: Mapping[str, PlainLayout] = {}

    def current(self) -> Mapping[str, PlainLayout]:
        """By name; none before the first apply. Raises DefinitionError, as `load_definitions`."""
        file = _identity(self._settings.registry_path) if _is_file(self._settings) else "not a file"
        if file != self._read_from:
            self._views = load_definitions(self._settings).plain if file is not None else {}
            self._read_from = file
        return self._views


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Of a file that is replaced whole whenever it changes; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_registered(settings: Settings) -> bool:
    """Whether there is a registry at all. Another kind than the file counts as there: Feast says what is wrong with it."""
    return settings.registry_path.exists() or not _is_file(settings)


def save_definitions(registry: Path, content: bytes, definitions: Definitions) -> None:
    """Write the file that belongs to a registry whose file holds `content`."""
    text = {
        "registry": hashlib.sha256(content).hexdigest(),
        "streams": [asdict(spec) for spec in definitions.streams.values()],
        "plain": [asdict(layout) for layout in definitions.plain.values()],
    }
    write_whole(registry.parent / FILE, json.dumps(text, indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place whole and on disk: whoever reads it meanwhile, or after a crash, finds the old one or the new one."""
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:  # of each writer its own
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)


def view_to_json(spec: ViewSpec) -> str:
    """A compiled view as text. `view_from_json` gives back its equal."""
    return json.dumps(asdict(spec))


def view_from_json(text: str | bytes) -> ViewSpec | None:
    """A compiled view from its text; None for one that another version of this code wrote in other terms."""
    try:
        return _view(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_file(settings: Settings) -> bool:
    """Whether the feature repository keeps its registry in our file: one left behind by an earlier choice says nothing."""
    chosen = settings.feature_repo / "feature_store.yaml"
    if not chosen.exists():
        return True
    lines = (line.partition("#")[0] for line in chosen.read_text().splitlines())
    return any(REGISTRY_STORE in line for line in lines)


def _read(registry: Path) -> Definitions | None:
    path = registry.parent / FILE
    if not path.exists() or not registry.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content["registry"] != hashlib.sha256(registry.read_bytes()).hexdigest():
            return None
        streams = {raw["name"]: _view(raw) for raw in content["streams"]}
        plain = {
            raw["view"]: PlainLayout(raw["view"], tuple((n, k) for n, k in raw["fields"]), raw["ttl_us"])
            for raw in content["plain"]
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # damaged, or of another version of this code: the registry itself is there, and says the same
    return Definitions(streams, plain)


def _view(raw: Mapping[str, Any]) -> ViewSpec:
    aggregates = tuple(AggregateSpec(**each | {"types": tuple(each["types"])}) for each in raw["aggregates"])
    return ViewSpec(**{**raw, "aggregates": aggregates})
