"""What an evaluation found, and how it reads on a screen and as JSON. `training.page` makes the HTML of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from headrace.arrays import Floats, Floats32, Ints
from training.intervals import Estimate
from training.measures import MAIN, RANKED, TOWERS, Facts
from training.outcomes import Outcome
from training.rivals import Knobs
from training.staleness import StalePoint

Measured = dict[str, Estimate]
RELEVANCE = ("ndcg_at_10", "recall_at_10", "recall_at_20", "mrr")
SLATES = ("coverage_at_10", "gini_at_10", "novelty_at_10", "diversity_at_10")


@dataclass(frozen=True)
class Group:
    """Methods on the same requests. `of` and `name` say which those are."""

    of: str
    name: str
    requests: int
    users: int
    methods: dict[str, Measured]


@dataclass(frozen=True)
class Detail:
    """What the plots read, and what else may be asked of the requests. T requests, R of them ranked, I items, D wide.

    `values` are by method and metric: (R,) of methods with the ranker, (T,) of the others; the R come first.
    """

    values: Mapping[str, Mapping[str, Floats]]
    user_T: Ints
    exposure_I: Mapping[str, Ints]
    item_ID: Floats32
    facts: Facts


@dataclass(frozen=True)
class Report:
    """The methods on the requests that the ranker answered, the one that serving does first.

    `gains` are NDCG@10 of towers + ranker less that of each other method, request by request. `retrieval` are the methods without
    the ranker on all requests. `detail` is for plots alone and is not part of the JSON.
    """

    requests: int
    users: int
    methods: dict[str, Measured]
    gains: dict[str, Estimate]
    retrieval: Group
    segments: tuple[Group, ...]
    outcomes: dict[str, Outcome]
    staleness: tuple[StalePoint, ...]
    knobs: Knobs
    notes: tuple[str, ...]
    detail: Detail = field(compare=False, repr=False)

    def flat(self) -> dict[str, float]:
        """One name for each number, as MLflow and `bundle.json` keep them."""
        named: dict[str, float] = {"requests": self.requests, "users": self.users}
        for method, measured in self.methods.items():
            named |= {f"{method}_{name}": estimate.value for name, estimate in measured.items()}
        for method, measured in self.retrieval.methods.items():
            named |= {f"all_requests_{method}_{name}": estimate.value for name, estimate in measured.items()}
        for method, gain in self.gains.items():
            named[f"gain_over_{method}"] = gain.value
        for outcome, quality in self.outcomes.items():
            named |= {
                f"ranker_auc_{outcome}": quality.auc.value,
                f"ranker_log_loss_{outcome}": quality.log_loss.value,
                f"ranker_calibration_error_{outcome}": quality.calibration_error,
            }
        return {re.sub(r"\W+", "_", name): value for name, value in named.items()}

    def to_json(self) -> dict[str, Any]:
        parts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "detail"}
        return {name: _plain(value) for name, value in parts.items()}

    def show(self, console: Console | None = None) -> None:
        """Fits into 80 columns."""
        console = console or Console()

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        console.print(
            _table(
                f"Next new item among all {self.detail.facts.items:,}: {self.requests:,} requests of {self.users:,} users",
                self.methods,
                RELEVANCE,
            )
        )
        for method, gain in self.gains.items():
            say(verdict(method, gain))
        console.print(_table("Slates of 10", self.methods, SLATES))
        if self.retrieval.requests > self.requests:
            group = self.retrieval
            heading = f"Without the ranker: {group.requests:,} requests of {group.users:,} users"
            console.print(_table(heading, group.methods, RELEVANCE))
        console.print(self._segments_table())
        for name, quality in self.outcomes.items():
            say(
                f"{name} over {quality.impressions:,} impressions: AUC {quality.auc}, log loss {quality.log_loss.value:.4f} "
                f"(of the mean rate {quality.constant_log_loss:.4f}), calibration error {quality.calibration_error:.4f}"
            )
        if self.staleness:
            console.print(self._staleness_table())
        for note in self.notes:
            say(f"note: {note}")

    def _segments_table(self) -> Table:
        table = Table(
            Column("requests of", no_wrap=True),
            "requests",
            Column(RANKED, no_wrap=True),
            TOWERS,
            title=f"Segments: {title(MAIN)}",
        )
        for group in self.segments:
            ranked, towers = group.methods[RANKED][MAIN], group.methods[TOWERS][MAIN]
            table.add_row(f"{group.of}: {group.name}", f"{group.requests:,}", str(ranked), f"{towers.value:.4f}")
        return table

    def _staleness_table(self) -> Table:
        wide = [Column(name, no_wrap=True) for name in (RANKED, "difference to 0s")]
        table = Table("features", *wide, TOWERS, title=f"What real time is worth: {title(MAIN)}")
        for point in self.staleness:
            ranked, towers = point.methods[RANKED][MAIN], point.methods[TOWERS][MAIN]
            table.add_row(f"{point.lag} old", str(ranked), str(point.loss[RANKED]), f"{towers.value:.4f}")
        return table


def verdict(method: str, gain: Estimate) -> str:
    """A sentence of what serving does beside one method."""
    if method == TOWERS and gain.value == gain.low == gain.high == 0:
        return f"{RANKED} keeps the order of the {TOWERS}: on the held-out lists the ranker found nothing that retrieval does not know"
    if not gain.is_clear:
        return f"{RANKED} and {method}: no clear difference in {title(MAIN)}, {gain}"
    return f"{RANKED} is {'better' if gain.value > 0 else 'worse'} than {method} in {title(MAIN)}: {gain}"


def title(metric: str) -> str:
    """`ndcg_at_10` as it is written: NDCG@10."""
    name, _, k = metric.partition("_at_")
    words = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "hit rate", "gini": "Gini"}.get(name, name)
    return f"{words}@{k.replace('_', ' ')}" if k else words


def requests_of(group: Group) -> str:
    return f"{group.requests:,} request{'s' if group.requests != 1 else ''}"


def _table(heading: str, methods: Mapping[str, Measured], shown: Sequence[str]) -> Table:
    kept = [name for name in shown if any(name in measured for measured in methods.values())]
    columns = [Column(title(name), no_wrap=True) for name in kept]
    table = Table(Column("method", no_wrap=True), *columns, title=heading)
    for method, measured in methods.items():
        table.add_row(method, *[_cell(measured.get(name), name == MAIN) for name in kept])
    return table


def _cell(estimate: Estimate | None, with_interval: bool) -> str:
    if estimate is None:
        return ""
    return str(estimate) if with_interval else f"{estimate.value:.4f}"


def _plain(value: Any) -> Any:
    """Dicts, lists and numbers of dataclasses and tuples."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
