"""The crew of a flow: which workers are alive, as far as the store knows. Each reports in, and is forgotten when it stops doing so."""

from typing import Final

import redis

from headrace.names import PROJECT

_KEY: Final = f"{PROJECT}:@crew"

# By the server's clock, so that workers on machines with other clocks agree.   KEYS: crew   ARGV: member, milliseconds
_REPORT_SCRIPT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""


class Crew:
    """One member's view. Members are known by name, each its own."""

    def __init__(self, client: "redis.Redis", member: str, lease_ms: int) -> None:
        self._redis = client
        self._member = member
        self._lease_ms = lease_ms

    def report(self) -> list[str]:
        """Say that this member is alive for another lease; returns all that are, sorted."""
        members = self._redis.eval(_REPORT_SCRIPT, 1, _KEY, self._member, self._lease_ms)
        return sorted(member.decode() for member in members)

    def leave(self) -> None:
        self._redis.zrem(_KEY, self._member)


def share_of(member: str, members: list[str], shards: int) -> int:
    """How many of the shards are a member's: all shares add up, and none is larger than another by more than one."""
    each, rest = divmod(shards, len(members))
    return each + (members.index(member) < rest)
