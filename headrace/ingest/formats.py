"""The formats that `headrace ingest` knows by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace.ingest.jsonl import JsonLines
from headrace.ingest.movielens import MovieLens
from headrace.ingest.rees46 import Rees46
from headrace.ingest.retailrocket import RetailRocket
from headrace.ingest.sequences import Sequences
from headrace.ingest.simulator import ShopConfig, simulate
from headrace.ingest.source import Source, SourceError
from headrace.ingest.taobao import Taobao

SIMULATOR: Final = "simulator"
FORMATS: Final[dict[str, Callable[[Path], Source]]] = {
    "rees46": Rees46,
    "movielens": MovieLens,
    "jsonl": JsonLines,
    "retailrocket": RetailRocket,
    "taobao": Taobao,
    "sequences": Sequences,
}


def open_source(name: str, path: Path | None = None) -> Source:
    """The loader called `name` over a file or folder, or the default shop, which needs none. Raises ValueError."""
    if name == SIMULATOR and path is None:
        return simulate(ShopConfig())
    if name == SIMULATOR:
        raise ValueError(f"the simulator reads nothing: leave out {path}")
    if name not in FORMATS:
        raise ValueError(f"no loader is called {name!r}: choose one of {', '.join((SIMULATOR, *FORMATS))}")
    if path is None:
        raise ValueError(f"{name} needs a file or a folder to read")
    if not path.exists():
        raise SourceError(f"{path} does not exist: {name} reads a file or a folder")
    return FORMATS[name](path)
