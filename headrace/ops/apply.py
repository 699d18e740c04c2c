"""`feast apply`, and the plain feature views brought up to date from the lake. `python -m headrace.ops.apply`

A process of its own: Feast's apply changes the working directory and the import path of the process it runs in.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from headrace import names
from headrace.aggregates.spec import DefinitionError
from headrace.clock import Clock, from_micros, system_clock
from headrace.ops.child import environment_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.item_lake import ItemTable
from headrace.stores.redis_client import StoreAddressError, connect, redis_url
from headrace.stores.shards import DeploymentError, check_deployment
from headrace.stores.state_definitions import drop_views, state_definitions, stored_views

DEFINITIONS = "feature_store.yaml"


class ApplyError(RuntimeError):
    """The definitions were refused."""


def apply(settings: Settings) -> Mapping[str, Any]:
    """Register the feature repository's definitions; with a store known, also write plain views' newest rows online.

    Returns the names of what is registered, of what was written, of stream views whose state was dropped because nobody defines
    them any more, and of features that wait for `headrace backfill`. Raises ApplyError with the reason of a refusal.
    """
    if not (settings.feature_repo / DEFINITIONS).exists():
        raise ApplyError(f"{settings.feature_repo / DEFINITIONS} does not exist: set HEADRACE_FEATURE_REPO")
    command = [sys.executable, "-m", "headrace.ops.apply"]
    done = subprocess.run(command, env=environment_of(settings), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ApplyError(f"{settings.feature_repo} was not applied: {lines[-1] if lines else 'no reason given'}")
    applied: Mapping[str, Any] = json.loads(done.stdout)
    return applied


def main(settings: Settings, clock: Clock) -> dict[str, list[str]]:
    """In the process of its own: `settings` have absolute paths. Feast's own reports go to standard error."""
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    from headrace.stores.feature_store import open_feature_store, quieten_feast

    with redirect_stdout(sys.stderr):
        quieten_feast()
        sys.path.insert(0, str(settings.feature_repo))  # where Feast imports the definitions from
        config = load_repo_config(settings.feature_repo, settings.feature_repo / DEFINITIONS)
        apply_total(config, settings.feature_repo, skip_source_validation=False)
        store = open_feature_store(settings)
        streams, plain = store.list_stream_feature_views(), store.list_batch_feature_views()
        applied = {
            "stream_views": sorted(view.name for view in streams),
            "plain_views": sorted(view.name for view in plain),
            "services": sorted(service.name for service in store.list_feature_services()),
        }
        definitions = load_definitions(settings)
        for view in names.ITEM_TABLES:
            if view in definitions.plain:
                ItemTable(settings.lake_dir, view).declare(definitions.plain[view])
        if not _has_store(settings):
            return applied | {"materialized": [], "dropped": [], "waiting_for_backfill": []}
        written = [view.name for view in plain if Path(view.batch_source.path).exists()]
        if written:
            store.materialize(datetime(1970, 1, 1, tzinfo=UTC), from_micros(clock()), feature_views=written)
        client = connect(settings)
        check_deployment(client, record=False, shards=settings.shards)
        # Feast drops what an apply removes; here goes what one removed that could not reach the store.
        gone = stored_views(client, settings) - set(applied["stream_views"])
        drop_views(client, settings, gone)
        waiting = state_definitions(client, settings).waiting
    return applied | {
        "materialized": sorted(written),
        "dropped": sorted(gone),
        "waiting_for_backfill": list(waiting),
    }


def _has_store(settings: Settings) -> bool:
    try:
        return bool(redis_url(settings))
    except StoreAddressError:
        return False


if __name__ == "__main__":
    try:
        print(json.dumps(main(Settings(), system_clock)))
    except (DefinitionError, DeploymentError) as error:
        sys.exit(str(error))
    except redis.RedisError as error:
        sys.exit(
            f"the definitions are registered, but the store does not answer: {error}; run `headrace apply` again when it does"
        )
