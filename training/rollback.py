"""Puts back what was in service before: `python -m training.rollback`, or an earlier version by name.

Versions that were in service are a stack. A rollback takes the champion off it, and all above the version that is named: two in a row go
back by two. What was taken off can be promoted again. No gate is asked, since an old model is better than a bad one; files and
definitions are, since without them no replica would take it. It needs no MLflow.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from headrace.clock import Clock, system_clock
from headrace.models.bundle import Bundle, BundleError
from headrace.settings import Settings
from headrace.stores.feature_store import quieten_feast
from headrace.stores.models import BundleRef, ModelRegistry, RolledBack
from training.champion import check_features
from training.job import run
from training.promote import as_json


def main(version: str | None, settings: Settings, clock: Clock = system_clock) -> RolledBack:
    """What is in service now. Raises RegistryError, BundleError or DefinitionError; then the champion stays."""
    return ModelRegistry(settings, clock).rollback(version, lambda target: check_target(target, settings))


def check_target(target: BundleRef, settings: Settings) -> None:
    """Raises BundleError for what no replica would take."""
    bundle = Bundle.load(target.path)
    try:
        check_features(bundle.manifest, settings)
    except BundleError as error:
        raise BundleError(
            f"version {target.version} cannot be put back as it is: {error}; to go back to it, restore that definition in "
            f"{settings.feature_repo}, then `headrace apply`, `headrace backfill` and `headrace rollback {target.version}`"
        ) from error


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rollback", description=__doc__)
    parser.add_argument("version", nargs="?", help="one that was in service; the one before the champion if left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()

    def rollback() -> None:
        champion = main(options.version, Settings())
        if options.json:
            print(json.dumps({**as_json(champion), "rolled_back": champion.left}))
        else:
            print(f"version {champion.version} is in service again, version {champion.left} is not: {champion.path}")

    return run(rollback)


if __name__ == "__main__":
    sys.exit(command())
