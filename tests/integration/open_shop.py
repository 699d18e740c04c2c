"""A whole shop that is open: both applications, the feature flow as a process, a catalogue that came in at the door, a model in service."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from headrace import names
from headrace.ops.child import Child, environment_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import FILE, load_definitions
from headrace.stores.models import POINTER
from serving.collector import build_collector
from serving.recommender import build_recommender
from tests.conftest import ROOT, wait_until
from tests.integration.client_server import mounted, served
from tests.integration.tiny_bundle import save_bundle

KEY = "any"
"""Is let in everywhere; "writer", "reader" and "admin" each where the name says."""
SHOES = tuple(f"shoe-{number}" for number in range(10))
WATCHES = tuple(f"watch-{number}" for number in range(5))
UNAVAILABLE, DELETED, UNKNOWN = "shoe-9", "watch-gone", "never-heard-of"
AVAILABLE = (*SHOES[:9], *WATCHES)
PATIENT_MS = 20_000.0
START_TIMEOUT_S = 150.0
"""The flow compiles what it runs before it takes anything in."""
WITHOUT_MODEL = ["hydrate: unknown user", "retrieval: no model"]
IN_ORDER = {"ready": True, "model_version": "v1", "problems": {}}


@dataclass(frozen=True)
class Shop:
    """Asks as a client does. Answers are patient: a busy machine must not make one degraded."""

    settings: Settings
    http: httpx.Client

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.settings.http_port}"

    def ask(self, question: str, **body: Any) -> httpx.Response:
        """`question`: recommend, rank or similar."""
        return self.http.post(f"/v1/{question}", json={"deadline_ms": PATIENT_MS, **body})

    def slate(self, question: str, **body: Any) -> dict[str, Any]:
        answer = self.ask(question, **body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ids(self, question: str, **body: Any) -> list[str]:
        return [item["item_id"] for item in self.slate(question, **body)["items"]]

    def act(self, kind: str, user: str, *items: str) -> str:
        """An event for each item, in this order; the token of the last acknowledgement."""
        moment = datetime.now(UTC).isoformat()
        events = [
            {"event_id": f"{user}-{kind}-{place}-{moment}", "type": kind, "user_id": user, "item_id": item}
            | {"timestamp": moment}
            for place, item in enumerate(items)
        ]
        token = ""
        for start in range(0, len(events), self.settings.max_batch_events):
            answer = self.http.post(names.EVENTS_PATH, json=events[start : start + self.settings.max_batch_events])
            assert (answer.status_code, answer.json()["refused"]) == (200, []), answer.text
            token = answer.json()["token"]
        return token

    def change_items(self, **lists: Any) -> str:
        """The token of the acknowledgement."""
        answer = self.http.post(names.ITEMS_PATH, json=lists)
        assert (answer.status_code, answer.json()["refused"]) == (200, []), answer.text
        return str(answer.json()["token"])

    def serves(self) -> dict[str, Any]:
        return dict(self.http.get("/readyz").json())


@contextmanager
def open_shop(applied: Path, folder: Path) -> Iterator[Shop]:
    """`applied`: a directory with a feature repository that `feast apply` has been run in."""
    valkey = ValkeyServer(folder / "valkey", free_port(), folder / "valkey.log")
    settings = Settings(
        data=folder / "var",
        feature_repo=ROOT / "feature_repo",
        redis_url=valkey.url,
        event_keys=f"writer,{KEY}",
        read_keys=f"reader,{KEY}",
        admin_keys=f"admin,{KEY}",
        http_port=free_port(),
        deadline_ms=PATIENT_MS,
    )
    settings.bundles_dir.mkdir(parents=True)
    for name in (settings.registry_path.name, FILE):
        shutil.copy(applied / "var" / name, settings.data / name)
    flow = Child("flow", [sys.executable, "-m", "flows.features"], environment_of(settings), folder / "flow.log")
    valkey.start()
    flow.start()
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            served(_app(settings, patch), settings.http_port) as address,
            httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http,
        ):
            shop = Shop(settings, http)
            _fill(shop)
            yield shop
    finally:
        flow.terminate()
        code = flow.wait(30)
        valkey.stop()
    assert code == 0, (folder / "flow.log").read_text()


def _app(settings: Settings, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr("serving.refresher.REQUEST_TIMEOUT_S", 5.0)  # what is asked here is what is answered, not how fast
    return mounted(build_collector(settings), build_recommender(settings))


def _fill(shop: Shop) -> None:
    shoes = [
        {"item_id": item, "title": item, "category": "shoes", "brand": "acme", "price": 10.0 * place + 10}
        for place, item in enumerate(SHOES)
    ]
    watches = [
        {"item_id": item, "category": "watches", "brand": "bolt" if place else "solo", "price": 500.0}
        for place, item in enumerate(WATCHES)
    ]
    token = shop.change_items(
        upsert=[*shoes, *watches, {"item_id": DELETED, "category": "watches", "price": 1.0}],
        availability=[{"item_id": UNAVAILABLE, "available": False}],
        delete=[DELETED],
    )
    wait_until(
        lambda: shop.slate("recommend", user_id="nobody", after=token)["degraded"] == WITHOUT_MODEL, START_TIMEOUT_S
    )
    fingerprint = load_definitions(shop.settings).streams[names.USER_ACTIVITY].fingerprint
    bundle = save_bundle(shop.settings, "v1", SHOES[:3], {names.USER_ACTIVITY: fingerprint})
    pointer = {"version": bundle.name, "path": str(bundle), "promoted_at": 1}
    (shop.settings.bundles_dir / POINTER).write_bytes(orjson.dumps(pointer))
    wait_until(lambda: shop.serves() | IN_ORDER == shop.serves(), START_TIMEOUT_S)
