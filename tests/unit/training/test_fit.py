"""The loop on a line through points: it learns, one seed gives one model, a kill costs nothing, and faults have names."""

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from headrace.arrays import Floats, Ints
from training.fit import Epoch, Fit, Noted, Schedule, TrainError, Units, _bar, fit
from training.processes import Processes
from training.run_files import RunError

POINTS = torch.linspace(-1, 1, 60)[:, None]
ONES = np.ones(len(POINTS), np.int64)
COUNTS = np.stack([ONES, (POINTS[:, 0] > 0).numpy().astype(np.int64)], axis=1)
SCHEDULE = Schedule(
    epochs=40, patience=40, batch=8, learning_rate=0.05, weight_decay=0.0, warm_up=5, averaging=0.9, seed=3
)


class Line(nn.Module):  # type: ignore[misc]
    """A line with dropout, so that an epoch that drew other random numbers would show."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Linear(1, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, batch: Tensor) -> Tensor:
        """Two means: over all points, and over those on the right, as if those alone had a label."""
        squares = (self.slope(self.drop(batch)) - 2 * batch - 1) ** 2
        right = batch > 0
        return torch.stack([squares.mean(), squares[right].mean() if right.any() else squares.new_zeros(())])


def read(rows: Ints, share: Ints) -> Tensor:
    return POINTS[torch.from_numpy(share)]


def learn(
    checkpoint: Path,
    schedule: Schedule = SCHEDULE,
    line: Line | None = None,
    processes: Processes | None = None,
    noted: Noted = lambda name, epoch: None,
    progress: bool = False,
) -> tuple[Line, list[Epoch]]:
    torch.manual_seed(schedule.seed)
    line = line or Line()
    epochs = fit(
        "line",
        line,
        line,
        Units(ONES, ONES, COUNTS, read),
        schedule,
        judge=lambda: -float((line.slope(POINTS) - 2 * POINTS - 1).abs().max()),
        processes=processes or Processes(),
        device="cpu",
        checkpoint=checkpoint,
        progress=progress,
        noted=noted,
    )
    return line, epochs


def test_a_line_is_learnt_and_its_best_epoch_is_what_is_left(tmp_path: Path) -> None:
    line, epochs = learn(tmp_path / "line.pt")
    assert [epoch.number for epoch in epochs] == list(range(41))
    best = max(epochs, key=lambda epoch: epoch.judged)
    with torch.inference_mode():
        left = -float((line.slope(POINTS) - 2 * POINTS - 1).abs().max())
    assert left == pytest.approx(best.judged)
    assert left > -0.2 > epochs[0].judged
    assert not line.training


def test_each_epoch_is_told_as_it_ends_and_those_before_a_resumed_fit_again(tmp_path: Path) -> None:
    told: list[int] = []

    def noted(name: str, epoch: Epoch) -> None:
        assert name == "line"
        told.append(epoch.number)

    for epochs in (2, 3):
        learn(tmp_path / "line.pt", replace(SCHEDULE, epochs=epochs), noted=noted)
    assert told == [0, 1, 2, 0, 1, 2, 3]


def test_the_bar_says_how_good_the_last_epoch_was_beside_the_best_and_fits_a_terminal() -> None:
    state = Fit()
    for number, judged in enumerate((0.1, 0.1975, 0.1971)):
        state.note(Epoch(number, 2.0, judged, 1.0, 1.0, 0.0), Line())
    assert state.said() == "NDCG@10 0.1971 (best 0.1975, epoch 1)"
    assert Fit([Epoch(0, float("nan"), float("nan"), 0.0, 0.0, 0.0)]).said() == ""
    bar, written = _bar(shown=True), StringIO()
    bar.add_task("towers epoch 12", said="loss 12.346, NDCG@10 0.1971 (best 0.1975, epoch 12)")
    Console(file=written, width=80).print(bar.get_renderable())
    assert "…" not in written.getvalue()
    assert "(best 0.1975, epoch 12)" in written.getvalue()


def test_without_a_terminal_each_epoch_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learn(tmp_path / "line.pt", replace(SCHEDULE, epochs=2), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.split(":")[0] for line in lines] == ["line epoch 1", "line epoch 2"]
    assert re.fullmatch(r"line epoch 1: loss \d+\.\d{3}, NDCG@10 .* \(best .*, epoch 1\), \d\.\d s", lines[0])


def test_fitting_ends_after_so_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    perfect = Line()
    with torch.no_grad():
        perfect.slope.weight.fill_(2.0)
        perfect.slope.bias.fill_(1.0)
    line, epochs = learn(tmp_path / "line.pt", Schedule(40, 3, 8, 0.05, 0.0, 1, 0.0, 0), perfect)
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3]
    assert float(line.slope.weight.detach()) == 2.0


def test_what_is_left_is_the_running_mean_of_the_weights_that_took_the_steps(tmp_path: Path) -> None:
    before_steps: list[float] = []

    class Watched(Line):
        def forward(self, batch: Tensor) -> Tensor:
            before_steps.append(self.slope.weight.item())
            return super().forward(batch)

    once = replace(SCHEDULE, epochs=1, averaging=0.0)
    begun = Watched()
    kept, _ = learn(tmp_path / "mean.pt", replace(once, averaging=0.5), copy.deepcopy(begun))
    mean, *rest = before_steps
    last, _ = learn(tmp_path / "last.pt", once, begun)
    for step, weight in enumerate([*rest, last.slope.weight.item()]):
        stays = min(0.5, (1 + step) / (10 + step))
        mean = stays * mean + (1 - stays) * weight
    assert kept.slope.weight.item() == pytest.approx(mean)


def test_one_seed_gives_one_model(tmp_path: Path) -> None:
    weights = [learn(tmp_path / name)[0].slope.weight.item() for name in ("a.pt", "b.pt")]
    assert weights[0] == weights[1]


def test_a_fit_that_ended_early_goes_on_from_its_checkpoint_to_the_same_model(tmp_path: Path) -> None:
    whole, all_epochs = learn(tmp_path / "whole.pt")
    learn(tmp_path / "part.pt", Schedule(**{**vars(SCHEDULE), "epochs": 7}))
    torch.manual_seed(99)
    resumed, epochs = learn(tmp_path / "part.pt")
    assert resumed.slope.weight.item() == whole.slope.weight.item()
    assert [epoch.judged for epoch in epochs] == [epoch.judged for epoch in all_epochs]


def test_a_loss_that_is_no_number_ends_the_fit_with_the_remedy(tmp_path: Path) -> None:
    broken = Line()
    with torch.no_grad():
        broken.slope.weight.fill_(float("nan"))
    with pytest.raises(TrainError, match=r"the loss of the line is nan in epoch 1: take a lower learning rate"):
        learn(tmp_path / "line.pt", line=broken)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room")
def test_a_checkpoint_on_a_full_disk_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "line.draft").symlink_to("/dev/full")
    with pytest.raises(
        TrainError, match=r"line\.pt of [\d,]+ bytes cannot be written \(No space left on device\): make room"
    ):
        learn(tmp_path / "line.pt")


def test_a_checkpoint_that_may_not_be_written_is_no_matter_of_room(tmp_path: Path) -> None:
    (tmp_path / "line.draft").mkdir()
    with pytest.raises(TrainError, match=r"line\.pt of .* \(Is a directory\): mend that and go on with"):
        learn(tmp_path / "line.pt")


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_checkpoint_that_was_cut_short_is_named_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "line.pt"
    learn(file, replace(SCHEDULE, epochs=1))
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    with pytest.raises(RunError, match=r"line\.pt cannot be read \(.*\): mend it, or delete .* and start anew"):
        learn(file)


def test_shares_of_a_batch_are_weighted_so_that_the_mean_of_their_means_is_that_of_all() -> None:
    """Units of 1, 2 and 3 rows, two of which have a label; the values of both are the unit's number."""
    units, counts = np.array([0, 1, 2]), np.array([[1, 0], [2, 1], [3, 1]])

    def means(some: Ints) -> Floats:
        return (some[:, None] * counts[some]).sum(axis=0) / np.maximum(counts[some].sum(axis=0), 1)

    both = [Processes(rank, 2) for rank in (0, 1)]
    weighted = [means(each.share(units)) * each.weights(units, counts).numpy() for each in both]
    assert np.mean(weighted, axis=0) == pytest.approx(means(units))
    assert [each.share(units[:1]).tolist() for each in both] == [[0], [0]]
    assert [each.weights(units[:1], counts).tolist() for each in both] == [[1.0, 1.0]] * 2
    assert both[0].weights(np.array([0, 0]), counts).tolist() == [1.0, 0.0]  # nobody has a label
    assert Processes().weights(units, counts).tolist() == [1.0, 1.0]


