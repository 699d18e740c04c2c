from pathlib import Path

import pytest

from headrace.settings import Settings
from headrace.stores.feature_store import NoFeatureRepositoryError, open_feature_store


def test_a_feature_repository_that_is_not_there_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NoFeatureRepositoryError,
        match=rf"no feature repository at {tmp_path}/feature_repo: run in the checkout, or set HEADRACE_FEATURE_REPO",
    ):
        open_feature_store(Settings(feature_repo=Path("feature_repo")))
