"""`headrace train`: what is asked for is read before torch, Feast and MLflow are, so that a slip of the pen is told at once."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from headrace.settings import Settings
from training.changes import parse_changes
from training.config import TrainConfig, configured


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--config", help="small, default, large, or your own function as module:function; else default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="RUN",
        help="go on with the newest run that did not end, or the one of that name, as it was begun",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="begin with the weights of the version in service where they mean the same",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    try:
        if options.resume and (options.config or options.set or options.warm_start):
            raise ValueError(
                "a run is resumed by its own config, from its own start: leave --config, --set and --warm-start out, or begin a run "
                "without --resume"
            )
        config = configured(options.config or "default", parse_changes(options.set, TrainConfig))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return run(config, options)


def run(config: TrainConfig, options: argparse.Namespace) -> int:
    """Its imports take some ten seconds."""
    from headrace.ops.interrupts import Interrupted, Interrupts
    from headrace.stores.feature_store import quieten_feast
    from training import job
    from training.fit import TrainError
    from training.track import how_to_look
    from training.train import main
    from training.warm_start import champion_folder

    quieten_feast()

    def train() -> None:
        settings = Settings()
        champion = champion_folder(settings) if options.warm_start else None
        if not options.json and os.environ.get("RANK", "0") == "0":
            print(f"what it learns shows as it learns: {how_to_look(settings)}", file=sys.stderr)
        try:
            with Interrupts().installed():
                result = main(config, settings, progress=not options.json, resume=options.resume, warm_start=champion)
        except Interrupted as error:
            raise TrainError("interrupted; `headrace train --resume` goes on after the last whole epoch") from error
        if result is None:  # one of the other processes
            return
        if options.json:
            print(json.dumps(result.to_json()))
            return
        result.show()
        print(f"report: {result.page}; MLflow run: {result.run_id}")

    return job.run(train)


if __name__ == "__main__":
    sys.exit(command())
