"""JSON lines in the shape of the event contract, one event a line; ids are the client's own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from headrace.ingest.source import BadRow, RawEvent, SourceRow, files_under, open_text


@dataclass(frozen=True)
class JsonLines:
    """A `.jsonl` or `.ndjson` file, gzip or not, or a folder of them. Empty lines are passed over."""

    path: Path
    name: str = "jsonl"

    def read(self) -> Iterator[SourceRow]:
        for path in files_under(self.path, [".jsonl", ".ndjson"]):
            with open_text(path) as text:
                for line, content in enumerate(text, start=1):
                    if content.strip():
                        yield _event(path.name, line, content.rstrip("\r\n"))


def _event(file: str, line: int, content: str) -> RawEvent | BadRow:
    try:
        return RawEvent(orjson.loads(content), f"{file}:{line}")
    except orjson.JSONDecodeError as error:
        return BadRow(file, line, "event", f"the line is no JSON: {error}", content)
