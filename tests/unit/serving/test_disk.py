import shutil
from pathlib import Path

import pytest

from headrace.settings import Settings
from serving.disk import DiskFullError, check_disk, check_free

MB = 1024**2


def test_a_disk_with_less_than_the_reserve_is_full_and_it_is_said_where_room_is_needed(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    check_free(tmp_path, free // 2)
    with pytest.raises(DiskFullError, match=rf"MB are free on the disk of {tmp_path}, \d+ MB are kept free: make room"):
        check_free(tmp_path, free + 1_000 * MB)


def test_only_the_embedded_servers_disk_is_looked_at(tmp_path: Path):
    settings = Settings(data=tmp_path, disk_reserve_bytes=shutil.disk_usage(tmp_path).free + 1_000 * MB)
    with pytest.raises(DiskFullError):
        check_disk(settings)
    for other in (
        {"redis_url": "redis://elsewhere"},
        {"kafka_bootstrap": "elsewhere:9092"},
        {"data": tmp_path / "not there yet"},
    ):
        check_disk(settings.model_copy(update=other))
