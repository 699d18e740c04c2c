"""The `headrace` command. Each command reads the settings, calls one function, and prints what came of it.

What a command needs is imported inside it: `headrace --help` should not wait for Feast.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import redis
import typer
from pydantic import ValidationError
from rich.console import Console, RenderableType

from headrace.clock import system_clock, to_micros
from headrace.settings import Settings

app = typer.Typer(
    help="Real-time personalization: events in, features fresh, recommendations out, training on what serving saw.\n\n"
    "New here? `headrace demo` tells the whole story in a minute or two; `headrace up` leaves the same stack running.\n\n"
    "Settings are environment variables HEADRACE_* (docs/settings.md); data lies under HEADRACE_DATA, by default var.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    str | None,
    typer.Option(
        help="Size of models and training set: small, default, large; or your own, module:function. Left out: default, of retrain as "
        "the champion was trained."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the training, like seed=1. training/config.py explains them all; an unknown key lists them.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for a program to read.")]


class SettingError(ValueError):
    """An environment variable does not hold what its setting needs."""


def read_settings() -> Settings:
    """The settings, with the keys that `headrace up` made. Raises SettingError naming the variable."""
    from headrace.ops.keys import with_kept_keys

    try:
        return with_kept_keys(Settings())
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"HEADRACE_{str(first['loc'][0]).upper()}"
        raise SettingError(f"{variable} is {first['input']!r}: {first['msg'].lower()}") from error


def show(result: dict[str, Any], as_json: bool, told: Iterable[RenderableType]) -> None:
    """One JSON object, or what it says to a reader."""
    if as_json:
        typer.echo(json.dumps(result, default=str))
        return
    console = Console(soft_wrap=True)
    for each in told:
        console.print(each, markup=False, highlight=False)


# The stack


@app.command()
def up() -> None:
    """Bring the whole stack up and stay until Ctrl-C: Valkey, the flows, collection and recommendation."""
    from headrace.ops.stack import up as bring_up

    bring_up(read_settings(), Console())


@app.command()
def down(as_json: AsJson = False) -> None:
    """End the stack of this data directory, and whatever a killed one left behind."""
    from headrace.ops.stack import down as bring_down

    ended = bring_down(read_settings())
    names = [str(ref) for ref in ended]
    title = f"Ended the stack: {', '.join(names)}" if ended else "Nothing was running."
    show({"ended": names}, as_json, [title])


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show what runs. Exit code 0 if the stack is up and ready, 1 if not."""
    from headrace.ops.status import as_table
    from headrace.ops.status import status as look

    found = look(read_settings())
    if as_json:
        typer.echo(json.dumps(found.to_dict(), default=str))
    else:
        Console().print(as_table(found))
    raise typer.Exit(0 if found.is_up else 1)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Tell it with a real store's events (REES46 files) and not with simulated ones.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the demo's data directory afterwards.")] = False,
    small: Annotated[bool, typer.Option(help="Fewer simulated events: sooner done.")] = False,
) -> None:
    """Tell the whole story once, on parts of its own, and exit: 0 if every step happened."""
    from headrace.ops.demo import demo as tell

    tell(read_settings(), Console(), data=data, keep=keep, small=small)


# Features and data


@app.command()
def apply(as_json: AsJson = False) -> None:
    """Register the feature definitions (`feast apply`); with a store running, also bring plain views up to date."""
    from headrace.ops.apply import apply as register
    from headrace.ops.told import applied

    found = dict(register(read_settings()))
    show(found, as_json, applied(found))


