"""A model that begins where an older one ended: weights are taken over where they mean the same.

- A row of an embedding belongs to a string: it goes from the old model's code to the new one's. A string that the old one did not know
  begins as what the old one took it for, its bucket's row.
- Every other tensor is taken over whole where the shape is the same and what it reads and says is: numbers under the same names in the
  same order, categories that are crossed, heads, outcomes. Else it keeps its fresh start, and is named.

- Where the champion is of another class (docs/models.md, architectures) only encoders are taken over. Where both are of a class that is not
  this package's, all that was said holds; a table of codes outside its encoders begins afresh, since nothing says whose codes they are.

Scales follow the data: a number that the new preprocessing standardises otherwise reads a little shifted to the old weights, which fitting
mends. The towers' and the ranker's state have the same names for the same parts, so one function does for both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from headrace.clock import from_micros
from headrace.models.architectures import RANKERS, TOWERS
from headrace.models.bundle import Bundle
from headrace.models.config import ModelConfig
from headrace.models.preprocessing import MISSING, Number, Preprocessing, Vocabulary
from headrace.settings import Settings
from headrace.stores.models import RegistryError, read_champion

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]

_ENCODERS: Final = ("item_encoder.", "history_encoder.", "user_encoder.")
_CODES: Final = ".table.weight"
"""How the name of a `CodeEmbedding`'s weights ends."""
_KNOWN: Final = ("", *TOWERS.values(), *RANKERS.values())
"""Classes of whose tensors is known what they read."""


@dataclass(frozen=True)
class Trained:
    """The state of the towers or of the ranker, and what says how it is to be read."""

    state: State
    preprocessing: Preprocessing
    model: ModelConfig
    kind: str = ""
    """The class, where it may differ."""


@dataclass(frozen=True)
class Warmed:
    """A state to load. `fresh` names the tensors that kept the start of the new model."""

    state: dict[str, Tensor]
    fresh: tuple[str, ...]


def warmed(old: Trained, new: Trained) -> Warmed:
    """`new.state` with all that can be taken over of `old.state`."""
    old_tables, new_tables = _tables(old.preprocessing), _tables(new.preprocessing)
    old_by_name = {name: (key, vocabulary) for key, (name, vocabulary) in old_tables.items()}
    state = dict(new.state)
    for key in new.state:
        if key in new_tables:
            name, wanted = new_tables[key]
            old_key, known = old_by_name.get(name, ("", None))
            source = old.state.get(old_key)
            if known is not None and source is not None and source.shape[1:] == state[key].shape[1:]:
                state[key] = _by_string(source, known, wanted)
        elif not key.endswith(_CODES):
            source = old.state.get(key)
            if source is not None and source.shape == state[key].shape and _means(key, old) == _means(key, new):
                state[key] = source.clone()
    fresh = [key for key, tensor in state.items() if tensor is new.state[key]]
    return Warmed(state, tuple(fresh))


def champion_folder(settings: Settings) -> Path:
    """Of what is in service. Raises RegistryError where nothing is."""
    ref = read_champion(settings)
    if ref is None:
        raise RegistryError(
            "no version is in service to begin from: train without a warm start first, then `headrace promote`"
        )
    return ref.path


def begin_from(
    champion: Bundle, part: nn.Module, own: nn.Module, preprocessing: Preprocessing, model: ModelConfig
) -> None:
    """Put the weights of `part`, a model of the champion, into the new `own`, and say what could not be taken over."""
    old = Trained(part.state_dict(), champion.preprocessing, champion.manifest.model, _class_of(part))
    found = warmed(old, Trained(own.state_dict(), preprocessing, model, _class_of(own)))
    own.load_state_dict(found.state)
    kind, kept = type(own).__name__, len(found.state) - len(found.fresh)
    said = f"{kind}: {kept} of {len(found.state)} tensors begin as those of bundle {champion.version}"
    if found.fresh:
        logger.warning("%s; %d begin afresh", said, len(found.fresh))
        logger.info("afresh begin %s", ", ".join(found.fresh))
    else:
        logger.info("%s", said)


def has_seen(champion: Bundle, cut_us: int) -> str | None:
    """What a reader is told where a bundle has learnt from what happened after the cut: weights that begin as its own would be measured on
    what they have learnt. None where it has not.
    """
    if champion.manifest.cut_us <= cut_us:
        return None
    return (
        f"both models begin from nothing and not as those of bundle {champion.version}, which learnt from what happened up to "
        f"{from_micros(champion.manifest.cut_us):%Y-%m-%d %H:%M}, after this cut: take a smaller test_share to begin with its weights"
    )


def _tables(preprocessing: Preprocessing) -> dict[str, tuple[str, Vocabulary]]:
    """By key of the state, the feature that an embedding is of and its strings."""
    parts: dict[str, tuple[str, Vocabulary]] = {"item_encoder.ids": ("ids", preprocessing.ids)}
    for place, (name, vocabulary) in enumerate(preprocessing.content_categories.items()):
        parts[f"item_encoder.categories.{place}"] = (f"item category {name}", vocabulary)
    for place, (name, strings) in enumerate(preprocessing.content_lists.items()):
        parts[f"item_encoder.lists.{place}"] = (f"item list {name}", strings.vocabulary)
    for place, (name, vocabulary) in enumerate(preprocessing.user_categories.items()):
        parts[f"user_encoder.categories.{place}"] = (f"user category {name}", vocabulary)
    return {f"{key}{_CODES}": each for key, each in parts.items()}


def _by_string(old_CD: Tensor, known: Vocabulary, wanted: Vocabulary) -> Tensor:
    """The old rows in the new order. Where there are as many buckets as before, each is what it was; else all begin at their mean."""
    buckets = slice(MISSING + 1, MISSING + 1 + known.buckets)
    if wanted.buckets == known.buckets:
        buckets_BD = old_CD[buckets]
    else:
        buckets_BD = old_CD[buckets].mean(dim=0, keepdim=True).expand(wanted.buckets, -1)
    values_VD = old_CD[torch.tensor([known.code(value) for value in wanted.values], dtype=torch.int64)]
    return torch.cat([old_CD[: MISSING + 1], buckets_BD, values_VD])


def _means(key: str, trained: Trained) -> object:
    """What must be the same for a tensor of one shape to mean the same."""
    pre, model = trained.preprocessing, trained.model
    users = _named(pre.user_numbers)
    items = (_named(pre.content_numbers), _named(pre.activity_numbers), tuple(pre.content_categories))
    read = {
        "user_encoder.numbers.weight": users,
        "project_user.weight": users,
        "item_encoder.content_FD": _named(pre.lasting_numbers),
        "project_item.weight": items,
    }
    if key.startswith(_ENCODERS):
        return read.get(key)
    if trained.kind not in _KNOWN:
        return (trained.kind, users, items, model.outcomes, model.heads)
    if key.startswith(("out_crossed.", "out_deep.", "position_bias.")):
        return (trained.kind, model.outcomes)
    if key.startswith(("query.", "key.")) or ".query." in key or ".key_value." in key:
        return (trained.kind, model.heads)
    return (trained.kind, read.get(key))


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}:{type(module).__qualname__}"


def _named(numbers: tuple[Number, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((number.name, number.kind) for number in numbers)
