"""Both applications on a real Ray Serve with HAProxy, and on a real Valkey: an empty shop, a stopped store, a swapped model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from headrace.decoding import decode_payload
from headrace.ops.ports import free_port, is_free
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import FILE
from headrace.stores.log import open_log
from headrace.stores.models import ModelRegistry
from headrace.stores.redis_client import connect
from serving.app import READY
from tests import policies
from tests.integration.tiny_bundle import save_bundle

REPOSITORY = Path(__file__).parents[2]
WRITE, READ = {"Authorization": "Bearer writer"}, {"Authorization": "Bearer reader"}


class Stack:
    """The serving process on a Valkey of its own."""

    def __init__(self, folder: Path, applied: Path) -> None:
        """`applied`: a data directory that holds a registry of features."""
        self.valkey = ValkeyServer(folder / "valkey", free_port(), folder / "valkey.log")
        self.settings = Settings(
            data=folder / "var",
            feature_repo=REPOSITORY / "feature_repo",
            redis_url=self.valkey.url,
            event_keys="writer",
            read_keys="reader",
            http_port=free_port(),
            deadline_ms=10_000,  # these tests ask what is answered, not how fast
            exploration=0.5,
            exploration_temperature=0.25,
        )
        self.settings.data.mkdir()
        for name in (self.settings.registry_path.name, FILE):
            shutil.copy(applied / name, self.settings.data / name)
        self.log = folder / "serving.log"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.settings.http_port}", timeout=10)

    def start(self) -> None:
        self.valkey.start()
        chosen = self.settings.model_dump(include=self.settings.model_fields_set)
        environment = os.environ | {f"HEADRACE_{name.upper()}": str(value) for name, value in chosen.items()}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.app"], cwd=REPOSITORY, env=environment, stdout=output, stderr=output
            )
        wait_until(lambda: READY in self.log.read_text() or self.process.poll() is not None, 240)
        assert READY in self.log.read_text(), self.log.read_text()[-2_000:]

    def stop(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        self.valkey.stop()

    def ask(self, what: str = "recommend", **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/{what}", json=body, headers=READ)

    def logged(self) -> list[dict[str, Any]]:
        client = connect(self.settings)
        entries = open_log(client, self.settings).read(dict.fromkeys(range(self.settings.log_partitions), 0), 10_000)
        client.close()
        return [row for entry in entries for row in decode_payload(entry.payload)[0].to_pylist()]


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, applied: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("s"), applied / "var")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def event(event_id: str, **fields: Any) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"event_id": event_id, "type": "view", "user_id": "u", "item_id": "i", "timestamp": moment} | fields


def test_events_go_in_through_haproxy_with_and_without_a_slash(stack: Stack):
    for number, path in enumerate(("/v1/events", "/v1/events/")):
        answer = stack.http.post(path, json=event(f"e{number}"), headers=WRITE)
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    assert {row["event_id"] for row in stack.logged()} >= {"e0", "e1"}


def test_keys_are_asked_for_at_both_applications(stack: Stack):
    assert stack.http.post("/v1/events", json=event("e")).status_code == 401
    assert stack.http.post("/v1/events", json=event("e"), headers=READ).status_code == 401
    assert stack.http.post("/v1/recommend", json={"user_id": "u"}).status_code == 401
    assert stack.http.post("/v1/recommend", json={"user_id": "u"}, headers=WRITE).status_code == 401


def test_an_empty_store_and_no_model_are_answered_and_named(stack: Stack):
    answer = stack.ask(user_id="u", n=5, explain=True)
    assert answer.status_code == 200
    assert answer.json()["items"] == []
    assert {"retrieval: no model", "catalogue: empty"} <= set(answer.json()["degraded"])
    assert answer.json()["explain"]["stages"][0]["stage"] == "hydrate"


def test_every_question_is_answered_through_haproxy(stack: Stack):
    ranked = stack.ask("rank", user_id="u", items=["x", "y"]).json()
    assert [(item["item_id"], item["source"]) for item in ranked["items"]] == [("x", "unknown"), ("y", "unknown")]
    assert stack.ask("similar", items=["x"]).json()["items"] == []
    profile = stack.http.get("/v1/users/u/profile", headers=READ).json()
    assert (profile["user_key"], profile["known"], profile["features"]["user_activity"]["views_1h"]) == ("u", False, 0)


def test_questions_go_past_ray_serve_which_marks_all_others_with_an_id(stack: Stack):
    def asked_past_ray_serve() -> bool:
        asked = stack.ask("rank", user_id="u", items=["x"])
        assert asked.status_code == 200
        return "x-request-id" not in asked.headers

    # While HAProxy thinks a replica gone, as it may on a busy machine, it asks Ray Serve's own proxy.
    wait_until(asked_past_ray_serve, 30)
    assert "x-request-id" in stack.http.get("/healthz").headers


def test_wrong_requests_are_4xx_through_haproxy_too(stack: Stack):
    assert stack.ask(user_id="u", n=10_000).status_code == 422
    assert stack.http.post("/v1/events", content=b"{", headers=WRITE).status_code == 400
    large = b" " * (stack.settings.max_body_bytes + 1)
    assert stack.http.post("/v1/events", content=large, headers=WRITE).status_code == 413
    assert stack.http.get("/nothing").json()["error"] == "not found"


def test_health_readiness_documents_and_metrics_are_served(stack: Stack):
    assert stack.http.get("/healthz").json() == {"ok": True}
    assert stack.http.get("/readyz").json()["ready"] is True
    assert stack.http.get("/docs", headers=READ).status_code == 200
    assert "/v1/events" in stack.http.get("/openapi.json", headers=READ).json()["paths"]
    assert "headrace_request_seconds" in stack.http.get("/metrics", headers=READ).text
    assert "headrace_events_accepted_total" in stack.http.get("/v1/events/metrics", headers=READ).text


def test_the_collector_has_not_imported_torch_and_the_recommender_has(stack: Stack):
    libraries = {}
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        name = " ".join(process.cmdline())
        if "ServeReplica:" in name:
            application = name.split("ServeReplica:")[1].split(":")[0]
            libraries[application] = any("libtorch" in region.path for region in process.memory_maps())
    assert libraries == {"collector": False, "recommender": True}


def test_a_promotion_under_load_drops_no_request_and_mixes_no_versions(stack: Stack):
    registry = ModelRegistry(stack.settings)
    items = {"first": ("a0", "a1", "a2"), "second": ("b0", "b1", "b2")}
    versions = [registry.register(save_bundle(stack.settings, name, ids), {}) for name, ids in items.items()]
    registry.promote(versions[0])
    wait_until(lambda: stack.http.get("/readyz").json()["model_version"] == "first", 20)
    over = threading.Event()

    def ask(user: int) -> list[httpx.Response]:
        answers: list[httpx.Response] = []
        with httpx.Client(base_url=stack.http.base_url, timeout=10, headers=READ) as http:
            while not over.is_set():
                body = {"user_id": f"u{user}", "n": 3}
                answers.append(http.post("/v1/recommend", json=body))
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, user) for user in range(4)]
        try:
            over.wait(1)
            registry.promote(versions[1])
            wait_until(lambda: stack.http.get("/readyz").json()["model_version"] == "second", 20)
            over.wait(1)
        finally:
            over.set()
    for answers in (each.result() for each in asking):
        assert {answer.status_code for answer in answers} == {200}
        bodies = [answer.json() for answer in answers]
        assert [version for version, _ in groupby(body["model_version"] for body in bodies)] == ["first", "second"]
        for body in bodies:
            assert len({item["item_id"] for item in body["items"]}) == 3
            scores = [item["score"] for item in body["items"]]
            assert scores == sorted(scores, reverse=True) or body["explored"]
            if body["model_version"] == "second":
                assert {item["source"] for item in body["items"]} == {"two_tower"}
    everything = {item["item_id"] for item in stack.ask(user_id="u", n=10).json()["items"]}
    assert everything == {*items["first"], *items["second"]}


def test_an_explored_slate_is_logged_with_the_chances_that_follow_from_its_scores(stack: Stack):
    asked = {}
    for _ in range(30):
        body = stack.ask(user_id="u", n=10).json()
        asked[body["request_id"]] = body["explored"]
    assert set(asked.values()) == {True, False}
    logged: dict[str, list[dict[str, Any]]] = {}

    def all_are_logged() -> bool:
        logged.clear()
        for row in sorted(stack.logged(), key=lambda row: row["position"] or 0):
            logged.setdefault(row["request_id"], []).append(row)
        return all(len(logged.get(request_id, [])) == 6 for request_id in asked)

    wait_until(all_are_logged, 20)
    for request_id, is_explored in asked.items():
        rows = [row for row in logged[request_id] if row["properties"] is not None]
        scores = [row["score"] for row in rows]
        by_score = sorted(scores, reverse=True)
        order = [by_score.index(score) for score in scores]
        said = [json.loads(row["properties"]) for row in rows]
        chances = [policies.prefix(by_score, order[:k], 0.5, 0.25) for k in range(len(rows) + 1)]
        assert [row["propensity"] for row in rows] == pytest.approx([b / a for a, b in pairwise(chances)])
        assert [each["greedy"] for each in said] == [order[: k + 1] == list(range(k + 1)) for k in range(len(rows))]
        assert said[-1]["drawn"] == 1.0
        assert {row["propensity"] for row in logged[request_id][len(rows) :]} <= {1.0}
        assert is_explored or order == sorted(order)


def test_a_stopped_store_is_503_for_events_and_still_a_slate_for_readers_until_it_is_back(stack: Stack):
    stack.valkey.kill()
    try:
        assert stack.http.post("/v1/events", json=event("lost"), headers=WRITE).status_code == 503
        answer = stack.ask(user_id="u")
        assert answer.status_code == 200
        assert "hydrate: user features unavailable" in answer.json()["degraded"]
        assert len(answer.json()["items"]) == 6
        assert stack.http.get("/v1/users/u/profile", headers=READ).status_code == 503
    finally:
        stack.valkey.start()
    assert stack.http.post("/v1/events", json=event("back"), headers=WRITE).status_code == 200
    ids = {row["event_id"] for row in stack.logged()}
    assert "back" in ids
    assert "lost" not in ids


def test_a_second_process_on_the_same_port_names_the_holder_and_ends(stack: Stack):
    chosen = stack.settings.model_dump(include={"data", "http_port"})
    environment = os.environ | {f"HEADRACE_{name.upper()}": str(value) for name, value in chosen.items()}
    second = subprocess.run(
        [sys.executable, "-m", "serving.app"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert f"port {stack.settings.http_port} is held by haproxy (pid " in second.stderr
    assert "HEADRACE_HTTP_PORT" in second.stderr


def test_sigterm_ends_everything_within_seconds_and_leaves_no_process_and_no_port(stack: Stack):
    family = psutil.Process(stack.process.pid).children(recursive=True)
    assert any(process.name() == "haproxy" for process in family)
    started = time.monotonic()
    stack.process.send_signal(signal.SIGTERM)
    assert stack.process.wait(30) == 0, stack.log.read_text()[-2_000:]
    took = time.monotonic() - started
    assert [process for process in family if process.is_running()] == []
    assert is_free(stack.settings.http_port)
    assert took < 10  # 3 s alone on two cores
    for key in ("writer", "reader"):
        assert key not in stack.log.read_text()
