"""Feast's file registry, placed under the data directory so that `feast` commands and Headrace see the same one."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from feast import FeatureView, StreamFeatureView
from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig

from headrace.aggregates.compile import compile_view
from headrace.aggregates.spec import DefinitionError
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, save_definitions, write_whole
from headrace.stores.feature_store import plain_layout


class DefinitionRefusedError(click.ClickException, DefinitionError):
    """A definition refused while it is applied. Feast's command line prints it as one line and ends with exit code 1."""


@contextmanager
def refusing() -> Iterator[None]:
    """Inside, a DefinitionError becomes a DefinitionRefusedError."""
    try:
        yield
    except DefinitionRefusedError:
        raise
    except DefinitionError as error:
        raise DefinitionRefusedError(str(error)) from error


class DataDirRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """A relative `path` is read below HEADRACE_DATA, or below `var/` beside the feature repository where that is not set.

    Each commit also writes the compiled definitions, and is refused with DefinitionRefusedError where a view cannot be compiled.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        path = Path(registry_config.path)
        if not path.is_absolute():
            self._filepath = data_dir(repo_path) / path
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        self._definitions = Definitions({}, {})

    def update_registry_proto(self, registry_proto: Registry) -> None:
        with refusing():
            streams = [
                compile_view(StreamFeatureView.from_proto(proto)) for proto in registry_proto.stream_feature_views
            ]
        plain = [plain_layout(FeatureView.from_proto(proto)) for proto in registry_proto.feature_views]
        self._definitions = Definitions(
            {spec.name: spec for spec in streams}, {layout.view: layout for layout in plain}
        )
        super().update_registry_proto(registry_proto)

    def _write_registry(self, registry_proto: Registry) -> None:
        """As Feast does it, but whole or not at all, and the compiled definitions with it."""
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.GetCurrentTime()
        content: bytes = registry_proto.SerializeToString()
        write_whole(self._filepath, content)
        save_definitions(self._filepath, content, self._definitions)


def data_dir(repo_path: Path) -> Path:
    """HEADRACE_DATA if set, else `var/` beside the feature repository."""
    settings = Settings()
    return settings.data.resolve() if "data" in settings.model_fields_set else Path(repo_path).resolve().parent / "var"
