from pathlib import Path

import pytest

from headrace.models.snapshot import Snapshot
from serving import catalogue as cat
from serving.catalogue import Catalogue, SnapshotError
from serving.store import CatalogueRows, Popularity

CATALOGUE = Catalogue(("a", "b"), ("b",), ("a",), frozenset({"b"}), {"a": 2.0}, cat.LIVE, 7)
ROWS = CatalogueRows(3, {"item_id": ["new", "a", "b"]}, frozenset({"b"}))
BUNDLED = Snapshot(5, {"item_id": ["b", "old", "a"], "item_catalogue__available": [True, False, None]})


def test_a_snapshot_comes_back_as_it_was_but_for_its_origin(tmp_path: Path):
    path = tmp_path / "serving" / "snapshot.json"
    cat.save(CATALOGUE, path)
    loaded = cat.load(path)
    assert loaded == Catalogue(("a", "b"), ("b",), ("a",), frozenset({"b"}), {"a": 2.0}, cat.SNAPSHOT, 7)
    assert [file.name for file in path.parent.iterdir()] == ["snapshot.json"]


def test_without_a_snapshot_there_is_none(tmp_path: Path):
    assert cat.load(tmp_path / "snapshot.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"popular": 3}', b"\xff"])
def test_a_damaged_snapshot_is_refused_by_name(tmp_path: Path, content: bytes):
    path = tmp_path / "snapshot.json"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"snapshot\.json"):
        cat.load(path)


def test_what_is_acted_on_comes_first_then_the_order_of_the_bundle():
    popularity = Popularity({"a": 1.0, "new": 5.0}, {"new": 0.5, "a": 0.7, "elsewhere": 9.0})
    built = cat.build(["new", "a", "b", "old"], ROWS, popularity, BUNDLED, Catalogue(), 11)
    assert built.popular == ("new", "a", "b", "old")
    assert built.trending == ("a", "new")
    assert built.newest == ("new", "a", "b")
    assert built.unavailable == {"b", "old"}
    assert (built.origin, built.as_of_us) == (cat.LIVE, 11)


def test_while_the_store_is_down_the_last_order_stays_and_keeps_its_time():
    built = cat.build(["new", "a", "b"], ROWS, None, None, CATALOGUE, 11)
    assert built.popular == ("a", "b", "new")
    assert built.trending == ("b",)
    assert (built.origin, built.as_of_us) == (cat.LIVE, 7)


def test_at_the_start_with_the_store_down_the_bundle_answers():
    built = cat.build(BUNDLED.item_id, None, None, BUNDLED, Catalogue(), 11)
    assert built.popular == ("b", "old", "a")
    assert built.unavailable == {"old"}
    assert built.origin == cat.BUNDLE


def test_with_the_lakes_catalogue_alone_items_are_known_but_their_popularity_is_not():
    built = cat.build(["new", "a", "b"], ROWS, None, None, Catalogue(), 11)
    assert built.popular == ("a", "b", "new")
    assert built.origin == cat.LAKE


def test_with_nothing_readable_the_last_good_snapshot_stays():
    assert cat.build([], None, None, None, CATALOGUE, 11) is CATALOGUE
