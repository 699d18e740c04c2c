"""An evaluation as one HTML file that needs nothing else: tables, plots as inline SVG, no script."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from training import figures
from training.intervals import Estimate
from training.measures import MAIN, RANKED
from training.report import RELEVANCE, SLATES, Measured, Report, title, verdict
from training.staleness import StalePoint

Drawn = Mapping[str, str]
"""Figures as SVG, by the names of `training.figures`."""

_STYLE = """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; background: #fff; line-height: 1.45;
  font: 16px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
p, li { max-width: 48rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: right; padding: .3rem .55rem; border-bottom: 1px solid #e4e4e4; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; }
tbody tr.main td { font-weight: 600; background: #f2f7fb; }
td small { display: block; color: #666; font-weight: 400; }
figure { margin: .8rem 0; } figcaption { color: #555; font-size: .88rem; max-width: 48rem; }
svg { max-width: 100%; height: auto; } svg text { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
.note { border-left: 4px solid #E69F00; padding: .3rem .8rem; margin: .4rem 0; background: #fdf7ea; max-width: 48rem; }
"""


_MAIN_ROW = ' class="main"'


def write_page(path: Path, report: Report, header: Mapping[str, str], drawn: Drawn | None = None) -> None:
    """Write the page; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report, header, drawn), encoding="utf-8")


def page(report: Report, header: Mapping[str, str], drawn: Drawn | None = None) -> str:
    """`drawn` are the report's figures where they are drawn already, with the curves of the training it may be of."""
    drawn = figures.draw(report) if drawn is None else drawn
    heading = f"Evaluation of version {header['version']}" if "version" in header else "Evaluation"
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in header.items() if name != "version"
    )
    parts = [
        f"<h1>{escape(heading)}</h1><dl>{facts}</dl>",
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        _methods(report, drawn),
        _gains(report, drawn),
        *([_retrieval(report)] if report.retrieval.requests > report.requests else []),
        *([_staleness(report, drawn)] if report.staleness else []),
        _segments(report, drawn),
        _outcomes(report, drawn),
        _exposure(drawn),
        _embedding(drawn),
        _learning(drawn),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _methods(report: Report, drawn: Drawn) -> str:
    return _section(
        "Methods",
        f"Each request is a user at the moment of turning to an item that is new to that user; a method ranks all "
        f"{report.detail.facts.items:,} items but those the user knows, and is right where it ranks that item high. All methods "
        f"answer the same {report.requests:,} requests of {report.users:,} users. In brackets, 95 % intervals by resampling users.",
        _figure(drawn[figures.METHODS], f"{title(MAIN)} by method; the line is the 95 % interval."),
        _measured_table(report.methods, (*RELEVANCE, *SLATES)),
    )


def _gains(report: Report, drawn: Drawn) -> str:
    return _section(
        "What serving gains over each",
        f"{title(MAIN)} of {RANKED} less that of the other method, request by request. An interval that holds 0 leaves open which "
        "one is better.",
        _figure(drawn[figures.GAINS], f"Right of the line {RANKED} is better, left of it the other."),
        _list(verdict(name, gain) for name, gain in report.gains.items()),
    )


def _retrieval(report: Report) -> str:
    group = report.retrieval
    return _section(
        "Without the ranker, on all requests",
        f"The ranker answers a part of the requests; the other methods also answer all {group.requests:,} of {group.users:,} users, "
        "which makes their intervals narrower.",
        _measured_table(group.methods, ("ndcg_at_10", "recall_at_10", "recall_at_20", "recall_at_100", "mrr")),
    )


def _staleness(report: Report, drawn: Drawn) -> str:
    points = report.staleness
    methods = list(points[0].methods)
    rows = [
        [
            f"{point.lag} old",
            *(cell for name in methods for cell in (_cell(point.methods[name][MAIN]), _cell(point.loss[name]))),
        ]
        for point in points
    ]
    headings = ["features", *(text for name in methods for text in (f"{name}: {title(MAIN)}", "difference to 0s"))]
    fresh = points[0].methods[RANKED][MAIN]
    return _section(
        "What real time is worth",
        "The same models answer the same requests with features as they stood some time before each: what a store would give that "
        "is filled in batches so long ago. Which item was right, and which are not shown again, stays the same.",
        _figure(
            drawn[figures.STALENESS],
            f"{title(MAIN)} by age of the features, with 95 % intervals; dashed, what needs no features.",
        ),
        _list(price(point, fresh) for point in points[1:]),
        _table(headings, rows),
    )


def price(point: StalePoint, fresh: Estimate) -> str:
    """A sentence of what the age of features costs serving."""
    loss = point.loss[RANKED]
    if not loss.is_clear or fresh.value == 0:
        return f"Features {point.lag} old make no clear difference in {title(MAIN)} of {RANKED}: {loss}"
    return f"Features {point.lag} old change {title(MAIN)} of {RANKED} by {loss.value / fresh.value:+.0%}: {loss}"


def _segments(report: Report, drawn: Drawn) -> str:
    if not report.segments:
        return ""
    methods = list(report.methods)
    rows = [
        [
            escape(f"{group.of}: {group.name}"),
            f"{group.requests:,}",
            *(_cell(group.methods[name].get(MAIN)) for name in methods),
        ]
        for group in report.segments
    ]
    return _section(
        "Segments",
        "A user is new without anything before the cut. The head are the most popular items that have half of the episodes before it "
        f"together, cold items have none, the tail is the rest. {title(MAIN)} by method:",
        _table(["requests of", "requests", *methods], rows),
        *(
            [
                _figure(
                    drawn[figures.POPULARITY],
                    f"{title(figures.RECALL)} by how often the item was met before the cut, with 95 % intervals.",
                )
            ]
            if figures.POPULARITY in drawn
            else []
        ),
    )


def _outcomes(report: Report, drawn: Drawn) -> str:
    if not report.outcomes:
        return ""
    rows = [
        [escape(name), f"{each.impressions:,}", f"{each.positives:,}", _cell(each.auc), _cell(each.log_loss),
         f"{each.constant_log_loss:.4f}", f"{each.calibration_error:.4f}"]
        for name, each in report.outcomes.items()
    ]  # fmt: skip
    headings = ["outcome", "impressions", "with it", "AUC", "log loss", "of the mean rate", "calibration error"]
    return _section(
        "Outcomes",
        "How well the ranker's probabilities fit what came of what was shown after the cut. The log loss is in nats; beside it that of "
        "giving every impression the mean rate. The calibration error is over 15 bins of equal numbers of impressions.",
        _table(headings, rows),
        _figure(
            drawn[figures.CALIBRATION],
            "A point for each bin, of a rare outcome fewer; on the diagonal a probability is what it says. The lines are 95 % intervals "
            "of impressions that know nothing of each other.",
        ),
    )


def _exposure(drawn: Drawn) -> str:
    return _section(
        "Exposure",
        "How the places of all slates of 10 are shared out among the items. The further a curve sags, the more of them go to few.",
        _figure(
            drawn[figures.EXPOSURE],
            "Lorenz curves; the Gini index is twice the area between the diagonal and the curve.",
        ),
    )


def _embedding(drawn: Drawn) -> str:
    return _section(
        "Item vectors",
        "The items' vectors by the item tower, of the most popular 2,000 at most, on the two axes along which they differ most.",
        _figure(drawn[figures.ITEMS], "Near each other lie items that the same users are offered."),
    )


def _learning(drawn: Drawn) -> str:
    if figures.LEARNING not in drawn:
        return ""
    return _section(
        "Learning",
        "The loss over the rows of each epoch, and what the model is judged by on the validation part; epoch 0 is the model as it "
        "began. The epoch of the highest is the one that is kept.",
        _figure(drawn[figures.LEARNING], "Dashed, the epoch that is kept."),
    )


def _section(heading: str, text: str, *parts: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{escape(text)}</p>{''.join(parts)}</section>"


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _figure(svg: str, caption: str) -> str:
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _measured_table(methods: Mapping[str, Measured], shown: Sequence[str]) -> str:
    kept = [name for name in shown if any(name in measured for measured in methods.values())]
    rows = [[escape(method), *(_cell(measured.get(name)) for name in kept)] for method, measured in methods.items()]
    return _table(["method", *map(title, kept)], rows, main=RANKED)


def _table(headings: Iterable[str], rows: Sequence[Sequence[str]], main: str = "") -> str:
    """Of cells that are HTML already; the row that begins with `main` stands out."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr{_MAIN_ROW if row[0] == main else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value = f"{estimate.value:.4f}" if abs(estimate.value) < 10 else f"{estimate.value:.2f}"
    if estimate.low is None or estimate.high is None:
        return value
    digits = 4 if abs(estimate.value) < 10 else 2
    return f"{value}<small>[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]</small>"
