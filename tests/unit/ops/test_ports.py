import os
import socket

import pytest

from headrace.ops.ports import OUTGOING, PortHeldError, check_free, free_port, is_free


def test_a_port_in_use_is_refused_with_its_holder_and_the_setting_to_change() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(
            PortHeldError, match=rf"port {port} is held by .*\(pid {os.getpid()}\): .* HEADRACE_HTTP_PORT"
        ):
            check_free({"HEADRACE_HTTP_PORT": port})


def test_a_free_port_is_free() -> None:
    assert is_free(free_port())


@pytest.mark.skipif(not OUTGOING.exists(), reason="the system does not say which ports it gives to connections")
def test_a_free_port_is_not_given_to_a_connection_meanwhile() -> None:
    first, last = map(int, OUTGOING.read_text().split())
    assert not any(first <= free_port() <= last for _ in range(50))
