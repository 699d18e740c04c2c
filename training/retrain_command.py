"""`headrace retrain`: what is asked for is read before torch, Feast and MLflow are, so that a slip of the pen is told at once."""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.settings import MICROS, Settings
from training.changes import parse_changes
from training.config import TrainConfig, configured
from training.drift_signals import DriftConfig
from training.spans import span_us


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.retrain", description=__doc__)
    parser.add_argument(
        "--every", default="1h", metavar="SPAN", help="from the start of a round to the next: 30m, 1h, 1d"
    )
    parser.add_argument("--once", action="store_true", help="one round; exit code 1 where its version is not promoted")
    parser.add_argument("--on-drift", action="store_true", help="train only in rounds in which drift is found")
    parser.add_argument(
        "--always", action="store_true", help="train also where nothing is new since the version in service"
    )
    parser.add_argument(
        "--drift", action="append", default=[], metavar="KEY=VALUE", help="change a bound of drift; repeatable"
    )
    parser.add_argument(
        "--config",
        help="small, default, large, or your own function as module:function; else as the champion was trained",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each round")
    options = parser.parse_args(arguments)
    try:
        every_us = span_us(options.every)
        if not every_us:
            raise ValueError(f"--every is {options.every!r}: write a span above 0 like 30m, 1h or 1d")
        if options.drift and not options.on_drift:
            raise ValueError("--drift changes what counts as drift, which --on-drift alone asks for: say that too")
        changes = parse_changes(options.set, TrainConfig)
        config = configured(options.config, changes) if options.config else None
        bounds = DriftConfig().changed(**parse_changes(options.drift, DriftConfig))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return run(options, every_us / MICROS, config, changes, bounds)


def run(
    options: argparse.Namespace,
    every_s: float,
    config: TrainConfig | None,
    changes: Mapping[str, Any],
    bounds: DriftConfig,
) -> int:
    """Its imports take seconds. Without a `config` each round goes by the champion's, with `changes`."""
    from rich.console import Console

    from headrace.ops.interrupts import Interrupted, Interrupts
    from headrace.ops.keys import with_kept_keys
    from headrace.stores.feature_store import quieten_feast
    from training import job
    from training.gate import as_table
    from training.retrain import Round, keep_on, once

    quieten_feast()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    ended: list[Round] = []
    was_interrupted: list[bool] = []

    def say(what: str) -> None:
        print(what, file=sys.stderr if options.json else sys.stdout, flush=True)

    def retrain() -> None:
        settings = with_kept_keys(Settings())
        interrupts = Interrupts()

        def one() -> Round:
            done = once(
                config,
                settings,
                changes=changes,
                say=say,
                on_drift=bounds if options.on_drift else None,
                always=options.always,
                held=interrupts.held,
                progress=not options.json,
            )
            ended.append(done)
            if options.json:
                print(json.dumps(done.to_json()), flush=True)
            elif done.verdicts:
                Console().print(as_table(done.verdicts, "The gate"))
            return done

        try:
            with interrupts.installed():
                if options.once:
                    one()
                else:
                    keep_on(one, every_s, say)
        except Interrupted:
            say("asked to end: what is in service stays")
            was_interrupted.append(True)

    code = job.run(retrain)
    without = was_interrupted or any(done.version and not done.promoted for done in ended)
    return code or int(options.once and bool(without))


if __name__ == "__main__":
    sys.exit(command())
