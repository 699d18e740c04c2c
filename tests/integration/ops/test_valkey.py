"""The embedded server keeps what it acknowledged."""

from collections.abc import Callable

import pytest
import redis

from headrace.ops.child import ChildFailedError
from headrace.ops.valkey import ValkeyServer, embedded_server, forget_address, write_address
from headrace.settings import Settings
from headrace.stores.redis_client import StoreAddressError, connect, redis_url


def test_what_was_acknowledged_survives_sigkill(make_valkey: Callable[[], ValkeyServer]) -> None:
    server = make_valkey()
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("append*")["appendfsync"] == "always"
        client.set("key", "acknowledged")
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"acknowledged"


def test_it_listens_on_loopback_alone(make_valkey: Callable[[], ValkeyServer]) -> None:
    with redis.Redis.from_url(make_valkey().url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_other_processes_find_it_by_the_data_directory_and_the_port_stays(settings: Settings) -> None:
    server = embedded_server(settings)
    server.start()
    try:
        write_address(settings, server)
        with connect(settings) as client:
            assert client.ping()
    finally:
        server.stop()
        forget_address(settings)
    with pytest.raises(StoreAddressError):
        redis_url(settings)
    assert embedded_server(settings).port == server.port


def test_a_server_that_cannot_start_says_why(make_valkey: Callable[[], ValkeyServer], settings: Settings) -> None:
    taken = make_valkey()
    second = embedded_server(settings.model_copy(update={"valkey_port": taken.port}))
    with pytest.raises(ChildFailedError, match=r"valkey did not start; its last line: .*valkey\.log"):
        second.start()


def test_a_start_waits_until_the_file_is_loaded(make_valkey: Callable[[], ValkeyServer]) -> None:
    server = make_valkey()
    with redis.Redis.from_url(server.url) as client:
        client.eval("for number = 1, 500000 do redis.call('SET', 'key-' .. number, number) end", 0)
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.info("persistence")["loading"] == 0
        assert client.dbsize() == 500_000
