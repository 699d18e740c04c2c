"""The OpenAPI document is true: what schemathesis makes of it is answered as it says, never with a failure, and nothing without a key."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.open_shop import KEY, Shop

CONFIG = Path(__file__).with_name("schemathesis.toml")
OPEN = ("/healthz", "/readyz")


@pytest.mark.timeout(300)
def test_every_operation_answers_as_its_document_says_whatever_it_is_sent(open_shop: Shop, tmp_path: Path) -> None:
    """No 5xx; no status, content type or schema that is not documented; what the schema forbids is refused."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "--no-color", "run"]
    arguments = [f"{open_shop.address}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 9" in done.stdout
    degraded = open_shop.http.get("/metrics").text
    assert 'reason="hydrate: unknown user"' in degraded
    assert "pipeline: failed" not in degraded


def test_everything_but_health_and_readiness_needs_a_key(open_shop: Shop) -> None:
    document = open_shop.http.get("/openapi.json").json()
    operations = [(method, path) for path, methods in document["paths"].items() for method in methods]
    assert len(operations) == 9
    undocumented = [("get", path) for path in ("/docs", "/openapi.json", "/v1/events/docs", "/v1/events/openapi.json")]
    undocumented.append(("get", "/v1/events/metrics"))
    with httpx.Client(base_url=open_shop.address) as http:
        for method, path in (*operations, *undocumented):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
                answer = http.request(method, path.replace("{user_key}", "u"), headers=headers)
                assert answer.status_code == (200 if path in OPEN else 401), (method, path, answer.text)


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/events", "/healthz", "/metrics", "/v1/users/u/profile"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
def test_a_method_that_a_path_has_not_is_told_which_it_has(open_shop: Shop, method: str, path: str) -> None:
    answer = open_shop.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (
        405,
        "POST" if path.startswith("/v1/r") or path.endswith("events") else "GET",
    )


def test_a_path_that_is_not_there_says_where_the_paths_are(open_shop: Shop) -> None:
    for path in ("/", "/v1/recommend/", "/v1/users/u", "/v1/events/x", "/v1/eventsx"):
        answer = open_shop.http.get(path)
        assert (answer.status_code, answer.json()["remedy"]) == (404, "see /docs for the paths"), path


def test_reading_the_document_again_and_again_opens_no_files_to_count_in(open_shop: Shop) -> None:
    before = sorted(open_shop.settings.metrics_dir.iterdir())
    first, again = (open_shop.http.get("/openapi.json") for _ in range(2))
    assert first.content == again.content
    assert sorted(open_shop.settings.metrics_dir.iterdir()) == before
