"""What the ranker learns from: users at a time with some candidates each, and what came of every candidate.

Two kinds of list. *Retrieved*: what the towers offer a user who then turned to one of these; the towers have not learnt from it, so
that the ranker sees their scores as they will be in a request. *Shown*: the impressions of a request, with their positions.

Shapes: R lists, C candidates of all lists together, N of the longest list of a batch, O outcomes, T requests, K offered to each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from feast import FeatureStore
from torch import Tensor

from headrace import names
from headrace.arrays import Ints, Mask
from headrace.models import columns
from headrace.models.base import NOT_SHOWN, Towers
from headrace.models.inputs import ItemInputs, Retrieved, UserInputs
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Catalogue, Preprocessing
from training.dataset import LABELS, T_US, item_activity, user_features
from training.rows import CHUNK, Table, UserRows, Values, of_items, of_users
from training.scoring import items_of, shop_vectors, vectors_of

LIST: Final = "list"
POSITION: Final = "place_shown"
WANTED: Final = "wanted"
_USERS: Final = "users"
_ITEMS: Final = "items"
_FACTS: Final = "facts"
_OFFSETS: Final = "offsets.npy"
_COLUMNS: Final = (LIST, names.USER_ID, T_US, names.ITEM_ID, POSITION, WANTED, *LABELS)


class ListBatch(NamedTuple):
    """Some lists, padded to the longest with candidates whose labels are NaN and whose logits do not count."""

    users: UserInputs
    items: ItemInputs
    retrieved: Retrieved
    present_BN: Tensor
    labels_BNO: Tensor
    positions_BN: Tensor
    wanted_B: Tensor
    """Place in the list of what was turned to; -1 for lists that were shown."""

    def to(self, device: str) -> "ListBatch":
        return ListBatch(*(part.to(device) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lists:
    """Lists on disk, in three tables."""

    users: UserRows
    items: Table
    """Features of all candidates."""
    facts: Table
    """What else is known of them: `labels_CO`, `positions_C`, `wanted_C`, the towers' score `retrieved_C`, `nearness_C` to the history."""
    offsets_R: Ints
    """Where each list's candidates begin, and where the last one's end. Shape (R + 1,)."""

    @classmethod
    def open(cls, folder: Path) -> "Lists":
        users, items, facts = (Table.open(folder / name) for name in (_USERS, _ITEMS, _FACTS))
        return cls(UserRows.of(users), items, facts, np.load(folder / _OFFSETS))

    def __len__(self) -> int:
        return len(self.offsets_R) - 1

    @property
    def has_choices(self) -> bool:
        """Whether any of them is of what was retrieved."""
        return bool(self.facts.columns["wanted_C"].any())

    @property
    def choices_R(self) -> Ints:
        """Whether something of the list was turned to: 1 or 0. Shape (R,)."""
        return np.minimum(self._sums(self.facts.columns["wanted_C"]), 1)

    @property
    def labels_R(self) -> Ints:
        """How many outcomes of the list's candidates were observed. Shape (R,)."""
        return self._sums((~np.isnan(self.facts.columns["labels_CO"])).sum(axis=1))

    def _sums(self, values_C: npt.NDArray[Any]) -> Ints:
        """Of each list, all of which have candidates. Shape (R,)."""
        return np.add.reduceat(values_C[: self.offsets_R[-1]], self.offsets_R[:-1], dtype=np.int64)

    def take(self, lists: Ints) -> ListBatch:
        starts_B, lengths_B = self.offsets_R[lists], np.diff(self.offsets_R)[lists]
        places_N = np.arange(lengths_B.max(initial=1))
        present_BN = places_N < lengths_B[:, None]
        rows_BN = np.where(present_BN, starts_B[:, None] + places_N, starts_B[:, None])
        facts = {name: column[rows_BN] for name, column in self.facts.columns.items()}
        labels_BNO = np.where(present_BN[..., None], facts["labels_CO"], np.float32(np.nan))
        wanted_BN = facts["wanted_C"] & present_BN
        return ListBatch(
            self.users.take(lists),
            ItemInputs(**self.items.take(rows_BN)),
            Retrieved(torch.from_numpy(facts["retrieved_C"]), torch.from_numpy(facts["nearness_C"])),
            torch.from_numpy(present_BN),
            torch.from_numpy(labels_BNO),
            torch.from_numpy(facts["positions_C"]),
            torch.from_numpy(np.where(wanted_BN.any(axis=1), wanted_BN.argmax(axis=1), -1)),
        )

    def parts(self, lists: int = 64) -> Iterator[ListBatch]:
        """All of them in order, so many at a time."""
        for start in range(0, len(self), lists):
            yield self.take(np.arange(start, min(start + lists, len(self))))


def were_offered(target_T: Ints, offered_TK: Ints) -> Mask:
    """Whether each target is among what was offered: what was not cannot be ranked, and such a request says nothing. Shape (T,)."""
    found_T: Mask = (offered_TK == target_T[:, None]).any(axis=1)
    return found_T


