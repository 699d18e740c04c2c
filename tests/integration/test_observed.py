"""What operators see of a running stack with two recommenders: one scrape for all of them, and logs that say nothing of users."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import psutil
import pytest

from headrace import names
from serving import ray_runtime
from tests.integration.test_recommender import READ, WRITE, Stack, event, wait_until

MARKER = "marker-7f3a9c"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, applied: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("o"), applied / "var")
    stack.settings = stack.settings.model_copy(update={"recommender_replicas": 2})
    stale = stack.settings.metrics_dir / f"{names.RECOMMENDER_APP}-7.cells"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of a stack before this one")
    try:
        stack.start()
        assert not stale.exists()
        yield stack
    finally:
        stack.stop()


def recommenders(stack: Stack) -> set[int]:
    family = psutil.Process(stack.process.pid).children(recursive=True)
    return {each.pid for each in family if f"ServeReplica:{names.RECOMMENDER_APP}" in " ".join(command_of(each))}


def command_of(process: psutil.Process) -> list[str]:
    """Nothing of a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def scrape(stack: Stack) -> dict[str, float]:
    answer = stack.http.get("/metrics", headers=READ)
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def ask(stack: Stack, times: int) -> None:
    """Requests over connections of their own, so that both replicas get some."""
    for number in range(times):
        with httpx.Client(base_url=stack.http.base_url, timeout=10, headers=READ) as http:
            body = {"user_id": f"{MARKER}-{number}", "exclude": [f"{MARKER}-item"]}
            assert http.post("/v1/recommend", json=body).status_code == 200


ANSWERED = 'headrace_requests_total{endpoint="recommend",status="200"}'


def test_a_scrape_shows_all_replicas_and_a_killed_one_takes_no_count_with_it(stack: Stack):
    assert len(recommenders(stack)) == 2
    ask(stack, 40)
    shares = [each.stat().st_size for each in stack.settings.metrics_dir.glob(f"{names.RECOMMENDER_APP}-*.cells")]
    assert len(shares) == 2
    assert {scrape(stack)[ANSWERED] for _ in range(6)} == {40.0}

    killed = min(recommenders(stack))
    psutil.Process(killed).kill()
    seen: list[dict[str, float]] = []

    def is_replaced() -> bool:
        try:
            seen.append(scrape(stack))
        except (httpx.HTTPError, AssertionError):
            return False
        alive = recommenders(stack)
        return killed not in alive and len(alive) == 2 and stack.http.get("/readyz").status_code == 200

    wait_until(is_replaced, 60)
    ask(stack, 10)
    last = scrape(stack)
    assert last[ANSWERED] == 50.0
    seen.append(last)
    for earlier, later in itertools.pairwise(seen):
        counters = [series for series in earlier if re.search(r"_(total|count|sum|bucket)(\{|$)", series)]
        assert [series for series in counters if later[series] < earlier[series]] == []


def test_requests_are_counted_by_endpoint_and_status_whoever_answers_them(stack: Stack):
    before = scrape(stack)
    stack.http.post("/v1/recommend", json={"user_id": "u"})
    stack.http.post("/v1/recommend", json={"user_id": "u", "n": 0}, headers=READ)
    stack.http.get(f"/nothing/{MARKER}", headers=READ)
    after = scrape(stack)
    for endpoint, status in (("recommend", "401"), ("recommend", "422"), ("other", "404")):
        series = f'headrace_requests_total{{endpoint="{endpoint}",status="{status}"}}'
        assert after[series] - before.get(series, 0.0) == 1.0


def test_logs_are_json_lines_and_hold_no_user_no_item_and_no_key(stack: Stack):
    sent = event(f"{MARKER}-event", user_id=f"{MARKER}-user", item_id=f"{MARKER}-item")
    assert stack.http.post("/v1/events", json=sent, headers=WRITE).status_code == 200
    stack.http.post("/v1/events", json=sent | {"type": f"{MARKER}-type"}, headers=WRITE)
    stack.http.get(f"/v1/users/{MARKER}-user/profile", headers=READ)
    stack.valkey.kill()
    try:
        request_id = stack.ask(user_id=f"{MARKER}-user", deadline_ms=10_000).json()["request_id"]
        assert stack.http.post("/v1/events", json=sent, headers=WRITE).status_code == 503
    finally:
        stack.valkey.start()

    folder = stack.settings.log_dir
    wait_until(lambda: request_id in (folder / "recommender.log").read_text(), 10)
    text = "".join((folder / f"{application}.log").read_text() for application in ("recommender", "collector"))
    logged = [orjson.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message", "pid"} <= line.keys() for line in logged)
    about = [line for line in logged if line.get("request_id") == request_id]
    assert any(line["logger"] == "serving.recommender" and line["level"] == "WARNING" for line in about)
    assert any(line["logger"] == "serving.committer" for line in logged)
    own = [orjson.loads(line) for line in stack.log.read_text().splitlines() if "(raylet)" not in line]
    assert any(line["message"].startswith("serving is ready at") for line in own)

    ours = [stack.log, *folder.glob("*.log")]
    rays = [each for each in ray_runtime.runtime_folder(stack.settings).rglob("*") if each.is_file()]
    assert len(rays) > 10
    for path in [*ours, *rays]:
        written = path.read_bytes()
        assert MARKER.encode() not in written, path
        assert re.search(rb"Bearer (reader|writer)|[\"' ](reader|writer)[\"']", written) is None, path
