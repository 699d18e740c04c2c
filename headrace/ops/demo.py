"""`headrace demo`: the whole story once, on parts of its own, each step checked. A step that did not happen ends it.

Events come in, features fill, models are trained and put in service; then one user clicks, and the answer changes.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from headrace import names
from headrace.clock import Clock, from_micros, system_clock
from headrace.ingest.formats import open_source
from headrace.ingest.load import IngestReport, ingest
from headrace.ingest.progress import bars
from headrace.ingest.simulator import ShopConfig, simulate
from headrace.ingest.source import Source
from headrace.ops.api import Api
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.slates import choose_kind, of_kind, rise
from headrace.ops.stack import DEMO, Stack
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake, scan_table
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status

SLATE: Final = 100
CLICKS: Final = 3
FILL_TIMEOUT_S: Final = 120.0
CHANGE_TIMEOUT_S: Final = 5.0
# The story is about the order: a busy machine gets time to compute it.
DEADLINE_MS: Final = 2_000.0
POLL_S: Final = 0.005
# An answer may change by itself at the edge of a window, once a minute: ask again then.
ATTEMPTS: Final = 3


class StoryError(RuntimeError):
    """A step of the story did not happen."""


@dataclass(frozen=True)
class Answer:
    """One recommendation: item ids best first."""

    request_id: str
    items: list[str]


@dataclass(frozen=True)
class Outcome:
    """What the clicks did. Rises are places up, on average, of the same items of the clicked kind for both users."""

    kind: str
    clicked: list[str]
    before: Answer
    after: Answer
    seconds: float
    user_rise: float
    control_rise: float


def demo(settings: Settings, console: Console, *, data: Path | None, keep: bool, small: bool) -> Outcome:
    """Tell the story. Raises StoryError, ChildFailedError or StackHeldError; ends all it started, whatever happens."""
    home = settings.data / DEMO
    own = settings.model_copy(
        update={"data": home, "redis_url": None, "http_port": free_port(), "valkey_port": 0, "exploration": 0.0}
    )
    interrupts, started = Interrupts(), time.monotonic()
    with interrupts.installed(), Stack(own, lambda line: console.print(line, markup=False), interrupts) as stack:
        _start_fresh(home)
        outcome = tell(stack, console, data, small)
    if not keep:
        report = _keep_report(own.reports_dir, settings.reports_dir)
        shutil.rmtree(home)
    console.print(f"[bold green]The story happened[/] in {time.monotonic() - started:.0f} s.", highlight=False)
    if keep:
        console.print(f"Its data is kept: HEADRACE_DATA={home} headrace up", markup=False, highlight=False)
    else:
        console.print(f"The report of its training is kept: {report}", markup=False, highlight=False)
    return outcome


def _keep_report(reports: Path, folder: Path) -> Path:
    """What the training measured, beside the reports of other trainings."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(reports / "1.html", folder / "demo.html"))


def tell(stack: Stack, console: Console, data: Path | None, small: bool) -> Outcome:
    """The steps, in order."""
    with step(console, "start Valkey, every write on disk before it is acknowledged"):
        stack.start_valkey()
    with step(console, "load events into the log") as note:
        note(_loaded(_ingest(stack.settings, data, small, system_clock)))
    with step(console, "register the feature definitions (feast apply), bring catalogue and profiles online"):
        stack.run("apply", "headrace.ops.apply")
    with step(console, "start the flows; they fill the features and the lake"):
        stack.start_flows()
        wait_until_filled(stack.settings)
    with step(console, "train two towers and a ranker on what serving would have seen"):
        stack.run("train", "training.train", "--config", "small", show=True)
    with step(console, "promote the new version"):
        stack.run("promote", "training.promote")
    with step(console, "start Ray Serve: collection and recommendation"):
        stack.start_serving()
    kinds = read_kinds(stack.settings)
    user, control = busiest_users(stack.settings)
    with stack.api as api:
        with step(console, f"ask for {user}'s recommendations twice: the same order"):
            ask_twice(api, user)
        with step(console, f"{user} clicks on {CLICKS} items of one kind; ask until the answer changes"):
            outcome = click_and_watch(api, user, control, kinds, system_clock)
    console.print(as_table(outcome, kinds))
    console.print(summary(outcome), highlight=False)
    check(outcome)
    with step(console, "verify the online store against the lake") as note:
        note(verify(stack))
    return outcome


