"""Puts a registered bundle in service once it has passed the gate: `python -m training.promote [VERSION]`, the newest without a version."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from headrace.clock import Clock, system_clock
from headrace.models.bundle import Bundle
from headrace.settings import Settings
from headrace.stores.feature_store import quieten_feast
from headrace.stores.models import BundleRef, ChampionMovedError, ModelRegistry, RegisteredVersion, RegistryError
from training.champion import check_features
from training.gate import Verdict, as_table, failed, gate, to_json
from training.job import run
from training.stages import Say, aloud, silent

GATE_TAG = "gate"


class NotPromotedError(RegistryError):
    """The gate refused a version, or judged it against what is in service no more; the message names the checks that it failed."""


def main(
    version: str | None,
    settings: Settings,
    clock: Clock = system_clock,
    *,
    force: bool = False,
    note: Callable[[Verdict], None] = lambda _: None,
    say: Say = silent,
) -> BundleRef:
    """Promote a version that passes the gate; each verdict is told to `note`, and what is looked at to `say`. With `force`, files and
    definitions alone are checked.

    What came of it stands in the version's tag `gate`. Raises NotPromotedError, RegistryError, BundleError or
    DefinitionError; then the champion stays.
    """
    registry = ModelRegistry(settings, clock)
    chosen = choose(version, registry)
    if force:
        check_features(Bundle.load(chosen.path).manifest, settings)
        registry.tag(chosen.version, GATE_TAG, "skipped: --force")
        return registry.promote(chosen.version)
    judged_against = registry.champion()
    refused = failed(gate(chosen.version, chosen.path, settings, clock, note, say))
    registry.tag(chosen.version, GATE_TAG, f"failed: {', '.join(refused)}" if refused else "passed")
    if refused:
        registry.challenge(chosen.version)
        raise NotPromotedError(f"not promoted: {', '.join(refused)}")
    try:
        return registry.promote_over(chosen.version, judged_against)
    except ChampionMovedError as error:
        registry.tag(chosen.version, GATE_TAG, "failed: another version came into service meanwhile")
        registry.challenge(chosen.version)
        raise NotPromotedError(f"not promoted: {error}") from error


def choose(version: str | None, registry: ModelRegistry) -> RegisteredVersion:
    """That version, or the newest. Raises RegistryError where it is not there, or its folder is gone."""
    known = registry.versions()
    if not known:
        raise RegistryError("no version is registered: run `headrace train` first")
    return registry.version(version or known[-1].version)


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.promote", description=__doc__)
    parser.add_argument("version", nargs="?", help="as `headrace train` printed it; the newest if left out")
    parser.add_argument(
        "--force", action="store_true", help="skip the gate; files and definitions are checked all the same"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()
    verdicts: list[Verdict] = []

    def promote() -> None:
        refused: NotPromotedError | None = None
        champion: BundleRef | None = None
        if options.force and not options.json:
            warn("the gate is skipped: nobody knows whether this version is as good as the champion, or fast enough")
        try:
            champion = main(
                options.version,
                Settings(),
                force=options.force,
                note=verdicts.append,
                say=silent if options.json else aloud,
            )
        except NotPromotedError as error:
            refused = error
        if options.json:
            told = {} if champion is None else {**as_json(champion), "forced": options.force}
            print(json.dumps({"promoted": champion is not None, **told, "checks": to_json(verdicts)}))
        elif verdicts:
            Console().print(as_table(verdicts, "The gate"))
        if refused is not None:
            raise refused
        if champion is not None and not options.json:
            print(f"version {champion.version} is in service: {champion.path}")

    return run(promote)


def as_json(champion: BundleRef) -> dict[str, str | int | None]:
    return {"version": champion.version, "path": str(champion.path), "promoted_at": champion.promoted_at}


def warn(what: str) -> None:
    Console(stderr=True).print(f"WARNING: {what}", style="bold red", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(command())
