"""Which versions of the models there are: what each measured, and what came of it."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.models import ModelRegistry, RegisteredVersion

MEASURED = "towers_ranker_ndcg_at_10"
"""What a training registers of its ranked slates."""


@dataclass(frozen=True)
class Version:
    """`version` is the registry's number, `bundle` what answers call it; `gate` what the gate said, empty before it was asked."""

    version: str
    bundle: str
    created_us: int
    ndcg_at_10: float | None
    gate: str
    aliases: tuple[str, ...]


def versions(settings: Settings) -> list[Version]:
    """The oldest first. Raises RegistryError where MLflow cannot be read."""
    return [_told(each) for each in ModelRegistry(settings).versions()]


def _told(known: RegisteredVersion) -> Version:
    return Version(
        known.version,
        known.path.name,
        known.created_us,
        known.metrics.get(MEASURED),
        known.tags.get("gate", ""),
        known.aliases,
    )


def as_table(found: list[Version]) -> Table:
    table = Table("version", "bundle", "trained (UTC)", "NDCG@10", "gate", "is")
    for each in found:
        measured = "" if each.ndcg_at_10 is None else f"{each.ndcg_at_10:.4f}"
        moment = f"{from_micros(each.created_us):%Y-%m-%d %H:%M}"
        table.add_row(each.version, each.bundle, moment, measured, Text(each.gate), ", ".join(each.aliases))
    return table
