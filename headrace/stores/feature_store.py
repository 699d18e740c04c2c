"""How a process opens the Feast feature store, and what the engines take from it."""

import warnings
from functools import lru_cache
from typing import Final

from feast import FeatureStore, FeatureView
from feast.repo_config import load_repo_config

from headrace.aggregates.compile import compile_views
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.plain_rows import PlainLayout

_CONFIG: Final = "feature_store.yaml"


class NoFeatureRepositoryError(ValueError):
    """The folder that the settings name is none; the message says which, and what to do."""


def open_feature_store(settings: Settings) -> FeatureStore:
    """The feature store of `settings.feature_repo`, its registry, stores and server those of the settings. Opens no connection.

    Raises NoFeatureRepositoryError.
    """
    quieten_feast()
    repo = settings.feature_repo.resolve()
    if not (repo / _CONFIG).is_file():
        raise NoFeatureRepositoryError(
            f"no feature repository at {repo}: run in the checkout, or set HEADRACE_FEATURE_REPO to its feature_repo"
        )
    config = load_repo_config(repo, repo / _CONFIG)
    if config.registry.registry_type == "file":
        config.registry.path = str(settings.registry_path.resolve())
    for store in (config.online_store, config.offline_store):
        if "settings" in type(store).model_fields:
            store.settings = settings
    return FeatureStore(config=config)


def quieten_feast() -> None:
    """Silence what Feast says of every stream view that it reads. Its modules reset the filters as they are imported, so after that."""
    warnings.filterwarnings("ignore", "Stream feature views are experimental", RuntimeWarning)


def plain_layout(view: FeatureView) -> PlainLayout:
    """How the rows of a plain view are packed; the same object for equal views.

    Read back from the registry, a view may list its entity columns as features. Views on demand have neither these nor a TTL.
    """
    entity_columns = {column.name for column in getattr(view, "entity_columns", [])}
    fields = tuple((f.name, f.dtype.to_value_type().name) for f in view.features if f.name not in entity_columns)
    ttl = getattr(view, "ttl", None)
    return _layout(view.name, fields, int(ttl.total_seconds() * 1_000_000) or None if ttl else None)


@lru_cache(maxsize=1_000)
def _layout(view: str, fields: tuple[tuple[str, str], ...], ttl_us: int | None) -> PlainLayout:
    return PlainLayout(view, fields, ttl_us)


def compile_registry(store: FeatureStore) -> Definitions:
    """Every view of the registry, compiled. Raises DefinitionError."""
    plain = {view.name: plain_layout(view) for view in store.list_batch_feature_views()}
    return Definitions(compile_views(store), plain)
