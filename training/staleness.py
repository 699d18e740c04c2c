"""What real time is worth: the same models asked the same, with features as they stood some time before each request.

A store that is filled in batches answers a request at t with what it held at t - lag. So features are read as of t - lag, windows
and sequence, while what is computed at the request is computed at t: an event of the sequence is as old as it is then. The target
and what the user is not shown again stay those of t: freshness is not credited with filtering.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feast import FeatureStore

from headrace.arrays import Floats
from training.config import TrainConfig
from training.intervals import Estimate, estimates
from training.measures import MAIN, RANKED, TOWERS, Facts, values_of
from training.requests import Requests
from training.scoring import Models, Slates, answer
from training.spans import span_us
from training.stages import Say, silent


@dataclass(frozen=True)
class Lag:
    """`text` as it was written, and its microseconds."""

    text: str
    us: int


FRESH = Lag("0s", 0)


@dataclass(frozen=True)
class StalePoint:
    """What the methods measure at one lag; `loss` is NDCG@10 at that lag less that of fresh features, request by request."""

    lag: str
    lag_us: int
    methods: dict[str, dict[str, Estimate]]
    loss: dict[str, Estimate]


def parse_lags(text: str) -> tuple[Lag, ...]:
    """`0s,1m,1h,1d` in rising order, 0s always with them: it is what the others are compared to. Raises ValueError."""
    found = {FRESH.us: FRESH}
    for part in text.split(","):
        us = span_us(part)
        if us is None:
            raise ValueError(
                f"cannot read the lag {part.strip()!r} in {text!r}: write lags like 0s,1m,1h,1d (s, m, h or d)"
            )
        found.setdefault(us, Lag(part.strip(), us))
    return tuple(found[us] for us in sorted(found))


def value_of_freshness(
    models: Models,
    requests: Requests,
    lags: Sequence[Lag],
    fresh: Slates,
    facts: Facts,
    store: FeatureStore,
    config: TrainConfig,
    say: Say = silent,
) -> tuple[StalePoint, ...]:
    """Towers, and towers + ranker, at each lag, all requests by both. `fresh` is what they answer at lag 0."""
    values = {FRESH: _values(fresh, requests, facts)}
    points = []
    for lag in lags:
        if lag not in values:
            say(f"evaluation: the same with features {lag.text} old")
            slates = answer(models, requests, len(requests), store, config, lag_us=lag.us)
            values[lag] = _values(slates, requests, facts)
        lost = {name: values[lag][name][MAIN] - values[FRESH][name][MAIN] for name in (RANKED, TOWERS)}
        means = {
            name: estimates(each, requests.user_T, seed=config.seed, resamples=config.resamples)
            for name, each in values[lag].items()
        }
        loss = estimates(lost, requests.user_T, seed=config.seed, resamples=config.resamples)
        points.append(StalePoint(lag.text, lag.us, means, loss))
    return tuple(points)


def _values(slates: Slates, requests: Requests, facts: Facts) -> dict[str, dict[str, Floats]]:
    return {
        RANKED: values_of(slates.ranked_RK, requests, facts),
        TOWERS: values_of(slates.retrieved_TK, requests, facts),
    }
