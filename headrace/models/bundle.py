"""A bundle: one folder with everything that serving needs to rank as training did.

bundle.json          version, what it was trained on and with, metrics, SHA-256 of every other file and of itself
weights.pt           both models
preprocessing.json   vocabularies and scales
items.npz            item ids, their vectors, and each item's neighbours
index.faiss          how the vectors are searched, how well, and what was asked
snapshot.json        catalogue, availability, popularity order
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from headrace.arrays import Floats32, Ints32
from headrace.models.architectures import ArchitectureError, ranker_of, towers_of
from headrace.models.base import RankingModel, Towers
from headrace.models.config import ModelConfig
from headrace.models.index import FILE as INDEX
from headrace.models.index import ItemIndex
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Preprocessing
from headrace.models.scorer import Scorer
from headrace.models.snapshot import FILE as SNAPSHOT
from headrace.models.snapshot import Snapshot
from headrace.room import no_room

__all__ = ["Bundle", "BundleError", "Items", "Manifest", "Scorer"]

FORMAT: Final = 8
MANIFEST: Final = "bundle.json"
WEIGHTS: Final = "weights.pt"
PREPROCESSING: Final = "preprocessing.json"
ITEMS: Final = "items.npz"
FILES: Final = (WEIGHTS, PREPROCESSING, ITEMS, INDEX, SNAPSHOT)


class BundleError(RuntimeError):
    """A bundle that cannot be used; the message names the file and what is wrong with it."""


class OtherDefinitionsError(BundleError):
    """A whole bundle whose features are defined otherwise by now, or not at all."""


class OlderFormatError(BundleError):
    """A bundle that an older version of this code wrote: no replica of this one would take it."""


class NewerFormatError(BundleError):
    """A bundle that a newer version of this code wrote, and that replicas of that one take."""


class NoSuchArchitectureError(BundleError):
    """A whole bundle whose models are of a class that this process does not find."""


def check_fit(fingerprints: Mapping[str, int | str], registered: Mapping[str, int]) -> None:
    """Raises OtherDefinitionsError when a bundle was trained on another definition of a view than the one that is registered, or on
    one that is not there. Whoever does not know what is registered does not ask.
    """
    for view, fingerprint in fingerprints.items():
        if view not in registered:
            raise OtherDefinitionsError(
                f"it was trained on view {view} (fingerprint {fingerprint}), which is not there: train again, or apply the features it "
                "was trained on and run `headrace backfill`"
            )
        if str(registered[view]) != str(fingerprint):
            raise OtherDefinitionsError(
                f"it was trained on another definition of view {view} (fingerprint {fingerprint}, registered is "
                f"{registered[view]}): train again, or apply the features it was trained on"
            )


@dataclass(frozen=True)
class Manifest:
    """What `bundle.json` says, its hashes apart. Times are Unix microseconds."""

    version: str
    created_us: int
    model: ModelConfig
    config: Mapping[str, Any]
    fingerprints: Mapping[str, int | str]
    """Of each stream view that the models read."""
    window_us: tuple[int, int]
    validation_us: int
    """Where the validation part began, which ended at the cut."""
    cut_us: int
    metrics: Mapping[str, float]
    code_version: str
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "model": self.model.to_json()}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Manifest":
        kept = {item.name: state[item.name] for item in fields(cls)}
        return cls(
            **{
                **kept,
                "model": ModelConfig.from_json(state["model"]),
                "window_us": tuple(state["window_us"]),
            }
        )


@dataclass(frozen=True)
class Items:
    """Item vectors and the item-to-item table. N items, D wide, K neighbours; -1 pads where there are fewer."""

    item_ids: list[str]
    vectors_ND: Floats32
    neighbours_NK: Ints32
    neighbour_scores_NK: Floats32


@dataclass(frozen=True)
class Bundle:
    manifest: Manifest
    preprocessing: Preprocessing
    towers: Towers
    ranker: RankingModel
    items: Items
    index: ItemIndex
    snapshot: Snapshot

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def neighbours(self) -> Neighbours:
        """Of a table of the snapshot's items."""
        return Neighbours.of_items(self.items.neighbours_NK, self.items.neighbour_scores_NK)

    def scorer(self) -> Scorer:
        return Scorer(self)

    def save(self, folder: Path) -> None:
        """Write to `folder`, all or nothing. Raises BundleError where it exists: a bundle never changes; and where it cannot be written."""
        if folder.exists():
            raise BundleError(f"{folder} exists; a bundle is never overwritten: choose another version")
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            draft.mkdir(parents=True)
            self._write(draft)
            draft.rename(folder)
        except OSError as error:
            remedy = "make room" if no_room(error) else "mend that"
            raise BundleError(
                f"bundle {folder} cannot be written ({error.strerror or error}): {remedy}, then `headrace train --resume`"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        weights = io.BytesIO()  # torch says of a full disk that it is an error of its own
        torch.save({"towers": self.towers.state_dict(), "ranker": self.ranker.state_dict()}, weights)
        (folder / WEIGHTS).write_bytes(weights.getbuffer())
        (folder / PREPROCESSING).write_text(self.preprocessing.to_json())
        np.savez(
            folder / ITEMS,
            item_ids=np.array(self.items.item_ids, dtype=np.str_),
            vectors=self.items.vectors_ND,
            neighbours=self.items.neighbours_NK,
            neighbour_scores=self.items.neighbour_scores_NK,
        )
        self.index.save(folder / INDEX)
        self.snapshot.write(folder / SNAPSHOT)
        state = {**self.manifest.to_json(), "files": {name: _sha256(folder / name) for name in FILES}}
        (folder / MANIFEST).write_text(json.dumps({**state, "sha256": _digest(state)}, indent=2))

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Bundle":
        """Read and check every file. Raises BundleError naming the first that is missing or damaged."""
        manifest = read_manifest(folder)
        with _naming(folder / PREPROCESSING):
            preprocessing = Preprocessing.from_json((folder / PREPROCESSING).read_text())
        try:
            towers, ranker = towers_of(preprocessing, manifest.model), ranker_of(preprocessing, manifest.model)
        except ArchitectureError as error:
            raise NoSuchArchitectureError(f"bundle {folder} cannot be run here: {error}") from error
        with _naming(folder / WEIGHTS):
            weights = torch.load(folder / WEIGHTS, map_location=device, weights_only=True)
            _fill("towers", towers, weights["towers"])
            _fill("ranker", ranker, weights["ranker"])
        with _naming(folder / ITEMS), np.load(folder / ITEMS, allow_pickle=False) as arrays:
            items = Items(
                arrays["item_ids"].tolist(), arrays["vectors"], arrays["neighbours"], arrays["neighbour_scores"]
            )
        with _naming(folder / INDEX):
            index = ItemIndex.load(folder / INDEX, items.vectors_ND)
        with _naming(folder / SNAPSHOT):
            snapshot = Snapshot.read(folder / SNAPSHOT)
            if snapshot.item_id != items.item_ids:
                raise ValueError(f"its items are not those of {ITEMS} in their order")
        return cls(manifest, preprocessing, towers.to(device).eval(), ranker.to(device).eval(), items, index, snapshot)


def read_manifest(folder: Path) -> Manifest:
    """`bundle.json`, after every file's hash has been checked against it."""
    with _naming(folder / MANIFEST):
        state = json.loads((folder / MANIFEST).read_text())
        said = state.pop("sha256")
        if said != _digest(state):
            raise ValueError("its own SHA-256 does not match")
        _check_format(folder, state["format"])
        manifest = Manifest.from_json(state)
        hashes = state["files"]
    for name in FILES:
        with _naming(folder / name):
            if _sha256(folder / name) != hashes[name]:
                raise ValueError("its SHA-256 is not the one in bundle.json")
    return manifest


def _check_format(folder: Path, said: object) -> None:
    if isinstance(said, int) and said > FORMAT:
        raise NewerFormatError(
            f"bundle {folder} has format {said}, this version reads {FORMAT}: use the version that wrote it"
        )
    if said != FORMAT:
        raise OlderFormatError(
            f"bundle {folder} has format {said}, this version reads {FORMAT}: train again, or promote one that this version has trained"
        )


def _fill(part: str, module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError naming a tensor of another shape than the vocabularies and sizes ask for, RuntimeError where names differ."""
    for name, own in module.state_dict().items():
        if name in state and state[name].shape != own.shape:
            raise ValueError(
                f"{name} of the {part} has shape {tuple(state[name].shape)}, by {PREPROCESSING} and {MANIFEST} it is {tuple(own.shape)}"
            )
    module.load_state_dict(state)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Library errors become a BundleError that names the file."""
    try:
        yield
    except BundleError:
        raise
    except FileNotFoundError as error:
        raise BundleError(f"bundle file {path} is missing: train again or promote another version") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(f"bundle file {path} is damaged ({error}): train again or promote another version") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
