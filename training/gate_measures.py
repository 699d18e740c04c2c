"""What the gate measures of a bundle. R requests, U users, N candidates, K places."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from headrace import names
from headrace.arrays import Floats, Floats32
from headrace.models.bundle import Bundle
from headrace.models.columns import Columns
from headrace.models.shelf import Shelf
from training import metrics
from training.champion import Champion
from training.config import TrainConfig, default
from training.intervals import Estimate, estimates
from training.made_up import MadeUp, made_up
from training.requests import read_requests
from training.scoring import Models, answer
from training.window import Window

CANDIDATES: Final = 200
_JUDGED_BY: Final = ("max_test", "max_ranked_requests", "seed", "resamples", "candidates")
"""The same of all, as `default()` has it."""
_COUNTED_BY: Final = ("outcome_hours", "min_rating")
"""What makes an episode of the test, as the champion has it: of a shop whose ratings go up to 10 another number is right."""
_REQUESTS: Final = 32
_TIMED: Final = 100
_ROUNDS: Final = 5
_SEARCHED: Final = 500
"""Items that a request asks the index for, about: some are filtered."""


@dataclass(frozen=True)
class Comparison:
    """NDCG@10 of a version and of the champion on the same requests; `gain` is the difference, request by request."""

    champion: str
    own: float
    theirs: float
    gain: Estimate
    requests: int
    users: int
    note: str | None = None


def compare(window: Window, champion: Champion) -> Comparison:
    """Both answer the same requests of the time after the version's cut, by a window of `judged_by`. Raises DatasetError where there is
    none.
    """
    config, split = window.config, window.split
    asked = read_requests(split.test, split.everything, window.models.shop.item_ids, config.max_test, config.seed).head(
        config.max_ranked_requests
    )

    def ndcg_of(models: Models) -> Floats:
        slates_RK = answer(models, asked, len(asked), window.store, config).ranked_RK
        one_R = np.ones(len(asked), np.int64)
        return metrics.ndcg_at(slates_RK == asked.target_T[:, None], one_R, 10)

    own_R, theirs_R = ndcg_of(window.models), ndcg_of(champion.models)
    gain = estimates({"gain": own_R - theirs_R}, asked.user_T, seed=config.seed, resamples=config.resamples)["gain"]
    return Comparison(
        champion.version,
        float(own_R.mean()),
        float(theirs_R.mean()),
        gain,
        len(asked),
        len(np.unique(asked.user_T)),
        champion.note,
    )


def judged_by(trained: TrainConfig, champion: Mapping[str, Any]) -> TrainConfig:
    """The version's own config, with numbers of the gate and of the champion's config in all that decides how it is measured.

    A version does not choose how it is judged: how many requests, drawn by what seed, how many candidates are ranked and how many resamples
    make the interval is the same of all, whatever the version was trained with. The offer too is held alike, since what ranks more of them
    would otherwise be asked something easier; and so is what counts as turning to an item. The cut alone is the version's: what came before
    it is what it learnt from.
    """
    own = default()
    counted = {name: champion[name] for name in _COUNTED_BY if name in champion}
    return trained.changed(**{name: getattr(own, name) for name in (*_JUDGED_BY, *_COUNTED_BY)} | counted)


@dataclass(frozen=True)
class Differences:
    """The largest ones between what serving computes and the modules: of scores; of vectors, for each unit of length."""

    scores: float
    users: float
    items: float
    requests: int
    candidates: int


def shelf_of(bundle: Bundle) -> Shelf:
    """As a replica of the bundle's own items has it."""
    return Shelf(bundle.preprocessing, bundle.towers, bundle.ranker, _content(bundle), bundle.neighbours)


def _content(bundle: Bundle) -> dict[str, list[Any]]:
    features, ids = bundle.snapshot.features, bundle.snapshot.item_id
    nothing = [None] * len(ids)
    return {names.ITEM_ID: ids} | {name: features.get(name, nothing) for name in bundle.preprocessing.content_features}


def differences(bundle: Bundle, shelf: Shelf) -> Differences:
    """Over requests that are made up. Raises ValueError for a vector that is not finite."""
    scorer, content = bundle.scorer(), _content(bundle)
    row_of = {item: row for row, item in enumerate(bundle.snapshot.item_id)}
    activity = [number.name for number in bundle.preprocessing.activity_numbers]
    requests = made_up(bundle, _REQUESTS, CANDIDATES)
    of_scores, of_users = [], []
    for each in requests:
        seen = shelf.user(_one_row(each.user), each.t_us, row_of)
        of_users.append(_apart(seen.vector[0], scorer.user_vector(each.user, each.t_us)))
        items: dict[str, Any] = {name: [column[row] for row in each.rows_N] for name, column in content.items()}
        items |= {name: each.activity_NA[:, place] for place, name in enumerate(activity)}
        wanted_N = scorer.rank(each.user, items, each.t_us)
        of_scores.append(float(np.abs(shelf.rank(seen, each.rows_N, each.activity_NA) - wanted_N).max(initial=0.0)))
    of_items = _apart(shelf.vectors(np.arange(len(shelf))), bundle.items.vectors_ND)
    candidates = min(CANDIDATES, len(bundle.items.item_ids))
    return Differences(max(of_scores), max(of_users), of_items, len(requests), candidates)


def _apart(one: Floats32, other: Floats32) -> float:
    """Of vectors, the last axis; those of no length at all count as of length 1."""
    lengths = np.linalg.norm(other, axis=-1)
    return float((np.linalg.norm(one - other, axis=-1) / np.where(lengths > 0, lengths, 1.0)).max(initial=0.0))


def _one_row(user: dict[str, Any]) -> Columns:
    return {name: [value] for name, value in user.items()}


@dataclass(frozen=True)
class Stopwatch:
    """Over requests, in milliseconds; `candidates` were ranked."""

    p99_ms: float
    p50_ms: float
    candidates: int


def time_models(bundle: Bundle, shelf: Shelf, rounds: int = _ROUNDS) -> Stopwatch:
    """What the models add to a request, one at a time: the user read, the index searched, candidates ranked.

    In time that the processor spends on this thread, and of some rounds each request's quickest counts: on a machine that trains or tests
    beside it, waiting for a processor, and a page or a cache that was taken away meanwhile, say nothing of the models. BLAS has one thread,
    as in a replica: with two, the one that asked turns idly for as long as the other waits for a processor.
    """
    requests = made_up(bundle, _TIMED, CANDIDATES, seed=1)
    row_of = {item: row for row, item in enumerate(bundle.snapshot.item_id)}
    rows = [(_one_row(each.user), each) for each in requests]
    took_RT = np.zeros((rounds, len(rows)))
    with threadpool_limits(1, user_api="blas"), _no_garbage_collected():
        for user, each in rows[:3]:  # what is compiled at first use is compiled here
            _answer(bundle, shelf, user, each, row_of)
        for number in range(rounds):
            for place, (user, each) in enumerate(rows):
                started = time.thread_time()
                _answer(bundle, shelf, user, each, row_of)
                took_RT[number, place] = 1_000 * (time.thread_time() - started)
    p50_ms, p99_ms = np.percentile(took_RT.min(axis=0), (50, 99))
    return Stopwatch(float(p99_ms), float(p50_ms), len(requests[0].rows_N))


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _answer(bundle: Bundle, shelf: Shelf, user: Columns, asked: MadeUp, row_of: dict[str, int]) -> None:
    view = shelf.user(user, asked.t_us, row_of)
    bundle.index.search(view.vector, _SEARCHED)
    shelf.rank(view, asked.rows_N, asked.activity_NA)
