"""What the answers to sent events mean: acknowledged, refused, to be sent again, and when. No network and no threads of its own."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.client.answers import EventsAnswer, RefusedEvent
from headrace.client.config import ClientConfig
from headrace.client.errors import AnswerError, HeadraceError, RefusedError, RetryableError
from headrace.client.event import user_of
from headrace.client.spool import Spool, Taken

logger = logging.getLogger(__name__)

OnRefused = Callable[[RefusedEvent], None]


@dataclass(frozen=True)
class Stats:
    """Numbers of events since the client was made: waiting, on the server's disk, refused by it, and damaged pieces in the spool."""

    waiting: int
    acknowledged: int
    refused: int
    damaged: int


class Outbox:
    """A spool and what became of what was taken from it. One thread takes and settles; the rest may be asked by any."""

    def __init__(self, spool: Spool, config: ClientConfig, on_refused: OnRefused | None) -> None:
        self.spool = spool
        self.trouble: HeadraceError | None = None
        self._config = config
        self._on_refused = on_refused
        self._batch_events = config.batch_events
        self._failures = 0
        self._refused_number = 0
        self._refused: deque[RefusedEvent] = deque(maxlen=config.remembered_refusals)
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        return self.spool.appended - self.spool.acknowledged

    @property
    def refused(self) -> tuple[RefusedEvent, ...]:
        with self._lock:
            return tuple(self._refused)

    def stats(self) -> Stats:
        with self._lock:
            acknowledged = self.spool.acknowledged
            refused = min(self._refused_number, acknowledged)
            return Stats(self.spool.appended - acknowledged, acknowledged - refused, refused, self.spool.damaged)

    def last_token(self, user: str) -> str | None:
        """Token of the last acknowledgement that held an event of this user key."""
        with self._lock:
            return self._tokens.get(user)

    def take(self) -> Taken:
        return self.spool.take(self._batch_events, self._config.batch_bytes)

    def settle(self, taken: Taken, outcome: EventsAnswer | HeadraceError) -> float:
        """Act on the outcome of sending `taken`. Returns the seconds to wait before the next attempt."""
        match outcome:
            case EventsAnswer():
                refused = {each.index: (each.field, each.reason) for each in outcome.refused}
                places = range(len(taken.events))
                if outcome.accepted + len(refused) != len(places) or not all(index in places for index in refused):
                    return self.failed(_miscounted(taken, outcome))
                return self._settled(taken, refused, outcome.token)
            case RefusedError():
                return self._settle_refusal(taken, outcome)
            case _:
                return self.failed(outcome)

    def failed(self, error: HeadraceError) -> float:
        """Nothing was acknowledged. Returns the seconds to wait before the next attempt."""
        self._failures += 1
        if type(error) is not type(self.trouble):
            logger.warning("events wait: %s", error)
        self.trouble = error
        asked_s = error.retry_after_s if isinstance(error, RetryableError) else None
        return self._config.backoff.delay_s(self._failures, asked_s)

    def _settle_refusal(self, taken: Taken, error: RefusedError) -> float:
        """A request that was refused as a whole, either event by event or for what it is: then smaller ones tell which it was."""
        listed = _listed(error.refused)
        if listed.keys() == set(range(len(taken.events))):
            return self._settled(taken, listed, None)
        if len(taken.events) == 1:
            return self._settled(taken, {0: (error.field or "event", error.reason)}, None)
        self._batch_events = len(taken.events) // 2
        return 0.0

    def _settled(self, taken: Taken, refused: dict[int, tuple[str, str]], token: str | None) -> float:
        decoded = [orjson.loads(event) for event in taken.events]
        for index, (field, reason) in sorted(refused.items()):
            self._refuse(RefusedEvent(event=decoded[index], field=field, reason=reason))
        if token is not None:
            self._remember([event for index, event in enumerate(decoded) if index not in refused], token)
        self.spool.ack(taken)
        if self.trouble is not None:
            logger.warning("events are taken again")
        self.trouble = None
        self._failures = 0
        self._batch_events = min(self._config.batch_events, self._batch_events * 2)
        return 0.0

    def _refuse(self, refused: RefusedEvent) -> None:
        with self._lock:
            self._refused_number += 1
            self._refused.append(refused)
        logger.warning("the server refused an event for its field %s", refused.field)
        if self._on_refused is not None:
            try:
                self._on_refused(refused)
            except Exception:
                logger.exception("on_refused failed; the events behind it are sent all the same")

    def _remember(self, events: Sequence[dict[str, Any]], token: str) -> None:
        with self._lock:
            for event in events:
                user = user_of(event)
                self._tokens[user] = token
                self._tokens.move_to_end(user)
            while len(self._tokens) > self._config.remembered_users:
                self._tokens.popitem(last=False)


def _listed(refused: Sequence[object]) -> dict[int, tuple[str, str]]:
    """(field, reason) by index, of refusals as the API lists them."""
    return {
        each["index"]: (str(each.get("field")), str(each.get("reason")))
        for each in refused
        if isinstance(each, dict) and isinstance(each.get("index"), int)
    }


def _miscounted(taken: Taken, answer: EventsAnswer) -> AnswerError:
    return AnswerError(
        f"{len(taken.events)} events were sent, but {answer.accepted} acknowledged and {len(answer.refused)} refused: "
        "is this address the API's, and of this version?"
    )
