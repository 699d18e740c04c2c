"""What both doors into the log answer: an acknowledgement once the records are on disk, or a refusal that says when to come again."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.stores.log import LogFullError, LogUnavailableError
from headrace.stores.tokens import make_token
from serving.cells import Counter
from serving.committer import GroupCommitter, Positions, Record
from serving.disk import DiskFullError
from serving.web import Problem

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
