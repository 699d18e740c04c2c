"""Puts a registered bundle in service: `python -m training.promote [VERSION]`, the newest one without a version."""

import argparse
import json
import sys
from collections.abc import Sequence

from headrace.clock import Clock, system_clock
from headrace.models.bundle import check_fit, read_manifest
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.models import BundleRef, ModelRegistry, RegistryError
from training.job import run


def main(version: str | None, settings: Settings, clock: Clock = system_clock) -> BundleRef:
    """Check the bundle's files and that it fits the registered features, then promote it.

    Raises RegistryError or BundleError; then the champion stays.
    """
    registry = ModelRegistry(settings, clock)
    known = {registered.version: registered for registered in registry.versions()}
    if not known:
        raise RegistryError("no version is registered: run `headrace train` first")
    chosen = version or list(known)[-1]
    if chosen in known and known[chosen].path.is_dir():
        streams = load_definitions(settings).streams if settings.registry_path.exists() else {}
        registered = {name: spec.fingerprint for name, spec in streams.items()}
        check_fit(read_manifest(known[chosen].path).fingerprints, registered)
    return registry.promote(chosen)


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.promote", description=__doc__)
    parser.add_argument("version", nargs="?", help="as `headrace train` printed it; the newest if left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)

    def promote() -> None:
        champion = main(options.version, Settings())
        if options.json:
            print(
                json.dumps(
                    {"version": champion.version, "path": str(champion.path), "promoted_at": champion.promoted_at}
                )
            )
        else:
            print(f"version {champion.version} is in service: {champion.path}")

    return run(promote)


if __name__ == "__main__":
    sys.exit(command())