_WITHOUT_DROPOUT = """
import sys
from pathlib import Path
from tests.unit.training.test_fit import SCHEDULE, Line, learn
from training.fit import Schedule
from training.processes import processes
import torch
with processes("cpu") as us:
    torch.manual_seed(3)
    line = Line()
    line.drop.p = 0.0
    line, epochs = learn(Path(sys.argv[1]), Schedule(**{**vars(SCHEDULE), "epochs": 5}), line, us)
    if us.is_first:
        print(line.slope.weight.item(), *(epoch.loss for epoch in epochs[1:]))
"""


_RESUMED = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.unit.training.test_fit import SCHEDULE, learn
from training.processes import processes
import torch
with processes("cpu") as us:
    folder = Path(sys.argv[1]).parent
    whole = learn(folder / "whole.pt", replace(SCHEDULE, epochs=5), processes=us)
    learn(folder / "part.pt", replace(SCHEDULE, epochs=2), processes=us)
    torch.manual_seed(99)
    resumed = learn(folder / "part.pt", replace(SCHEDULE, epochs=5), processes=us)
    if us.is_first:
        for line, epochs in (whole, resumed):
            print(line.slope.weight.item(), *(epoch.loss for epoch in epochs[1:]))
"""


def run_here(folder: Path, code: str, *command: str) -> list[float]:
    """What the code prints, run by that command of Python's."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    script = folder / "learn.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, *command, str(script), str(folder / f"{len(command)}.pt")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


_SAID = """
import os
from training.processes import processes, said_by_first
said = float(said_by_first(lambda: f"1{os.environ['RANK']}"))
with processes("cpu") as us:
    mean = us.mean(said)
    if us.is_first:
        print(said, mean)
"""


def test_what_the_first_process_says_all_hear(tmp_path: Path) -> None:
    assert run_here(tmp_path, _SAID, *TWO) == [10.0, 10.0]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Their losses and the model agree to the last digits that sums in another order leave."""
    alone, both = run_here(tmp_path, _WITHOUT_DROPOUT), run_here(tmp_path, _WITHOUT_DROPOUT, *TWO)
    assert both == pytest.approx(alone, rel=1e-5)


def test_two_processes_that_are_resumed_learn_what_they_would_have(tmp_path: Path) -> None:
    """Each draws its own numbers again, not those of the first."""
    found = run_here(tmp_path, _RESUMED, *TWO)
    assert found[: len(found) // 2] == found[len(found) // 2 :]
