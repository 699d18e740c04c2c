"""Feast's feature server, started as a user starts it, against the SDK and our own reader."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from feast import FeatureStore

from headrace import names
from headrace.clock import system_clock
from headrace.ops.ports import free_port
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from tests.conftest import wait_until
from tests.integration.online_repo import rows, run_events

NOW = datetime.now(UTC)


@contextmanager
def feature_server(repo: Path, log: Path) -> Iterator[httpx.Client]:
    """`feast serve` in a feature repository, ended with SIGTERM."""
    port = free_port()
    command = [Path(sys.executable).parent / "feast", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=repo, stdout=output, stderr=output, env=dict(os.environ))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            try:
                wait_until(lambda: server.poll() is not None or _answers(client), timeout_s=120.0)
                assert server.poll() is None, log.read_text()
                yield client
            finally:
                server.terminate()
                server.wait(timeout=30)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def columns_of(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: vector["values"]
        for name, vector in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOW is the test's, not the import's: a suite may run for longer than a window."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))


@pytest.fixture
def store(stack: Settings) -> FeatureStore:
    return open_feature_store(stack)


def test_server_sdk_and_reader_agree_on_plain_and_stream_views(
    stack: Settings, store: FeatureStore, tmp_path: Path
) -> None:
    lamp = {"item_id": "i1", "title": "Lamp", "category": "light", "brand": None, "price": 9.5, "available": True,
            "attributes": ["brass", "small"], "listed_at": 1_700_000_000_000_000}  # fmt: skip
    store.write_to_online_store("item_catalogue", rows(lamp))
    run_events(
        stack,
        *({"type": "view", "item_id": f"i{n}", "at": NOW - timedelta(seconds=30 + n)} for n in range(3)),
        {"type": "click", "item_id": "i1", "at": NOW - timedelta(seconds=20)},
    )
    users, items = ["u1", "u1", "none"], ["i1", "none", "i2"]
    with feature_server(stack.feature_repo, tmp_path / "serve.log") as server:
        question = {
            "feature_service": names.RANKER_SERVICE,
            "entities": {"user_id": users, "item_id": items},
            "full_feature_names": True,
        }
        response = server.post("/get-online-features", json=question)
        assert response.status_code == 200, response.text
        served = columns_of(response.json())

        written = {**lamp, "title": "Lamp 2", "event_timestamp": NOW.isoformat(), "created": NOW.isoformat()}
        response = server.post(
            "/write-to-online-store",
            json={"feature_view_name": "item_catalogue", "df": {name: [value] for name, value in written.items()}},
        )
        assert response.status_code == 200, response.text
        refused = server.post(
            "/materialize-incremental", json={"end_ts": NOW.isoformat(), "feature_views": ["user_activity"]}
        )
        assert refused.status_code == 500
        assert "headrace backfill" in refused.text

    service = store.get_feature_service(names.RANKER_SERVICE)
    entities = [{"user_id": user, "item_id": item} for user, item in zip(users, items, strict=True)]
    answer = store.get_online_features(service, entities, full_feature_names=True).to_dict()
    assert served["item_catalogue__title"] == ["Lamp", None, None]
    assert answer["item_catalogue__title"] == ["Lamp 2", None, None]
    assert served["user_activity__views_10m"] == [3, 3, 0]
    assert served["user_activity__recent_items"] == [["i2", "i1", "i0", "i1"], ["i2", "i1", "i0", "i1"], []]
    assert {**served, "item_catalogue__title": answer["item_catalogue__title"]} == answer

    wanted = {"user_activity": users, "user_profile": users, "item_activity": items, "item_catalogue": items}
    read = OnlineReader(connect(stack), load_definitions(stack), stack).fetch(wanted)
    t_us = max(system_clock(), read.newest_us + 1)
    ours = {
        f"{view}__{name}": [None if value != value else value for value in list(column)]
        for view, found in {**read.streams, **read.plain}.items()
        for name, column in found.values(t_us).items()
    }
    assert ours == {name: answer[name] for name in ours}
