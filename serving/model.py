"""A bundle put to work: an exact index over item vectors, the neighbour table and the ranker. Immutable once built."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from headrace import names
from headrace.models.bundle import Bundle, BundleError
from serving.interfaces import MODEL_ERRORS

Columns = Mapping[str, Sequence[Any]]

WARM_UP_ITEMS: Final = 200


class BundleModel:
    """What `serving.interfaces.Model` asks for, on a trained bundle. Safe for threads: nothing changes once built."""

    def __init__(self, bundle: Bundle, catalogue: Columns | None = None) -> None:
        """`catalogue`: `item_id` and the bundle's `content_features` of all items now; items newer than the bundle
        are embedded by content. Raises BundleError when the bundle does not fit together or with these columns.
        """
        faiss.omp_set_num_threads(1)
        self._bundle = bundle
        self._scorer = bundle.scorer()
        self._ids = list(bundle.items.item_ids)
        vectors_ND = bundle.items.vectors_ND
        try:
            if catalogue is not None and len(catalogue[names.ITEM_ID]):
                self._scorer.refresh_catalogue(_with_bundled(catalogue, bundle))
                new = _rows_not_in(catalogue, frozenset(self._ids))
                if new[names.ITEM_ID]:
                    vectors_ND = np.concatenate([vectors_ND, self._scorer.item_vectors(new)])
                    self._ids += new[names.ITEM_ID]
            self._index = _index_of(vectors_ND)
        except MODEL_ERRORS as error:
            raise BundleError(f"bundle {bundle.version} does not fit this catalogue: {error}") from error
        self._known = frozenset(self._ids)

    def warm_up(self, t_us: int) -> None:
        """Retrieve and rank for a user of whom nothing is known: what is done at first use is done here, not in a
        request. Raises BundleError where that fails.
        """
        try:
            self.retrieve({}, t_us, WARM_UP_ITEMS)
            self.rank({}, self._ids[:WARM_UP_ITEMS], {}, t_us)
        except MODEL_ERRORS as error:
            raise BundleError(f"bundle {self.version} cannot rank: {error}") from error

    @property
    def version(self) -> str:
        return self._bundle.version

    def knows(self, item_id: str) -> bool:
        return item_id in self._known

    def retrieve(self, user: Mapping[str, Any], t_us: int, k: int) -> list[tuple[str, float]]:
        """The k items whose vectors have the largest inner product with the user's."""
        vector_D = self._scorer.user_vector(_one(user), t_us)
        if not np.isfinite(vector_D).all():
            raise ValueError("the user's vector is not finite")
        scores_1K, rows_1K = self._index.search(vector_D[None].astype(np.float32), min(k, len(self._ids)))
        pairs = zip(rows_1K[0].tolist(), scores_1K[0].tolist(), strict=True)
        return [(self._ids[row], score) for row, score in pairs if row >= 0]

    def similar_items(self, item_ids: Sequence[str], k: int) -> list[tuple[str, float]]:
        """Up to k neighbours of these items, the items' shares equal, most similar first."""
        share = max(1, k // len(item_ids))
        best: dict[str, float] = {}
        for item_id in item_ids:
            for neighbour, score in self._bundle.items.neighbours(item_id, share):
                best[neighbour] = max(score, best.get(neighbour, score))
        return sorted(best.items(), key=lambda pair: -pair[1])

    def rank(
        self, user: Mapping[str, Any], item_ids: Sequence[str], items: Mapping[str, Any], t_us: int
    ) -> Sequence[float]:
        scores_N: list[float] = self._scorer.rank(_one(user), {**items, names.ITEM_ID: list(item_ids)}, t_us).tolist()
        return scores_N


def _one(features: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of one user to that user's values."""
    return {name: column[0] for name, column in features.items()}


def _index_of(vectors_ND: npt.NDArray[np.float32]) -> Any:
    if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
        raise ValueError(f"item vectors of shape {vectors_ND.shape} are not a finite matrix")
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    return index


def _rows_not_in(catalogue: Columns, known: frozenset[str]) -> dict[str, list[Any]]:
    places = [place for place, item in enumerate(catalogue[names.ITEM_ID]) if item not in known]
    return {name: [column[place] for place in places] for name, column in catalogue.items()}


def _with_bundled(catalogue: Columns, bundle: Bundle) -> dict[str, list[Any]]:
    """The catalogue now, and below it what only the bundle's snapshot still knows: histories may hold it."""
    old = bundle.snapshot.features
    missing = _rows_not_in(old, frozenset(catalogue[names.ITEM_ID]))
    wanted = (names.ITEM_ID, *bundle.preprocessing.content_features)
    return {name: [*catalogue[name], *missing[name]] for name in wanted}
