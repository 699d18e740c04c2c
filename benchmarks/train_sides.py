"""The train benchmark's sides, each in a process of its own: whole runs, the build and the usual way to build, the towers and the usual way
to batch, a set under a bound of memory.

What is measured is what trains: `training.train.main`, and its parts by name.
"""

import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks.children import peak_mb
from headrace import names
from headrace.arrays import Ints
from headrace.models import columns
from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import TwoTowers, full_softmax_loss
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from training import learn_towers, prepare, train
from training.config import TrainConfig, by_name
from training.dataset import T_US, Split, historical_chunks, newest, read_split, user_features
from training.fit import Epoch, Units, fit
from training.learn import schedule_of
from training.processes import Processes
from training.rows import Table, UserRows, of_users
from training.windows import Windows, write_windows

ROOT: Final = Path(__file__).parent.parent
PHASES: Final = {
    "read the lake": ("read_split",),
    "build": ("shop_at_cut", "tower_rows", "users_of", "ranker_lists"),
    "towers": ("learn_retrieval", "offer"),
    "ranker": ("learn_ranking",),
    "evaluate": ("evaluate",),
    "bundle, report": ("take_snapshot", "items_of", "queries", "draw", "write_page"),
}
REST: Final = "MLflow and the rest"
_PADDED_ROWS: Final = 6_000
_ROUNDS: Final = 3
# Of the proof: a narrow model leaves the time to the rows.
_BOUNDED_BATCH: Final = 1_024
_NARROW: Final = {
    "width": 16,
    "full_softmax_items": 1,
    "drawn_items": 256,
    "batch": _BOUNDED_BATCH,
    "learning_rate": 1e-3,
}


def settings_of(directory: Path) -> Settings:
    return Settings(data=directory / "var", feature_repo=ROOT / "feature_repo")


def whole(directory: Path, config: TrainConfig) -> dict[str, Any]:
    """A run as `headrace train` does it."""
    spent: dict[str, float] = {}
    began = time.perf_counter()
    with _timed(spent):
        result = train.main(config, settings_of(directory))
    assert result is not None
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "phases": {**spent, REST: seconds - sum(spent.values())},
        "rows": result.tower_rows,
        "lists": result.ranker_lists,
        "epochs": {name: len(epochs) - 1 for name, epochs in result.epochs.items()},
        **{name: speed_of(epochs) for name, epochs in result.epochs.items()},
        "ndcg_at_10": result.report.flat()["towers_ranker_ndcg_at_10"],
        "peak_mb": peak_mb(),
    }


def speed_of(epochs: Sequence[Epoch]) -> dict[str, float]:
    """Medians over the epochs after the first, which warms up."""
    counted = [epoch for epoch in epochs if epoch.number > 1] or [epoch for epoch in epochs if epoch.number]
    return {
        "rows_per_s": float(np.median([epoch.rows_per_second for epoch in counted])),
        "input_share": float(np.median([epoch.input_share for epoch in counted])),
    }


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Seconds of each phase, by what `training.train` calls in it."""
    before = {name: getattr(train, name) for each in PHASES.values() for name in each}

    def timing(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **more)
            finally:
                spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - began

        return timed

    for phase, each in PHASES.items():
        for name in each:
            setattr(train, name, timing(phase, before[name]))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(train, name, call)


class Prepared:
    """What a run has before it learns: episodes, the catalogue, keys of the towers' rows."""

    def __init__(self, directory: Path, folder: Path, config: TrainConfig) -> None:
        settings = settings_of(directory)
        self.config, self.folder, self.store = config, folder, open_feature_store(settings)
        self.split: Split = read_split(EventLake(settings.lake_dir), config)
        self.shop = prepare.shop_at_cut(folder, self.split, self.store, settings.lake_dir, config)
        self.positives = newest(self.split.train, config.max_positives).sort(names.USER_ID, T_US, maintain_order=True)

    def rows(self, name: str) -> Windows:
        """The towers' rows, as a run writes them."""
        place = self.folder / name
        place.mkdir()
        return prepare.tower_rows(place, self.positives, self.shop, self.store)

    def towers(self) -> TwoTowers:
        torch.manual_seed(self.config.seed)
        towers: TwoTowers = TwoTowers(self.shop.preprocessing, self.config.model(("click",)))
        return towers

    def fitted(
        self,
        objective: nn.Module,
        units: Units,
        batch: int,
        epochs: int,
    ) -> list[Epoch]:
        schedule = schedule_of(self.config, epochs, batch)
        checkpoint = self.folder / "fit.pt"
        checkpoint.unlink(missing_ok=True)  # each is a fit of its own
        return fit(
            "towers", objective.towers, objective, units, schedule, judge=None, processes=Processes(), device="cpu",
            checkpoint=checkpoint, progress=False,
        )  # fmt: skip


