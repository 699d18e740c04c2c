"""The client for asyncio."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
from anyio import CancelScope, to_thread

from headrace.client import calls
from headrace.client.answers import ItemsAnswer, Profile, Slate
from headrace.client.base import BaseClient
from headrace.client.calls import AnswerT, Call, Item, Options
from headrace.client.event import EventFields
from headrace.client.transport import ask_async
from headrace.events import EventIn, EventType


class AsyncClient(BaseClient):
    """`Client` for a program of tasks. Events are sent by a thread of the client's own, so a busy loop does not hold them up."""

    _http: httpx.AsyncClient

    def _connect(self) -> None:
        self._http = self._door.open_async(self._config.timeout_s)

    async def recommend(self, *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """Items for a user."""
        return await self._ask(calls.recommend(self._with_own_events(options, see_own_events)))

    async def rank(self, items: Sequence[str], *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """These items in the order that suits the user."""
        return await self._ask(calls.rank(items, self._with_own_events(options, see_own_events)))

    async def similar(self, items: Sequence[str], *, see_own_events: bool = False, **options: Unpack[Options]) -> Slate:
        """Items like these; with a user, in the order that suits them."""
        return await self._ask(calls.similar(items, self._with_own_events(options, see_own_events)))

    async def profile(self, user_id: str | None = None, *, anonymous_id: str | None = None) -> Profile:
        """What the store knows of a user now."""
        return await self._ask(calls.profile(user_id, anonymous_id))

    async def upsert_items(self, items: Sequence[Item]) -> ItemsAnswer:
        """Add items to the catalogue, or replace them. At most 1,000 at once; each refused one is in the answer."""
        return await self._ask(calls.change_items(items, {}, ()))

    async def set_availability(self, available: Mapping[str, bool]) -> ItemsAnswer:
        """Say of each item id whether it can be had."""
        return await self._ask(calls.change_items((), available, ()))

    async def delete_items(self, item_ids: Sequence[str]) -> ItemsAnswer:
        """Take items out of the catalogue."""
        return await self._ask(calls.change_items((), {}, item_ids))

    async def send(self, event: EventIn | Mapping[str, Any]) -> str:
        """Take an event to be sent; returns its id. Id and time are added where they are missing.

        Has returned when the event is in the spool: with a directory it is then sent, and counted once, whatever fails.
        Raises RefusedError for a bad event, SpoolFullError, ClosedError: then it was not taken. SpoolError: its disk failed, and it may be
        sent all the same, so send it again with the same `event_id`.
        """
        self._check()
        return await to_thread.run_sync(self._sending().send, event)

    async def track(self, type: EventType, **fields: Unpack[EventFields]) -> str:
        """`send` with the fields of the event as arguments."""
        return await self.send({"type": type, **fields})

    async def flush(self, timeout_s: float = 30.0) -> None:
        """Return when every event taken before is on the server's disk, or refused. Raises TimedOutError, ClosedError: nothing is lost."""
        await to_thread.run_sync(self._sending().flush, timeout_s, abandon_on_cancel=True)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Send what is left for at most `timeout_s`, then let go of everything. What is left in a directory waits for the next client.

        Raises UndeliveredError where events waited in memory and are lost now.
        """
        if self._may_close():
            with CancelScope(shield=True):
                await self._http.aclose()
                if self._sender is not None:
                    await to_thread.run_sync(self._sender.close, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Call[AnswerT]) -> AnswerT:
        self._check()
        return await ask_async(self._http, self._door, call)
