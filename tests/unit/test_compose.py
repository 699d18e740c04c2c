"""docker-compose.yml: it parses, every command in it runs, images are pinned, no secret has a default."""

import importlib.util
import re
from typing import Any

import pytest
import typer.main
import yaml

from headrace import cli
from tests.conftest import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
JOBS = {"apply", "training"}


def commands_of(service: dict[str, Any]) -> list[list[str]]:
    health = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
    return [command for command in (service["command"], health) if command]


def test_the_stack_is_there() -> None:
    assert set(SERVICES) == {"valkey", "apply", "flow-features", "flow-lake", "serving", "training", "redpanda"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_ours_can_be_run(name: str) -> None:
    for command in commands_of(SERVICES[name]):
        match command:
            case ["headrace", word, *_]:
                assert word in typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module) is not None
            case ["python", "-c", code]:
                compile(code, name, "exec")
            case _:
                pytest.fail(f"{name} runs {command}, which nothing here checks")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - JOBS))
def test_what_stays_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"\$\{(\w+)(?!:\?set it\})[^\w}]", text) == []
    named = set(re.findall(r"\$\{(\w+):\?set it\}", text))
    assert named == {"VALKEY_PASSWORD", "HEADRACE_EVENT_KEYS", "HEADRACE_READ_KEYS", "HEADRACE_ADMIN_KEYS"}
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if not line.startswith("#")
    )
    assert example == dict.fromkeys(example, "")
    assert set(example) == named
