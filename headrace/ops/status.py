"""What runs in a data directory, as far as an outsider can see."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import redis
from rich.table import Table
from rich.text import Text

from headrace.aggregates.spec import DefinitionError
from headrace.ops.api import Api
from headrace.ops.processes import ProcessRef, read_record, running, with_descendants
from headrace.settings import Settings
from headrace.stores.log import LogUnavailableError, open_log
from headrace.stores.redis_client import StoreAddressError, connect, redis_url
from headrace.stores.shards import read_status
from headrace.stores.state_definitions import state_definitions

MIB = 1024**2


@dataclass(frozen=True)
class ProcessStatus:
    name: str
    pid: int
    memory_mib: int


@dataclass(frozen=True)
class Status:
    """One moment. `readiness` is the code of GET /readyz, 0 for no answer; `log_bytes` is None without a store."""

    supervisor: ProcessRef | None
    api: str
    readiness: int
    store: str | None
    log_bytes: int | None
    processes: tuple[ProcessStatus, ...]
    leftovers: bool
    counters: Mapping[str, int] = field(default_factory=dict)
    """What the feature flow has read from the log: events, duplicates, late ones, dead letters."""
    waiting: str = ""
    """Features that are applied and not in the state yet, in one line."""
    serves: Mapping[str, Any] = field(default_factory=dict)
    """What GET /readyz answers: `model_version`, `catalogue`, `problems` by part; empty for no answer."""

    @property
    def is_up(self) -> bool:
        return self.supervisor is not None and self.readiness == 200

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"up": self.is_up}


def status(settings: Settings) -> Status:
    record = read_record(settings.run_dir)
    supervisor = record.supervisor if record and running(record.supervisor) else None
    alive = with_descendants(record.processes) if record else []
    with Api(settings, timeout_s=2.0) as api:
        (readiness, said), base_url = api.readiness(), api.base_url
    serves = said if isinstance(said, dict) else {}
    store, log_bytes = _store(settings)
    counters, waiting = _state(settings)
    leftovers = bool(alive) and supervisor is None
    return Status(
        supervisor, base_url, readiness, store, log_bytes, tuple(_measure(alive)), leftovers, counters, waiting, serves
    )


def _measure(refs: list[ProcessRef]) -> list[ProcessStatus]:
    found = [(ref, process) for ref in refs if (process := running(ref))]
    return [ProcessStatus(ref.name, ref.pid, round(process.memory_info().rss / MIB)) for ref, process in found]


def _store(settings: Settings) -> tuple[str | None, int | None]:
    try:
        url = redis_url(settings)
        with connect(settings, timeout_s=2.0) as client:
            log = open_log(client, settings)
            return url, log.size_bytes()
    except StoreAddressError:
        return None, None
    except (redis.RedisError, LogUnavailableError):
        return url, None


def _state(settings: Settings) -> tuple[dict[str, int], str]:
    counters: dict[str, int] = {}
    try:
        with connect(settings, timeout_s=2.0) as client:
            for shard in read_status(client, range(settings.shards)).values():
                for name, count in shard.counters.items():
                    counters[name] = counters.get(name, 0) + count
            waiting = state_definitions(client, settings).explain() if settings.registry_path.exists() else ""
    except (StoreAddressError, redis.RedisError, DefinitionError) as error:
        return counters, str(error) if isinstance(error, DefinitionError) else ""
    return counters, waiting


def add_serving_rows(table: Table, serves: Mapping[str, Any]) -> None:
    """The model in service and what is wrong, such as a model that was refused, out of the answer of GET /readyz."""
    if not serves:
        return
    table.add_row("model", Text(serves.get("model_version") or "none"))
    for part, problem in serves.get("problems", {}).items():
        table.add_row(f"problem: {part}", Text(problem))


def as_table(found: Status) -> Table:
    table = Table(show_header=False, title="Headrace")
    who = (
        f"pid {found.supervisor.pid}, since {found.supervisor.since:%Y-%m-%d %H:%M:%S} UTC"
        if found.supervisor
        else "not running"
    )
    table.add_row("stack", who)
    if found.leftovers:
        table.add_row("left behind", "a killed stack's processes still run: `headrace down` ends them")
    table.add_row(
        "API", f"{found.api}: {'ready' if found.readiness == 200 else 'not ready' if found.readiness else 'no answer'}"
    )
    add_serving_rows(table, found.serves)
    table.add_row("store", found.store or "none")
    table.add_row("event log", "not reachable" if found.log_bytes is None else f"{found.log_bytes:,} bytes")
    if found.counters:
        table.add_row(
            "events", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.counters.items())
        )
    if found.waiting:
        table.add_row("definitions", found.waiting)
    for process in found.processes:
        table.add_row(process.name, f"pid {process.pid}, {process.memory_mib} MiB")
    return table