@app.command()
def ingest(
    source: Annotated[
        str, typer.Argument(help="The data's format: simulator, rees46, movielens, jsonl, ...")
    ] = "simulator",
    path: Annotated[
        Path | None, typer.Argument(help="A file or folder, gzip or not. The simulator needs none.")
    ] = None,
    bulk: Annotated[bool, typer.Option(help="Straight into the lake; then run `headrace backfill`.")] = False,
    shift_to_now: Annotated[bool, typer.Option(help="Move all times by one constant: the last event is now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load history through the same validation as the API. Loading the same data twice changes nothing."""
    from headrace.ingest.formats import open_source
    from headrace.ingest.load import ingest as load
    from headrace.ingest.progress import bars
    from headrace.ops.apply import apply as register
    from headrace.ops.told import ingested

    settings, history = read_settings(), open_source(source, path)
    with bars() as progress:
        report = load(
            history,
            settings,
            bulk=bulk,
            shift_to_now=shift_to_now,
            clock=system_clock,
            progress=progress,
        )
    if report.read and report.refused == report.read:
        raise ValueError(f"{source}: all {report.read} rows were refused, the first: {report.first_refusal}")
    register(settings)
    show(asdict(report), as_json, ingested(report))


@app.command()
def replay(
    lake: Annotated[Path, typer.Argument(help="The data directory, or the lake in it, whose events are streamed.")],
    speed: Annotated[float | None, typer.Option(help="Times faster than it happened; left out: at full speed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Stream another stack's lake into this empty stack's log."""
    from headrace.ingest.progress import bars
    from headrace.ingest.replay import replay as stream
    from headrace.ops.apply import apply as register

    settings = read_settings()
    with bars() as progress:
        report = stream(lake, settings, speed=speed, clock=system_clock, progress=progress)
    register(settings)
    told = f"Replayed {report.events:,} events in {report.seconds:.1f} s; catalogue and profiles are online."
    show(asdict(report), as_json, [told])


@app.command()
def backfill(as_json: AsJson = False) -> None:
    """Rebuild all streaming features from the lake by the definitions that are applied. The old state serves meanwhile."""
    from headrace.ingest.progress import bars
    from headrace.ops.backfill import backfill as fill
    from headrace.ops.told import backfilled

    with bars() as progress:
        report = fill(read_settings(), progress)
    show(asdict(report), as_json, backfilled(report))


@app.command()
def verify(
    as_of: Annotated[
        str | None,
        typer.Option(help="Compare at this time (ISO 8601 with a time zone), after the newest event; left out: now."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute what the online store holds from the lake, and compare. Exit code 1 on any mismatch."""
    from headrace.ingest.progress import bars
    from headrace.ops.told import verified
    from headrace.ops.verify import verify as compare

    settings, as_of_us = read_settings(), None if as_of is None else _micros(as_of)
    with bars() as progress:
        report = compare(settings, as_of_us, system_clock, progress)
    show(report.to_dict(), as_json, verified(report))
    raise typer.Exit(0 if report.ok else 1)


def _micros(moment: str) -> int:
    try:
        return to_micros(datetime.fromisoformat(moment))
    except ValueError as error:
        raise ValueError(
            f"--as-of {moment!r} is no time with a time zone: write it like 2019-10-01T00:00:00+00:00"
        ) from error


# Models


@app.command()
def train(
    run: Annotated[str, typer.Argument(help="With --resume: the run that goes on; empty: the newest.")] = "",
    config: Config = None,
    change: Changes = None,
    warm_start: Annotated[bool, typer.Option(help="Begin with the weights of the version in service.")] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on with the newest run that did not end or with RUN, by its own config.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the training set, train both models, evaluate against the baselines, register a bundle; MLflow has the record."""
    if run and not resume:
        raise ValueError(f"{run!r} is named and not resumed: write `headrace train --resume {run}`, or leave it out")
    arguments = [
        *(["--config", config] if config else []),
        *_each("--set", change),
        *(["--resume", *([run] if run else [])] if resume else []),
        *(["--warm-start"] if warm_start else []),
    ]
    _become("training.train_command", arguments, as_json)


@app.command()
def evaluate(
    version: Annotated[str, typer.Argument(help="A registered version; empty: the one in service.")] = "",
    staleness: Annotated[
        str, typer.Option(help="Also on features that are so old, like 0s,1m,1h,1d: what real time is worth.")
    ] = "",
    report: Annotated[
        Path | None, typer.Option(help="Where the HTML report goes; left out: var/reports/VERSION-evaluation.html.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change how it is measured, like max_test=0 for all requests."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a registered version against the baselines and the champion on the same requests; write a report."""
    arguments = [
        *([version] if version else []),
        *([f"--staleness={staleness}"] if staleness else []),
        *(["--report", str(report)] if report else []),
        *_each("--set", change),
    ]
    _job("training.evaluate", arguments, as_json)


@app.command()
def versions(as_json: AsJson = False) -> None:
    """List the registered versions: what each measured, what the gate said, which one is in service."""
    from headrace.ops.versions import as_table
    from headrace.ops.versions import versions as known

    found = known(read_settings())
    told = [as_table(found)] if found else ["No version is registered: run `headrace train` first."]
    show({"versions": [asdict(each) for each in found]}, as_json, told)


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="The version that `headrace train` printed; empty: the newest.")] = "",
    force: Annotated[bool, typer.Option(help="Skip the gate; files and definitions are checked all the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a registered version in service without a dropped request, once it has passed the gate. Exit code 1 where it has not."""
    _job("training.promote", [*([version] if version else []), *(["--force"] if force else [])], as_json)


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="One that was in service; empty: the one before the champion.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put back the version that was in service before, without the gate."""
    _job("training.rollback", [version] if version else [], as_json)


@app.command()
def retrain(
    every: Annotated[str, typer.Option(help="From the start of a round to the next: 30m, 1h, 1d.")] = "1h",
    once: Annotated[bool, typer.Option(help="One round; exit code 1 where its version is not promoted.")] = False,
    on_drift: Annotated[bool, typer.Option(help="Train only in rounds in which drift is found.")] = False,
    always: Annotated[bool, typer.Option(help="Train also where nothing is new since the version in service.")] = False,
    config: Config = None,
    change: Changes = None,
    bound: Annotated[
        list[str] | None, typer.Option("--drift", metavar="KEY=VALUE", help="Change a bound of drift, like psi=0.3.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train from the champion on, ask the gate, promote; again and again, until Ctrl-C. Prints how long new data took to serve."""
    arguments = [
        *["--every", every],
        *(["--config", config] if config else []),
        *(["--once"] if once else []),
        *(["--on-drift"] if on_drift else []),
        *(["--always"] if always else []),
        *_each("--set", change),
        *_each("--drift", bound),
    ]
    _become("training.retrain_command", arguments, as_json)


@app.command()
def drift(
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a bound, like psi=0.3.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what has happened since with what the champion was trained on."""
    _job("training.drift", _each("--set", change), as_json)


@app.command()
def off_policy(
    source: Annotated[
        str, typer.Argument(help="`lake`: explored slates of this stack; `open-bandit`: that data set's files.")
    ] = "lake",
    path: Annotated[Path | None, typer.Argument(help="The folder of `open-bandit`.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Of `lake`: a registered version; else the one in service.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of `lake`: share of slates that the target policy draws; else none.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Of `lake`: up to the version's last impression; else 30.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Of `lake`: click, cart or purchase; else click.")] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="Of `open-bandit`: the policy whose logs are read; else random.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Of `open-bandit`: the policy that is estimated; else bts.")
    ] = None,
    campaign: Annotated[str | None, typer.Option(help="Of `open-bandit`: women, men or all; else women.")] = None,
    clip: Annotated[float | None, typer.Option(help="The largest weight; left out: as they are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what another policy would have earned, from logged impressions and their propensities."""
    given = {
        "version": version, "share": share, "days": days, "outcome": outcome,
        "behaviour": behaviour, "target": target, "campaign": campaign, "clip": clip,
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    _job("training.off_policy", [source, *([str(path)] if path else []), *options], as_json)


def _job(module: str, arguments: Sequence[str], as_json: bool) -> None:
    """Run a training job as a process of its own, which says itself what it did; its exit code is ours."""
    command, environment = _process_of(module, arguments, as_json)
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


def _each(option: str, values: list[str] | None) -> list[str]:
    return [part for value in values or [] for part in (option, value)]


def _become(module: str, arguments: Sequence[str], as_json: bool) -> NoReturn:
    """As `_job`, in the place of this process: signals reach what runs for long itself."""
    command, environment = _process_of(module, arguments, as_json)
    os.execve(sys.executable, command, environment)


def _process_of(module: str, arguments: Sequence[str], as_json: bool) -> tuple[list[str], dict[str, str]]:
    """Its command and environment. What it imports first takes seconds, in which it can say nothing."""
    from headrace.ops.child import environment_of

    environment = environment_of(read_settings())
    if not as_json:
        print("... loading PyTorch, Feast and MLflow", file=sys.stderr, flush=True)
    return [sys.executable, "-m", module, *arguments, *(["--json"] if as_json else [])], environment


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. What the user can mend is one red line and exit code 1; a fault of ours keeps its traceback."""
    try:
        app(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        if not _is_for_the_user(error):
            raise
        _say_in_red(error)
    except redis.RedisError as error:
        _say_in_red(
            f"the store does not answer: {error}; `headrace status` shows what runs, HEADRACE_REDIS_URL which store"
        )


def _say_in_red(what: object) -> NoReturn:
    line = f"error: {' '.join(str(what).split())}"
    Console(stderr=True, soft_wrap=True).print(line, style="red", markup=False, highlight=False)
    sys.exit(1)


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, ValueError | FileNotFoundError) or type(error).__module__.split(".")[0] == "headrace"


if __name__ == "__main__":
    main()
