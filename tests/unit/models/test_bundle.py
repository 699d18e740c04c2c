import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.models.architectures import ranker_of, towers_of
from headrace.models.bundle import (
    FILES,
    FORMAT,
    MANIFEST,
    Bundle,
    BundleError,
    NoSuchArchitectureError,
    OlderFormatError,
    OtherDefinitionsError,
    _digest,
    check_fit,
)
from headrace.models.index import ItemIndex
from headrace.models.preprocessing import Vocabulary
from tests.conftest import ROOT
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US

ITEMS = {"item_id": ["a", "c", "new"], "item_catalogue__category": ["shoes", "books", "shoes"]}


def test_a_bundle_scores_the_same_after_it_was_saved_and_loaded(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    bundle.save(tmp_path / "first")
    loaded = Bundle.load(tmp_path / "first")
    assert loaded.manifest == bundle.manifest
    assert loaded.snapshot == bundle.snapshot
    assert loaded.index.facts == bundle.index.facts
    assert np.array_equal(loaded.items.neighbours_NK, bundle.items.neighbours_NK)
    assert np.array_equal(loaded.items.neighbour_scores_NK, bundle.items.neighbour_scores_NK)
    assert loaded.index.vectors_ND is loaded.items.vectors_ND
    before, after = bundle.scorer(), loaded.scorer()
    user = tiny_shop.request_of(0)
    assert np.array_equal(after.user_vector(user, T_US), before.user_vector(user, T_US))
    assert np.array_equal(after.item_vectors(ITEMS), before.item_vectors(ITEMS))
    assert np.array_equal(after.rank(user, ITEMS, T_US), before.rank(user, ITEMS, T_US))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "first"
    tiny_shop.bundle().save(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        Bundle.load(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    (tmp_path / "first" / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.load(tmp_path / "first")


def test_an_index_of_other_vectors_is_refused_by_its_file(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    of_three = ItemIndex.build(bundle.items.vectors_ND[:3], bundle.items.vectors_ND)
    replace(bundle, index=of_three).save(tmp_path / "first")
    with pytest.raises(
        BundleError, match=r"index\.faiss is damaged \(the index is of 3 vectors 8 wide, the items have 4"
    ):
        Bundle.load(tmp_path / "first")


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    manifest = tmp_path / "first" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "cut_us": 1}))
    with pytest.raises(BundleError, match=r"bundle\.json is damaged"):
        Bundle.load(tmp_path / "first")


@pytest.mark.parametrize("content", ["null", "3", '"x"', "[]", "{}"])
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, content: str) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    (tmp_path / "first" / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json is damaged"):
        Bundle.load(tmp_path / "first")


def rewritten(folder: Path, **changes: object) -> None:
    """A manifest that says something else, signed as its writer would have."""
    manifest = folder / MANIFEST
    state = {**json.loads(manifest.read_text()), **changes}
    del state["sha256"]
    manifest.write_text(json.dumps({**state, "sha256": _digest(state)}))


def test_a_bundle_of_an_older_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    rewritten(tmp_path / "first", format=FORMAT - 1)
    with pytest.raises(
        OlderFormatError, match=rf"^bundle .*first has format {FORMAT - 1}, this version reads {FORMAT}: train again"
    ):
        Bundle.load(tmp_path / "first")


def test_a_bundle_from_before_architectures_had_names_is_of_this_packages(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    bundle.save(tmp_path / "first")
    model = bundle.manifest.model.to_json()
    del model["towers"], model["ranker"]
    rewritten(tmp_path / "first", model=model)
    assert Bundle.load(tmp_path / "first").manifest == bundle.manifest


def test_a_setting_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    bundle.save(tmp_path / "first")
    rewritten(tmp_path / "first", model={**bundle.manifest.model.to_json(), "experts": 4})
    with pytest.raises(BundleError, match=r"unknown model settings \['experts'\]: the bundle was written by another"):
        Bundle.load(tmp_path / "first")


def test_a_bundle_that_may_not_be_written_is_no_matter_of_room(tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("no folder")
    with pytest.raises(BundleError, match=r"first cannot be written \(.*\): mend that, then `headrace train --resume`"):
        tiny_shop.bundle().save(tmp_path / "bundles" / "first")


def test_a_bundle_of_an_architecture_that_is_not_installed_is_refused_with_the_remedy(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    bundle.save(tmp_path / "first")
    rewritten(tmp_path / "first", model={**bundle.manifest.model.to_json(), "towers": "not_here:Own"})
    with pytest.raises(
        NoSuchArchitectureError, match=r"first cannot be run here: no towers 'not_here:Own': .* on PYTHONPATH"
    ):
        Bundle.load(tmp_path / "first")


def test_an_architecture_of_somebody_elses_is_loaded_by_its_name(tmp_path: Path) -> None:
    bundle = tiny_shop.bundle()
    here = "tests.unit.models.foreign"
    model = replace(tiny_shop.MODEL, towers=f"{here}:Mean", ranker=f"{here}:Line")
    own = replace(
        bundle,
        manifest=replace(bundle.manifest, model=model),
        towers=towers_of(bundle.preprocessing, model).eval(),
        ranker=tiny_shop.stirred(ranker_of(bundle.preprocessing, model)),
    )
    own.save(tmp_path / "first")
    loaded = Bundle.load(tmp_path / "first")
    assert (type(loaded.towers).__name__, type(loaded.ranker).__name__) == ("Mean", "Line")
    user = tiny_shop.request_of(0)
    assert np.array_equal(loaded.scorer().rank(user, ITEMS, T_US), own.scorer().rank(user, ITEMS, T_US))


def test_a_vocabulary_that_outgrew_its_table_is_named(tmp_path: Path) -> None:
    """Weights of three items beside a vocabulary of four: a code would lie behind the table's end."""
    bundle = tiny_shop.bundle()
    grown = replace(bundle.preprocessing, ids=Vocabulary(["a", "b", "c", "d"]))
    replace(bundle, preprocessing=grown).save(tmp_path / "first")
    with pytest.raises(
        BundleError,
        match=r"weights\.pt is damaged \(item_encoder\.ids\.table\.weight of the towers has shape \(5, 8\), by "
        r"preprocessing\.json and bundle\.json it is \(6, 8\)",
    ):
        Bundle.load(tmp_path / "first")


ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from headrace.models.bundle import BundleError
from tests.unit.models import tiny_shop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, most))
try:
    tiny_shop.bundle().save(Path(sys.argv[1]))
except BundleError as error:
    print(error)
"""


def test_a_bundle_without_room_is_not_there_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path / "first")]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
    assert said == (
        f"bundle {tmp_path / 'first'} cannot be written (File too large): make room, then `headrace train --resume`\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    with pytest.raises(BundleError, match="never overwritten"):
        tiny_shop.bundle().save(tmp_path / "first")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_items_in_another_order_than_the_snapshots_are_refused(tmp_path: Path) -> None:
    own = tiny_shop.bundle()
    mixed = replace(own, items=replace(own.items, item_ids=["b", "a", "c", "d"]))
    mixed.save(tmp_path / "mixed")
    with pytest.raises(BundleError, match=r"its items are not those of items.npz in their order"):
        Bundle.load(tmp_path / "mixed")


def test_an_item_of_unknown_availability_is_available() -> None:
    assert tiny_shop.bundle().snapshot.available == [True, True, False, True]


def test_a_request_without_any_feature_is_still_scored() -> None:
    scorer = tiny_shop.bundle().scorer()
    assert scorer.user_vector({}, T_US).shape == (8,)
    scores = scorer.rank({}, {"item_id": ["a", "never seen"]}, T_US)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_nulls_and_nan_are_still_scored() -> None:
    user = {"user_activity__views_10m": None, "user_profile__age": float("nan"), "user_activity__recent_items": None,
            "user_activity__recent_types": None, "user_activity__recent_times": None}  # fmt: skip
    items = {
        "item_id": ["a", "b"],
        "item_catalogue__price": np.array([np.nan, np.inf]),
        "item_catalogue__brand": [None, ""],
    }
    assert np.isfinite(tiny_shop.bundle().scorer().rank(user, items, T_US)).all()


def test_a_bundle_of_another_definition_or_of_a_view_that_is_not_there_is_refused_by_view() -> None:
    check_fit({"user_activity": 1}, {"user_activity": 1, "item_activity": 2})
    with pytest.raises(OtherDefinitionsError, match="another definition of view user_activity"):
        check_fit({"user_activity": 1}, {"user_activity": 3})
    with pytest.raises(
        OtherDefinitionsError, match=r"trained on view gone \(fingerprint 7\), which is not there: train"
    ):
        check_fit({"user_activity": 1, "gone": 7}, {"user_activity": 1})
