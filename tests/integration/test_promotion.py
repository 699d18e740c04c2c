"""Promotion through the gate, back again, and retraining on new data: a simulated shop in a real lake, MLflow, no store.

One file, since all of it looks at one shop, whose version 1 is trained once.
The tests go by what is in service: each begins with version 1, which was trained and promoted before the last day of the shop.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from headrace import names
from headrace.clock import system_clock, to_micros
from headrace.decoding import decode_payload
from headrace.events import EVENT_SCHEMA, EventIn, encode_records, to_record
from headrace.ingest.shop import ShopConfig
from headrace.ingest.simulator import simulate
from headrace.models.bundle import Bundle, BundleError
from headrace.ops.apply import apply
from headrace.ops.ports import free_port
from headrace.ops.verify import verify
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake, append_rows
from headrace.stores.log import open_log
from headrace.stores.models import ModelRegistry, RegisteredVersion, RegistryError, read_champion
from headrace.stores.redis_client import connect
from tests.integration.conftest import feast_applied
from tests.integration.test_feature_flow import append, random_events, run_lake_to_end, run_to_end
from training import drift, evaluate, promote, retrain, retrain_command, rollback, train
from training.config import small
from training.drift_signals import DriftConfig
from training.gate import DEFINITIONS, FEATURES, FILES, LATENCY, QUALITY, SCORES, Verdict, check_served_features, failed
from training.promote import NotPromotedError

SHOP = ShopConfig(users=300, items=150, categories=6, events=9_000, days=3)
LAST_DAY_US = SHOP.end_us - 24 * 3_600 * MICROS
CONFIG = small().changed(
    max_positives=3_000,
    max_lists=300,
    tower_epochs=10,
    ranker_epochs=1,
    max_test=300,
    max_ranked_requests=200,
    resamples=200,
)
QUICK = CONFIG.changed(tower_epochs=1)
CHECKS = [FILES, DEFINITIONS, QUALITY, FEATURES, SCORES, LATENCY]


@dataclass(frozen=True)
class Shop:
    """Events of the last day are not in the lake yet."""

    settings: Settings
    later: list[EventIn]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Version 1 is in service; the first promotion found nothing to compare it with."""
    folder = feast_applied(tmp_path_factory.mktemp("promoted"))
    settings = Settings(
        data=folder / "var", feature_repo=folder / "feature_repo", http_port=free_port(), model_share=1.0
    )
    history = simulate(SHOP)
    events = [EventIn.model_validate(event) for event in history.events]
    append_rows(settings.lake_dir, names.ITEMS_TABLE, history.catalogue)
    append_rows(settings.lake_dir, names.PROFILES_TABLE, history.profiles)
    append_events(settings, [event for event in events if to_micros(event.timestamp) < LAST_DAY_US], 1)
    assert train.main(CONFIG, settings) is not None
    verdicts: list[Verdict] = []
    assert promote.main(None, settings, note=verdicts.append).version == "1"
    assert [verdict.check for verdict in verdicts] == CHECKS
    assert failed(verdicts) == []
    said = {verdict.check: verdict.measured for verdict in verdicts}
    assert said[QUALITY] == "no champion to compare with: no version is in service"
    assert said[FEATURES] == "not checked: no store runs"
    return Shop(settings, [event for event in events if to_micros(event.timestamp) >= LAST_DAY_US])


def append_events(settings: Settings, events: list[EventIn], position: int) -> None:
    moments = [to_micros(event.timestamp) for event in events]
    records = [to_record(event, moment, moment) for event, moment in zip(events, moments, strict=True)]
    table, bad = decode_payload(encode_records(records))
    assert not bad
    columns = {name: pa.nulls(table.num_rows, EVENT_SCHEMA.field(name).type) for name in EVENT_SCHEMA.names}
    columns |= dict(zip(table.column_names, table.columns, strict=True))
    for column, value in ((names.LOG_PARTITION, 0), (names.LOG_POSITION, position)):
        columns[column] = pa.array([value] * table.num_rows, EVENT_SCHEMA.field(column).type)
    EventLake(settings.lake_dir).append(pa.table(columns).select(EVENT_SCHEMA.names), {0: position})


