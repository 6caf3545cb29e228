"""Which of the watched are missing, asked where the answer is known."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import redis

from heartbeat_core import Incarnation
from heartbeat_redis._subscription import Subscription

__all__ = ("Watch", "chunks")

T = TypeVar("T")
Incarnations = frozenset[Incarnation]

CHUNK = 1000
"""So many nodes are read, told of or asked about at once: the server does nothing else then."""


class Watch:
    """Asks for the connections of the same thousands, ten times a second.

    Their channels stand on the server, in a sorted set of the attending incarnation's own. It is
    told only what changes, and a script answers with those that are missing. What stands there is
    not trusted: its size is compared each time, and if it differs all of it is told anew.

    Args:
        client: Where to ask.
        ask: The script ``ASK``.
        tell: The script ``TELL``.
        prefix: Of all keys and channels of the namespace.
        me: Who attends.
        inbox: The subscription by which it does; closed when the server does not know of it.
    """

    def __init__(
        self,
        *,
        client: Any,
        ask: Any,
        tell: Any,
        prefix: str,
        me: Incarnation,
        inbox: Subscription,
    ) -> None:
        self._client = client
        self._ask = ask
        self._tell = tell
        self._key = f"{prefix}watched:{me}"
        self._channels = f"{prefix}node:".encode()
        self._me = self._channel(me)
        self._inbox = inbox
        self._lock = threading.Lock()
        self._told: Incarnations | None = None  # None: nobody knows what stands there

    def missing(self, asked: Incarnations) -> Incarnations:
        """Give those that hold no connection. Blocks, a round trip a thousand; from any thread.

        Raises:
            redis.RedisError: The server could not be asked, or does not know of this connection.
        """
        with self._lock:
            told, self._told = self._told, None
            missing = None
            if told is not None:
                self._change(told, asked)
                missing = self._look(asked)
            if missing is None:
                self._client.delete(self._key)
                self._change(frozenset(), asked)
                missing = self._look(asked)
            if missing is None:
                raise redis.ConnectionError("the server does not keep what it was told")
            self._told = asked
            return missing

    def _change(self, told: Incarnations, asked: Incarnations) -> None:
        # Sets of the same thousands are equal in no time if they are the same object.
        if told is asked or told == asked:
            return
        for chunk in chunks(asked - told):
            scored = [item for each in chunk for item in (0, self._channel(each))]
            self._tell(keys=[self._key], args=["ZADD", *scored])
        for chunk in chunks(told - asked):
            self._tell(keys=[self._key], args=["ZREM", *map(self._channel, chunk)])

    def _look(self, asked: Incarnations) -> Incarnations | None:
        """Ask about all of them; give nothing if it is not them who stand there."""
        missing: set[Incarnation] = set()
        for first in range(0, max(1, len(asked)), CHUNK):
            last = first + CHUNK - 1
            held, watched, absent = self._ask(keys=[self._key], args=[self._me, first, last])
            if not held:
                self._inbox.close()
                raise redis.ConnectionError("this transport's own connection is not there")
            if watched != len(asked):
                return None
            try:
                missing.update(map(self._incarnation, absent))
            except ValueError:  # no name that anybody here has written
                return None
        return frozenset(missing) if missing <= asked else None

    def _channel(self, incarnation: Incarnation) -> bytes:
        return self._channels + str(incarnation).encode()

    def _incarnation(self, channel: bytes) -> Incarnation:
        return Incarnation.parse(channel.removeprefix(self._channels).decode())


def chunks(items: Iterable[T]) -> Iterator[Sequence[T]]:
    """Cut into pieces that one command can take."""
    every = list(items)
    for first in range(0, len(every), CHUNK):
        yield every[first : first + CHUNK]
