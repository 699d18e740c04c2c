"""The client for threads."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from headrace.client import calls
from headrace.client.answers import ItemsAnswer, Profile, Slate
from headrace.client.base import BaseClient
from headrace.client.calls import AnswerT, Call, Item, Options
from headrace.client.event import EventFields
from headrace.client.transport import ask
from headrace.events import EventIn, EventType


class Client(BaseClient):
    """The API in Python. Everything raises HeadraceError's kinds; see headrace.client.errors.

    `see_own_events=True` asks for an answer that has seen the user's last event that this client got acknowledged;
    `flush` first where that must be the last one sent.
    """

    _http: httpx.Client

    def _connect(self) -> None:
        self._http = self._door.open(self._config.timeout_s)

    def recommend(self, *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """Items for a user."""
        return self._ask(calls.recommend(self._with_own_events(options, see_own_events)))

    def rank(self, items: Sequence[str], *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """These items in the order that suits the user."""
        return self._ask(calls.rank(items, self._with_own_events(options, see_own_events)))

    def similar(self, items: Sequence[str], *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """Items like these; with a user, in the order that suits them."""
        return self._ask(calls.similar(items, self._with_own_events(options, see_own_events)))

    def profile(self, user_id: str | None = None, *, anonymous_id: str | None = None) -> Profile:
        """What the store knows of a user now."""
        return self._ask(calls.profile(user_id, anonymous_id))

    def upsert_items(self, items: Sequence[Item]) -> ItemsAnswer:
        """Add items to the catalogue, or replace them. At most 1,000 at once; each refused one is in the answer."""
        return self._ask(calls.change_items(items, {}, ()))

    def set_availability(self, available: Mapping[str, bool]) -> ItemsAnswer:
        """Say of each item id whether it can be had."""
        return self._ask(calls.change_items((), available, ()))

    def delete_items(self, item_ids: Sequence[str]) -> ItemsAnswer:
        """Take items out of the catalogue."""
        return self._ask(calls.change_items((), {}, item_ids))

    def send(self, event: EventIn | Mapping[str, Any]) -> str:
        """Take an event to be sent; returns its id. Id and time are added where they are missing.

        Has returned when the event is in the spool: with a directory it is then sent, and counted once, whatever fails.
        Raises RefusedError for a bad event, SpoolFullError, ClosedError: then it was not taken. SpoolError: its disk failed, and it may be
        sent all the same, so send it again with the same `event_id`.
        """
        self._check()
        return self._sending().send(event)

    def track(self, type: EventType, **fields: Unpack[EventFields]) -> str:
        """`send` with the fields of the event as arguments."""
        return self.send({"type": type, **fields})

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when every event taken before is on the server's disk, or refused. Raises TimedOutError, ClosedError: nothing is lost."""
        self._sending().flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is left for at most `timeout_s`, then let go of everything. What is left in a directory waits for the next client.

        Raises UndeliveredError where events waited in memory and are lost now.
        """
        if self._may_close():
            self._http.close()
            if self._sender is not None:
                self._sender.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Call[AnswerT]) -> AnswerT:
        self._check()
        return ask(self._http, self._door, call)
