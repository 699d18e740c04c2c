"""The fast online read: packed rows to NumPy columns, without protobuf. What the request path uses."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import redis

from headrace.aggregates.read import StreamRows
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.online_line import KeptLine, Sent
from headrace.stores.online_raw import RawRows
from headrace.stores.online_wire import Answer, ViewKeys, place_all, read
from headrace.stores.plain_rows import OnePlainRow, PlainLayout, PlainRows
from headrace.stores.shards import ShardStatus, check_deployment
from headrace.stores.state_rows import MixedRows, StateReader


@dataclass(frozen=True)
class Snapshot:
    """Rows of several views fetched in one round trip. `complete_us`: every event appended before that is in the stream rows.

    `waiting` names features of these views, `view.feature`, that are applied and not in the state yet: their values are null, or
    the old definition's. A stream view that the state does not have at all is in none of them.
    """

    streams: dict[str, StreamRows | MixedRows]
    plain: dict[str, PlainRows | OnePlainRow]
    complete_us: int
    waiting: tuple[str, ...] = ()

    @property
    def newest_us(self) -> int:
        """Time of the newest event in the stream rows, 0 if there is none."""
        return max((rows.newest_us for rows in self.streams.values()), default=0)


class OnlineReader:
    """Reads the online store's rows, by the definitions that they were made by. One per thread or process; opens nothing itself.

    `definitions` are those that are applied.
    """

    def __init__(
        self, client: "redis.Redis", definitions: Definitions, settings: Settings, *, keeps_line: bool = False
    ) -> None:
        """`keeps_line`: on a connection of its own, for one thread. To a cluster, and with TLS, there is no such thing."""
        self._redis = client
        self._line = KeptLine(client) if keeps_line and _is_plain(client) else None
        self._state = StateReader(client, settings, definitions)
        self._plain = definitions.plain
        self._settings = settings
        self._checked = False

    @property
    def definitions(self) -> Definitions:
        """What the rows are read by, at the last look. Raises redis.RedisError."""
        return self._state.state.definitions

    def note(self, statuses: Iterable[ShardStatus]) -> None:
        """Look at what somebody else has read of the shards: definitions are asked for again where it says something new."""
        self._state.note(statuses)

    def read_items(self, view: str, *, asks: bool = True) -> Callable[[Sequence[bytes | None]], StreamRows | MixedRows]:
        """Gives stored rows of a stream view their meaning, for a reader that keeps them (serving's columns of items).

        The function raises LookupError for a view that the state does not have, and what `fetch` raises. Unless it `asks`, it never waits
        for the store, any thread may call it, and rows of a definition that is not known yet are a StateMismatchError.
        """

        def read_rows(raws: Sequence[bytes | None]) -> StreamRows | MixedRows:
            rows = self._state.rows(view, raws) if asks else self._state.known_rows(view, raws)
            if rows is None:
                raise LookupError(f"the stored state has no view '{view}': run `headrace backfill`")
            return rows

        return read_rows

    def _read(
        self, placed: Sequence[ViewKeys], shards: Sequence[int], within_s: float | None, sent: Sent | None
    ) -> Answer:
        if self._line is None or not (shards or any(each.keys for each in placed)):
            return read(self._redis, placed, shards)
        deadline = None if within_s is None else time.monotonic() + within_s
        try:
            answer = self._line.take(sent, deadline) if sent is not None else None
        except redis.ConnectionError:  # it had been sent into a line that was broken already
            answer = None
        return answer or self._line.read(placed, shards, deadline)

    def close(self) -> None:
        """Give up the connection of its own, if it has one. The client is its owner's to close."""
        if self._line is not None:
            self._line.close()

    def ask(self, wanted: Mapping[str, Sequence[str]]) -> Sent | None:
        """Send a question whose answer `fetch` is going to take, from any thread and without waiting; None where that cannot be done."""
        if self._line is None:
            return None
        placed, stream_shards = self._place(wanted)
        return self._line.send(placed, stream_shards)

    def fetch(
        self, wanted: Mapping[str, Sequence[str]], within_s: float | None = None, sent: Sent | None = None
    ) -> Snapshot:
        """Rows of `{view: entity keys}`, in one round trip; `within_s` may shorten the time-outs of a reader that keeps its line. (The
        first read of all, and one that finds the state made by other definitions, ask the store more than that.)

        `sent` is what `ask` gave for the same. Questions are answered in the order in which they were sent, so they are taken in it.

        Raises DeploymentError where the store was made with another number of shards, redis.RedisError when the store does
        not answer, StateMismatchError on rows that are damaged or of a definition nobody knows.
        """
        if not self._checked:
            check_deployment(self._redis, record=False, shards=self._settings.shards)
            self._checked = True
        placed, stream_shards = (sent.wanted, sent.statuses) if sent is not None else self._place(wanted)
        # The status is read before the rows: a commit in between makes rows newer than it says, never older.
        answer = self._read(placed, stream_shards, within_s, sent)
        statuses = [ShardStatus.parse(raw) for raw in answer.statuses]
        found = dict(zip(wanted, answer.rows, strict=True))
        self._state.note(statuses)
        read_by_state = {
            view: self._state.rows(view, rows.to_list()) for view, rows in found.items() if view not in self._plain
        }
        streams = {view: rows for view, rows in read_by_state.items() if rows is not None}
        plain = {view: _plain_rows(self._plain[view], rows) for view, rows in found.items() if view in self._plain}
        complete = min((status.complete_us(self._settings.log_partitions) for status in statuses), default=0)
        waiting = tuple(name for name in self._state.state.waiting if name.partition(".")[0] in wanted)
        return Snapshot(streams, plain, complete, waiting)

    def _place(self, wanted: Mapping[str, Sequence[str]]) -> tuple[Sequence[ViewKeys], Sequence[int]]:
        """Keys by view, and the shards whose status says how complete the streams among them are."""
        placed = place_all(wanted, self._settings.shards)
        return placed, sorted({n for each in placed if each.view not in self._plain for n in each.shards})


def _is_plain(client: object) -> bool:
    """Whether this is a client of one server that is spoken to without TLS."""
    return isinstance(client, redis.Redis) and not issubclass(
        client.connection_pool.connection_class, redis.connection.SSLConnection
    )


def _plain_rows(layout: PlainLayout, rows: RawRows) -> PlainRows | OnePlainRow:
    if len(rows) == 1 and layout.is_simple:
        return layout.row(rows.to_list()[0])
    return layout.rows(rows)
