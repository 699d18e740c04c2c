"""The simulated shop before anybody comes in: its size, its stock, and its visitors with their latent tastes."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.arrays import Floats, Ints
from headrace.ingest.source import ItemRow, ProfileRow
from headrace.settings import DAY_US, HOUR_US

_SEGMENTS: Final = ("bargain", "family", "premium", "trend")
_PRICE_LEVEL: Final = np.array([0.6, 1.0, 2.2, 1.4])
_COUNTRIES: Final = ("DE", "FR", "GB", "IT", "NL", "US")
_KINDS: Final = (
    "shoes", "lamps", "books", "headphones", "jackets", "kettles", "phones", "puzzles", "tents", "watches",
    "bicycles", "cameras", "chairs", "cosmetics", "guitars", "knives", "printers", "rugs", "seeds", "toys",
)  # fmt: skip
_MAKERS: Final = (
    "Acorn", "Birch", "Cobalt", "Dune", "Ember", "Fjord", "Grove", "Harbor", "Iris", "Juniper", "Kite", "Lark",
)  # fmt: skip
_WORDS: Final = ("Classic", "Light", "Pro", "Mini", "Urban", "Trail", "Nova", "Prime", "Echo", "Terra")
# How many times more a segment looks at the brands that are made for it, and how fast tastes drift in a day.
_OWN_BRAND: Final = 8.0
_DRIFT: Final = 0.1


@dataclass(frozen=True)
class ShopConfig:
    """The shop's size, span and seed. `events` is met to within one session."""

    users: int = 2_000
    items: int = 1_000
    categories: int = 20
    events: int = 60_000
    days: int = 7
    seed: int = 0
    end_us: int = 1_767_225_600_000_000
    """No event is at or after this time (default 2026-01-01 00:00 UTC); the history begins `days` before it."""
    anonymous: float = 0.15
    """Share of visitors without a user_id and a profile."""

    def __post_init__(self) -> None:
        for name in ("users", "items", "categories", "events", "days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a shop needs at least 1")
        if self.items < self.categories:
            raise ValueError(f"items is {self.items} and categories {self.categories}: each category needs an item")
        if not 0 <= self.anonymous <= 1:
            raise ValueError(f"anonymous is {self.anonymous}: it is a share between 0 and 1")

    @property
    def start_us(self) -> int:
        return self.end_us - self.days * DAY_US


@dataclass(frozen=True)
class Stock:
    """The catalogue over time. Items are numbers from 0; H hours, C categories, S segments."""

    ids: list[str]
    rows: list[ItemRow]
    """Every state of every item, in item order."""
    category: list[int]
    segment: list[int]
    """The segment that an item's brand is made for."""
    kinds: list[str]
    members: list[Ints]
    """Items of each category."""
    demand: list[Floats]
    """For each category, shape (H, S + 1, members): running totals of the chances, by segment and for anybody."""
    popularity: Floats
    """Shape (H, items): running total of the chances over the whole catalogue."""
    repriced_us: list[int]
    prices: list[tuple[float, float]]
    """Before and after `repriced_us`."""

    def pick(self, category: int, segment: int, hour: int, chance: float) -> int:
        """An item of the category, as a visitor of that segment (-1: anybody) chooses; `chance` is in [0, 1)."""
        totals = self.demand[category][hour, segment]
        return int(self.members[category][totals.searchsorted(chance * totals[-1], side="right")])

    def pick_popular(self, hour: int, chance: float) -> int:
        totals = self.popularity[hour]
        return int(totals.searchsorted(chance * totals[-1], side="right"))

    def price(self, item: int, at_us: int) -> float:
        return self.prices[item][at_us >= self.repriced_us[item]]


@dataclass(frozen=True)
class Visitors:
    """Who comes. Visitors are numbers from 0; the first `known` of them have a profile."""

    identity: list[dict[str, str]]
    """The event field that names each visitor."""
    rows: list[ProfileRow]
    segment: list[int]
    taste: list[list[list[float]]]
    """Shape (days, visitors, C): running total of the distribution over categories."""
    activity: Floats
    """Share of all sessions, shape (visitors,)."""