@pytest.fixture(autouse=True)
def _version_1_serves(shop: Shop) -> Iterator[None]:
    yield
    registry = ModelRegistry(shop.settings)
    while len(registry.served()) > 1:
        registry.rollback()


def registered(settings: Settings, version: str) -> RegisteredVersion:
    [found] = [known for known in ModelRegistry(settings).versions() if known.version == version]
    return found


def in_service(settings: Settings) -> str:
    champion = read_champion(settings)
    assert champion is not None
    return champion.version


@pytest.fixture(scope="module")
def forgetful(shop: Shop) -> str:
    """Version 1 with the last layers of both models set to zero: all users are one, all candidates equal. Its config asks for no resamples
    and one request.
    """
    bundle = Bundle.load(registered(shop.settings, "1").path)
    with torch.no_grad():
        for layer in (bundle.towers.out, bundle.ranker.out_crossed, bundle.ranker.out_deep):
            for tensor in layer.parameters():
                tensor.zero_()
    config = CONFIG.changed(resamples=0, max_test=1, max_ranked_requests=1, candidates=2).to_json()
    return add(shop.settings, replace(bundle, manifest=replace(bundle.manifest, version="forgetful", config=config)))


def add(settings: Settings, bundle: Bundle) -> str:
    bundle.save(settings.bundles_dir / bundle.version)
    return ModelRegistry(settings).register(settings.bundles_dir / bundle.version, {})


def test_a_version_that_is_worse_than_the_champion_is_refused_by_its_quality_alone(shop: Shop, forgetful: str) -> None:
    verdicts: list[Verdict] = []
    with pytest.raises(NotPromotedError, match=r"^not promoted: quality$"):
        promote.main(forgetful, shop.settings, note=verdicts.append)
    assert failed(verdicts) == [QUALITY]
    [quality] = [verdict for verdict in verdicts if verdict.check == QUALITY]
    assert "champion version 1" in quality.measured
    assert " requests of " in quality.measured
    assert in_service(shop.settings) == "1"
    refused = registered(shop.settings, forgetful)
    assert refused.tags == {"gate": "failed: quality"}
    assert refused.aliases == ("challenger",)
    assert registered(shop.settings, "1").tags == {"gate": "passed"}


def test_a_champion_that_moves_while_the_gate_is_asked_is_not_replaced_by_what_was_judged_against_another(
    shop: Shop, forgetful: str
) -> None:
    promote.main(forgetful, shop.settings, force=True)
    told: list[Verdict] = []

    def roll_back(verdict: Verdict) -> None:
        told.append(verdict)
        if verdict.check == QUALITY:
            assert rollback.main(None, shop.settings).left == forgetful

    with pytest.raises(
        NotPromotedError, match=rf"^not promoted: version 1 is in service now.*`headrace promote {forgetful}` judges"
    ):
        promote.main(forgetful, shop.settings, note=roll_back)
    assert failed(told) == []
    assert in_service(shop.settings) == "1"
    assert registered(shop.settings, forgetful).tags == {"gate": "failed: another version came into service meanwhile"}


def test_a_version_that_takes_too_long_is_refused_by_its_latency_and_not_compared_with_itself(shop: Shop) -> None:
    hasty = shop.settings.model_copy(update={"deadline_ms": 0.001})
    verdicts: list[Verdict] = []
    with pytest.raises(NotPromotedError, match=r"^not promoted: latency$"):
        promote.main("1", hasty, note=verdicts.append)
    said = {verdict.check: verdict for verdict in verdicts}
    assert said[QUALITY].measured == "no champion to compare with: version 1 itself is in service"
    assert said[LATENCY].bound == "p99 at most 0.001 ms (HEADRACE_MODEL_SHARE of HEADRACE_DEADLINE_MS)"
    promote.main("1", shop.settings)  # its tag again


