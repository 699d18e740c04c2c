"""The train benchmark's plot: where a whole run's time goes, ours beside the usual ways, and a set under a bound of memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(
    path: Path,
    phases: Mapping[str, float],
    padded: Mapping[str, Mapping[str, Any]],
    build: Mapping[str, Any],
    bounded: Mapping[str, Any],
) -> None:
    """Seconds by phase; rows/s of both sides on a log scale, in pairs; MB of a set and of what its training took."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, speeds, sizes) = pyplot.subplots(1, 3, figsize=(14, 4.4), constrained_layout=True)
    times.barh(list(phases), list(phases.values()))
    times.invert_yaxis()
    times.set_xlabel("seconds of a whole small run")

    pairs = {f"towers, {size}": (each["ours_rows_per_s"], each["padded_rows_per_s"]) for size, each in padded.items()}
    pairs["training set"] = (build["rows_per_s"], build["baseline"]["rows_per_s"])
    for side, (label, shift) in enumerate((("ours", -0.2), ("usual way", 0.2))):
        heights = [pair[side] for pair in pairs.values()]
        bars = speeds.bar([place + shift for place in range(len(pairs))], heights, width=0.38, label=label)
        speeds.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize="small")
    speeds.set_xticks(range(len(pairs)), list(pairs))
    speeds.set_yscale("log")
    speeds.set_ylabel("rows/s")
    speeds.legend(fontsize="small")

    megabytes = {
        "features,\nas they come": bounded["features_mb"],
        "rows\non disk": bounded["on_disk_mb"],
        "memory\ntaken": bounded["held_mb"],
    }
    bars = sizes.bar(list(megabytes), list(megabytes.values()), width=0.5)
    sizes.bar_label(bars, [f"{height:,.0f}" for height in megabytes.values()], fontsize="small")
    if bounded["bound_mb"]:
        sizes.axhline(bounded["bound_mb"], color="grey", linestyle="--", linewidth=0.8, label="bound")
        sizes.legend(fontsize="small")
    sizes.set_ylabel(f"MB, of {bounded['rows']:,} rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
