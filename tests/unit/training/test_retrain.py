"""The loop around rounds, and the wait for a recommender, with neither training nor waiting."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.ops.interrupts import Interrupted
from headrace.ops.ports import free_port
from headrace.settings import Settings
from headrace.stores.models import BundleRef
from tests.unit.models import tiny_shop
from training import drift, retrain, train
from training.champion import NoChampion, Why
from training.config import small
from training.drift_signals import DriftConfig
from training.fit import Epoch
from training.retrain import Round, config_as, keep_on, learnt_nothing, once, wait_until_served
from training.retrain_command import command
from training.spans import span_us


def test_a_round_that_fails_is_told_and_counted_and_the_next_one_comes() -> None:
    said: list[str] = []
    waits: list[float] = []
    outcomes: Iterator[Round | Exception] = iter([Round(), ValueError("the lake is empty"), OSError("full"), Round()])

    def one() -> Round:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    keep_on(one, 60.0, said.append, waits.append, rounds=4)
    assert said == [
        "round 1",
        "round 2", "round 2 failed, 1 of 2 so far: ValueError: the lake is empty",
        "round 3", "round 3 failed, 2 of 3 so far: OSError: full",
        "round 4",
    ]  # fmt: skip
    assert len(waits) == 3
    assert all(59 < wait <= 60 for wait in waits)


def test_a_round_that_took_longer_than_the_interval_is_followed_at_once() -> None:
    waits: list[float] = []
    keep_on(Round, 0.0, lambda _: None, waits.append, rounds=3)
    assert waits == []


def test_an_interrupt_ends_the_loop_in_a_round_and_in_a_wait() -> None:
    def interrupted(*_: object) -> Round:
        raise Interrupted

    with pytest.raises(Interrupted):
        keep_on(interrupted, 60.0, lambda _: None)
    with pytest.raises(Interrupted):
        keep_on(Round, 60.0, lambda _: None, interrupted)


class AskedToTrain(Exception):
    """With the weights that it was to begin with."""


@pytest.mark.parametrize("on_drift", [None, DriftConfig()])
@pytest.mark.parametrize(
    ("why", "begins_as"),
    [
        (Why.OTHER_DEFINITIONS, Path("bundles/seven")),
        (Why.OLDER_FORMAT, None),
        (Why.NEWER_FORMAT, None),
        (Why.NO_ARCHITECTURE, None),
        (Why.DAMAGED, None),
    ],
)
def test_a_champion_that_cannot_be_asked_is_followed_by_a_training_whatever_drift_says(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    why: Why,
    begins_as: Path | None,
    on_drift: DriftConfig | None,
) -> None:
    found = NoChampion(
        why, "version 7, which is in service, cannot be asked: so it is", BundleRef("7", Path("bundles/seven"))
    )
    monkeypatch.setattr(retrain, "read_in_service", lambda _: found)
    monkeypatch.setattr(drift, "measure", lambda *_: pytest.fail("what drifts from a model that nobody can take?"))

    def training(*_: object, warm_start: Path | None, **__: object) -> None:
        raise AskedToTrain(warm_start)

    monkeypatch.setattr(train, "main", training)
    said: list[str] = []
    with pytest.raises(AskedToTrain) as asked:
        once(small(), settings, say=said.append, on_drift=on_drift)
    assert asked.value.args == (begins_as,)
    assert said[1] == found.said
    assert said[2].endswith(
        "s train by config small, from nothing" if begins_as is None else "s train by config small, from version 7"
    )


def test_a_round_trains_as_the_champion_was_trained_but_for_what_is_changed(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    own = replace(bundle, manifest=replace(bundle.manifest, config=small().changed(seed=3).to_json()))
    own.save(tmp_path / "first")
    start = BundleRef("7", tmp_path / "first")
    assert config_as(start, {"batch": 9}) == small().changed(seed=3, batch=9)
    with pytest.raises(
        ValueError, match="size is 4, and the config of version 7 has its sizes settled: name one with --config"
    ):
        config_as(start, {"size": 4})
    assert config_as(None, {"size": 1, "seed": 5}).seed == 5


def epochs(*judged: float) -> list[Epoch]:
    return [Epoch(number, 0.1, each, 1.0, 1.0, 0.0) for number, each in enumerate(judged)]


@pytest.mark.parametrize(
    ("towers", "ranker", "is_nothing"),
    [
        ((0.3, 0.2, 0.3), (0.5, 0.4), True),
        ((0.3, 0.2, 0.31), (0.5, 0.4), False),
        ((0.3, 0.2), (0.5, 0.6), False),
        ((0.3, 0.2), (), True),
        ((float("nan"), float("nan")), (), False),
    ],
)
def test_nothing_was_learnt_where_no_epoch_of_any_fit_was_better_than_the_start(
    towers: tuple[float, ...], ranker: tuple[float, ...], is_nothing: bool
) -> None:
    """The ranker of the fourth had nothing to learn from; the last had nothing to judge by, and keeps its last epoch."""
    assert learnt_nothing({"towers": epochs(*towers), "ranker": epochs(*ranker)}) is is_nothing


@contextmanager
def recommender(*versions: str) -> Iterator[Settings]:
    """Answers /readyz by one version after the other, by the last one from then on."""
    left = list(versions)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"model_version": left[0], "problems": {"champion": "refused"}}).encode()
            if len(left) > 1:
                del left[0]
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Settings(http_port=server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_served_is_what_a_recommender_says_it_answers_by() -> None:
    said: list[str] = []
    with recommender("old", "old", "new") as settings:
        assert wait_until_served(settings, "new", said.append) is True
    assert said == []


def test_a_recommender_that_stays_with_the_old_one_is_told_with_its_problems() -> None:
    said: list[str] = []
    with recommender("old") as settings:
        assert wait_until_served(settings, "new", said.append, within_s=0.2) is False
    [line] = said
    assert line.endswith("answers by bundle new; its problems: {'champion': 'refused'}")


def test_without_a_recommender_there_is_nothing_to_wait_for() -> None:
    said: list[str] = []
    assert wait_until_served(Settings(http_port=free_port()), "new", said.append) is None
    assert said == ["no recommender runs: the next one that starts takes the new version"]


def test_times_are_of_the_steps_together() -> None:
    assert Round("2", True, [], {"train": 40.0, "promote": 2.5}).total_s == 42.5


@pytest.mark.parametrize(("text", "us"), [("30s", 30_000_000), ("1.5h", 5_400_000_000), ("1d", 86_400_000_000)])
def test_a_span_is_read(text: str, us: int) -> None:
    assert span_us(text) == us


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1h30m"])
def test_what_is_no_span_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert span_us(text) is None
    assert command([f"--every={text}"]) == 1
    assert "write a span above 0 like 30m, 1h or 1d" in capsys.readouterr().err