def retrieved_lists(
    requests: pl.DataFrame, target_T: Ints, offered_TK: Ints, item_ids: Sequence[str], candidates: int, seed: int
) -> pl.DataFrame:
    """Of each request, all of which were offered their target: that and up to `candidates - 1` others of the offer, drawn evenly.

    `offered_TK` are places, -1 for none.
    """
    rng = np.random.default_rng(seed)
    keys_TK = rng.random(offered_TK.shape)
    keys_TK[offered_TK == target_T[:, None]] = -1.0  # the first of all
    keys_TK[offered_TK < 0] = 2.0
    chosen_TN = np.argsort(keys_TK, axis=1)[:, :candidates]
    places_TN = np.sort(np.take_along_axis(offered_TK, chosen_TN, axis=1), axis=1)
    rows = requests.with_row_index(LIST).rename({names.ITEM_ID: "target"})
    ids_I = np.asarray(item_ids, dtype=object)
    listed = pl.DataFrame(
        {
            LIST: np.repeat(np.arange(len(target_T), dtype=np.uint32), places_TN.shape[1]),
            "place": places_TN.ravel(),
        }
    ).filter(pl.col("place") >= 0)
    listed = listed.with_columns(pl.Series(names.ITEM_ID, ids_I[listed["place"].to_numpy()], dtype=pl.String))
    wanted = pl.col(names.ITEM_ID) == pl.col("target")
    return listed.join(rows, on=LIST, maintain_order="left").select(
        LIST,
        names.USER_ID,
        T_US,
        names.ITEM_ID,
        pl.lit(NOT_SHOWN, dtype=pl.Int64).alias(POSITION),
        wanted.alias(WANTED),
        *[pl.when(wanted).then(pl.col(label)).otherwise(0).cast(pl.Int8).alias(label) for label in LABELS],
    )


def shown_lists(impressions: pl.DataFrame, item_ids: Sequence[str], longest: int) -> pl.DataFrame:
    """The first places of what each request showed, as far as the catalogue knows the items."""
    return (
        impressions.filter(pl.col(names.ITEM_ID).is_in(item_ids))
        .with_columns(pl.col("position").fill_null(0).cast(pl.Int64))
        .sort(T_US, "request_id", "position", maintain_order=True)
        .with_columns((pl.struct("request_id", names.USER_ID, T_US).rle_id()).cast(pl.UInt32).alias(LIST))
        .filter(pl.int_range(pl.len()).over(LIST) < longest)
        .with_columns(
            (1 + pl.col("position")).alias(POSITION), pl.lit(False).alias(WANTED), pl.col(*LABELS).cast(pl.Int8)
        )
        .select(_COLUMNS)
    )


def together(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """All lists, numbered on."""
    numbered, first = [], 0
    for frame in frames:
        numbered.append(frame.select(_COLUMNS).with_columns(pl.col(LIST) + pl.lit(first, dtype=pl.UInt32)))
        first += 0 if frame.is_empty() else int(frame[LIST].max()) + 1  # type: ignore[arg-type]
    return pl.concat(numbered)


def write_lists(
    folder: Path,
    frame: pl.DataFrame,
    store: FeatureStore,
    preprocessing: Preprocessing,
    shop: Catalogue,
    towers: Towers,
    neighbours: Neighbours,
    outcomes: Sequence[str],
    device: str,
) -> Lists:
    """With users and activity as of each list's time, items as the shop has them, and the towers' scores. Raises OSError."""
    places_C = shop.rows(frame[names.ITEM_ID].to_arrow()) - Catalogue.FIRST
    heads = frame.unique(LIST, keep="first", maintain_order=True)

    def users() -> Iterator[dict[str, Values]]:
        for start in range(0, max(heads.height, 1), CHUNK):
            some = heads.slice(start, CHUNK)
            table = columns.by_name(user_features(store, some))
            yield of_users(preprocessing.users(table, some[T_US].to_numpy(), shop.row))

    def items() -> Iterator[dict[str, Values]]:
        for start in range(0, max(frame.height, 1), CHUNK):
            some = slice(start, start + CHUNK)
            yield of_items(items_of(preprocessing, shop, places_C[some], item_activity(store, frame[some])))

    written = UserRows.of(Table.write(folder / _USERS, heads.height, users()))
    Table.write(folder / _ITEMS, frame.height, items())
    counts_R = frame.group_by(LIST, maintain_order=True).len()["len"].to_numpy()
    offsets_R = np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64)
    item_ID = shop_vectors(towers, shop, device)
    user_RD = vectors_of(towers, shop, written, device)
    list_C = np.repeat(np.arange(heads.height), counts_R)
    starts = range(0, max(frame.height, 1), CHUNK)
    scores = [(user_RD[list_C[at : at + CHUNK]] * item_ID[places_C[at : at + CHUNK]]).sum(axis=1) for at in starts]
    present_RN = np.arange(counts_R.max(initial=1)) < counts_R[:, None]
    rows_RN = np.zeros(present_RN.shape, np.int64)
    rows_RN[present_RN] = Catalogue.FIRST + places_C
    history_RL = np.asarray(written.table.columns["items_BL"], np.int64)
    facts = {
        "labels_CO": frame.select(outcomes).to_numpy().astype(np.float32),
        "positions_C": frame[POSITION].to_numpy(),
        "wanted_C": frame[WANTED].to_numpy(),
        "retrieved_C": np.concatenate(scores).astype(np.float32),
        "nearness_C": neighbours.nearness(history_RL, rows_RN)[present_RN],
    }
    Table.write(folder / _FACTS, frame.height, [facts])
    np.save(folder / _OFFSETS, offsets_R)
    return Lists.open(folder)
