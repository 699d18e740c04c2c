"""Files are looked at before they are read: a Parquet file cut anywhere is found by its end alone."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.stores.lake_files import DamagedLakeError, check_parquet


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"rate": [1.5, 2.5]}), path)
    return path


def test_whole_files_pass(whole: Path) -> None:
    check_parquet([whole, whole])


def test_a_file_cut_at_any_byte_is_found_among_whole_ones_and_named(whole: Path) -> None:
    content, short = whole.read_bytes(), whole.with_name("short.parquet")
    for size in range(len(content)):
        short.write_bytes(content[:size])
        with pytest.raises(DamagedLakeError, match=f"{short} was cut short.*{size} bytes.*: restore it from a copy"):
            check_parquet([whole, short])


def test_a_footer_longer_than_its_file_is_not_believed(whole: Path) -> None:
    whole.write_bytes(b"PAR1" + (1_000).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DamagedLakeError, match="cut short"):
        check_parquet([whole])
