"""Whether what is in service can be asked, and why not where it cannot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import names
from headrace.aggregates.spec import DefinitionError, ViewSpec
from headrace.models.bundle import FORMAT, MANIFEST, Bundle, OtherDefinitionsError, _digest
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, load_definitions, save_definitions
from headrace.stores.models import POINTER, BundleRef, write_pointer
from tests.unit.models import tiny_shop
from training.champion import InService, NoChampion, Why, check_features, read_in_service


def apply(settings: Settings, *views: str) -> dict[str, int]:
    """The fingerprints of these views, which are all that are registered."""
    content = b"registered"
    settings.registry_path.parent.mkdir(parents=True, exist_ok=True)
    settings.registry_path.write_bytes(content)
    specs = {view: ViewSpec(view, "user", names.USER_ID, (), None, 1, 1) for view in views}
    save_definitions(settings.registry_path, content, Definitions(specs, {}))
    return {view: spec.fingerprint for view, spec in load_definitions(settings).streams.items()}


def fitting(settings: Settings, *views: str) -> Bundle:
    bundle = tiny_shop.bundle()
    return replace(bundle, manifest=replace(bundle.manifest, fingerprints=apply(settings, *views)))


def serve(settings: Settings, bundle: Bundle) -> Path:
    """As version 7."""
    folder = settings.bundles_dir / bundle.version
    bundle.save(folder)
    write_pointer(settings.bundles_dir / POINTER, BundleRef("7", folder))
    return folder


def rewritten(folder: Path, **changes: object) -> None:
    """A manifest that says something else, signed as its writer would have."""
    state = {**json.loads((folder / MANIFEST).read_text()), **changes}
    del state["sha256"]
    (folder / MANIFEST).write_text(json.dumps({**state, "sha256": _digest(state)}))


def why(settings: Settings, version: str | None = None) -> tuple[Why, str]:
    found = read_in_service(settings, version)
    assert isinstance(found, NoChampion)
    return found.why, found.said


def test_a_champion_of_the_features_that_are_applied_can_be_asked_by_any_version_but_itself(settings: Settings) -> None:
    assert why(settings) == (Why.NONE_IN_SERVICE, "no version is in service")
    folder = serve(settings, fitting(settings, names.USER_ACTIVITY))
    found = read_in_service(settings, "8")
    assert isinstance(found, InService)
    assert (found.ref, found.bundle.version) == (BundleRef("7", folder), "first")
    assert why(settings, "7") == (Why.ITSELF, "version 7 itself is in service")


def test_a_champion_whose_view_is_defined_otherwise_or_gone_is_of_other_definitions(settings: Settings) -> None:
    bundle = fitting(settings, names.USER_ACTIVITY, names.ITEM_ACTIVITY)
    serve(settings, bundle)
    apply(settings, names.USER_ACTIVITY)
    reason, said = why(settings)
    assert reason is Why.OTHER_DEFINITIONS
    assert said.startswith("version 7, which is in service, cannot be asked: it was trained on view item_activity (")
    other = replace(bundle, manifest=replace(bundle.manifest, fingerprints={names.USER_ACTIVITY: 12}))
    with pytest.raises(OtherDefinitionsError, match="another definition of view user_activity"):
        check_features(other.manifest, settings)


def test_an_older_format_a_class_that_is_not_there_and_a_damaged_file_are_told_apart(settings: Settings) -> None:
    bundle = fitting(settings, names.USER_ACTIVITY)
    folder = serve(settings, bundle)
    manifest = (folder / MANIFEST).read_text()

    rewritten(folder, format=FORMAT - 1)
    assert why(settings)[0] is Why.OLDER_FORMAT

    rewritten(folder, format=FORMAT + 1)
    reason, said = why(settings)
    assert reason is Why.NEWER_FORMAT
    assert said.endswith(f"has format {FORMAT + 1}, this version reads {FORMAT}: use the version that wrote it")

    (folder / MANIFEST).write_text(manifest)
    rewritten(folder, model={**bundle.manifest.model.to_json(), "towers": "not_here:Own"})
    assert why(settings)[0] is Why.NO_ARCHITECTURE

    (folder / MANIFEST).write_text(manifest)
    (folder / "weights.pt").write_bytes(b"")
    assert why(settings)[0] is Why.DAMAGED

    write_pointer(settings.bundles_dir / POINTER, BundleRef("7", settings.bundles_dir / "gone"))
    reason, said = why(settings)
    assert reason is Why.DAMAGED
    assert "is missing: train again or promote another version" in said


def test_without_a_registry_nobody_can_tell_whether_a_bundle_fits(settings: Settings) -> None:
    with pytest.raises(DefinitionError, match=r"no features are registered in .*registry\.pb: run `headrace apply`"):
        check_features(tiny_shop.bundle().manifest, settings)
