"""What both doors into the log answer: an acknowledgement once the records are on disk, or a refusal that says when to come again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from headrace.stores.log import LogFullError, LogUnavailableError
from headrace.stores.tokens import make_token
from serving.cells import Counter, Family
from serving.committer import GroupCommitter, Positions, Record
from serving.disk import DiskFullError
from serving.web import JSON_TYPE, Problem, problem_docs

RETRY_DOWN_S: Final = "1"
RETRY_FULL_S: Final = "30"


class DoorMetrics(Protocol):
    """What both doors count."""

    accepted: Counter
    refused: Family[Counter]
    unavailable: Counter


class Acknowledger:
    """Puts what a door found valid into the log, and says what became of all of it."""

    def __init__(
        self,
        committer: GroupCommitter,
        metrics: DoorMetrics,
        kind: str,
        what: str,
        again: str,
        label: Callable[[str], str],
    ) -> None:
        """`kind` of the token: headrace.stores.tokens. `what` one record is called, and how to send it `again` after Retry-After
        seconds. `label` makes a refused field one of few.
        """
        self._committer = committer
        self._metrics = metrics
        self._kind, self._what, self._again = kind, what, again
        self._label = label

    async def take(self, records: Sequence[Record], refused: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The body of the answer, once the records are on disk. Raises `Problem`: 422 where there are none, 503 where they may not be."""
        for refusal in refused:
            self._metrics.refused.labels(self._label(refusal["field"])).inc()
        if not records:
            raise Problem(
                422,
                f"no {self._what} was accepted",
                "correct each by its reason and send it again; docs at /docs",
                detail={"accepted": 0, "refused": refused},
            )
        positions = await self._commit(records)
        self._metrics.accepted.inc(len(records))
        return {
            "accepted": len(records),
            "refused": refused,
            "positions": {str(partition): position for partition, position in sorted(positions.items())},
            "token": make_token(self._kind, positions),
        }

    async def _commit(self, records: Sequence[Record]) -> Positions:
        try:
            return await self._committer.commit(records)
        except LogFullError as error:
            what = "the disk under the event log" if isinstance(error, DiskFullError) else "the event log"
            raise self._come_again(f"{what} is full", RETRY_FULL_S) from error
        except LogUnavailableError as error:
            raise self._come_again("the event log is not available", RETRY_DOWN_S) from error

    def _come_again(self, error: str, after_s: str) -> Problem:
        self._metrics.unavailable.inc()
        return Problem(503, error, self._again, headers={"Retry-After": after_s})


def acknowledgement_docs(what: str, token: str, refused_names: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    """The answers of a door as an OpenAPI document has them: what is acknowledged, an example of its token, what names a refused one."""
    refused = {name: {"type": ["string", "null"]} for name in refused_names} | {"index": {"type": "integer"}}
    schema = {
        "type": "object",
        "required": ["accepted", "refused", "positions", "token"],
        "properties": {
            "accepted": {"type": "integer", "minimum": 1},
            "refused": {"type": "array", "items": {"type": "object", "required": [*refused], "properties": refused}},
            "positions": {"type": "object", "additionalProperties": {"type": "integer"}},
            "token": {"type": "string", "description": "Send it as `after` to see what was acknowledged."},
        },
    }
    example = {"accepted": 1, "refused": [], "positions": {"2": 1831234567890}, "token": token}
    listed = ", ".join(refused)
    return {
        200: {
            "description": f"The accepted {what} are on disk; each refused one has {listed}.",
            "content": {JSON_TYPE: {"schema": schema, "example": example}},
        },
        503: problem_docs("The log is down, or it or its disk is full; nothing was acknowledged. See Retry-After."),
    }
