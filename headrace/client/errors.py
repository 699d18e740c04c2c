"""What can go wrong between a client and the API. Each message names the thing, the value and the remedy."""


class HeadraceError(Exception):
    """Anything that the client raises by design."""


class RefusedError(HeadraceError, ValueError):
    """What was asked or sent is wrong in itself: sending it again is of no use.

    `field` and `reason` say what; `refused` holds the parts that an answer refused one by one.
    """

    def __init__(self, what: str, field: str, reason: str, refused: tuple[object, ...] = ()) -> None:
        super().__init__(f"{what}: {field}: {reason}" if field else f"{what}: {reason}")
        self.field = field
        self.reason = reason
        self.refused = refused


class UnauthorizedError(HeadraceError):
    """The key is missing or not accepted."""


class RetryableError(HeadraceError):
    """Nothing is wrong with what was asked: the same may be asked again, after `retry_after_s` seconds if that is known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(RetryableError):
    """429: the server sheds load."""


class UnavailableError(RetryableError):
    """503 or any other failure of the server, or nobody answered."""


class TimedOutError(RetryableError, TimeoutError):
    """No answer within the time that the client allows."""


class AnswerError(HeadraceError):
    """An answer that is not the API's: another server, a proxy, another version."""


class SpoolError(HeadraceError):
    """The spool could not be read or written."""


class SpoolFullError(SpoolError):
    """The spool is at its bound. The event was not taken."""


class SpoolHeldError(SpoolError):
    """Another client holds the spool's directory."""


class UndeliveredError(HeadraceError):
    """A client that keeps its events in memory was closed before all of them were acknowledged."""


class ClosedError(HeadraceError, RuntimeError):
    """The client was closed, or made by another process."""
