"""How a process opens the Feast feature store."""

import warnings

from feast import FeatureStore

from headrace.settings import Settings


def open_feature_store(settings: Settings) -> FeatureStore:
    """The feature store of `settings.feature_repo`. Opens no connection."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls stream feature views experimental, once a process
        return FeatureStore(repo_path=str(settings.feature_repo))
