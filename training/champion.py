"""The model in service: whether it can be asked, and as it is measured beside another on the same requests, by its own vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import pyarrow as pa

from headrace.aggregates.spec import DefinitionError
from headrace.clock import from_micros
from headrace.models import columns
from headrace.models.bundle import (
    Bundle,
    BundleError,
    Manifest,
    NewerFormatError,
    NoSuchArchitectureError,
    OlderFormatError,
    OtherDefinitionsError,
    check_fit,
)
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Catalogue
from headrace.settings import Settings
from headrace.stores.definitions import is_registered, load_definitions
from headrace.stores.models import BundleRef, read_champion
from training.scoring import Models


class Why(Enum):
    """Why there is no champion to ask."""

    NONE_IN_SERVICE = auto()
    ITSELF = auto()
    """It is the version that is to be compared with it."""
    OTHER_DEFINITIONS = auto()
    """Of features: no replica that starts would serve it."""
    OLDER_FORMAT = auto()
    NEWER_FORMAT = auto()
    """This process is of older code; a replica may be of newer."""
    NO_ARCHITECTURE = auto()
    """This process does not find the class of its models; a replica may."""
    DAMAGED = auto()


_WHY: Final[Mapping[type[BundleError], Why]] = {
    OtherDefinitionsError: Why.OTHER_DEFINITIONS,
    OlderFormatError: Why.OLDER_FORMAT,
    NewerFormatError: Why.NEWER_FORMAT,
    NoSuchArchitectureError: Why.NO_ARCHITECTURE,
}


@dataclass(frozen=True)
class InService:
    """What is in service, and can be asked."""

    ref: BundleRef
    bundle: Bundle


@dataclass(frozen=True)
class NoChampion:
    """`said` is why, for a reader; `ref` what is in service all the same."""

    why: Why
    said: str
    ref: BundleRef | None = None


@dataclass(frozen=True)
class Champion:
    """`note` says what the reader has to know of the comparison; None where there is nothing."""

    version: str
    models: Models
    note: str | None


def check_features(manifest: Manifest, settings: Settings) -> None:
    """Raises OtherDefinitionsError where a bundle was trained on other definitions of the features than those that are applied, and
    DefinitionError where nobody can tell.
    """
    if not is_registered(settings):
        raise DefinitionError(f"no features are registered in {settings.registry_path}: run `headrace apply`")
    streams = load_definitions(settings).streams
    check_fit(manifest.fingerprints, {name: spec.fingerprint for name, spec in streams.items()})


def read_in_service(settings: Settings, version: str | None = None, device: str = "cpu") -> InService | NoChampion:
    """`version` is the one that is measured, which is not compared with itself."""
    ref = read_champion(settings)
    if ref is None:
        return NoChampion(Why.NONE_IN_SERVICE, "no version is in service")
    if ref.version == version:
        return NoChampion(Why.ITSELF, f"version {version} itself is in service", ref)
    try:
        bundle = Bundle.load(ref.path, device)
        check_features(bundle.manifest, settings)
    except BundleError as error:
        why = _WHY.get(type(error), Why.DAMAGED)
        return NoChampion(why, f"version {ref.version}, which is in service, cannot be asked: {error}", ref)
    return InService(ref, bundle)


def champion_of(found: InService, content: pa.Table, neighbours: Neighbours, cut_us: int) -> Champion:
    """With the shop as `content` and `neighbours` have it at the cut."""
    bundle = found.bundle
    shop = Catalogue(bundle.preprocessing, columns.by_name(content))
    trained_us, note = bundle.manifest.cut_us, None
    if trained_us > cut_us:
        note = (
            f"the champion, version {found.ref.version}, has seen part of the test: it learnt from what happened up to "
            f"{from_micros(trained_us):%Y-%m-%d %H:%M}, after this cut"
        )
    models = Models(bundle.preprocessing, shop, bundle.towers, bundle.ranker, neighbours)
    return Champion(found.ref.version, models, note)
