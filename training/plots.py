"""Plots of an evaluation: functions from numbers to figures, and from a figure to SVG that stands in a page by itself.

Figures are plain objects that no state knows of: MLflow takes them, `svg` writes them. Colours are those of Okabe and Ito (2008),
which the colour-blind tell apart; shapes differ as well. I items, D wide, P points.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headrace.arrays import Floats, Floats32, Ints
from training.fit import Epoch
from training.intervals import Estimate, wilson
from training.metrics import Bin

BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, BLACK, GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#222222", "#999999",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headrace",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_NOTHING_ELSE = {"Creator": None, "Date": None, "Format": None, "Type": None}
# More points than these are neither seen nor worth their size.
_MOST_ITEMS = 2_000
_MOST_CATEGORIES = 12
# In a bin of fewer outcomes the share is mostly luck.
_LEAST_OUTCOMES = 5
_CURVE_POINTS = 200
_MARGIN = 0.03


def svg(figure: Figure) -> str:
    """The `<svg>` element alone: no prologue, no date, nothing that lies elsewhere. Equal figures give equal text."""
    text = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata=_NOTHING_ELSE)
    written = text.getvalue()
    return written[written.index("<svg") :].strip()


def dots(estimates: Mapping[str, Estimate], label: str, *, zero: bool = False) -> Figure:
    """A row for each name: its value and its interval; with `zero`, a line there."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.36 * max(len(estimates), 1)), layout="constrained")
        axes = figure.subplots()
        for row, estimate in enumerate(estimates.values()):
            _point(axes, estimate, row, BLUE if row == 0 and not zero else BLACK, "o", along_x=True)
        if zero:
            axes.axvline(0, color=VERMILION, linewidth=1)
        axes.set_yticks(range(len(estimates)), list(estimates))
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        if not zero:
            axes.set_xlim(left=0)
    return figure


