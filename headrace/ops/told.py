"""What a command's report says to a reader. A program reads the report itself, by `--json`."""

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from headrace.clock import from_micros
from headrace.ingest.load import IngestReport
from headrace.ops.backfill import BackfillReport
from headrace.ops.verify import VerifyReport
from headrace.settings import DAY_US

Told = list[RenderableType]
_WAITING = "waiting_for_backfill"


def applied(found: Mapping[str, Sequence[str]]) -> Told:
    """What there is nothing of is left out."""
    told: Told = ["Applied."]
    told += [
        f"  {name.replace('_', ' ')}: {', '.join(each)}" for name, each in found.items() if each and name != _WAITING
    ]
    return told + _waiting(found[_WAITING])


def ingested(report: IngestReport) -> Told:
    where = "log" if report.path == "log" else "lake"
    types = ", ".join(f"{count:,} {name}" for name, count in report.types.items())
    told: Told = [f"Loaded {report.source}: {report.appended:,} of {report.read:,} events appended to the {where}."]
    told += [f"  events: {types}"] if types else []
    told += [f"  refused: {report.refused:,}, the first: {report.first_refusal}"] if report.refused else []
    told += [f"  repeated in the source: {report.duplicates:,}"] if report.duplicates else []
    told += [f"  in the lake already: {report.already_loaded:,}"] if report.already_loaded else []
    told += [f"  new rows of the catalogue: {report.items:,}, of profiles: {report.profiles:,}; they are online"]
    if report.last_event_us is not None:
        moved = f", all times moved by {report.shift_us / DAY_US:,.1f} days" if report.shift_us else ""
        told += [f"  last event: {from_micros(report.last_event_us):%Y-%m-%d %H:%M:%S} UTC{moved}"]
    if report.bulk_position is not None:
        told += ["  features do not have these events yet: run `headrace backfill`"]
    return told


def backfilled(report: BackfillReport) -> Told:
    table = Table("view", "rows")
    for view, rows in report.rows.items():
        table.add_row(view, f"{rows:,}")
    return [f"Backfilled from {report.events:,} events of the lake.", table]


def verified(report: VerifyReport) -> Told:
    """By view; a feature by name where it differs."""
    table = Table("view", "entities", "features with values", "mismatches")
    for view, entities in report.entities.items():
        mine = [name for name in report.non_zero if name.partition(".")[0] == view]
        wrong = sum(count for name, count in report.mismatches.items() if name.partition(".")[0] == view)
        table.add_row(view, f"{entities:,}", f"{len(mine)}", f"{wrong:,}")
    when = "now" if report.as_of_us is None else f"{from_micros(report.as_of_us).isoformat()}"
    mismatches = sum(report.mismatches.values())
    told: Told = [f"Compared {report.compared:,} values as of {when}: {_differing(mismatches)}.", table]
    told += [f"  {name}: {_differing(count)}" for name, count in report.mismatches.items()]
    told += [f"    {example}" for example in report.examples]
    return told + _waiting(report.waiting_for_backfill)


def _differing(count: int) -> str:
    return f"{count:,} mismatch{'es' if count != 1 else ''}"


def _waiting(features: Sequence[str]) -> Told:
    return [f"  not in the state yet: {', '.join(features)}; run `headrace backfill`"] if features else []
