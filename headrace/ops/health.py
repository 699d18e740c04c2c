"""Whether a flow keeps up: `python -m headrace.ops.health features|lake` ends with 0 if it does. For health checks of containers."""

import sys
from collections.abc import Sequence

from headrace.clock import Clock, system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status

# The lake flow commits every second or so; a compaction may take longer.
LAKE_LAG_S = 60


def features_lag_us(settings: Settings, clock: Clock) -> int:
    """How far behind now the least complete shard is."""
    with connect(settings) as client:
        statuses = read_status(client, range(settings.shards)).values()
    return clock() - min(status.complete_us(settings.log_partitions) for status in statuses)


def lake_lag_us(settings: Settings, clock: Clock) -> int:
    """By how much append time the lake is behind the end of the log, in the partition where it is furthest behind."""
    with connect(settings) as client:
        log = open_log(client, settings)
        ends = log.end()
        positions = EventLake(settings.lake_dir).positions(ends)
        first_missing = [log.read({p: positions[p]}, 1) for p, end in ends.items() if positions[p] < end]
        waiting_since = min((entries[0].ingested_at_us for entries in first_missing if entries), default=None)
        return 0 if waiting_since is None else clock() - waiting_since


def main(arguments: Sequence[str]) -> int:
    settings = Settings()
    match arguments:
        case ["features"]:
            lag_us, bound_s = features_lag_us(settings, system_clock), settings.feature_age_bound_s
        case ["lake"]:
            lag_us, bound_s = lake_lag_us(settings, system_clock), LAKE_LAG_S
        case _:
            print("usage: python -m headrace.ops.health features|lake", file=sys.stderr)
            return 2
    print(f"{lag_us / MICROS:.1f} s behind, the bound is {bound_s:.0f} s")
    return 0 if lag_us <= bound_s * MICROS else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
