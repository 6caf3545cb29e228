"""What the URL of a Redis transport may say."""

import socket
from typing import Any

import pytest
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.sentinel import SentinelConnectionPool

from heartbeat_core import TransportError
from heartbeat_redis import RedisTransport
from heartbeat_redis._cluster import FollowingConnection, FollowingSSLConnection
from heartbeat_redis._urls import pool_of

KEY = "heartbeat:{fleet}:nodes"


def said(pool: Any, *names: str) -> tuple[Any, ...]:
    """Give what connections of a pool are made with."""
    return tuple(pool.connection_kwargs.get(name) for name in names)


def test_a_server_may_be_reached_in_three_ways() -> None:
    """By TCP, by TLS and by a Unix socket, as redis-py reads the URL."""
    plain = pool_of("redis://user:p%40ss@host:6380/3?client_name=me", KEY)
    assert said(plain, "username", "password", "host", "port", "db", "client_name") == (
        *("user", "p@ss", "host", 6380, 3, "me"),
    )
    secure = pool_of("rediss://host?ssl_ca_certs=/ca.pem", KEY)
    assert issubclass(secure.connection_class, SSLConnection)
    assert said(secure, "ssl_ca_certs") == ("/ca.pem",)
    if hasattr(socket, "AF_UNIX"):
        local = pool_of("unix:///run/redis.sock?db=1", KEY)
        assert issubclass(local.connection_class, UnixDomainSocketConnection)
        assert said(local, "path", "db") == ("/run/redis.sock", 1)


def test_sentinels_are_listed_as_kombu_lists_them() -> None:
    """The password may stand in the first of them, and the database in the last."""
    url = (
        "sentinel://user:secret@one:26380;sentinel://two/4"
        "?master_name=main&sentinel_password=other&client_name=me"
    )
    pool: Any = pool_of(url, KEY)
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "main"
    assert said(pool, "username", "password", "db", "client_name") == ("user", "secret", 4, "me")
    sentinels = [each.connection_pool for each in pool.sentinel_manager.sentinels]
    assert [said(each, "host", "port", "password") for each in sentinels] == [
        ("one", 26380, "other"),
        ("two", 26379, "other"),
    ]


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("redis+cluster", FollowingConnection), ("rediss+cluster", FollowingSSLConnection)],
)
def test_of_a_cluster_some_nodes_are_named(scheme: str, kind: type) -> None:
    """One is asked after the other who owns the namespace, until one answers."""
    url = f"{scheme}://:secret@one:7000;{scheme}://two:7001"
    pool = pool_of(url, KEY)
    assert pool.connection_class is kind
    (cluster,) = said(pool, "cluster")
    asked: list[tuple[str, int]] = []

    def slots(node: tuple[str, int]) -> list[Any]:
        asked.append(node)
        if node[0] == "one":
            raise OSError
        slot = key_slot(b"fleet")
        return [
            [0, slot - 1, [b"three", 7002, b"id"]],
            [slot, 16383, [b"", 7001, b"id"], [b"four", 7003, b"id", []]],
        ]

    assert cluster.owner(slots) == ("two", 7001)
    assert cluster.owner(slots) == ("two", 7001)
    assert asked == [("one", 7000), ("two", 7001), ("two", 7001)]
    cluster.misled()
    assert cluster.owner(lambda node: [[0, 16383, node]] if node[0] == "four" else slots(node))
    assert asked[3:] == [("three", 7002)]


@pytest.mark.parametrize(
    "url",
    [
        *("redis://user:secret@host/0?foo=1", "sentinel://host/0?foo=1"),
        *("redis+cluster://user:secret@host?foo=1", "unix:///secret?foo=1"),
        *("", "nonsense", "amqp://user:secret@host//", "redis://user:secret@host:port/"),
        *("http://secret@host", "sentinel://:secret@host;redis://other", "sentinel://h:x"),
        *("redis+cluster://:secret@host:7000;rediss+cluster://other", "redis+cluster://h:secret"),
        *("redis://host?max_connections=secret", "redis+unix://secret"),
    ],
)
def test_a_url_of_something_else_is_refused(url: str) -> None:
    """It is refused at once, and neither the error nor its cause shows it."""
    with pytest.raises(TransportError) as caught:
        RedisTransport(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_something_has_to_be_named() -> None:
    """A transport needs a URL or a pool."""
    with pytest.raises(TransportError, match="url or a pool"):
        RedisTransport()
