"""The formats that `headrace ingest` knows by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace.ingest.jsonl import JsonLines
from headrace.ingest.movielens import MovieLens
from headrace.ingest.rees46 import Rees46
from headrace.ingest.retailrocket import RetailRocket
from headrace.ingest.source import Source
from headrace.ingest.taobao import Taobao

FORMATS: Final[dict[str, Callable[[Path], Source]]] = {
    "rees46": Rees46,
    "movielens": MovieLens,
    "jsonl": JsonLines,
    "retailrocket": RetailRocket,
    "taobao": Taobao,
}


def open_source(name: str, path: Path) -> Source:
    """The loader called `name` over a file or folder. Raises ValueError for a name that no loader has."""
    if name not in FORMATS:
        raise ValueError(f"no loader is called {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name](path)
