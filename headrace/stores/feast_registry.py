"""Feast's file registry, placed under the data directory so that `feast` commands and Headrace see the same one."""

from pathlib import Path

from feast import FeatureView, StreamFeatureView
from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig

from headrace.aggregates.compile import compile_view
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, save_definitions
from headrace.stores.feature_store import plain_layout


class DataDirRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """A relative `path` is read below HEADRACE_DATA, or below `var/` beside the feature repository where that is not set.

    Each commit also writes the compiled definitions, and is refused with DefinitionError where a view cannot be compiled.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        path = Path(registry_config.path)
        if not path.is_absolute():
            self._filepath = data_dir(repo_path) / path
        self._filepath.parent.mkdir(parents=True, exist_ok=True)

    def update_registry_proto(self, registry_proto: Registry) -> None:
        streams = [compile_view(StreamFeatureView.from_proto(proto)) for proto in registry_proto.stream_feature_views]
        plain = [plain_layout(FeatureView.from_proto(proto)) for proto in registry_proto.feature_views]
        super().update_registry_proto(registry_proto)
        save_definitions(
            self._filepath,
            Definitions({spec.name: spec for spec in streams}, {layout.view: layout for layout in plain}),
        )


def data_dir(repo_path: Path) -> Path:
    """HEADRACE_DATA if set, else `var/` beside the feature repository."""
    settings = Settings()
    return settings.data.resolve() if "data" in settings.model_fields_set else Path(repo_path).resolve().parent / "var"
