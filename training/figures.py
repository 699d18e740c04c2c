"""Which figures a report has: by name, as SVG text that stands in a page and among a run's artifacts alike."""

from collections.abc import Mapping, Sequence

from training import plots
from training.fit import Epoch
from training.learn import JUDGED_BY
from training.measures import MAIN, RANKED
from training.report import Report, requests_of, title
from training.rivals import POPULAR
from training.segments import SEEN

LEARNING, METHODS, GAINS, STALENESS = "learning", "methods", "gains", "staleness"
POPULARITY, CALIBRATION, EXPOSURE, ITEMS = "recall_by_popularity", "calibration", "exposure", "embedding_map"
RECALL = "recall_at_20"


def draw(report: Report, epochs: Mapping[str, Sequence[Epoch]] | None = None) -> dict[str, str]:
    """SVG by name; what a report has nothing of is left out, and so are curves without `epochs`, which are by model."""
    detail, facts = report.detail, report.detail.facts
    found = {
        METHODS: plots.dots({name: measured[MAIN] for name, measured in report.methods.items()}, title(MAIN)),
        GAINS: plots.dots(report.gains, f"{title(MAIN)} of {RANKED} less that of the method", zero=True),
        EXPOSURE: plots.lorenz(detail.exposure_I),
        ITEMS: plots.embedding_map(detail.item_ID, facts.category_I, facts.categories, facts.share_I),
    }
    learnt = {name: each for name, each in (epochs or {}).items() if each}
    if learnt:
        found[LEARNING] = plots.learning(learnt, {name: title(JUDGED_BY[name]) for name in learnt})
    if report.outcomes:
        found[CALIBRATION] = plots.reliability(
            {f"{name}: {each.positives:,} of {each.impressions:,}": each.bins for name, each in report.outcomes.items()}
        )
    ranges = [group for group in report.segments if group.of == SEEN]
    if ranges:
        found[POPULARITY] = plots.groups(
            {name: [group.methods[name][RECALL] for group in ranges] for name in report.methods},
            [f"{group.name}\n({requests_of(group)})" for group in ranges],
            "how often the item that was right was met before the cut",
            title(RECALL),
        )
    if report.staleness:
        points = report.staleness
        found[STALENESS] = plots.lines(
            {name: [point.methods[name][MAIN] for point in points] for name in points[0].methods},
            [point.lag for point in points],
            "age of the features",
            title(MAIN),
            {POPULAR: report.methods[POPULAR][MAIN].value},
        )
    return {name: plots.svg(figure) for name, figure in found.items()}
