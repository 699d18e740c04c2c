"""The last good snapshot: it comes back as it was, or is refused by name, and is replaced in one step."""

from pathlib import Path

import numpy as np
import pytest

from headrace.arrays import Ints
from serving import catalogue as cat
from serving import snapshot
from serving.candidates import RANK, SIMILAR, Filter, RecommendationRequest, Trace
from serving.catalogue import BRAND, CATEGORY, PRICE, Catalogue
from serving.pipeline import Means, answer
from serving.snapshot import SnapshotError
from serving.state import ServingState
from tests.unit.aggregates.test_batch import NOON
from tests.unit.serving.small_shop import catalogue, changes


def shop() -> Catalogue:
    """d is the most popular; b cannot be had, e is deleted, c came after the orders were made."""
    made = catalogue("a", "b", "d", "e", unavailable=["b"], deleted=["e"], trending=["d", "a"], newest=["a", "d"])
    made.put(changes("a", "d", category=["shoes", None], brand=["x", None], price=[1.5, None], listed_us=3))
    made.orders = made.orders._replace(popular=np.array([2, 0, 3, 1]), as_of_us=7)
    made.announce(made.put(changes("c")))
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "serving" / "snapshot.arrow"
    snapshot.save(shop(), path)
    return path


def named(items: Catalogue, rows: Ints) -> list[str]:
    return [items.item_ids[row] for row in rows.tolist()]


def test_a_snapshot_comes_back_in_the_order_of_popularity_with_what_filters_need(saved: Path) -> None:
    loaded = snapshot.load(saved)
    assert loaded is not None
    assert (loaded.item_ids, loaded.origin, loaded.orders.as_of_us) == (["d", "a", "e", "b", "c"], cat.SNAPSHOT, 7)
    assert loaded.state.tolist() == [cat.AVAILABLE, cat.AVAILABLE, cat.DELETED, cat.UNAVAILABLE, cat.AVAILABLE]
    assert loaded.content_of(np.arange(2), [CATEGORY, BRAND, PRICE]) == {
        "item_id": ["d", "a"], CATEGORY: [None, "shoes"], BRAND: [None, "x"], PRICE: [None, 1.5],
    }  # fmt: skip
    assert named(loaded, loaded.orders.popular) == ["d", "a", "e", "b", "c"]
    assert (named(loaded, loaded.orders.trending), named(loaded, loaded.orders.newest)) == (["d", "a"], ["c", "a", "d"])
    assert loaded.orders.overall.tolist() == [2, 4, 1, 3, 0]
    assert loaded.listed_us.tolist() == [0, 0, 0, 0, 0]


def test_what_was_loaded_is_saved_again_as_it_is(saved: Path, tmp_path: Path) -> None:
    first = snapshot.load(saved)
    assert first is not None
    snapshot.save(first, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_without_a_snapshot_there_is_none(tmp_path: Path) -> None:
    assert snapshot.load(tmp_path / "snapshot.arrow") is None


def test_one_cut_short_anywhere_is_refused_by_name(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), 10):
        saved.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match=r"snapshot\.arrow is no snapshot of a catalogue .* delete it"):
            snapshot.load(saved)


def test_one_with_a_flipped_byte_is_refused_by_name_wherever_it_is(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        saved.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=r"snapshot\.arrow"):
            snapshot.load(saved)


@pytest.mark.parametrize("content", [b"{", b"ARROW1", b"\xff" * 100])
def test_another_kind_of_file_is_refused_by_name(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"snapshot\.arrow"):
        snapshot.load(saved)


def test_a_snapshot_that_cannot_be_written_leaves_the_last_one_whole_and_nothing_beside_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("serving.snapshot.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        snapshot.save(catalogue("x"), saved)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == ["snapshot.arrow"]


def test_a_reader_sees_the_old_snapshot_or_the_new_one(saved: Path) -> None:
    with saved.open("rb") as reading:
        begun = reading.read(100)
        snapshot.save(catalogue("x", "y"), saved)
        old = begun + reading.read()
    loaded = snapshot.load(saved)
    assert loaded is not None
    assert loaded.item_ids == ["x", "y"]
    saved.write_bytes(old)
    assert snapshot.load(saved).item_ids == ["d", "a", "e", "b", "c"]  # type: ignore[union-attr]
    assert [file.name for file in saved.parent.iterdir()] == ["snapshot.arrow"]


def test_an_empty_catalogue_comes_back_empty(tmp_path: Path) -> None:
    snapshot.save(Catalogue(cat.LIVE), tmp_path / "empty")
    loaded = snapshot.load(tmp_path / "empty")
    assert loaded is not None
    assert len(loaded) == 0


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (RecommendationRequest("u", 9), ["d", "a", "c"]),
        (RecommendationRequest("u", 1), ["d"]),
        (RecommendationRequest("u", 9, exclude=frozenset({"d"})), ["a", "c"]),
        (RecommendationRequest("u", 9, wanted=Filter(category=frozenset({"shoes"}))), ["a"]),
        (RecommendationRequest("u", 9, wanted=Filter(max_price=1.0)), []),
        (RecommendationRequest("u", 9, wanted=Filter(include_unavailable=True)), ["d", "a", "c", "b"]),
        (RecommendationRequest("u", 9, RANK, items=("a", "e", "d")), ["a", "d"]),
        (RecommendationRequest(None, 9, SIMILAR, items=("d",)), ["a", "c"]),
    ],
)
def test_a_snapshot_answers_with_filter_exclusions_and_n(
    saved: Path, request_: RecommendationRequest, expected: list[str]
) -> None:
    """Law 5, when nothing else is left."""
    loaded = snapshot.load(saved)
    assert loaded is not None
    slate = answer(request_, ServingState(None, loaded), Means(None, lambda: NOON, 30_000_000), Trace(100_000))
    assert slate.item_ids == expected
    assert "catalogue: from snapshot" in slate.trace.degraded
