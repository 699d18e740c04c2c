"""What both doors into the log answer: an acknowledgement once the records are on disk, or a refusal that says when to come again."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.stores.log import LogFullError, LogUnavailableError
from headrace.stores.tokens import make_token
from serving.cells import Counter
from serving.committer import GroupCommitter, Positions, Record
from serving.disk import DiskFullError
from serving.web import JSON_TYPE, Problem, problem_docs

RETRY_DOWN_S: Final = "1"
RETRY_FULL_S: Final = "30"


async def commit(committer: GroupCommitter, records: Sequence[Record], unavailable: Counter, remedy: str) -> Positions:
    """Returns once the records are on disk. Raises a 503 `Problem`, counted, where they may not be."""
    try:
        return await committer.commit(records)
    except LogFullError as error:
        unavailable.inc()
        what = "the disk under the event log" if isinstance(error, DiskFullError) else "the event log"
        raise Problem(503, f"{what} is full", remedy, headers={"Retry-After": RETRY_FULL_S}) from error
    except LogUnavailableError as error:
        unavailable.inc()
        raise Problem(503, "the event log is not available", remedy, headers={"Retry-After": RETRY_DOWN_S}) from error


def acknowledgement(
    kind: str, accepted: int, refused: Sequence[Mapping[str, Any]], positions: Positions
) -> dict[str, Any]:
    """The body of the answer. `kind` of its token: headrace.stores.tokens."""
    return {
        "accepted": accepted,
        "refused": refused,
        "positions": {str(partition): position for partition, position in sorted(positions.items())},
        "token": make_token(kind, positions),
    }


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
