"""API keys of the local stack: those of the environment, else random ones, in a file that its owner alone may read."""

import os
import secrets
from pathlib import Path

from headrace.settings import Settings

KEYS_FILE = "keys.env"
_SETTINGS = ("event_keys", "read_keys", "admin_keys")


def keys_path(settings: Settings) -> Path:
    return settings.run_dir / KEYS_FILE


def with_keys(settings: Settings) -> Settings:
    """The settings with every kind of key: from the environment, else from the file, else new, written to the file."""
    kept = read_keys(settings)
    made = {name: kept.get(name) or secrets.token_urlsafe(24) for name in _SETTINGS if not getattr(settings, name)}
    if made and made != kept:
        _write(keys_path(settings), kept | made)
    return settings.model_copy(update=made)


def with_kept_keys(settings: Settings) -> Settings:
    """The settings with keys as far as the environment or the file has them; writes nothing."""
    kept = {name: key for name, key in read_keys(settings).items() if not getattr(settings, name)}
    return settings.model_copy(update=kept)


def read_keys(settings: Settings) -> dict[str, str]:
    """Setting name to value, from the file; empty if there is none."""
    path = keys_path(settings)
    if not path.exists():
        return {}
    pairs = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {name: pairs[_variable(name)] for name in _SETTINGS if _variable(name) in pairs}


def _write(path: Path, keys: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{_variable(name)}={key}\n" for name, key in keys.items())


def _variable(name: str) -> str:
    return f"HEADRACE_{name.upper()}"
