"""Stored rows read by the definitions that they were made by, whatever is applied meanwhile.

A row begins with the fingerprint of its definition, and the store keeps definitions by fingerprint. While a backfill exchanges the
shards one by one, rows of both states come in one read: each is read by its own, and a feature that one of them lacks is null there.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows, Values
from headrace.aggregates.rows import StateMismatchError
from headrace.aggregates.spec import ViewSpec, arrow_type
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.shards import ShardStatus, read_status
from headrace.stores.state_definitions import StateDefinitions, known_definitions, state_definitions

Rows = Sequence[bytes | None]


class StateReader:
    """Gives rows of stream views their meaning. Asks the store for definitions at the first use, and when the state has changed."""

    def __init__(self, client: "redis.Redis", settings: Settings, applied: Definitions | None = None) -> None:
        self._redis = client
        self._settings = settings
        self._applied = applied
        self._layouts: dict[str, Layout] = {}
        self._by_fingerprint: dict[int, Layout] = {}
        self._seen: set[frozenset[tuple[str, int]]] | None = None
        self._state: StateDefinitions | None = None

    @property
    def state(self) -> StateDefinitions:
        """What the state was made by, at the last look. Raises redis.RedisError, DefinitionError."""
        return self._state or self.refresh()

    def refresh(self) -> StateDefinitions:
        """Ask the store what its state was made by. Raises redis.RedisError, DefinitionError."""
        seen = {_claims(status) for status in read_status(self._redis, range(self._settings.shards)).values()}
        state = state_definitions(self._redis, self._settings, self._applied)
        self._layouts = {view: self._layout(spec) for view, spec in state.streams.items()}
        self._state, self._seen = state, seen
        return state

    def note(self, statuses: Iterable[ShardStatus]) -> None:
        """Look at what was read with some rows; ask the store again where it says what no shard has said before."""
        if self._seen is None or any(_claims(status) not in self._seen for status in statuses):
            self.refresh()

    def rows(self, view: str, raws: Rows) -> "StreamRows | MixedRows | None":
        """Rows ready to read; None for a view that the state does not have (yet). Statuses that came with them go to `note` first.

        Raises StateMismatchError for a row of a definition that nobody knows.
        """
        layout = self._layouts.get(view)
        if layout is None:
            return None
        try:
            return StreamRows(layout, list(raws))
        except StateMismatchError:  # another state than at the last look, two of them, or a damaged row
            self.refresh()
        layout = self._layouts.get(view)
        return None if layout is None else self._by_row(layout, raws)

    def known_rows(self, view: str, raws: Rows) -> "StreamRows | MixedRows | None":
        """As `rows`, by the definitions that are known already: nobody is asked. Raises StateMismatchError where those do not do."""
        layout = self._layouts.get(view)
        if layout is None:
            return None
        try:
            return StreamRows(layout, list(raws))
        except StateMismatchError:
            fingerprints = {fingerprint_of(raw) for raw in raws if raw is not None}
            if fingerprints <= {layout.spec.fingerprint} or not fingerprints <= self._by_fingerprint.keys():
                raise  # damaged, or of a definition that is not known yet
            return MixedRows(layout, raws, {each: self._by_fingerprint[each] for each in fingerprints})

    def _by_row(self, layout: Layout, raws: Rows) -> "StreamRows | MixedRows":
        if _is_of(layout, raws):
            return StreamRows(layout, list(raws))
        fingerprints = {fingerprint_of(raw) for raw in raws if raw is not None}
        for spec in known_definitions(self._redis, fingerprints - set(self._by_fingerprint)).values():
            self._layout(spec)
        unknown = sorted(fingerprints - set(self._by_fingerprint))
        view = layout.spec.name
        if unknown or any(self._by_fingerprint[each].spec.name != view for each in fingerprints):
            raise StateMismatchError(
                f"a stored row of view '{view}' has fingerprint {(unknown or sorted(fingerprints))[0]:016x}, which is no "
                "definition of it that the store knows: run `headrace backfill`"
            )
        return MixedRows(layout, raws, {each: self._by_fingerprint[each] for each in fingerprints})

    def _layout(self, spec: ViewSpec) -> Layout:
        return self._by_fingerprint.setdefault(spec.fingerprint, Layout(spec))


class MixedRows:
    """Rows of one view that were made by several definitions. Reads like StreamRows; `layout` says which features there are."""

    def __init__(self, layout: Layout, raws: Rows, layouts: Mapping[int, Layout]) -> None:
        self.layout = layout
        self._length = len(raws)
        places: dict[int, list[int]] = {}
        for place, raw in enumerate(raws):
            places.setdefault(layout.spec.fingerprint if raw is None else fingerprint_of(raw), []).append(place)
        self._groups = [
            (np.array(group, np.int64), StreamRows(layouts.get(each, layout), [raws[place] for place in group]))
            for each, group in places.items()
        ]

    def __len__(self) -> int:
        return self._length

    @property
    def newest_us(self) -> int:
        return max((rows.newest_us for _, rows in self._groups), default=0)

    @property
    def newest_each_us(self) -> npt.NDArray[np.int64]:
        newest = np.zeros(self._length, np.int64)
        for places, rows in self._groups:
            newest[places] = rows.newest_each_us
        return newest

    def values(self, t_us: int, features: Sequence[str] | None = None) -> dict[str, Values]:
        """As StreamRows has it; null for rows whose definition lacks a feature, or has another type of it."""
        spec = self.layout.spec
        wanted = spec.aggregates if features is None else [spec.aggregate(name) for name in features]
        kinds = {each.name: arrow_type(each) for each in wanted}
        parts = [(places, self._part(rows, kinds, t_us)) for places, rows in self._groups]
        return {name: _merge(kind, self._length, parts, name) for name, kind in kinds.items()}

    def _part(self, rows: StreamRows, kinds: Mapping[str, pa.DataType], t_us: int) -> dict[str, Values]:
        has = [each.name for each in rows.layout.spec.aggregates if kinds.get(each.name) == arrow_type(each)]
        return rows.values(t_us, has)


def fingerprint_of(raw: bytes) -> int:
    """The fingerprint that a row begins with."""
    return int.from_bytes(raw[:8], "little")


def _claims(status: ShardStatus) -> frozenset[tuple[str, int]]:
    """What a shard with events says that its views are; nothing for an empty one."""
    return frozenset(status.fingerprints.items()) if any(status.positions.values()) else frozenset()


def _is_of(layout: Layout, raws: Rows) -> bool:
    own = layout.spec.fingerprint.to_bytes(8, "little")
    return all(raw is None or raw[:8] == own for raw in raws)


def _merge(
    kind: pa.DataType, length: int, parts: Sequence[tuple[npt.NDArray[np.int64], dict[str, Values]]], name: str
) -> Values:
    if pa.types.is_list(kind) or pa.types.is_string(kind):
        listed: list[object] = [None] * length
        for places, values in parts:
            for place, value in zip(places.tolist(), values.get(name, [None] * len(places)), strict=True):
                listed[place] = value
        return listed
    is_whole = pa.types.is_integer(kind) and all(name in values for _, values in parts)
    numbers = np.zeros(length, np.int64) if is_whole else np.full(length, np.nan)
    for places, values in parts:
        if name in values:
            numbers[places] = np.asarray(values[name])
    return numbers
