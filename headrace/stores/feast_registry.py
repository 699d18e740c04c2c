"""Feast's file registry, placed under the data directory so that `feast` commands and Headrace see the same one."""

from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.repo_config import RegistryConfig

from headrace.settings import Settings


class DataDirRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """A relative `path` is read below HEADRACE_DATA, or below `var/` beside the feature repository where that is not set."""

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        path = Path(registry_config.path)
        if not path.is_absolute():
            self._filepath = data_dir(repo_path) / path
            self._filepath.parent.mkdir(parents=True, exist_ok=True)


def data_dir(repo_path: Path) -> Path:
    """HEADRACE_DATA if set, else `var/` beside the feature repository."""
    settings = Settings()
    return settings.data.resolve() if "data" in settings.model_fields_set else Path(repo_path).resolve().parent / "var"
