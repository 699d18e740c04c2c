"""The crew of a flow: which workers are alive, as far as the store knows. Each reports in, and is forgotten when it stops doing so."""

from typing import Final

import redis

from headrace.names import PROJECT

_KEY: Final = f"{PROJECT}:{{flow}}:@crew"
_WORD_KEY: Final = f"{PROJECT}:{{flow}}:@word"

# By the server's clock, so that workers on machines with other clocks agree.   KEYS: crew   ARGV: member, milliseconds
_REPORT_SCRIPT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
# KEYS: crew, word   ARGV: member, milliseconds, word
_AGREE_SCRIPT: Final = f"""
local function report()
{_REPORT_SCRIPT}
end
local said = redis.call('GET', KEYS[2])
if #report() > 1 and said then return said end
redis.call('SET', KEYS[2], ARGV[3])
return ARGV[3]
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

    def agree(self, word: str) -> str:
        """Report in, and say a word, unless another member that is alive has said one: returns what holds for all."""
        said: bytes = self._redis.eval(_AGREE_SCRIPT, 2, _KEY, _WORD_KEY, self._member, self._lease_ms, word)
        return said.decode()

    def word(self) -> str | None:
        """What was said last."""
        said = self._redis.get(_WORD_KEY)
        return None if said is None else said.decode()

    def leave(self) -> None:
        self._redis.zrem(_KEY, self._member)


def share_of(member: str, members: list[str], shards: int) -> int:
    """How many of the shards are a member's: all shares add up, and none is larger than another by more than one."""
    each, rest = divmod(shards, len(members))
    return each + (members.index(member) < rest)
