"""What a client can be told besides its address and keys."""

from dataclasses import dataclass, field

from headrace.client.retry import Backoff


@dataclass(frozen=True)
class ClientConfig:
    """Bounds of a client. Times in seconds; each has a default that works.

    `timeout_s` bounds each wait of a request (to connect, for the next bytes), `events_timeout_s` the same where events are sent:
    the server answers once they are on disk. A request whose connection broke is sent `attempts` times in all. Events go out in
    batches of at most `batch_events` events and `batch_bytes` bytes, at most `linger_s` after the oldest was taken. `spool_bytes`
    bounds what waits, on disk or in memory; `durable=False` leaves the flush of each event to the operating system, which
    a killed process does not hurt, but a machine that loses power does.
    """

    timeout_s: float = 5.0
    events_timeout_s: float = 10.0
    attempts: int = 2
    batch_events: int = 500
    batch_bytes: int = 1024 * 1024
    linger_s: float = 0.02
    max_event_bytes: int = 64 * 1024
    spool_bytes: int = 64 * 1024 * 1024
    durable: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    remembered_users: int = 10_000
    remembered_refusals: int = 1_000

    def __post_init__(self) -> None:
        for name in ("timeout_s", "events_timeout_s", "attempts", "batch_events", "batch_bytes", "max_event_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"ClientConfig({name}={getattr(self, name)}): give more than 0")
        for name in ("linger_s", "remembered_users", "remembered_refusals"):
            if getattr(self, name) < 0:
                raise ValueError(f"ClientConfig({name}={getattr(self, name)}): give 0 or more")
        if self.spool_bytes < 2 * self.max_event_bytes:
            raise ValueError(
                f"ClientConfig(spool_bytes={self.spool_bytes}): the largest event has {self.max_event_bytes} bytes "
                "(max_event_bytes); give at least twice as many"
            )
