"""How a flow's process runs and ends, and the sink that every flow ends in."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import redis
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from flows.recovery import StopFlag
from headrace.aggregates.spec import DefinitionError
from headrace.ops.child import EXCHANGED
from headrace.stores.log import LogUnavailableError
from headrace.stores.redis_client import StoreAddressError
from headrace.stores.shards import DeploymentError, OwnershipError
from headrace.stores.state_definitions import ExchangedError, StaleStateError

CANNOT_START: Final = (
    StaleStateError,
    DeploymentError,
    DefinitionError,
    OwnershipError,
    StoreAddressError,
    LogUnavailableError,
    redis.RedisError,
)

T = TypeVar("T")


def run(name: str, make_flow: Callable[[StopFlag], Dataflow]) -> int:
    """Run a flow until SIGTERM; returns the exit code. What it cannot go on with is said in one line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = StopFlag().install()
    try:
        cli_main(make_flow(stop))
    except CANNOT_START as error:
        stop.reason = error
    if stop.reason is None:
        return 0
    print(f"the {name} flow ends: {stop.reason}", file=sys.stderr)
    return EXCHANGED if isinstance(stop.reason, ExchangedError) else 1


class EachSink(DynamicSink[T], Generic[T]):  # type: ignore[misc]
    """Calls a function with each item, and another one at the end."""

    def __init__(self, write: Callable[[T], object], close: Callable[[], None] = lambda: None) -> None:
        self._write = write
        self._close = close

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "EachPartition[T]":
        return EachPartition(self._write, self._close)


class EachPartition(StatelessSinkPartition[T], Generic[T]):  # type: ignore[misc]
    def __init__(self, write: Callable[[T], object], close: Callable[[], None]) -> None:
        self._write = write
        self._close = close

    def write_batch(self, items: list[Any]) -> None:
        for item in items:
            self._write(item)

    def close(self) -> None:
        self._close()
