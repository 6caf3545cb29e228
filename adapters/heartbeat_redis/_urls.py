"""What a URL says: a server, a master that Sentinel names, or a cluster."""

import socket
from typing import Any

from redis.connection import ConnectionPool, SSLConnection, parse_url
from redis.sentinel import Sentinel, SentinelConnectionPool

from heartbeat_core import TransportError
from heartbeat_redis._cluster import Cluster, FollowingConnection, FollowingSSLConnection, Node

__all__ = ("pool_of",)

PORTS = {"redis": 6379, "sentinel": 26379}


def pool_of(url: str, key: str) -> ConnectionPool:
    """Make the pool that a URL stands for. Connects to nothing.

    Args:
        url: One of ``redis://``, ``rediss://``, ``unix://``, ``sentinel://``,
            ``redis+cluster://`` and ``rediss+cluster://``. Of the last three there may be
            several, with semicolons between them.
        key: Some key of the namespace, which tells where it is in a cluster.

    Raises:
        TransportError: It is not one of these; the text does not show it.
    """
    scheme = url.partition("://")[0]
    if scheme == "unix" and not hasattr(socket, "AF_UNIX"):
        raise TransportError("there are no Unix sockets on this platform")
    try:
        pool = _pool_of(url, scheme, key)
        # An option that redis-py does not know it would refuse only when it connects.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        # Not from it: the cause may show a part of the URL that is a password.
        raise TransportError(
            "the URL is not one of redis://, rediss://, unix://, sentinel://, redis+cluster:// or "
            "rediss+cluster://, or has an option that redis-py does not know"
        ) from None
    return pool


def _pool_of(url: str, scheme: str, key: str) -> ConnectionPool:
    if scheme == "sentinel":
        return _sentinel_pool(*_several(url, scheme, "redis"))
    if scheme in {"redis+cluster", "rediss+cluster"}:
        return _cluster_pool(*_several(url, scheme, scheme.partition("+")[0]), key)
    return ConnectionPool.from_url(url)


def _several(urls: str, scheme: str, like: str) -> tuple[list[Node], dict[str, Any]]:
    """Read URLs with semicolons between them: where they lead, and all that they say besides."""
    nodes: list[Node] = []
    options: dict[str, Any] = {}
    for url in urls.split(";"):
        found, _, rest = url.partition("://")
        if found != scheme:
            raise ValueError("one URL is of another kind than the first")
        said = parse_url(f"{like}://{rest}")
        nodes.append((said.pop("host", "localhost"), said.pop("port", PORTS.get(scheme, 6379))))
        options |= said
    return nodes, options


def _sentinel_pool(nodes: list[Node], options: dict[str, Any]) -> ConnectionPool:
    master = options.pop("master_name", "mymaster")
    own = {name: options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    sentinel = Sentinel(
        nodes, sentinel_kwargs={name.removeprefix("sentinel_"): own[name] for name in own}
    )
    return SentinelConnectionPool(master, sentinel, **options)


def _cluster_pool(nodes: list[Node], options: dict[str, Any], key: str) -> ConnectionPool:
    kind = options.pop("connection_class", None)
    return ConnectionPool(
        connection_class=FollowingSSLConnection if kind is SSLConnection else FollowingConnection,
        cluster=Cluster(nodes, key),
        **options,
    )
