"""Room on the disk of the embedded event log.

A Valkey that flushes each write ends when its disk is full: it cannot keep its word. So the door closes before: what is acknowledged by
then has room to become features, and reads go on.
"""

import shutil
from pathlib import Path
from typing import Final

from headrace.settings import Settings
from headrace.stores.log import LogFullError

_MB: Final = 1024**2


class DiskFullError(LogFullError):
    """There is no room for more events on the disk under the log."""


def check_disk(settings: Settings) -> None:
    """Raises DiskFullError where the embedded log's disk has less than `disk_reserve_bytes` free. Another machine has a disk of its own."""
    elsewhere = settings.redis_url or settings.kafka_bootstrap
    if elsewhere or not settings.data.is_dir():
        return
    check_free(settings.data, settings.disk_reserve_bytes)


def check_free(folder: Path, reserve_bytes: int) -> None:
    """Raises DiskFullError where the disk of `folder` has less than `reserve_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < reserve_bytes:
        raise DiskFullError(
            f"{free // _MB} MB are free on the disk of {folder}, {reserve_bytes // _MB} MB are kept free: make room there"
        )