def test_force_skips_the_gate_says_so_and_a_rollback_takes_it_back(
    shop: Shop, forgetful: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shop.settings, monkeypatch)
    assert promote.command([forgetful, "--force"]) == 0
    printed = capsys.readouterr()
    assert "WARNING: the gate is skipped" in printed.err
    assert f"version {forgetful} is in service" in printed.out
    assert registered(shop.settings, forgetful).tags == {"gate": "skipped: --force"}
    assert registered(shop.settings, "1").aliases == ("previous",)

    assert rollback.command([]) == 0
    assert f"version 1 is in service again, version {forgetful} is not" in capsys.readouterr().out
    assert in_service(shop.settings) == "1"
    assert rollback.command([]) == 1
    assert "no version was in service before this one" in capsys.readouterr().err


def use(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As commands read them."""
    for name in settings.model_fields_set:
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", str(getattr(settings, name)))


def test_the_command_prints_every_check_and_ends_with_1_where_one_failed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shop.settings, monkeypatch)
    assert promote.command(["1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["promoted"], told["version"], told["forced"]) == (True, "1", False)
    assert [(check["check"], check["passed"]) for check in told["checks"]] == [(name, True) for name in CHECKS]

    monkeypatch.setenv("HEADRACE_DEADLINE_MS", "0.001")
    assert promote.command(["1"]) == 1
    printed = capsys.readouterr()
    *stages, error = printed.err.splitlines()
    assert stages[1] == "... gate: quality, beside the champion's"
    assert error == "error: not promoted: latency"
    assert all(name in printed.out for name in CHECKS)


def test_no_rollback_to_a_damaged_bundle(shop: Shop, forgetful: str) -> None:
    promote.main(forgetful, shop.settings, force=True)
    weights = registered(shop.settings, "1").path / "weights.pt"
    content = weights.read_bytes()
    weights.write_bytes(b"")
    try:
        with pytest.raises(BundleError, match=r"weights\.pt is damaged"):
            rollback.main(None, shop.settings)
        assert in_service(shop.settings) == forgetful
    finally:
        weights.write_bytes(content)


def test_a_rollback_to_other_features_is_refused_with_the_version_and_the_sequence_that_works(shop: Shop) -> None:
    bundle = Bundle.load(registered(shop.settings, "1").path)
    changed = replace(bundle.manifest, version="of-other-features", fingerprints={names.USER_ACTIVITY: 12})
    version = add(shop.settings, replace(bundle, manifest=changed))
    registry = ModelRegistry(shop.settings)
    registry.promote(version)
    registry.promote("1")
    with pytest.raises(
        BundleError, match=f"^version {version} cannot be put back as it is: it was trained on another"
    ) as refused:
        rollback.main(None, shop.settings)
    assert str(refused.value).endswith(
        f"restore that definition in {shop.settings.feature_repo}, then `headrace apply`, `headrace backfill` and "
        f"`headrace rollback {version}`"
    )
    assert registry.served() == ["1", version, "1"]


def test_after_the_features_changed_the_sequence_that_is_named_puts_the_old_version_back(shop: Shop) -> None:
    features = shop.settings.feature_repo / "features.py"
    before = features.read_text()
    ten_minutes, twenty_minutes = '"10m": (timedelta(minutes=10)', '"10m": (timedelta(minutes=20)'
    assert before.count(ten_minutes) == 1
    features.write_text(before.replace(ten_minutes, twenty_minutes))
    try:
        apply(shop.settings)
        trained = train.main(QUICK, shop.settings)
        assert trained is not None
        promote.main(trained.version, shop.settings)
        assert in_service(shop.settings) == trained.version
        with pytest.raises(BundleError, match=r"^version 1 cannot be put back as it is: .*`headrace rollback 1`$"):
            rollback.main("1", shop.settings)
        assert in_service(shop.settings) == trained.version
        ModelRegistry(shop.settings).promote("1")
        said: list[str] = []
        followed = retrain.once(QUICK, shop.settings, say=said.append, on_drift=DriftConfig())
        assert "it was trained on another definition of view " in said[1]
        assert (followed.promoted, in_service(shop.settings)) == (True, followed.version)
    finally:
        features.write_text(before)
        apply(shop.settings)
    assert rollback.main("1", shop.settings).left == followed.version
    assert in_service(shop.settings) == "1"


def test_a_champion_that_cannot_be_read_is_followed_by_a_training_from_nothing_that_waits_for_force(
    shop: Shop, forgetful: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote.main(forgetful, shop.settings, force=True)
    weights = registered(shop.settings, forgetful).path / "weights.pt"
    content = weights.read_bytes()
    weights.write_bytes(b"")
    said: list[str] = []
    try:
        found = retrain.once(QUICK, shop.settings, say=said.append, on_drift=DriftConfig())
        assert found.version is not None
        assert (found.promoted, failed(found.verdicts), in_service(shop.settings)) == (False, [QUALITY], forgetful)
        with monkeypatch.context() as patch:
            patch.setattr(train, "main", refuse)
            again = retrain.once(QUICK, shop.settings, say=said.append)
        assert (again.version, again.promoted, failed(again.verdicts)) == (found.version, False, [QUALITY])
        assert f"nothing new since version {found.version}, which waits: it is asked about again" in " ".join(said)
        assert promote.main(found.version, shop.settings, force=True).version == found.version
    finally:
        weights.write_bytes(content)
    assert "weights.pt is damaged" in said[1]
    assert said[2].endswith("s train by config small, from nothing")


def test_what_was_rolled_back_does_not_wait_for_the_gate(shop: Shop, forgetful: str) -> None:
    newest = ModelRegistry(shop.settings).versions()[-1].version
    registry = ModelRegistry(shop.settings)
    registry.challenge(newest)
    assert retrain.waits_for_the_gate(shop.settings, system_clock) is not None
    promote.main(newest, shop.settings, force=True)
    rollback.main(None, shop.settings)
    assert retrain.waits_for_the_gate(shop.settings, system_clock) is None


def test_nothing_new_is_too_little_for_drift(shop: Shop) -> None:
    found = drift.measure(shop.settings, DriftConfig())
    champion = read_champion(shop.settings)
    assert champion is not None
    assert (found.version, found.bundle) == ("1", champion.path.name)
    assert (found.new_events, found.drifted, found.signals) == (0, False, ())
    assert found.note == "events since it: 0, and nothing is said below 1,000"
    said: list[str] = []
    assert retrain.once(CONFIG, shop.settings, say=said.append, on_drift=DriftConfig()).version is None
    assert said[-1] == "no drift, no training: events since it: 0, and nothing is said below 1,000"


def test_without_anything_new_nothing_is_trained(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shop.settings, monkeypatch)
    before = len(ModelRegistry(shop.settings).versions())
    assert retrain_command.command(["--once"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "nothing new since version 1: no training; --always trains all the same"
    ]
    assert len(ModelRegistry(shop.settings).versions()) == before
    monkeypatch.setattr(train, "main", refuse)
    with pytest.raises(ValueError, match="asked to train"):
        retrain.once(CONFIG, shop.settings, always=True)
    _, end_us = Bundle.load(registered(shop.settings, "1").path).manifest.window_us
    assert retrain.nothing_new(end_us, shop.settings)
    assert not retrain.nothing_new(end_us - 24 * 3_600 * MICROS, shop.settings)


def refuse(*_: object, **__: object) -> None:
    raise ValueError("asked to train")


def test_new_data_is_trained_on_from_the_champion_on_and_serves(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append_events(shop.settings, shop.later, 2)
    few = drift.measure(shop.settings, DriftConfig(psi=100.0, unknown_share=1.0))
    assert re.fullmatch(
        r"users' features are not compared: that takes 500 users on both sides, and there are \d+ before and \d+ since; "
        r"click rates are not compared: that takes 1,000 impressions .*, and there are 936 before and 540 since, and 151 clicks",
        few.note,
    )
    found = drift.measure(shop.settings, DriftConfig(psi=100.0, unknown_share=1.0, min_users=20))
    assert {"user_activity__views_1h", "user_profile__age"} <= {signal.name for signal in found.signals} - {
        signal.name for signal in few.signals
    }
    assert not found.drifted
    assert found.new_events > 1_000
    assert found.note.startswith("click rates are not compared: ")
    named = {signal.name: signal for signal in found.signals}
    assert {"event types", "items unknown to the champion", "popularity deciles", "item_catalogue__category"} < set(
        named
    )
    assert re.match(r"tenth \d+ of popularity: ", named["popularity deciles"].said)
    assert named["event types"].value < 0.05
    assert 0 < named["items unknown to the champion"].value < 0.1  # the shop lists items now and then

    use(shop.settings, monkeypatch)
    changes = [
        f"--set={name}={getattr(CONFIG, name)}" for name in ("max_positives", "max_lists", "max_test", "resamples")
    ]
    epochs = ["--set=tower_epochs=1", "--set=ranker_epochs=1", "--set=max_ranked_requests=100"]
    assert (
        retrain_command.command(["--once", "--on-drift", "--drift=psi=0.0001", "--config=small", *changes, *epochs])
        == 0
    )
    printed = capsys.readouterr().out
    version = in_service(shop.settings)
    assert version != "1"
    assert "drifted: " in printed
    for step in (
        "train by config small, from version 1",
        f"ask the gate, promote version {version}",
        "wait for a recommender",
    ):
        assert f" s {step}" in printed
    assert "from new data to the new version in the pointer: " in printed
    assert "no recommender runs" in printed
    begun = Bundle.load(registered(shop.settings, version).path)
    assert begun.manifest.window_us[1] > LAST_DAY_US
    assert registered(shop.settings, version).tags == {"gate": "passed"}
    assert list(shop.settings.runs_dir.glob("*")) == []


def test_a_training_that_fails_leaves_no_run_and_the_champion_in_service(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shop.settings.runs_dir / "of-somebody-else"
    other.mkdir(parents=True, exist_ok=True)

    def broken(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(train, "learn_retrieval", broken)
    with pytest.raises(OSError, match="no room"):
        retrain.once(CONFIG, shop.settings, always=True)
    assert list(shop.settings.runs_dir.glob("*")) == [other]
    assert in_service(shop.settings) == "1"


def test_a_version_that_is_not_there_is_refused_by_name(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no version '99'; registered are 1"):
        promote.main("99", shop.settings)
    empty = Settings(data=tmp_path)
    with pytest.raises(RegistryError, match="no version is registered: run `headrace train` first"):
        promote.main(None, empty)
    with pytest.raises(RegistryError, match="no version is registered: run `headrace train` first"):
        evaluate.main(None, empty)
    with pytest.raises(RegistryError, match="nothing to go back to"):
        rollback.main(None, empty)
    with pytest.raises(RegistryError, match=r"no version '9'; registered are none: train first$"):
        rollback.main("9", empty)
    with pytest.raises(
        RegistryError, match=r"^no version is in service .*: `headrace train`, then `headrace promote`$"
    ):
        drift.measure(empty, DriftConfig())


def test_served_features_are_compared_where_a_store_runs(stack: Settings) -> None:
    append(open_log(connect(stack), stack), random_events(400, seed=3))
    run_to_end(stack)
    run_lake_to_end(stack)
    whole, some = verify(stack), verify(stack, sample=2)
    assert some.ok
    assert sum(some.entities.values()) < sum(whole.entities.values())
    same = check_served_features(stack, system_clock)
    assert same.passed
    assert same.measured.endswith(f"values of {sum(whole.entities.values())} entities, 0 mismatches")
    client = connect(stack)
    client.delete(next(iter(client.scan_iter(match="headrace:{s*}:user_activity:*"))))
    missing = check_served_features(stack, system_clock)
    assert (missing.passed, missing.remedy) == (False, "run `headrace backfill`")
    assert "mismatches, the first: user_activity." in missing.measured
    client.flushall()
    empty = check_served_features(stack, system_clock)
    assert not empty.passed
    assert "start the feature flow, or run `headrace backfill`" in empty.measured


def test_a_store_that_cannot_be_read_does_not_pass_for_none(stack: Settings) -> None:
    client = connect(stack)
    client.config_set("requirepass", "secret")
    try:
        refused = check_served_features(stack, system_clock)
    finally:
        client.config_set("requirepass", "")
    assert not refused.passed
    assert refused.measured.startswith("the store cannot be read: AuthenticationError")
    away = check_served_features(stack.model_copy(update={"redis_url": "redis://127.0.0.1:1"}), system_clock)
    assert not away.passed
    assert away.measured.startswith("the store cannot be read: ConnectionError")
    assert "--force" in away.remedy
