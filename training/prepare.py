"""What a run learns from, written once into its folder: by the first process, for the others, and for a run that is resumed."""

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
import xxhash
from feast import FeatureStore

from headrace import names
from headrace.arrays import Ints, Mask
from headrace.models import columns
from headrace.models.base import Towers
from headrace.models.inputs import UserInputs
from headrace.models.packed_items import MOST_CODES
from headrace.models.preprocessing import Catalogue, Preprocessing
from training.baselines import neighbour_table
from training.config import TrainConfig
from training.dataset import (
    T_US,
    Split,
    catalogue,
    historical_chunks,
    item_activity,
    items_known_at,
    newest,
    sample,
    user_features,
)
from training.lists import Lists, retrieved_lists, shown_lists, together, were_offered, write_lists
from training.requests import Requests
from training.run import Run, Shop
from training.run_files import reading, write
from training.windows import Windows, write_windows

_PREPROCESSING: Final = "preprocessing.json"
_CONTENT: Final = "content.parquet"
_ROWS: Final = "rows"
_LISTS: Final = "ranker_lists"
_HELD_OUT: Final = "held_out"
_READY: Final = "ready"
_FITTED_ON: Final = 20_000
USER_CHUNK: Final = 16_384
"""Users whose features are held at once. More take more memory and no less time; the lake is read once for all."""
# Codes of a string feature; of items there are as many as were seen.
_MAX_VALUES: Final = 50_000
# Of more items the most frequent have a code of their own, and the rest share buckets: a packed item holds no larger codes.
_MOST_VALUES: Final = MOST_CODES - 1_000
# Of the validation's requests, those that the ranker does not learn from: it is judged and calibrated by them.
_HELD_OUT_SHARE: Final = 0.25
_MOST_HELD_OUT: Final = 8_000


def shop_at_cut(folder: Path, split: Split, store: FeatureStore, lake_dir: Path, config: TrainConfig) -> Shop:
    """Vocabularies and scales of users fitted on what is before the validation; items as they were when the test began (docs/adr/0023)."""
    if not (folder / _PREPROCESSING).exists():
        content = catalogue(store, items_known_at(lake_dir, split, split.cut_us), split.cut_us)
        some = sample(newest(split.train, config.max_positives), _FITTED_ON, config.seed)
        seen = dict(split.train[names.ITEM_ID].value_counts().iter_rows())
        preprocessing = Preprocessing.fit(
            user_features(store, some),
            content,
            item_activity(store, some),
            seen,
            now_us=split.cut_us,
            length=config.length,
            max_values=min(max(_MAX_VALUES, len(seen)), _MOST_VALUES),
        )
        pq.write_table(content, folder / _CONTENT)
        write(folder / _PREPROCESSING, preprocessing.to_json())  # a run that is killed in between makes both again
    with reading(folder / _CONTENT, folder):
        content = pq.read_table(folder / _CONTENT)
    with reading(folder / _PREPROCESSING, folder):
        preprocessing = Preprocessing.from_json((folder / _PREPROCESSING).read_text())
    return Shop(preprocessing, Catalogue(preprocessing, columns.by_name(content)), content)


def tower_rows(folder: Path, positives: pl.DataFrame, shop: Shop, store: FeatureStore) -> Windows:
    """The users of all positives, sorted by user and time, each as of just before; features come and are written a chunk at a time."""
    place = folder / _ROWS
    if not (place / _READY).exists():
        keys = positives.select(names.USER_ID, T_US)
        chunks = historical_chunks(store, names.RETRIEVAL_SERVICE, keys, USER_CHUNK)
        write_windows(place, keys, chunks, shop.preprocessing, shop.catalogue.row)
        (place / _READY).touch()
    with reading(place, folder):
        return Windows.open(place)


def users_of(requests: Requests, shop: Shop, store: FeatureStore) -> UserInputs:
    """As of each request's time."""
    if not len(requests):
        return shop.preprocessing.users({}, requests.t_us, shop.catalogue.row)
    keys, read, parts = requests.rows.select(names.USER_ID, T_US), 0, []
    for chunk in historical_chunks(store, names.RETRIEVAL_SERVICE, keys, USER_CHUNK):
        t_us = requests.t_us[read : read + chunk.num_rows]
        parts.append(shop.preprocessing.users(columns.by_name(chunk), t_us, shop.catalogue.row))
        read += chunk.num_rows
    return UserInputs(*(torch.cat(field) for field in zip(*parts, strict=True)))


def ranker_lists(
    run: Run, towers: Towers, requests: Requests, offered_TK: Ints, store: FeatureStore
) -> tuple[Lists | None, Lists | None]:
    """Lists to learn from, and those held out to judge and calibrate by, from after the towers' rows; None where there is none.

    Users are on one side or the other. A held-out request has all that it was offered, as in serving.
    """
    place, config, shop = run.folder.path / _LISTS, run.config, run.shop
    if not (place / _READY).exists():
        held_T, offered_T = _held_out(requests.rows), were_offered(requests.target_T, offered_TK)
        learnt = np.flatnonzero(~held_T & offered_T)[: config.max_lists]
        judged = np.flatnonzero(held_T & offered_T)[:_MOST_HELD_OUT]
        item_ids, shown = shop.catalogue.item_ids, run.split.validation_impressions
        shown_held = _held_out(shown)
        near = neighbour_table(run.split.train, item_ids)
        retrieved = {
            part: retrieved_lists(
                requests.rows[some], requests.target_T[some], offered_TK[some], item_ids, length, config.seed
            )
            for part, some, length in (
                (place / _ROWS, learnt, config.list_length),
                (place / _HELD_OUT, judged, offered_TK.shape[1]),
            )
        }
        impressions = {
            place / _ROWS: newest(shown.filter(pl.Series(~shown_held)), config.max_lists * config.list_length),
            place / _HELD_OUT: newest(shown.filter(pl.Series(shown_held)), _MOST_HELD_OUT * config.list_length),
        }
        for part, frame in retrieved.items():
            lists = together([frame, shown_lists(impressions[part], item_ids, config.list_length)])
            if lists.is_empty():
                continue
            write_lists(
                part, lists, store, shop.preprocessing, shop.catalogue, towers, near, run.model.outcomes, run.device
            )
        place.mkdir(exist_ok=True)
        (place / _READY).touch()
    with reading(place, run.folder.path):
        learnt_from, held_out = (
            Lists.open(part) if part.exists() else None for part in (place / _ROWS, place / _HELD_OUT)
        )
    return learnt_from, held_out


def _held_out(rows: pl.DataFrame) -> Mask:
    """By user, the same on every run. Shape (rows,)."""
    users = rows.select(pl.col(names.USER_ID).unique())[names.USER_ID].to_list()
    held = [user for user in users if xxhash.xxh64_intdigest(user.encode()) < _HELD_OUT_SHARE * 2**64]
    return rows[names.USER_ID].is_in(held).to_numpy()