def stock_shop(config: ShopConfig, rng: np.random.Generator) -> Stock:
    """Draw the catalogue: one item in seven is listed during the history, some change price, a few are withdrawn."""
    n = config.items
    category = np.arange(n) % config.categories
    segment = rng.integers(len(_SEGMENTS), size=n)
    first_of_category = np.arange(n) < config.categories
    popularity = (1 + rng.permutation(n) // config.categories) ** -0.7
    listed_us = config.start_us - (1 + rng.integers(180, size=n)) * DAY_US
    arrives = (rng.random(n) < 1 / 7) & ~first_of_category
    listed_us = np.where(arrives, _moments(config, rng, n), listed_us)
    repriced_us = np.where(rng.random(n) < 0.1, _moments(config, rng, n), config.end_us)
    repriced_us = np.where(repriced_us > listed_us, repriced_us, config.end_us)
    withdrawn = (rng.random(n) < 0.03) & ~arrives & ~first_of_category
    withdrawn_us = np.where(withdrawn, _moments(config, rng, n), config.end_us)
    level = rng.lognormal(3.5, 0.6, config.categories)
    price = np.round(level[category] * _PRICE_LEVEL[segment] * rng.lognormal(0, 0.2, n), 2)
    new_price = np.round(price * rng.uniform(0.7, 1.2, n), 2)

    hours = config.start_us + np.arange(config.days * 24)[:, None] * HOUR_US
    weight = popularity * ((listed_us <= hours) & (withdrawn_us >= hours + HOUR_US))
    members = [np.flatnonzero(category == c) for c in range(config.categories)]
    liking = np.where(segment == np.arange(len(_SEGMENTS) + 1)[:, None], _OWN_BRAND, 1.0)
    liking[-1] = 1.0
    demand = [np.cumsum(weight[:, None, group] * liking[None, :, group], axis=-1) for group in members]

    kinds = [kind if turn == 0 else f"{kind} {turn + 1}" for turn, kind in map(_kind, range(config.categories))]
    ids = [f"item-{i:05d}" for i in range(n)]
    rows: list[ItemRow] = []
    for i, item_id in enumerate(ids):
        kind, brand = kinds[category[i]], _MAKERS[segment[i] * 3 + category[i] % 3]
        title = f"{brand} {_WORDS[i // 7 % len(_WORDS)]} {kind} {i}"
        at_us = int(listed_us[i])
        row = ItemRow(item_id, at_us, title, kind, brand, float(price[i]), listed_at=at_us)
        rows.append(row)
        if repriced_us[i] < withdrawn_us[i]:
            row = row._replace(event_timestamp_us=int(repriced_us[i]), price=float(new_price[i]))
            rows.append(row)
        if withdrawn[i]:
            rows.append(row._replace(event_timestamp_us=int(withdrawn_us[i]), available=False))
    return Stock(
        ids=ids,
        rows=rows,
        category=category.tolist(),
        segment=segment.tolist(),
        kinds=kinds,
        members=members,
        demand=demand,
        popularity=np.cumsum(weight, axis=-1),
        repriced_us=repriced_us.tolist(),
        prices=list(zip(price.tolist(), new_price.tolist(), strict=True)),
    )


def _kind(category: int) -> tuple[int, str]:
    """How often all kinds have been used before this category, and its kind."""
    turn, kind = divmod(category, len(_KINDS))
    return turn, _KINDS[kind]


def invite_visitors(config: ShopConfig, rng: np.random.Generator) -> Visitors:
    """Draw the visitors, their tastes day by day, and how often each comes."""
    n, known = config.users, config.users - round(config.users * config.anonymous)
    segment = rng.integers(len(_SEGMENTS), size=n)
    leaning = rng.dirichlet(np.full(config.categories, 0.5), size=len(_SEGMENTS))[segment]
    taste = np.empty((config.days, n, config.categories))
    taste[0] = _tastes(leaning, rng)
    for day in range(1, config.days):
        taste[day] = (1 - _DRIFT) * taste[day - 1] + _DRIFT * _tastes(leaning, rng)
    activity = rng.gamma(1.5, size=n)
    joined_us = config.start_us - (1 + rng.integers(365, size=n)) * DAY_US
    ages = np.clip(rng.normal(38, 12, n), 16, 90).astype(int)
    countries = rng.integers(len(_COUNTRIES), size=n)
    identity = [{"user_id": f"user-{u:05d}"} if u < known else {"anonymous_id": f"visitor-{u:05d}"} for u in range(n)]
    rows = [
        ProfileRow(f"user-{u:05d}", int(joined_us[u]), _COUNTRIES[countries[u]], int(ages[u]), _SEGMENTS[segment[u]])
        for u in range(known)
    ]
    return Visitors(identity, rows, segment.tolist(), np.cumsum(taste, axis=-1).tolist(), activity / activity.sum())


def _tastes(leaning: Floats, rng: np.random.Generator) -> Floats:
    """A distribution over categories for each row of `leaning`: a Dirichlet draw, peaked on a few."""
    draws = rng.standard_gamma(0.04 + 0.8 * leaning) + 1e-9
    return np.asarray(draws / draws.sum(axis=-1, keepdims=True))


def _moments(config: ShopConfig, rng: np.random.Generator, n: int) -> Ints:
    """Times inside the history, Unix microseconds. Shape (n,)."""
    return rng.integers(config.start_us + 1, config.end_us, size=n)
