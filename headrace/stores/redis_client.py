"""One way to reach Redis or Valkey: where it is, and a client with bounded waits."""

import json

import redis

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
    """A client whose every call ends within `timeout_s`, and which retries nothing by itself: callers state what a retry means."""
    return redis.Redis.from_url(
        redis_url(settings),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 1.0),
        retry=None,
        health_check_interval=0,
    )
