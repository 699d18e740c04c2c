"""What the recommend benchmark compares: the no-op, the stock stack and ours, each started as processes of its own and ended."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Float32, String
from feast.value_type import ValueType

from benchmarks.asking import Target, request_bytes
from benchmarks.online_stores import valkey
from benchmarks.recommend_noop import READY as NOOP_READY
from benchmarks.recommend_site import ROOT
from headrace.clock import Clock, from_micros
from headrace.ops.child import Child, environment_of
from headrace.ops.ports import free_port, is_free, port_holder
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.feature_store import quieten_feast

PATH: Final = "/v1/recommend"
SLATE: Final = 20
COMPLETE: Final = b'"degraded":[]'
HOST: Final = "127.0.0.1"
# Ray Serve's default, which the stock stack leaves as it is.
STOCK_PORT: Final = 8000
STOCK_ITEMS: Final = 10_000
_USER_FLOATS: Final = 20
_ITEM_FLOATS: Final = 10
_HISTORY: Final = 50
_START_S: Final = 180.0
_LONGEST_S: Final = 3_600
_END_S: Final = 30.0


def target_of(settings: Settings, visitors: list[dict[str, str]]) -> Target:
    """Requests of these visitors for a slate each, with the key of these settings."""
    key = settings.read_keys.split(",")[0]
    bodies = [{**visitor, "n": SLATE} for visitor in visitors]
    requests = [request_bytes(settings.http_host, settings.http_port, PATH, body, key) for body in bodies]
    return Target(settings.http_host, settings.http_port, requests, COMPLETE)


@contextmanager
def noop(folder: Path, visitors: list[dict[str, str]]) -> Iterator[Target]:
    settings = Settings(data=folder, feature_repo=ROOT / "feature_repo", http_port=free_port())
    command = [sys.executable, "-m", "benchmarks.recommend_noop"]
    child = Child("noop", command, environment_of(settings), folder / "log" / "noop.log")
    with _running(child, NOOP_READY):
        yield target_of(settings, visitors)


def why_no_stock(script: Path) -> str | None:
    """Why the stock stack cannot run here; None where it can."""
    if not script.is_file():
        return f"{script} is not there"
    if not is_free(STOCK_PORT):
        return f"port {STOCK_PORT}, which it needs, is held by {port_holder(STOCK_PORT)}"
    return None


@contextmanager
def stock(script: Path, folder: Path, visitors: list[dict[str, str]], clock: Clock) -> Iterator[Target]:
    """The stock stack on a Valkey of its own, its feature store filled with these visitors."""
    users = [next(iter(visitor.values())) for visitor in visitors]
    with valkey(folder) as server:
        repo = folder / "repo"
        repo.mkdir()
        _fill_stock(repo, server.url, users, from_micros(clock()))
        # Ray: an instance of its own, whatever else runs on this machine, with short paths for its sockets.
        ray_folder = Path("/tmp") / f"hr-stock-{clock() % 10**9}"
        environment = environment_of(Settings()) | {
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(ray_folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "FEAST_USAGE": "False",
            "RAY_SERVE_DEFAULT_HTTP_HOST": HOST,
        }
        ray_folder.mkdir()
        command = [sys.executable, "-W", "ignore", str(script), str(repo), str(_LONGEST_S)]
        child = Child("stock", command, environment, folder / "stock.log")
        try:
            with _running(child, "ready"):
                requests = [request_bytes(HOST, STOCK_PORT, "/recommend", {"user_id": u, "n": SLATE}) for u in users]
                yield Target(HOST, STOCK_PORT, requests, b'"item_id"')
        finally:
            shutil.rmtree(ray_folder, ignore_errors=True)


def _fill_stock(repo: Path, url: str, users: list[str], at: datetime) -> None:
    """Feature services `user_svc` (20 floats and a list) and `item_svc` (10 floats) in Feast's own Redis store."""
    quieten_feast()
    address = url.removeprefix("redis://").removesuffix("/0")
    (repo / "feature_store.yaml").write_text(
        f"project: stock\nprovider: local\nregistry: {repo / 'registry.db'}\n"
        f"online_store:\n  type: redis\n  connection_string: {address}\n"
        "offline_store:\n  type: file\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(repo))
    rng = np.random.default_rng(0)
    user_fields = [Field(name=f"u{number}", dtype=Float32) for number in range(_USER_FLOATS)]
    item_fields = [Field(name=f"i{number}", dtype=Float32) for number in range(_ITEM_FLOATS)]
    items = [f"i{number}" for number in range(STOCK_ITEMS)]
    history = [rng.choice(items, _HISTORY).tolist() for _ in users]
    for kind, ids, fields, lists in (
        ("user", users, [*user_fields, Field(name="history", dtype=Array(String))], {"history": history}),
        ("item", items, item_fields, {}),
    ):
        entity = Entity(name=kind, join_keys=[f"{kind}_id"], value_type=ValueType.STRING)
        batch = FileSource(name=f"{kind}_file", path=str(repo / "none.parquet"), timestamp_field="event_timestamp")
        view = FeatureView(
            name=f"{kind}_features",
            entities=[entity],
            schema=fields,
            source=PushSource(name=f"{kind}_rows", batch_source=batch),
            ttl=timedelta(0),
        )
        store.apply([entity, view, FeatureService(name=f"{kind}_svc", features=[view])])
        floats = {field.name: rng.random(len(ids)) for field in fields if field.dtype == Float32}
        rows = pd.DataFrame({f"{kind}_id": ids, "event_timestamp": at, **floats, **lists})
        store.write_to_online_store(view.name, rows)


@contextmanager
def ours(stack: Stack, ready_s: float) -> Iterator[Settings]:
    """The whole stack of `headrace up` on a prepared data directory."""
    stack.start_valkey()
    stack.start_flows()
    stack.start_serving(ready_s)
    yield stack.settings


@contextmanager
def _running(child: Child, ready: str) -> Iterator[None]:
    """Until it says that it is ready, and to its end in order."""
    child.start()
    try:
        deadline = time.monotonic() + _START_S
        while ready not in child.log.read_text():
            if not child.is_running():
                raise child.failure("ended before it was ready")
            if time.monotonic() > deadline:
                raise child.failure(f"was not ready within {_START_S:.0f} s")
            time.sleep(0.1)
        yield
    finally:
        child.terminate()
        _wait(child)


def _wait(child: Child) -> None:
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
