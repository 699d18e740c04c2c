"""What an evaluation found, and how it reads on a screen and as JSON. `training.page` makes the HTML of it."""

import re
from collections.abc import Mapping
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
SHOWN = (
    "ndcg_at_10", "recall_at_10", "recall_at_20", "mrr", "coverage_at_10", "gini_at_10", "novelty_at_10", "diversity_at_10",
)  # fmt: skip


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
        console = console or Console()
        console.print(self._methods_table())
        if self.retrieval.requests > self.requests:
            console.print(_table(f"Without the ranker, {_count(self.retrieval)}", self.retrieval.methods, SHOWN[:4]))
        console.print(self._segments_table())
        for name, quality in self.outcomes.items():
            console.print(
                f"ranker, {name} over {quality.impressions:,} impressions: AUC {quality.auc}, log loss {quality.log_loss} "
                f"(constant {quality.constant_log_loss:.4f}), calibration error {quality.calibration_error:.4f}",
                markup=False, highlight=False,
            )  # fmt: skip
        if self.staleness:
            console.print(self._staleness_table())
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False)

    def _methods_table(self) -> Table:
        heading = (
            f"Next new item among all {self.detail.facts.items:,}: {self.requests:,} requests of {self.users:,} users"
        )
        gains = {method: str(gain) for method, gain in self.gains.items()}
        return _table(heading, self.methods, SHOWN, {f"{RANKED} less this": gains})

    def _segments_table(self) -> Table:
        methods = [name for name in (RANKED, TOWERS) if name in self.methods]
        table = Table(
            Column("requests of", no_wrap=True),
            "requests",
            *[f"{name}: {title(MAIN)}" for name in methods],
            title="Segments",
        )
        for group in self.segments:
            table.add_row(
                f"{group.of}: {group.name}",
                f"{group.requests:,}",
                *[str(group.methods[name][MAIN]) for name in methods],
            )
        return table

    def _staleness_table(self) -> Table:
        methods = list(self.staleness[0].methods)
        headings = [f"{name}: {what}" for name in methods for what in (title(MAIN), "against fresh")]
        table = Table("features", *headings, title="Value of freshness")
        for point in self.staleness:
            cells = [cell for name in methods for cell in (str(point.methods[name][MAIN]), str(point.loss[name]))]
            table.add_row(f"{point.lag} old", *cells)
        return table


def title(metric: str) -> str:
    """`ndcg_at_10` as it is written: NDCG@10."""
    name, _, k = metric.partition("_at_")
    words = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "hit rate", "gini": "Gini"}.get(name, name)
    return f"{words}@{k}" if k else words


def _table(
    heading: str,
    methods: Mapping[str, Measured],
    shown: tuple[str, ...],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """`more` are further columns: by heading, the cell of each method."""
    kept = [name for name in shown if any(name in measured for measured in methods.values())]
    extra = more or {}
    table = Table(Column("method", no_wrap=True), *map(title, kept), *extra, title=heading)
    for method, measured in methods.items():
        cells = [_cell(measured.get(name), name == MAIN) for name in kept]
        table.add_row(method, *cells, *[column.get(method, "") for column in extra.values()])
    return table


def _cell(estimate: Estimate | None, with_interval: bool) -> str:
    if estimate is None:
        return ""
    return str(estimate) if with_interval else f"{estimate.value:.4g}"


def _count(group: Group) -> str:
    return f"{group.requests:,} requests of {group.users:,} users"


def _plain(value: Any) -> Any:
    """Dicts, lists and numbers of dataclasses and tuples."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