@contextmanager
def _prepared(directory: Path, config: TrainConfig) -> Iterator[Prepared]:
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        yield Prepared(directory, Path(folder), config)


class PaddedObjective(nn.Module):  # type: ignore[misc]
    """The usual way: every row brings a history of its own, whose last place alone is learnt from. The loss is ours."""

    def __init__(self, towers: TwoTowers, table: ItemInputs) -> None:
        super().__init__()
        self.towers, self._table = towers, table
        self._every = torch.arange(Catalogue.FIRST, len(table.id_N))

    def forward(self, batch: tuple[UserInputs, Tensor]) -> Tensor:
        users, target_B = batch
        user_BD = self.towers.users(users, self._table)
        return full_softmax_loss(user_BD, self.towers.items(self._table.rows(self._every)), target_B)


def padded(directory: Path, config: TrainConfig) -> dict[str, Any]:
    """Rows/s of the towers by windows, and with a history for each row, both cut to what a batch of like lengths needs."""
    with _prepared(directory, config) as ready:
        windows, table = ready.rows("windows"), ready.shop.catalogue.inputs
        target_R = ready.shop.places(ready.positives)
        ours = learn_towers.TowerObjective(ready.towers(), table)
        units = learn_towers.units(windows, target_R, ready.shop.items, None, "cpu")
        batch = max(1, round(config.batch * len(windows) / windows.rows))
        some = ready.positives.sample(min(_PADDED_ROWS, ready.positives.height), seed=config.seed)
        features = columns.by_name(user_features(ready.store, some))
        users = ready.shop.preprocessing.users(features, some[T_US].to_numpy(), ready.shop.catalogue.row)
        rows = UserRows.of(Table.write(ready.folder / "padded", some.height, [of_users(users)]))
        some_R = torch.from_numpy(ready.shop.places(some))

        def read_rows(_: Ints, share: Ints) -> tuple[UserInputs, Tensor]:
            return rows.take(share), some_R[torch.from_numpy(share)]

        usual = PaddedObjective(ready.towers(), table)
        ones = np.ones(some.height, np.int64)
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(_ROUNDS):  # in turn, so that both have the machine as it is
            fits = (
                ready.fitted(ours, units, batch, epochs=2),
                ready.fitted(usual, Units(rows.lengths_R, ones, ones[:, None], read_rows), config.batch, epochs=2),
            )
            for speeds, epochs in zip(found, fits, strict=True):
                speeds.append(speed_of(epochs)["rows_per_s"])
    mine, theirs = (float(np.median(speeds)) for speeds in found)
    return {
        "windows": len(windows),
        "rows": windows.rows,
        "ours_rows_per_s": mine,
        "padded_rows_per_s": theirs,
        "ratio": mine / theirs,
    }


def build(directory: Path, config: TrainConfig, sample: int) -> dict[str, Any]:
    """Label rows/s from Feast to windows on disk; and a sample by the usual way over the same features, finished beforehand."""
    from benchmarks.train_stock import StockBuild

    with _prepared(directory, config) as ready:
        seconds, windows = [], None
        for number in range(1 + _ROUNDS):
            began = time.perf_counter()
            windows = ready.rows(f"rows{number}")
            seconds.append(time.perf_counter() - began)
        assert windows is not None
        finished = user_features(ready.store, ready.positives)
        stock = StockBuild(ready.folder / "stock", finished, ready.positives)
        asked = ready.positives.sample(min(sample, ready.positives.height), seed=config.seed)
        stock.run(asked.head(100), ready.shop.preprocessing, ready.shop.catalogue.row)  # imports and compiles
        came = stock.run(asked, ready.shop.preprocessing, ready.shop.catalogue.row)
        _check_equal(came.users, asked, ready)
    baseline = came.figures()
    ours = windows.rows / float(np.median(seconds[1:]))
    return {
        "rows": windows.rows,
        "windows": len(windows),
        "first_seconds": seconds[0],
        "seconds": seconds[1:],
        "rows_per_s": ours,
        "baseline": baseline,
        "ratio": ours / baseline["rows_per_s"],
        "peak_mb": peak_mb(),
    }


