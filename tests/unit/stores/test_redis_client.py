"""The client that every part of Headrace makes: address, credentials, TLS and waits."""

import pytest
import redis

from headrace.ops.ports import free_port
from headrace.settings import Settings
from headrace.stores.redis_client import connect, connect_async


def test_user_password_and_tls_are_the_urls() -> None:
    client = connect(Settings(redis_url="rediss://shop:secret@store.example:6380/0"), timeout_s=2.0)
    options = client.connection_pool.connection_kwargs
    assert client.connection_pool.connection_class is redis.SSLConnection
    assert (options["host"], options["port"], options["username"], options["password"]) == (
        "store.example", 6380, "shop", "secret",
    )  # fmt: skip
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (2.0, 1.0)


def test_the_client_for_asyncio_has_the_same_address_and_waits() -> None:
    client = connect_async(Settings(redis_url="rediss://shop:secret@store.example:6380/0"), timeout_s=2.0)
    options = client.connection_pool.connection_kwargs
    assert client.connection_pool.connection_class is redis.asyncio.SSLConnection
    assert (options["host"], options["username"], options["socket_timeout"]) == ("store.example", "shop", 2.0)


def test_a_cluster_of_which_no_node_answers_is_a_connection_error() -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}", redis_cluster=True)
    with pytest.raises(redis.ConnectionError, match="cannot be connected"):
        connect(settings)
