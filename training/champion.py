"""The model in service, measured beside another on the same requests, by its own vocabulary."""

from dataclasses import dataclass

import pyarrow as pa

from headrace.clock import from_micros
from headrace.models import columns
from headrace.models.bundle import Bundle, BundleError, Manifest, check_fit
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Catalogue
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.models import read_champion
from training.scoring import Models


@dataclass(frozen=True)
class Champion:
    """`note` says what the reader has to know of the comparison; None where there is nothing."""

    version: str
    models: Models
    note: str | None


def check_features(bundle: Bundle, settings: Settings) -> None:
    """Raises BundleError where it was trained on other definitions of the features than those that are applied."""
    check_manifest(bundle.manifest, settings)


def check_manifest(manifest: Manifest, settings: Settings) -> None:
    """`check_features`, of a bundle that is not loaded."""
    streams = load_definitions(settings).streams if settings.registry_path.exists() else {}
    check_fit(manifest.fingerprints, {name: spec.fingerprint for name, spec in streams.items()})


def read_opponent(
    settings: Settings,
    content: pa.Table,
    neighbours: Neighbours,
    cut_us: int,
    version: str | None = None,
    device: str = "cpu",
) -> Champion | str:
    """The champion with the shop as `content` and `neighbours` have it at the cut, or why there is nothing to compare with.

    `version` is the one that is measured, which is not compared with itself.
    """
    ref = read_champion(settings)
    if ref is None:
        return "no champion: no version is in service"
    if ref.version == version:
        return f"no champion: version {version} itself is in service"
    try:
        bundle = Bundle.load(ref.path, device)
        check_features(bundle, settings)
    except BundleError as error:
        return f"no champion: version {ref.version} cannot be asked: {error}"
    shop = Catalogue(bundle.preprocessing, columns.by_name(content))
    trained_us, note = bundle.manifest.cut_us, None
    if trained_us > cut_us:
        note = (
            f"the champion, version {ref.version}, has seen part of the test: it learnt from what happened up to "
            f"{from_micros(trained_us):%Y-%m-%d %H:%M}, after this cut"
        )
    return Champion(ref.version, Models(bundle.preprocessing, shop, bundle.towers, bundle.ranker, neighbours), note)
