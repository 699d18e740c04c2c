import threading
from pathlib import Path

from headrace.stores.definitions import write_whole


def test_a_file_that_two_write_at_once_is_always_one_of_theirs(tmp_path: Path) -> None:
    path, contents = tmp_path / "registry.pb", [b"a" * 100_000, b"b" * 50_000]
    write_whole(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(20):
            write_whole(path, content)

    writers = [threading.Thread(target=write, args=[content]) for content in contents]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
        read += 1
    assert read
    assert [each.name for each in tmp_path.iterdir()] == ["registry.pb"]