def _check_equal(theirs: UserInputs, asked: pl.DataFrame, ready: Prepared) -> None:
    """The usual way gives what ours gives, or the benchmark ends here."""
    features = columns.by_name(user_features(ready.store, asked))
    ours = ready.shop.preprocessing.users(features, asked[T_US].to_numpy(), ready.shop.catalogue.row)
    for name, mine, other in zip(UserInputs._fields, ours, theirs, strict=True):
        if not torch.allclose(mine.double(), other.double(), atol=1e-5):
            raise SystemExit(f"the two builds differ in {name}")


def bounded(directory: Path, rows: int, bound_mb: int) -> dict[str, Any]:
    """A build and an epoch over keys at random times, with so many MB that the process may take beyond what it has: a bound that
    Linux keeps (RLIMIT_DATA). Pages of files do not count, which it takes back as it needs them.
    """
    config = by_name("small").changed(**_NARROW)
    with _prepared(directory, config) as ready:
        ready.rows("warm-up")  # compiles, and starts all threads
        users = ready.split.train[names.USER_ID].unique().sort()
        rng = np.random.default_rng(config.seed)
        keys = pl.DataFrame(
            {
                names.USER_ID: users.gather(rng.integers(len(users), size=rows)),
                T_US: rng.integers(ready.split.start_us, ready.split.cut_us, rows),
            }
        ).sort(names.USER_ID, T_US)
        target_R = rng.integers(ready.shop.items, size=rows)
        before = _memory_mb()
        limited = _limited(before["VmData"] + bound_mb) if bound_mb else nullcontext()
        feature_bytes = 0

        def counted(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
            nonlocal feature_bytes
            for chunk in chunks:
                feature_bytes += chunk.nbytes
                yield chunk

        with limited, _watched() as peaks:
            began = time.perf_counter()
            chunks = counted(historical_chunks(ready.store, names.RETRIEVAL_SERVICE, keys, prepare.USER_CHUNK))
            place = ready.folder / "rows"
            windows = write_windows(place, keys, chunks, ready.shop.preprocessing, ready.shop.catalogue.row)
            built, held_by_build = time.perf_counter() - began, peaks["RssAnon"] - before["RssAnon"]
            objective = learn_towers.TowerObjective(ready.towers(), ready.shop.catalogue.inputs)
            units = learn_towers.units(windows, target_R, ready.shop.items, config.drawn_items, "cpu")
            batch = max(1, round(config.batch * len(windows) / windows.rows))
            epochs = ready.fitted(objective, units, batch, epochs=1)
        on_disk = sum(file.stat().st_blocks * 512 for file in place.rglob("*") if file.is_file()) / 2**20
    features_mb, held_mb = feature_bytes / 2**20, peaks["RssAnon"] - before["RssAnon"]
    return {
        "rows": rows,
        "bound_mb": bound_mb,
        "features_mb": features_mb,
        "on_disk_mb": on_disk,
        "held_mb": held_mb,
        "held_by_build_mb": held_by_build,
        "data_growth_mb": peaks["VmData"] - before["VmData"],
        "rss_growth_mb": peaks["VmRSS"] - before["VmRSS"],
        "features_over_held": features_mb / held_mb,
        "on_disk_over_held": on_disk / held_mb,
        "build_rows_per_s": rows / built,
        "epoch": speed_of(epochs),
        "loss": epochs[-1].loss,
    }


def _memory_mb() -> dict[str, float]:
    """RssAnon is what the process holds and nobody can take back, VmData what it may write to, VmRSS all that is in memory."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(said[name].split()[0]) / 1_024 for name in ("VmRSS", "RssAnon", "VmData")}


@contextmanager
def _limited(data_mb: float) -> Iterator[None]:
    """Nothing is allocated beyond: what asks for more fails."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (round(data_mb) * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _watched(every_s: float = 0.02) -> Iterator[dict[str, float]]:
    """The largest of each while the block runs."""
    peaks, done = _memory_mb(), threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            for name, value in _memory_mb().items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()
