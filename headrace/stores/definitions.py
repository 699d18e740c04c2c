"""Definitions as the engines read them: every view of the registry, compiled, in a JSON file beside it.

Written with each commit of the registry, and used only while it belongs to that very registry (by its hash): otherwise the registry
itself is compiled through Feast, which takes seconds more.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.settings import MICROS, Settings
from headrace.stores.plain_rows import PlainLayout

FILE = "definitions.json"


@dataclass(frozen=True)
class Definitions:
    """Compiled views by name."""

    streams: Mapping[str, ViewSpec]
    plain: Mapping[str, PlainLayout]


def load_definitions(settings: Settings) -> Definitions:
    """What `feast apply` registered. Raises DefinitionError where the registry holds a view that cannot be computed."""
    definitions = _read(settings.registry_path)
    if definitions is None:
        from headrace.stores.feature_store import compile_registry, open_feature_store

        definitions = compile_registry(open_feature_store(settings))
    lateness_us = int(settings.lateness_horizon_s * MICROS)
    streams = {name: replace(spec, lateness_us=lateness_us) for name, spec in definitions.streams.items()}
    return Definitions(streams, definitions.plain)


def save_definitions(registry: Path, definitions: Definitions) -> None:
    """Write the file that belongs to a registry as it stands on disk."""
    content = {
        "registry": _digest(registry),
        "streams": [asdict(spec) for spec in definitions.streams.values()],
        "plain": [asdict(layout) for layout in definitions.plain.values()],
    }
    path = registry.parent / FILE
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1))
    os.replace(fresh, path)


def _read(registry: Path) -> Definitions | None:
    path = registry.parent / FILE
    if not path.exists() or not registry.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError:
        return None  # the registry itself is there, and says the same
    if content["registry"] != _digest(registry):
        return None
    streams = {raw["name"]: _view(raw) for raw in content["streams"]}
    plain = {
        raw["view"]: PlainLayout(raw["view"], tuple((n, k) for n, k in raw["fields"]), raw["ttl_us"])
        for raw in content["plain"]
    }
    return Definitions(streams, plain)


def _view(raw: dict[str, object]) -> ViewSpec:
    aggregates = tuple(AggregateSpec(**a | {"types": tuple(a["types"])}) for a in raw["aggregates"])  # type: ignore[attr-defined]
    return ViewSpec(**raw | {"aggregates": aggregates})  # type: ignore[arg-type]


def _digest(registry: Path) -> str:
    return hashlib.sha256(registry.read_bytes()).hexdigest()