def groups(series: Mapping[str, Sequence[Estimate]], names: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """Beside each other for each name, the value and interval of every series."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        axes = figure.subplots()
        width = 0.7 / max(len(series), 1)
        for place, (name, estimates) in enumerate(series.items()):
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            for at, estimate in enumerate(estimates):
                _point(axes, estimate, at + (place - (len(series) - 1) / 2) * width, colour, marker)
            axes.plot([], [], marker, color=colour, label=name)
        axes.set_xticks(range(len(names)), list(names))
        axes.set_xlim(-0.5, len(names) - 0.5)
        _begin_at_zero(axes)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend_beside(figure, axes)
    return figure


def lines(
    series: Mapping[str, Sequence[Estimate]],
    names: Sequence[str],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A line with intervals for each series over names at equal distances; `levels` are dashed lines to compare with."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for place, (name, estimates) in enumerate(series.items()):
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            at_P = np.arange(len(estimates)) + 0.06 * (place - (len(series) - 1) / 2)
            axes.plot(at_P, [estimate.value for estimate in estimates], color=colour, marker=marker, label=name)
            for at, estimate in zip(at_P, estimates, strict=True):
                _point(axes, estimate, float(at), colour, marker)
        for place, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, color=GREY, linestyle=("--", ":", "-.")[place % 3], linewidth=1.2, label=name)
        axes.set_xticks(range(len(names)), list(names))
        _begin_at_zero(axes)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend_beside(figure, axes)
    return figure


def reliability(bins: Mapping[str, Sequence[Bin]]) -> Figure:
    """For each outcome, the share that came true over the probability that was given, with 95 % intervals; the diagonal is a
    calibrated model. Each outcome has axes of its own: of a rare one the shares spread wider than the probabilities.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.2 * max(len(bins), 1), 3.2), layout="constrained")
        for axes, (name, each) in zip(figure.subplots(1, len(bins), squeeze=False)[0], bins.items(), strict=True):
            wide = _wider(each)
            axes.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1.2)
            axes.plot([part.predicted for part in wide], [part.observed for part in wide], "-", color=SKY)
            for part in wide:
                shown = Estimate(part.observed, *wilson(part.observed, part.rows))
                _point(axes, shown, part.predicted, BLUE, "o")
            axes.set(title=name, xlabel="predicted probability", ylabel="observed share")
            _begin_at_zero(axes)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _wider(bins: Sequence[Bin]) -> list[Bin]:
    """Neighbouring bins together, so many that each has some outcomes of both kinds; two at least, where there are two."""
    if not bins:
        return []
    table_B3 = np.array([(part.predicted, part.observed, part.rows) for part in bins])
    rows_B = table_B3[:, 2]
    came = round(float(table_B3[:, 1] @ rows_B))
    rarer = min(came, round(float(rows_B.sum())) - came)
    parts = np.array_split(table_B3, min(max(rarer // _LEAST_OUTCOMES, 2), len(bins)))
    means = [np.average(part[:, :2], axis=0, weights=part[:, 2]) for part in parts]
    return [Bin(float(mean[0]), float(mean[1]), int(part[:, 2].sum())) for mean, part in zip(means, parts, strict=True)]


def lorenz(exposure_I: Mapping[str, Ints]) -> Figure:
    """Share of all places in slates that the least shown items have together, by method; the diagonal is equality."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="all alike")
        for place, (name, each_I) in enumerate(exposure_I.items()):
            share_P, sum_P = _lorenz_curve(each_I)
            axes.plot(
                share_P, sum_P, color=COLOURS[place % len(COLOURS)], label=name,
                marker=MARKERS[place % len(MARKERS)], markevery=(0.02 * place, 0.2), markersize=5,
            )  # fmt: skip
        axes.set(
            xlabel="share of the catalogue, least shown first", ylabel="share of exposure", xlim=(0, 1), ylim=(0, 1)
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend_beside(figure, axes)
    return figure


def embedding_map(item_ID: Floats32, category_I: Ints, categories: Sequence[str], share_I: Floats) -> Figure:
    """The most popular items' vectors on their first two principal axes, coloured by the categories that most of them have.

    `category_I` are places in `categories`, -1 for none.
    """
    shown = np.argsort(-share_I, kind="stable")[:_MOST_ITEMS]
    xy_I2, explained = principal_axes(item_ID[shown])
    x_P, y_P = xy_I2.T
    category_P = category_I[shown]
    found, counts = np.unique(category_P[category_P >= 0], return_counts=True)
    largest = found[np.argsort(-counts, kind="stable")][:_MOST_CATEGORIES]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        rest_P = ~np.isin(category_P, largest)
        if rest_P.any():
            label = f"other ({rest_P.sum():,} items)" if len(largest) else "items"
            axes.scatter(x_P[rest_P], y_P[rest_P], s=12, color=GREY, alpha=0.6, linewidths=0, label=label)
        coloured = COLOURS[:-1]  # grey are the others; with the marker, a pair comes again after 56
        for place, category in enumerate(largest):
            mine_P = category_P == category
            axes.scatter(
                x_P[mine_P], y_P[mine_P], s=16, color=coloured[place % len(coloured)],
                marker=MARKERS[place % len(MARKERS)], alpha=0.8, linewidths=0,
                label=categories[category],
            )  # fmt: skip
        axes.set(
            xlabel=f"first principal axis ({explained[0]:.0%} of the variance)",
            ylabel=f"second principal axis ({explained[1]:.0%})",
        )
        _legend_beside(figure, axes)
    return figure


def learning(epochs: Mapping[str, Sequence[Epoch]], judged_by: Mapping[str, str]) -> Figure:
    """For each model its loss and what it is judged by, by epoch; dashed, the epoch of the highest judgement."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 2.4 * max(len(epochs), 1)), layout="constrained")
        for (losses, judgements), (name, each) in zip(
            figure.subplots(len(epochs), 2, squeeze=False), epochs.items(), strict=True
        ):
            number_P = [epoch.number for epoch in each]
            losses.plot(number_P, [epoch.loss for epoch in each], "o-", color=BLUE, markersize=4)
            judgements.plot(number_P, [epoch.judged for epoch in each], "s-", color=VERMILION, markersize=4)
            if np.isfinite(values := [epoch.judged for epoch in each]).any():
                judgements.axvline(number_P[int(np.nanargmax(values))], color=GREY, linestyle="--", linewidth=1.2)
            losses.set(title=f"{name}: loss", xlabel="epoch")
            judgements.set(title=f"{name}: {judged_by[name]}", xlabel="epoch", ylabel="on the validation")
            for axes in (losses, judgements):
                axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return figure


def principal_axes(item_ID: Floats32) -> tuple[Floats, tuple[float, float]]:
    """Coordinates on the two axes of the largest variance, (I, 2), and the share of the variance that each has."""
    centred_ID = item_ID.astype(np.float64) - item_ID.mean(axis=0, dtype=np.float64)
    variance_D, axes_DD = np.linalg.eigh(centred_ID.T @ centred_ID)
    first_two = np.argsort(-variance_D, kind="stable")[:2]
    shares = variance_D[first_two] / max(float(variance_D.sum()), 1e-12)
    return centred_ID @ axes_DD[:, first_two], (float(shares[0]), float(shares[1]))


def _lorenz_curve(exposure_I: Ints) -> tuple[Floats, Floats]:
    """From (0, 0) to (1, 1). Shapes (P,)."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(exposure_I).astype(np.float64))])
    at_P = np.unique(np.linspace(0, len(exposure_I), _CURVE_POINTS).round().astype(np.int64))
    return at_P / len(exposure_I), sums[at_P] / max(sums[-1], 1.0)


def _begin_at_zero(axes: Axes) -> None:
    """Just below, so that a mark at zero is whole."""
    _, top = axes.get_ylim()
    axes.set_ylim(-_MARGIN * top, top)


def _point(axes: Axes, estimate: Estimate, at: float, colour: str, marker: str, *, along_x: bool = False) -> None:
    if estimate.low is not None and estimate.high is not None:
        ends, both = [estimate.low, estimate.high], [at, at]
        axes.plot(*((ends, both) if along_x else (both, ends)), color=colour, linewidth=1.4)
    axes.plot(*((estimate.value, at) if along_x else (at, estimate.value)), marker, color=colour, markersize=5)


def _legend_beside(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