@contextmanager
def step(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Prints the title with the time it took; the caller may add a note."""
    notes: list[str] = []
    started = time.monotonic()
    console.print(f"[dim]...[/] {title}", highlight=False)
    yield notes.append
    took = f"{time.monotonic() - started:5.1f} s"
    console.print(f"[green]{took}[/] {title}{''.join(f': {note}' for note in notes)}", highlight=False)


def wait_until_filled(settings: Settings) -> None:
    """Until every shard and the lake have all that the log holds. Raises StoryError."""
    deadline = time.monotonic() + FILL_TIMEOUT_S
    lake, everything = EventLake(settings.lake_dir), range(settings.log_partitions)
    with connect(settings) as client:
        end = open_log(client, settings).end()
        while True:
            shards = [status.positions for status in read_status(client, range(settings.shards)).values()]
            behind = [positions for positions in [*shards, lake.positions(everything)] if not _covers(positions, end)]
            if not behind:
                return
            if time.monotonic() > deadline:
                logs = settings.log_dir
                raise StoryError(
                    f"after {FILL_TIMEOUT_S:.0f} s the flows were not at the log's end: see {logs}/flow-*.log"
                )
            time.sleep(0.1)


def _covers(positions: dict[int, int], end: dict[int, int]) -> bool:
    return all(positions.get(partition, 0) >= position for partition, position in end.items())


def read_kinds(settings: Settings) -> dict[str, str]:
    """Item id to category, of the catalogue's newest rows; a category that is but a number tells a reader nothing."""
    rows = scan_table(DeltaTable(str(settings.lake_dir / names.ITEMS_TABLE))).sort("event_timestamp", "created")
    newest = rows.unique(names.ITEM_ID, keep="last", maintain_order=True).filter(pl.col("category").str.contains(r"\D"))
    return dict(newest.select(names.ITEM_ID, "category").collect().iter_rows())


def busiest_users(settings: Settings) -> tuple[str, str]:
    """The two known users with the most views: one to click, one to compare with."""
    events = EventLake(settings.lake_dir).scan([names.USER_ID, names.TYPE])
    views = events.filter(pl.col(names.TYPE) == names.VIEW).drop_nulls(names.USER_ID)
    counted = views.group_by(names.USER_ID).len().sort("len", names.USER_ID, descending=[True, False]).head(2).collect()
    users = counted[names.USER_ID].to_list()
    if len(users) < 2:
        raise StoryError(f"the story needs two known users, the data has {len(users)}")
    return users[0], users[1]


def ask(api: Api, user: str) -> Answer:
    """One recommendation that lacks nothing: a degraded one says nothing about the model, so it is asked for again.

    Raises StoryError if it stays degraded.
    """
    deadline = time.monotonic() + CHANGE_TIMEOUT_S
    while True:
        answer = api.recommend({"user_id": user, "n": SLATE, "deadline_ms": DEADLINE_MS})
        if not answer["degraded"]:
            return Answer(answer["request_id"], [item["item_id"] for item in answer["items"]])
        if time.monotonic() > deadline:
            raise StoryError(f"the recommendation for {user} was degraded: {', '.join(map(str, answer['degraded']))}")
        time.sleep(POLL_S)


def ask_twice(api: Api, user: str) -> Answer:
    """Two answers in a row with the same order. Raises StoryError if there are none."""
    for _ in range(ATTEMPTS):
        first, second = ask(api, user), ask(api, user)
        if first.items == second.items:
            return second
    raise StoryError(f"{ATTEMPTS} times, two recommendations in a row for {user} differed")


def click_and_watch(api: Api, user: str, control: str, kinds: dict[str, str], clock: Clock) -> Outcome:
    """Click on items of one kind, and ask until the answer is another one. Raises StoryError if it stays."""
    control_before, before = ask(api, control), ask_twice(api, user)
    kind = choose_kind(before.items, kinds)
    clicked = of_kind(before.items, kind, kinds)[:CLICKS]
    api.send_events([_click(user, item, before, clock) for item in clicked])
    acknowledged = time.monotonic()
    while True:
        after = ask(api, user)
        seconds = time.monotonic() - acknowledged
        watched = (set(of_kind(before.items, kind, kinds)) | set(of_kind(after.items, kind, kinds))) - set(clicked)
        if after.items != before.items and rise(before.items, after.items, watched) > 0:
            break
        if seconds > CHANGE_TIMEOUT_S:
            raise StoryError(
                f"{seconds:.1f} s after clicks on {', '.join(clicked)} ({kind}) the answer had not changed"
            )
        time.sleep(POLL_S)
    control_after = ask(api, control)
    return Outcome(
        kind=kind,
        clicked=clicked,
        before=before,
        after=after,
        seconds=seconds,
        user_rise=rise(before.items, after.items, watched),
        control_rise=rise(control_before.items, control_after.items, watched),
    )


def _click(user: str, item: str, answer: Answer, clock: Clock) -> dict[str, object]:
    return {
        "event_id": f"demo-{uuid.uuid4()}",
        "type": names.CLICK,
        "user_id": user,
        "item_id": item,
        "timestamp": from_micros(clock()).isoformat(),
        "request_id": answer.request_id,
        "position": answer.items.index(item),
    }


def check(outcome: Outcome) -> None:
    """Raises StoryError unless the clicked kind rose, and by more than for the user who did nothing."""
    if not 0 < outcome.user_rise > outcome.control_rise:
        raise StoryError(
            f"{outcome.kind} rose by {outcome.user_rise:.1f} places for the user who clicked "
            f"and by {outcome.control_rise:.1f} for the one who did nothing"
        )


def verify(stack: Stack) -> str:
    """Compares the online store with the lake. Raises ChildFailedError on any mismatch."""
    report = json.loads(stack.run("verify", "headrace.cli", "verify", "--json"))
    if not report["compared"]:
        raise StoryError("verify compared nothing: the online store is empty")
    return f"{report['compared']:,} values compared, 0 mismatches"


def summary(outcome: Outcome) -> str:
    return (
        f"[bold]{outcome.seconds * 1_000:.0f} ms[/] from the acknowledged clicks to a changed answer. "
        f"Items of kind [bold]{outcome.kind}[/] moved up by {outcome.user_rise:.1f} places on average; "
        f"for a user who did nothing, by {outcome.control_rise:.1f}."
    )


def as_table(outcome: Outcome, kinds: dict[str, str]) -> Table:
    """The first ten of both answers side by side, the clicked kind in colour."""

    def cell(item: str) -> str:
        text = f"{item} ({kinds.get(item, '?')})"
        return f"[bold green]{text}[/]" if kinds.get(item) == outcome.kind else text

    table = Table("", "before the clicks", "after", title=f"clicked: {', '.join(outcome.clicked)} ({outcome.kind})")
    for rank, (before, after) in enumerate(
        zip(outcome.before.items[:10], outcome.after.items[:10], strict=False), start=1
    ):
        table.add_row(str(rank), cell(before), cell(after))
    return table


def _ingest(settings: Settings, data: Path | None, small: bool, clock: Clock) -> IngestReport:
    with bars() as progress:
        return ingest(_source(data, small), settings, shift_to_now=True, clock=clock, progress=progress)


def _source(data: Path | None, small: bool) -> Source:
    if data is not None:
        return open_source("rees46", data)
    return simulate(ShopConfig(users=400, items=300, categories=10, events=12_000) if small else ShopConfig())


def _loaded(report: IngestReport) -> str:
    last = from_micros(report.last_event_us or 0)
    shifted = report.shift_us / MICROS / 86_400
    return (
        f"{report.appended:,} events ({report.refused} refused, {report.duplicates} duplicates), {report.items:,} catalogue rows; "
        f"times moved by {shifted:,.1f} days, so that the last is {last:%H:%M:%S} UTC today"
    )


def _start_fresh(home: Path) -> None:
    """Empty the demo's directory but for `run/`, which holds our own record by now."""
    for entry in home.iterdir():
        if entry.name == "run":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
