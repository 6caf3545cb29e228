"""Connections to that node of a cluster which owns a hash slot.

All keys and channels of a namespace have one hash tag, so at any time all of them are on one node.
Whoever finds that node needs nothing else of the cluster: no client of its own kind, and no
connection to any other node.
"""

from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError

__all__ = ("Cluster", "FollowingConnection", "FollowingSSLConnection", "Node")

Node = tuple[str, int]
"""A host and a port."""


class Cluster:
    """Knows nodes of a cluster, and learns of others.

    Args:
        seeds: Some of its nodes; one is enough, as long as it can be reached.
        key: Whose slot it is that matters.

    Attributes:
        moves: Grows whenever the owner is another one, or may be: who is connected since before
            connects again.
    """

    def __init__(self, seeds: Sequence[Node], key: str) -> None:
        self.moves = 0
        self._seeds = tuple(seeds)
        self._nodes = self._seeds
        self._slot = key_slot(key.encode())
        self._owner: Node | None = None

    def owner(self, slots: Callable[[Node], Sequence[Any]]) -> Node:
        """Find out who owns the slot.

        Args:
            slots: Asks a node for ``CLUSTER SLOTS``.

        Raises:
            redis.RedisError: No node can say.
            OSError: No node can be reached.
        """
        error: Exception = redis.ConnectionError("no node of the cluster owns the namespace")
        for asked in self._nodes:
            try:
                answer = slots(asked)
            except (redis.RedisError, OSError) as exc:
                error = exc
                continue
            # Who answers is asked first the next time. The names of seeds may outlive addresses.
            found = [_node(each, asked) for _, _, *nodes in answer for each in nodes]
            self._nodes = tuple(dict.fromkeys((asked, *found, *self._seeds)))
            for first, last, master, *_ in answer:
                if first <= self._slot <= last:
                    return self._moved_to(_node(master, asked))
        raise error

    def misled(self) -> None:
        """Ask somebody else first the next time, and let go of connections that stand."""
        self.moves += 1
        self._nodes = self._nodes[1:] + self._nodes[:1]

    def _moved_to(self, owner: Node) -> Node:
        if owner != self._owner:
            self._owner = owner
            self.moves += 1
        return owner


def _node(entry: Sequence[Any], asked: Node) -> Node:
    """Read a node from an answer; one without an address is where the answer came from."""
    host, port = entry[:2]
    return (host.decode() if host and host != b"?" else asked[0]), int(port)


class FollowingConnection(Connection):
    """A connection to whoever owns the slot when it connects.

    A node may say that it is the owner no more, or be gone: either way that call raises, and the
    next one connects to the new owner.
    """

    _plain: type[Connection] = Connection

    def __init__(self, *, cluster: Cluster, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cluster = cluster
        self._kwargs = kwargs
        self._moves = -1

    def connect(self) -> None:
        """Connect, if it is not connected since the last move."""
        if self._moves != self._cluster.moves:
            self.disconnect()
        super().connect()

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a response; if it says that the owner is another one, look for it the next time."""
        try:
            return super().read_response(*args, **kwargs)
        except redis.ResponseError as exc:
            if not _is_misled(exc):
                raise
            self._cluster.misled()
            raise redis.ConnectionError("another node of the cluster owns the namespace") from exc

    def _connect(self) -> Any:
        self.host, self.port = self._cluster.owner(self._slots)
        self._moves = self._cluster.moves
        try:
            return super()._connect()
        except OSError:
            self._cluster.misled()
            raise

    def _slots(self, node: Node) -> Sequence[Any]:
        connection: Any = self._plain(**{**self._kwargs, "host": node[0], "port": node[1]})
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            answer: Sequence[Any] = connection.read_response()
        finally:
            connection.disconnect()
        return answer


def _is_misled(error: redis.ResponseError) -> bool:
    # Older releases of redis-py know these errors only in their own cluster client.
    if isinstance(error, MovedError | ClusterDownError):
        return True
    return str(error).startswith(("MOVED ", "CLUSTERDOWN "))


class FollowingSSLConnection(FollowingConnection, SSLConnection):
    """The same over TLS."""

    _plain = SSLConnection
