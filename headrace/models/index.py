"""Retrieval: which items' vectors have the largest inner product with a user's.

Exact while the catalogue is small; above that inverted lists (IVF), of which a search reads the `nprobe` nearest: as few
as reach the wanted recall on real users' vectors. The lists hold codes, half a byte for each dimension of what lies between a vector and
its centre, which are scored many at a time from registers (Andre, Kermarrec, Le Scouarnec, "Cache locality is not enough", VLDB 2015;
faiss's fast scan). The best by codes, `depth` times as many as are wanted, are scored again by their vectors. What has
come since the build stands in a small side, searched exactly.

Shape suffixes: N rows of the build, S rows of the side, R rows in all, D width, L lists, B queries, C candidates by codes, K results, Q
queries that recall is measured on. One module, though a long one: build, search, change and file of an index share what it is made of.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats32, Ints32
from headrace.kernel import fast_kernel, kernel

FILE: Final = "index.faiss"
EXACT_BELOW: Final = 20_000
# So few rows are scored faster one by one than by going through the lists.
FEW: Final = 5_000
LEAST_RECALL: Final = 0.95
# k-means learns from this many vectors for each list: more take longer and find no better lists.
_POINTS_PER_LIST: Final = 64
# How many times the wanted results are scored by their vectors: the first that reaches the wanted recall.
_DEPTHS: Final = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
# Of the rows that lists may miss, the share that codes may miss.
_LEFT_TO_CODES: Final = 0.1
_TRAINED_ON: Final = 65_536
_BITS: Final = 4
# Of a float: it is as large as zero.
_MINUS_ZERO: Final = -(2**31)

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]
Results = tuple[Rows, Floats32]


@dataclass(frozen=True)
class IndexFacts:
    """What was asked of the index and what was found when it was built. `count` and `width` are those of the vectors that it fits."""

    kind: Literal["exact", "ivf"]
    count: int
    width: int
    exact_below: int
    recall_target: float
    seed: int
    nlist: int = 0
    nprobe: int = 0
    depth: float = 1.0
    """Rows that are scored by their vectors, for each result."""
    recall_at_500: float = 1.0
    """Of the 500 best rows by exact search, the mean share that is found."""

    def __str__(self) -> str:
        if self.kind == "exact":
            return f"exact, {self.count} items"
        return (
            f"{self.kind}, {self.count} items, {self.nprobe} of {self.nlist} lists read, depth {self.depth:g}, "
            f"recall@500 {self.recall_at_500:.4f}"
        )

    def metrics(self) -> dict[str, float]:
        """One name for each number, as MLflow and `bundle.json` keep them."""
        return {
            "index_exact": float(self.kind == "exact"),
            "index_recall_at_500": self.recall_at_500,
            "index_nprobe": float(self.nprobe),
            "index_nlist": float(self.nlist),
            "index_depth": self.depth,
        }


@dataclass(frozen=True, eq=False)
class Allowed:
    """A mask made ready for any number of searches of the index that made it (`ItemIndex.allowing`)."""

    count: int
    """Rows that are allowed, of the build and of the side."""
    built_rows: Rows | None
    """Rows of the build to score one by one; None where all of it is to be searched, by `selector`."""
    built_count: int
    selector: Any | None
    side_places: Rows
    side_rows_S: Rows
    """Those of the index: it is known by them."""


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """Immutable and safe for threads: a changed index is another object, which shares the built part."""

    facts: IndexFacts
    vectors_ND: Floats32
    """The vectors of the build; those of changed rows are in the side."""
    queries_QD: Floats32
    """Users' vectors that recall was measured on, for whoever builds it anew."""
    _built: Any
    side_rows_S: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    side_SD: Floats32 = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    _all: Allowed = field(init=False, repr=False)
    _plain: Any = field(init=False, repr=False)
    """What a search without a mask is told, made once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_all", self._allowing_all())
        object.__setattr__(self, "_plain", faiss.SearchParametersIVF(nprobe=self.facts.nprobe))  # type: ignore[call-arg]

    @classmethod
    def build(
        cls,
        vectors_ND: Floats32,
        queries_QD: Floats32,
        *,
        exact_below: int = EXACT_BELOW,
        k: int = 500,
        recall_target: float = 0.97,
        seed: int = 0,
    ) -> "ItemIndex":
        """An index of rows 0..N-1. `queries_QD` are users' vectors; recall of the k best is measured on them.

        One seed gives one index. Raises ValueError for vectors that are not finite, for a recall_target outside [0.95, 1], and
        where N >= exact_below and there are no queries.
        """
        if not LEAST_RECALL <= recall_target <= 1:
            raise ValueError(f"recall_target is {recall_target}: choose from {LEAST_RECALL} to 1")
        vectors_ND, queries_QD = _matrix("item vectors", vectors_ND), _matrix("queries", queries_QD)
        count, width = vectors_ND.shape
        exact = IndexFacts("exact", count, width, exact_below, recall_target, seed)
        if count < exact_below:
            return cls(exact, vectors_ND, queries_QD, _flat(vectors_ND))
        if not len(queries_QD):
            raise ValueError(
                f"no queries: recall of an index of {count} items is measured on users' vectors, give some"
            )
        faiss.omp_set_num_threads(1)
        nlist = max(1, min(round(4 * count**0.5), count))
        built, list_N = _inverted_lists(vectors_ND, _centres(vectors_ND, nlist, seed))
        best_QK = _flat(vectors_ND).search(queries_QD, min(k, count))[1]
        lists = cls(replace(exact, kind="ivf", nlist=nlist), vectors_ND, queries_QD, built)
        return lists._reaching(recall_target, list_N, best_QK) or cls(exact, vectors_ND, queries_QD, _flat(vectors_ND))

    def rebuilt(self, vectors_ND: Floats32) -> "ItemIndex":
        """An index of other vectors, of which the same is asked as of this one, by the same users' vectors."""
        asked = self.facts
        return ItemIndex.build(
            vectors_ND,
            self.queries_QD,
            exact_below=asked.exact_below,
            recall_target=asked.recall_target,
            seed=asked.seed,
        )

    def __len__(self) -> int:
        """Rows in all, R: those of the build and those that were added."""
        return max(self.facts.count, int(self.side_rows_S.max(initial=-1)) + 1)

    @property
    def kind(self) -> str:
        """`exact` or `ivf`."""
        return self.facts.kind

    @property
    def nprobe(self) -> int:
        """Lists that a search reads; 0 where it is exact."""
        return self.facts.nprobe

    @property
    def recall_at_500(self) -> float:
        return self.facts.recall_at_500

    @property
    def side_share(self) -> float:
        """Rows in the side for each row of the build. Above about 0.05 it is time to build anew."""
        return len(self.side_rows_S) / max(1, self.facts.count)

    def search(self, queries_BD: Floats32, k: int, allowed: "Mask | Allowed | None" = None) -> Results:
        """The k best rows of each query, best first, and their inner products: (B, K) int64 and float32.

        `allowed` is a mask over the R rows, or one that `allowing` has made ready. Where fewer than k rows are found the
        rest is -1, with scores of minus infinity. Equal scores stand in the order of their rows; which of them are left
        out at the end is not said. Raises ValueError for queries that are not finite or not D wide.
        """
        queries_BD = _matrix("queries", queries_BD)
        if queries_BD.shape[1] != self.facts.width:
            raise ValueError(f"queries are {queries_BD.shape[1]} wide, the index's vectors {self.facts.width}")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        ready = self._all if allowed is None else allowed if isinstance(allowed, Allowed) else self.allowing(allowed)
        if ready.side_rows_S is not self.side_rows_S:
            raise ValueError("the mask was made ready for another index: call `allowing` of the one that is searched")
        parts = [self._search_built(queries_BD, k, ready)]
        if len(ready.side_places):
            scores_BS = queries_BD @ self.side_SD[ready.side_places].T
            parts.append(_best(scores_BS, self.side_rows_S[ready.side_places], k))
        return _merged(parts, k)

    def allowing(self, allowed_R: Mask) -> Allowed:
        """A mask over all R rows (nonzero: allowed), made ready. Raises ValueError for another shape."""
        mask_R = np.asarray(allowed_R)
        if mask_R.shape != (len(self),):
            raise ValueError(f"the mask has shape {mask_R.shape}, the index {len(self)} rows")
        mask_R = mask_R != 0
        side_places = np.flatnonzero(mask_R[self.side_rows_S])
        built_N = mask_R[: self.facts.count].copy()
        built_N[self.side_rows_S[self.side_rows_S < self.facts.count]] = False
        built_count = int(np.count_nonzero(built_N))
        few = built_count < FEW
        return Allowed(
            count=built_count + len(side_places),
            built_rows=np.flatnonzero(built_N) if few else None,
            built_count=built_count,
            selector=None if few else _selector(built_N),
            side_places=side_places,
            side_rows_S=self.side_rows_S,
        )

    def with_changed(self, rows_M: Rows | Sequence[int], vectors_MD: Floats32) -> "ItemIndex":
        """An index where these rows have other vectors (M, D). Rows from `len(self)` on are new ones, without a gap.

        Raises ValueError for rows that come twice or would leave a gap, and for vectors that are not finite or not D wide.
        """
        rows_M, vectors_MD = np.asarray(rows_M, dtype=np.int64), _matrix("changed vectors", vectors_MD)
        if rows_M.shape != (len(vectors_MD),) or len(np.unique(rows_M)) != len(rows_M):
            raise ValueError(f"{len(vectors_MD)} changed vectors need as many distinct rows, not {rows_M.shape}")
        if not len(rows_M):
            return self
        if vectors_MD.shape[1] != self.facts.width:
            raise ValueError(f"changed vectors are {vectors_MD.shape[1]} wide, the index's vectors {self.facts.width}")
        added = np.sort(rows_M[rows_M >= len(self)])
        if rows_M.min() < 0 or not np.array_equal(added, np.arange(len(self), len(self) + len(added))):
            raise ValueError(
                f"changed rows reach from {rows_M.min()} to {rows_M.max()}, the index has {len(self)} rows"
            )
        kept_S = ~np.isin(self.side_rows_S, rows_M)
        return replace(
            self,
            side_rows_S=np.concatenate([self.side_rows_S[kept_S], rows_M]),
            side_SD=np.concatenate([self.side_SD.reshape(-1, self.facts.width)[kept_S], vectors_MD]),
        )

    def recall(self, queries_QD: Floats32, best_QK: Rows) -> float:
        """Mean share of the results, as many as K, that score no less than the last of the exact best rows (Q, K)."""
        found_QK = self.search(queries_QD, best_QK.shape[1])[0]
        shares = []
        for query_D, found_K, best_K in zip(queries_QD, found_QK, best_QK, strict=True):
            least = (self.vectors_ND[best_K] @ query_D).min()
            scores_K = self.vectors_ND[found_K[found_K >= 0]] @ query_D
            shares.append(np.count_nonzero(scores_K >= least - 1e-6 * abs(least)) / len(best_K))
        return float(np.mean(shares))

    def save(self, path: Path) -> None:
        """Write what the vectors do not say: one line of JSON, then the lists, if there are any.

        Raises ValueError where there is a side: only what was built is kept.
        """
        if len(self.side_rows_S):
            raise ValueError(f"the index has {len(self.side_rows_S)} rows beside those it was built of: build it anew")
        with path.open("wb") as file:
            file.write(json.dumps(asdict(self.facts)).encode() + b"\n")
            np.save(file, self.queries_QD)
            if self.kind != "exact":
                faiss.serialize_index(self._built).tofile(file)

    @classmethod
    def load(cls, path: Path, vectors_ND: Floats32) -> "ItemIndex":
        """The index that was saved, over the vectors it was built of. Raises ValueError where they do not fit."""
        vectors_ND = _matrix("item vectors", vectors_ND)
        with path.open("rb") as file:
            facts = IndexFacts(**json.loads(file.readline()))
            queries_QD = np.load(file)
            stored = np.frombuffer(file.read(), dtype=np.uint8)
        if (facts.count, facts.width) != vectors_ND.shape:
            raise ValueError(
                f"the index is of {facts.count} vectors {facts.width} wide, the items have {vectors_ND.shape[0]} "
                f"{vectors_ND.shape[1]} wide"
            )
        if facts.kind == "exact":
            return cls(facts, vectors_ND, queries_QD, _flat(vectors_ND))
        built: Any = faiss.deserialize_index(stored)
        if (built.ntotal, built.d) != vectors_ND.shape:
            raise ValueError(f"its lists hold {built.ntotal} vectors {built.d} wide, not {facts.count}, {facts.width}")
        return cls(facts, vectors_ND, queries_QD, built)

    def _reaching(self, recall_target: float, list_N: Rows, best_QK: Rows) -> "ItemIndex | None":
        """With as few lists, and of those with as little depth, as reach the recall. None where all lists do not, at the greatest depth:
        vectors that no code tells apart.
        """
        missable = _LEFT_TO_CODES * (1 - recall_target)
        nprobe = _enough_probes(self._built, list_N, best_QK, self.queries_QD, recall_target + missable)
        while True:
            for depth in _DEPTHS:
                index = replace(self, facts=replace(self.facts, nprobe=nprobe, depth=depth))
                recall = index.recall(self.queries_QD, best_QK)
                if recall >= recall_target:
                    return replace(index, facts=replace(index.facts, recall_at_500=recall))
            if nprobe >= self.facts.nlist:
                return None
            nprobe = min(nprobe + max(1, nprobe // 8), self.facts.nlist)

    def _allowing_all(self) -> Allowed:
        if len(self.side_rows_S):
            return self.allowing(np.ones(len(self), dtype=np.bool_))
        return Allowed(self.facts.count, None, self.facts.count, None, self.side_rows_S, self.side_rows_S)

    def _search_built(self, queries_BD: Floats32, k: int, allowed: Allowed) -> Results:
        if allowed.built_rows is not None:
            return _best(queries_BD @ self.vectors_ND[allowed.built_rows].T, allowed.built_rows, k)
        faiss.omp_set_num_threads(1)  # OpenMP keeps this for each thread
        wanted = min(k, allowed.built_count)
        if not wanted:
            return _best(np.zeros((len(queries_BD), 0), dtype=np.float32), np.zeros(0, dtype=np.int64), k)
        if self.kind == "exact":
            parameters = None
            if allowed.selector is not None:
                parameters = faiss.SearchParameters(sel=allowed.selector)  # type: ignore[call-arg]
            return _ordered(self._built.search(queries_BD, wanted, params=parameters))
        # The fewer rows are allowed, the more lists hold the k best of them.
        nprobe = min(self.facts.nlist, -(-self.nprobe * self.facts.count // allowed.built_count))
        scored = min(int(np.ceil(wanted * self.facts.depth)), allowed.built_count)
        rows_BC = self._probe(queries_BD, scored, nprobe, allowed.selector)
        if nprobe < self.facts.nlist and (rows_BC[:, wanted - 1] < 0).any():
            rows_BC = self._probe(queries_BD, scored, self.facts.nlist, allowed.selector)
        scores_BC = np.empty(rows_BC.shape, np.float32)
        _score(self.vectors_ND, queries_BD, rows_BC, scores_BC)
        return _top(rows_BC, scores_BC, wanted)

    def _probe(self, queries_BD: Floats32, k: int, nprobe: int, selector: Any | None) -> Rows:
        """Rows by their codes, best first; -1 behind the last."""
        parameters = self._plain
        if selector is not None or nprobe != self.nprobe:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)  # type: ignore[call-arg]
        return self._built.search(queries_BD, k, params=parameters)[1]  # type: ignore[no-any-return]


def _matrix(what: str, given: npt.ArrayLike) -> Floats32:
    """Shape (rows, width), float32, in C order and finite, or ValueError."""
    matrix = np.ascontiguousarray(given, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise ValueError(f"{what} have shape {matrix.shape}; give rows of at least one number")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"{what}: row {row} holds NaN or an infinite number")
    return matrix


def _selector(allowed_N: npt.NDArray[np.bool_]) -> Any:
    packed = np.packbits(allowed_N, bitorder="little")
    return faiss.IDSelectorBitmap(packed)  # type: ignore[call-arg, arg-type]


def _flat(vectors_ND: Floats32) -> Any:
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    return index


def _centres(vectors_ND: Floats32, nlist: int, seed: int) -> Floats32:
    """Centres of vectors that lie near each other: by distance, not by product as faiss would find them for this metric. A third to half
    as many lists then do for the same recall (docs/adr/0013-inverted-lists-for-large-catalogues.md).
    """
    width = vectors_ND.shape[1]
    means = faiss.Kmeans(
        width, nlist, niter=10, seed=seed, max_points_per_centroid=_POINTS_PER_LIST, min_points_per_centroid=1
    )
    means.train(vectors_ND)
    return np.asarray(means.centroids)


def _inverted_lists(vectors_ND: Floats32, centres_LD: Floats32) -> tuple[Any, Rows]:
    """Lists of the vectors nearest to each centre, to be read in the order of its product with the query; and the list of each, (N,)."""
    count, width = vectors_ND.shape
    by_distance = faiss.IndexFlatL2(width)
    by_distance.add(centres_LD)
    lists = len(centres_LD)
    built: Any = faiss.IndexIVFPQFastScan(by_distance, width, lists, width, _BITS, faiss.METRIC_INNER_PRODUCT)
    built.by_residual = True
    built.train(vectors_ND[:: -(-count // _TRAINED_ON)])
    built.add(vectors_ND)
    by_product = _flat(centres_LD)
    by_product.this.disown()
    built.quantizer, built.own_fields = by_product, True
    list_N = np.empty(count, np.int64)
    for number in range(len(centres_LD)):
        if size := built.invlists.list_size(number):
            list_N[faiss.rev_swig_ptr(built.invlists.get_ids(number), size)] = number
    return built, list_N


def _enough_probes(built: Any, list_N: Rows, best_QK: Rows, queries_QD: Floats32, recall_target: float) -> int:
    """The fewest lists that hold the wanted share of the best rows, mean over the queries.

    A row can be found only where its list is read, and lists are read in the order of the query's product with their centres: so each
    row's need is the place of its list in that order.
    """
    order_QL = built.quantizer.search(queries_QD, built.nlist)[1]
    place_QL = np.empty_like(order_QL)
    np.put_along_axis(place_QL, order_QL, np.arange(built.nlist)[None], axis=1)
    need_QK = np.take_along_axis(place_QL, list_N[best_QK], axis=1)
    found = np.bincount(need_QK.ravel(), minlength=built.nlist).cumsum() / need_QK.size
    return int(np.searchsorted(found, recall_target - 1e-9)) + 1


@fast_kernel
def _score(vectors_ND: Floats32, queries_BD: Floats32, rows_BC: Rows, scores_BC: Floats32) -> None:
    """Products of each query with its rows; minus infinity where there is none."""
    for b in range(len(rows_BC)):
        for c in range(rows_BC.shape[1]):
            row = rows_BC[b, c]
            total = np.float32(0.0 if row >= 0 else -np.inf)
            if row >= 0:
                for d in range(vectors_ND.shape[1]):
                    total += vectors_ND[row, d] * queries_BD[b, d]
            scores_BC[b, c] = total


def _best(scores_BS: Floats32, rows_S: Rows, k: int) -> Results:
    """The k best of rows that all queries have scored."""
    return _top(np.repeat(rows_S[None], len(scores_BS), axis=0), scores_BS, k)


def _top(rows_BC: Rows, scores_BC: Floats32, k: int) -> Results:
    """The k best of each query's rows, best first; equal scores in the order of their rows."""
    keys_BC = np.empty(rows_BC.shape, np.int64)
    _pack(rows_BC, scores_BC.view(np.int32), keys_BC)
    keys_BC.sort(axis=1)
    keys_BK = keys_BC[:, :k]
    rows_BK, bits_BK = np.empty(keys_BK.shape, np.int64), np.empty(keys_BK.shape, np.int32)
    _unpack(keys_BK, rows_BK, bits_BK)
    return rows_BK, bits_BK.view(np.float32)


@kernel
def _pack(rows_BC: Rows, bits_BC: Ints32, keys_BC: Rows) -> None:
    """Numbers that sort as scores do, the highest first, and then as rows: they are sorted several times as fast as pairs."""
    for b in range(len(rows_BC)):
        for c in range(rows_BC.shape[1]):
            bits = np.int64(bits_BC[b, c])
            if bits == _MINUS_ZERO:
                bits = np.int64(0)
            rising = bits if bits >= 0 else bits ^ np.int64(0x7FFFFFFF)
            keys_BC[b, c] = (~rising << 32) | (rows_BC[b, c] & np.int64(0xFFFFFFFF))


@kernel
def _unpack(keys_BK: Rows, rows_BK: Rows, bits_BK: Ints32) -> None:
    for b in range(len(keys_BK)):
        for k in range(keys_BK.shape[1]):
            key = keys_BK[b, k]
            rows_BK[b, k] = np.int32(key & np.int64(0xFFFFFFFF))
            rising = ~(key >> 32)
            bits_BK[b, k] = np.int32(rising if rising >= 0 else rising ^ np.int64(0x7FFFFFFF))


def _ordered(found: tuple[Floats32, Rows]) -> Results:
    """faiss's results, its own mark for none replaced and ties in the order of rows."""
    scores_BK, rows_BK = found
    _order_ties(scores_BK, rows_BK)
    return rows_BK, scores_BK


@kernel
def _order_ties(scores_BK: Floats32, rows_BK: Rows) -> None:
    """In place; scores go down."""
    for b in range(len(rows_BK)):
        scores_K, rows_K = scores_BK[b], rows_BK[b]
        begin = 0
        for k in range(len(rows_K)):
            if rows_K[k] < 0:
                scores_K[k] = -np.inf
            if scores_K[k] != scores_K[begin]:
                if k - begin > 1:
                    rows_K[begin:k].sort()
                begin = k
        if len(rows_K) - begin > 1:
            rows_K[begin:].sort()


def _merged(parts: Sequence[Results], k: int) -> Results:
    rows_BK, scores_BK = parts[0]
    if len(parts) > 1:
        rows_BK, scores_BK = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
        rows_BK, scores_BK = _top(rows_BK, scores_BK, k)
    rows_BK, scores_BK = rows_BK[:, :k], scores_BK[:, :k]
    short = k - rows_BK.shape[1]
    if short:
        rows_BK = np.pad(rows_BK, ((0, 0), (0, short)), constant_values=-1)
        scores_BK = np.pad(scores_BK, ((0, 0), (0, short)), constant_values=-np.inf)
    return rows_BK, scores_BK
