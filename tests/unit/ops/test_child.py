from pathlib import Path

from headrace.ops.child import failure_of


def test_a_failure_tells_the_message_of_a_structured_last_line(tmp_path: Path):
    log = tmp_path / "serving.log"
    log.write_text(
        'starting\n{"level": "CRITICAL", "message": "the process ends", "exception": "T\\nOSError: no room"}\n\n'
    )
    assert str(failure_of("serving", "ended with exit code 1", log)) == (
        f"serving ended with exit code 1; its last line: the process ends: OSError: no room (all of it: {log})"
    )


def test_a_failure_tells_a_plain_last_line_and_that_there_is_none(tmp_path: Path):
    log = tmp_path / "serving.log"
    assert "its last line: no output" in str(failure_of("serving", "ended", log))
    log.write_text("first\nport 8000 is held by haproxy\n")
    assert "its last line: port 8000 is held by haproxy (" in str(failure_of("serving", "ended", log))
