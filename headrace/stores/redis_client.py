"""One way to reach Redis or Valkey: where it is, and a client with bounded waits, of one server or of a cluster."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from headrace.settings import Settings

ADDRESS_FILE = "valkey.json"


class StoreAddressError(RuntimeError):
    """Nobody said where Redis is, and no embedded server is recorded."""


def redis_url(settings: Settings) -> str:
    """`HEADRACE_REDIS_URL`, else the embedded server's address under the data directory."""
    if settings.redis_url:
        return settings.redis_url
    record = settings.run_dir / ADDRESS_FILE
    if not record.exists():
        raise StoreAddressError(
            f"no Redis or Valkey: HEADRACE_REDIS_URL is not set and {record} does not exist; run `headrace up` or set the URL"
        )
    return str(json.loads(record.read_text())["url"])


def connect(settings: Settings, timeout_s: float = 5.0) -> "redis.Redis":
    """A client whose every call ends within `timeout_s`, and which retries nothing by itself: callers state what a retry means.

    User, password and TLS are the URL's: `rediss://user:password@host:port`. With HEADRACE_REDIS_CLUSTER it is a
    `redis.RedisCluster`, which asks for the cluster's slots at once: raises redis.ConnectionError where no node answers.
    """
    if not settings.redis_cluster:
        return redis.Redis.from_url(redis_url(settings), retry=None, health_check_interval=0, **_waits(timeout_s))
    with no_cluster_as_no_connection():
        return redis.RedisCluster.from_url(
            redis_url(settings), retry=Retry(NoBackoff(), 0), require_full_coverage=False, **_waits(timeout_s)
        )


def connect_async(settings: Settings, timeout_s: float = 5.0) -> "redis.asyncio.Redis":
    """The same for asyncio, of the loop that runs. Opens no connection."""
    if not settings.redis_cluster:
        return redis.asyncio.Redis.from_url(redis_url(settings), retry=None, **_waits(timeout_s))
    return redis.asyncio.RedisCluster.from_url(
        redis_url(settings), retry=Retry(NoBackoff(), 0), require_full_coverage=False, **_waits(timeout_s)
    )


@contextmanager
def no_cluster_as_no_connection() -> Iterator[None]:
    """redis-py says with an exception of its own family that no node of a cluster answers: here as redis.ConnectionError."""
    try:
        yield
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error


def _waits(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": min(timeout_s, 1.0)}
