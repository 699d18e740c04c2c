"""`feast apply`, and the plain feature views brought up to date from the lake."""

import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feast import FeatureStore, StreamFeatureView

from headrace.clock import Clock, from_micros
from headrace.ops.child import environment_of
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.redis_client import StoreAddressError, redis_url


class ApplyError(RuntimeError):
    """Feast refused the definitions."""


@dataclass(frozen=True)
class Applied:
    """What the registry holds now, by name."""

    stream_views: list[str]
    plain_views: list[str]
    services: list[str]
    materialized: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def apply(settings: Settings, clock: Clock) -> Applied:
    """Register the definitions of the feature repository; with a store known, also write plain views' rows.

    Raises ApplyError with Feast's last line if a definition is refused.
    """
    _feast_apply(settings)
    store = open_feature_store(settings)
    plain = [view.name for view in store.list_batch_feature_views() if not isinstance(view, StreamFeatureView)]
    return Applied(
        stream_views=[view.name for view in store.list_stream_feature_views()],
        plain_views=plain,
        services=[service.name for service in store.list_feature_services()],
        materialized=materialize_plain_views(store, clock) if _has_store(settings) else [],
    )


def materialize_plain_views(store: FeatureStore, clock: Clock) -> list[str]:
    """Write each entity's newest row online, of the plain views whose table exists. Returns those views' names."""
    views = [view.name for view in store.list_batch_feature_views() if Path(view.batch_source.path).exists()]
    if views:
        store.materialize(datetime(1970, 1, 1, tzinfo=UTC), from_micros(clock()), feature_views=views)
    return views


def _has_store(settings: Settings) -> bool:
    try:
        return bool(redis_url(settings))
    except StoreAddressError:
        return False


def _feast_apply(settings: Settings) -> None:
    # A child process: Feast's apply changes the working directory and the import path of the process it runs in.
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "feast.cli.cli",
        "--chdir",
        str(settings.feature_repo.resolve()),
        "apply",
    ]
    done = subprocess.run(command, env=environment_of(settings), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ApplyError(f"feast apply refused {settings.feature_repo}: {lines[-1].strip() if lines else 'no output'}")
