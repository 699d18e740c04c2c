"""A registered version on the shop as it stood at the version's cut, and what has happened since: what it is measured on.

The window begins, and is cut, where the training's was: what has come into the lake since makes the test longer, and moves nothing.
"""

from dataclasses import dataclass

import pyarrow as pa
from feast import FeatureStore

from headrace.models import columns
from headrace.models.bundle import Bundle
from headrace.models.preprocessing import Catalogue
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from training.baselines import neighbour_table
from training.config import TrainConfig
from training.dataset import Cuts, Split, catalogue, items_known_at, read_split
from training.processes import device_of
from training.scoring import Models


@dataclass(frozen=True)
class Window:
    """`content` are the catalogue's rows at the cut, by which another version can be asked the same. The config names a device."""

    config: TrainConfig
    store: FeatureStore
    split: Split
    content: pa.Table
    models: Models


def window_of(bundle: Bundle, config: TrainConfig, settings: Settings) -> Window:
    """Raises DatasetError where nothing has happened since the cut."""
    manifest, cut_us = bundle.manifest, bundle.manifest.cut_us
    store = open_feature_store(settings)
    cuts = Cuts(manifest.window_us[0], manifest.validation_us, cut_us)
    split = read_split(EventLake(settings.lake_dir), config, cuts)
    content = catalogue(store, items_known_at(settings.lake_dir, split, cut_us), cut_us)
    shop = Catalogue(bundle.preprocessing, columns.by_name(content))
    config = config.changed(device=device_of(config.device))
    towers, ranker = bundle.towers.to(config.device), bundle.ranker.to(config.device)
    near = neighbour_table(split.before_cut, shop.item_ids)
    return Window(config, store, split, content, Models(bundle.preprocessing, shop, towers, ranker, near))
