"""The Redis transport: pub/sub for speed, one expiring key a node for memory.

The client library blocks, so every call runs in a worker thread of anyio's; that works alike on
asyncio and trio, and keeps a flood of beats out of the event loop until it comes as one batch.

Names in the broker, all under ``{prefix}heartbeat:{namespace}:``

``beats``
    The channel of all beats.
``node:{incarnation}``
    A channel an incarnation, held by the node itself: its presence and its inbox.
``beat:{node}``
    The node's last beat; expires.
``nodes``
    A sorted set of the nodes that have a last beat, by the time at which it expires.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

from heartbeat_core import Connections, Incarnation, TransportError
from heartbeat_redis._connections import not_inherited
from heartbeat_redis._subscription import Subscription, in_thread

__all__ = ("RedisTransport",)

T = TypeVar("T")

CHUNK = 1000
"""So many nodes are read or asked about in one command."""

THREADS = 40
"""So many calls of one transport run at once."""

# One round trip a beat, and the beat itself only once on the wire.
PUBLISH = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local ttl = tonumber(ARGV[2])
if ttl > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl)
  redis.call('ZADD', KEYS[2], now + ttl, ARGV[4])
  if redis.call('PTTL', KEYS[2]) < ttl then redis.call('PEXPIRE', KEYS[2], ttl) end
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[4])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. now)
return redis.call('PUBLISH', ARGV[3], ARGV[1])
"""


class RedisTransport:
    """Carries beats through a Redis (6.2 or later) or Valkey server.

    It has both abilities, last beats and presence. Nothing connects before the first call.

    Args:
        url: Such as ``redis://user:password@host:6379/0``, ``rediss://...`` for TLS, or
            ``unix:///path?db=0``.
        namespace: The fleet; nodes of different namespaces do not see each other.
        pool: In the place of a URL, a connection pool of redis-py, which the transport makes
            its own: it sets the pool's timeouts and closes it.
        key_prefix: Put before every key and channel.
        timeout: After so many seconds without an answer the server counts as away.

    Raises:
        TransportError: The URL is not one of Redis's.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        pool: ConnectionPool | None = None,
        key_prefix: str = "",
        timeout: float = 2.0,
    ) -> None:
        self.namespace = namespace
        self._prefix = f"{key_prefix}heartbeat:{{{namespace}}}:"
        pool = _pool_of(url) if pool is None else pool
        self._pool: Any = pool
        pool.connection_kwargs.update(
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            health_check_interval=0,
        )
        not_inherited(pool)
        # Any: its types differ from release to release.
        self._client: Any = redis.Redis(connection_pool=pool)
        self._publish = self._client.register_script(PUBLISH)
        self._beats = f"{self._prefix}beats"
        self._nodes = f"{self._prefix}nodes"
        self._attending: Incarnation | None = None
        self._session = 0
        self._subscriptions: set[Subscription] = set()
        self._threads: anyio.CapacityLimiter | None = None

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send a beat and keep it as the node's last one, in one round trip."""
        keys = [f"{self._prefix}beat:{sender.node}", self._nodes]
        arguments: list[Any] = [data, round(ttl * 1000), self._beats, sender.node]
        await self._in_thread(lambda: self._publish(keys=keys, args=arguments))

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        """Listen to the beats of all nodes, over a connection of its own."""
        async with self._subscribed(self._beats) as batches:
            yield batches

    @asynccontextmanager
    async def attend(
        self, incarnation: Incarnation
    ) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        """Be present under an incarnation, over a connection of its own."""
        self._session += 1
        async with self._subscribed(self._channel(incarnation)) as batches:
            self._attending = incarnation
            try:
                yield batches
            finally:
                self._attending = None

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask who is present, with ``PUBSUB NUMSUB``."""
        session, me = self._session, self._attending
        if me is None:
            raise TransportError("this transport's own connection is not there")
        asked = frozenset(incarnations)
        connected = await self._in_thread(lambda: self._connected([me, *asked]))
        if me not in connected or session != self._session:
            raise TransportError("this transport's own connection is not there")
        return Connections(session=session, asked=asked, connected=asked & connected)

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox."""
        await self._in_thread(lambda: self._client.publish(self._channel(to), data))

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read what is kept of some nodes or of all."""
        return await self._in_thread(lambda: self._last_beats(nodes))

    async def aclose(self) -> None:
        """Close every connection."""
        for subscription in list(self._subscriptions):
            subscription.close()
        # Not those in use: their threads would find them closed in their hands.
        try:
            self._pool.disconnect(inuse_connections=False)
        except TypeError:  # a BlockingConnectionPool of older releases
            self._pool.disconnect()

    # -- in threads ---------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(THREADS)
        return await in_thread(call, self._threads)

    def _channel(self, incarnation: Incarnation) -> str:
        return f"{self._prefix}node:{incarnation}"

    def _connected(self, incarnations: Sequence[Incarnation]) -> frozenset[Incarnation]:
        connected: set[Incarnation] = set()
        for chunk in _chunks(incarnations):
            counts = self._client.pubsub_numsub(*map(self._channel, chunk))
            connected.update(
                incarnation
                for incarnation, (_, count) in zip(chunk, counts, strict=True)
                if count > 0
            )
        return frozenset(connected)

    def _last_beats(self, nodes: Collection[str] | None) -> list[bytes]:
        if nodes is None:
            names = [_text(name) for name in self._client.zrange(self._nodes, 0, -1)]
        else:
            names = list(nodes)
        found: list[bytes] = []
        for chunk in _chunks(names):
            values = self._client.mget([f"{self._prefix}beat:{name}" for name in chunk])
            found.extend(_bytes(value) for value in values if value is not None)
        return found

    @asynccontextmanager
    async def _subscribed(self, channel: str) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        subscription = Subscription(self._pool, channel)
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()


def _pool_of(url: str | None) -> ConnectionPool:
    if url is None:
        raise TransportError("RedisTransport needs a url or a pool")
    try:
        return ConnectionPool.from_url(url)
    except (ValueError, TypeError) as exc:
        raise TransportError(
            "the URL is not one of redis://, rediss:// or unix://, or has an option that "
            "redis-py does not know"
        ) from exc


def _chunks(items: Sequence[T]) -> "itertools.chain[Sequence[T]]":
    return itertools.chain(items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
