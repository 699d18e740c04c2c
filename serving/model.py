"""A bundle put to work for one replica's catalogue: retrieval, neighbours, ranking. All by rows of the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from headrace import names
from headrace.arrays import Floats, Ints, Mask
from headrace.firsts import firsts
from headrace.models.bundle import Bundle, BundleError
from headrace.models.columns import Columns
from headrace.models.index import ItemIndex
from headrace.models.neighbours import Neighbours
from headrace.models.shelf import FIRST, EncodedRows, Shelf, UserView
from serving.catalogue import Catalogue
from serving.interfaces import MODEL_ERRORS, Features

REBUILD_ABOVE: Final = 0.05
"""Share of items that the index was not built of at which it is built anew."""
_SAME: Final = 1e-4
_WARM_UP_ITEMS: Final = 200


@dataclass(frozen=True)
class ReadUser:
    """A user as the models read one, and the items of the history."""

    view: UserView
    history: Sequence[str]


class BundleModel:
    """What `serving.interfaces` asks of a model. Methods that read may run in any thread, `put` in the engine's alone."""

    def __init__(self, bundle: Bundle, catalogue: Catalogue, count: int | None = None) -> None:
        """Of the first `count` rows of a catalogue that may grow meanwhile, else of all; they must hold all items of the bundle.

        Raises BundleError where the bundle does not fit together or with it.
        """
        self._bundle = bundle
        self._activity_features = [number.name for number in bundle.preprocessing.activity_numbers]
        self._row_of = catalogue.row_of
        every = np.arange(len(catalogue) if count is None else count)
        try:
            bundled = catalogue.rows(bundle.items.item_ids)
            if len(bundled) < len(bundle.items.item_ids):
                raise ValueError(f"{len(bundle.items.item_ids) - len(bundled)} of its items are not in it")
            content = catalogue.content_of(every, self.content_features)
            items = bundle.items
            self._neighbours = Neighbours(items.neighbours_NK, items.neighbour_scores_NK, FIRST + bundled)
            self._shelf = Shelf(bundle.preprocessing, bundle.towers, bundle.ranker, content, self._neighbours)
            self._places = _Places(bundled, len(every))
            self._index = bundle.index
            self._note_changed(every, np.asarray(self._shelf.vectors(every)))
        except MODEL_ERRORS as error:
            raise BundleError(f"bundle {bundle.version} does not fit this catalogue: {error}") from error

    def warm_up(self, t_us: int) -> None:
        """Retrieve and rank for a user of whom nothing is known: what is done at first use is done here, not in a request. Raises
        BundleError where that fails.
        """
        try:
            user = self.read_user({}, t_us)
            self.retrieve(user, _WARM_UP_ITEMS, None)
            rows = np.arange(min(_WARM_UP_ITEMS, len(self._shelf)))
            scores = self.rank(user, rows, np.zeros((len(rows), len(self.activity_features))))
            if not np.isfinite(scores).all():
                raise ValueError("it gave a score that is not finite")
        except MODEL_ERRORS as error:
            raise BundleError(f"bundle {self.version} cannot rank: {error}") from error

    @property
    def version(self) -> str:
        return self._bundle.version

    @property
    def content_features(self) -> Sequence[str]:
        return self._bundle.preprocessing.content_features

    @property
    def activity_features(self) -> Sequence[str]:
        return self._activity_features

    @property
    def index_size(self) -> int:
        return len(self._index)

    def read_user(self, user: Features, t_us: int) -> ReadUser:
        history = user.get(names.RECENT_ITEMS)
        items = [] if history is None or not len(history) or history[0] is None else history[0]
        return ReadUser(self._shelf.user(user, t_us, self._row_of), items)

    def retrieve(self, user: ReadUser, k: int, allowed: Mask | None) -> tuple[Ints, Floats]:
        """The k items whose vectors have the largest inner product with the user's."""
        return self._search(user.view.vector, k, allowed)

    def neighbours(self, rows: Ints, k: int) -> tuple[Ints, Floats]:
        """Up to k items that people turn to around these, the items' shares equal, most similar first."""
        places = self._neighbours.places(FIRST + rows)
        places = places[places >= 0]
        if not len(places):
            return np.zeros(0, np.int64), np.zeros(0)
        share = max(1, k // len(places))
        near = self._neighbours.near_NK[places, :share].ravel().astype(np.int64)
        scores = self._neighbours.scores_NK[places, :share].ravel()
        order = np.argsort(-scores, kind="stable")
        order = order[near[order] >= 0]
        best = order[firsts(near[order])]
        return self._neighbours.row_N[near[best]] - FIRST, scores[best].astype(np.float64)

    def similar(self, rows: Ints, k: int, allowed: Mask | None) -> tuple[Ints, Floats]:
        """Items like these, by the cosine of their vectors with the mean direction of theirs."""
        seeds_RD = self._shelf.vectors(rows)
        wanted_1D = _directions(_directions(seeds_RD).mean(axis=0, keepdims=True))
        found, _ = self._search(wanted_1D, 4 * k + len(rows), allowed)
        cosines = (_directions(self._shelf.vectors(found)) @ wanted_1D[0]).astype(np.float64)
        best = np.argsort(-cosines, kind="stable")
        best = best[~np.isin(found[best], rows)][:k]
        return found[best], cosines[best]

    def rank(self, user: ReadUser, rows: Ints, activity: Floats) -> Floats:
        return np.asarray(self._shelf.rank(user.view, rows, activity), np.float64)

    def explain(self, user: ReadUser, rows: Ints, activity: Floats) -> list[Any]:
        return self._shelf.explain(user.view, rows, activity, user.history)

    def encode(self, content: Columns) -> EncodedRows:
        encoded: EncodedRows = self._shelf.encode(content)
        return encoded

    def put(self, rows: Ints, encoded: EncodedRows) -> None:
        """Replace items, or add some behind the last."""
        self._shelf.put(rows, encoded)
        self._note_changed(rows, encoded.vectors)

    @property
    def index_is_worn(self) -> bool:
        return self._index.side_share > REBUILD_ABOVE

    def rebuilt_index(self, count: int) -> tuple[ItemIndex, Ints]:
        """An index of the first `count` items as they are now, built as training built the bundle's; and their rows. Takes long."""
        rows = np.arange(count)
        return self._bundle.index.rebuilt(np.array(self._shelf.vectors(rows))), rows

    def take_index(self, index: ItemIndex, rows: Ints, changed: Ints) -> None:
        """Search this index from now on; items that came or changed since it was built are noted beside it."""
        self._index, self._places = index, _Places(rows, len(self._shelf))
        self._note_changed(changed, np.asarray(self._shelf.vectors(changed)))

    def _note_changed(self, rows: Ints, vectors: Any) -> None:
        """Let the index find rows whose vectors are not those that it was built of."""
        self._places.make_room(rows)
        places = self._places.of_rows(rows)
        built = places < self._index.facts.count
        same = np.zeros(len(rows), np.bool_)
        apart = np.abs(self._index.vectors_ND[places[built]] - vectors[built]).max(axis=1, initial=0.0)
        same[built] = apart <= _SAME * np.abs(vectors[built]).max(axis=1, initial=0.0)  # sums differ with the batch
        same[np.isin(places, self._index.side_rows_S)] = False
        self._index = self._index.with_changed(places[~same], vectors[~same])

    def _search(self, wanted_1D: Any, k: int, allowed: Mask | None) -> tuple[Ints, Floats]:
        mask = None if allowed is None else allowed[self._places.rows]
        rows_1K, scores_1K = self._index.search(wanted_1D, k, mask)
        found = rows_1K[0] >= 0
        return self._places.rows[rows_1K[0][found]], scores_1K[0][found].astype(np.float64)


class _Places:
    """Rows of the catalogue and their places in the index, one to one."""

    def __init__(self, rows: Ints, size: int) -> None:
        self.rows = rows
        self._place_of = np.full(size, -1, np.int64)
        self._place_of[rows] = np.arange(len(rows))

    def of_rows(self, rows: Ints) -> Ints:
        """-1 for a row that has none."""
        places = np.full(len(rows), -1, np.int64)
        held = rows < len(self._place_of)
        places[held] = self._place_of[rows[held]]
        return places

    def make_room(self, rows: Ints) -> None:
        """A place behind the last for each row that has none."""
        size = int(rows.max(initial=-1)) + 1
        if size > len(self._place_of):
            self._place_of = np.concatenate([self._place_of, np.full(size - len(self._place_of), -1)])
        new = rows[self._place_of[rows] < 0]
        self._place_of[new] = len(self.rows) + np.arange(len(new))
        self.rows = np.concatenate([self.rows, new])


def _directions(vectors_ND: Any) -> Any:
    """Of length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(lengths > 0, lengths, 1)
