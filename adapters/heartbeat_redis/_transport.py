"""The Redis transport: pub/sub for speed, one expiring key a node for memory.

The client library blocks, so every call runs in a worker thread of anyio's; that works alike on
asyncio and trio, and keeps a flood of beats out of the event loop until it comes as one batch.

Names in the broker, all under ``{prefix}heartbeat:{namespace}:``, where the inner braces are
meant: they are the hash tag that keeps a namespace on one node of a cluster.

``beats``
    The channel of all beats.
``node:{incarnation}``
    A channel an incarnation, held by the node itself: its presence and its inbox.
``beat:{node}``
    The node's last beat; expires.
``nodes``
    A sorted set of the nodes that have a last beat, by the time at which it expires.
``observers``
    A sorted set of the incarnations that have a seat, by the time at which their lease ends.
    Expires 5 seconds after its last renewal.
``contenders``
    A sorted set of those that wait for one, by the time until which they count. Expires with it.
``watched:{incarnation}``
    A sorted set of the channels of those whom an observer asks about. Expires 60 seconds after
    the observer was there last.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import redis
from redis.connection import ConnectionPool
from redis.crc import key_slot

from heartbeat_core import Connections, Incarnation, TransportError
from heartbeat_redis import _scripts as scripts
from heartbeat_redis._cluster import FollowingConnection
from heartbeat_redis._connections import close, own
from heartbeat_redis._presence import Watch, chunks
from heartbeat_redis._seats import Contender
from heartbeat_redis._subscription import Subscription, in_thread
from heartbeat_redis._urls import pool_of

__all__ = ("RedisTransport",)

T = TypeVar("T")

THREADS = 40
"""So many calls of one transport run at once."""


class RedisTransport:
    """Carries beats through a Redis (6.2 or later) or Valkey server.

    It has all abilities: last beats, presence and seats. Nothing connects before the first call.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://...`` for TLS,
            ``unix:///path?db=0``, ``sentinel://host:26379;sentinel://other:26379/0?master_name=m``
            for the master that Sentinel names, or ``redis+cluster://host:6379`` and
            ``rediss+cluster://...`` for a cluster (Redis 7 or later), of which one node is enough.
        namespace: The fleet; nodes of different namespaces do not see each other.
        pool: In the place of a URL, a connection pool of redis-py, which the transport makes
            its own: it sets the pool's timeouts and closes it.
        key_prefix: Put before every key and channel.
        timeout: After so many seconds without an answer the server counts as away.

    Raises:
        TransportError: The URL is none of these, or in a cluster the namespace has a name that
            makes no hash tag.
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
        self._beats = f"{self._prefix}beats"
        self._nodes = f"{self._prefix}nodes"
        if pool is None:
            if url is None:
                raise TransportError("RedisTransport needs a url or a pool")
            pool = pool_of(url, self._nodes)
        self._sharded = issubclass(pool.connection_class, FollowingConnection)
        if self._sharded and key_slot(self._nodes.encode()) != key_slot(self._beats.encode()):
            raise TransportError(f"no hash tag is made of the namespace {namespace!r}: rename it")
        own(pool, timeout)
        # Any: its types differ from release to release.
        self._pool: Any = pool
        self._client: Any = redis.Redis(connection_pool=pool)
        self._publish, self._ask, self._tell, self._seat = (
            self._client.register_script(scripts.sharded(script) if self._sharded else script)
            for script in (scripts.PUBLISH, scripts.ASK, scripts.TELL, scripts.SEAT)
        )
        self._watch: Watch | None = None
        self._session = 0
        self._subscriptions: set[Subscription] = set()
        self._contenders: set[Contender] = set()
        self._threads: anyio.CapacityLimiter | None = None

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send a beat and keep it as the node's last one, in one round trip."""
        keys = [f"{self._prefix}beat:{sender.node}", self._nodes]
        beat = f"{ttl:.10g} ".encode() + data
        await self._in_thread(lambda: self._publish(keys=keys, args=[beat]))

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
        async with self._subscribed(self._channel(incarnation)) as inbox:
            self._watch = Watch(
                client=self._client,
                ask=self._ask,
                tell=self._tell,
                prefix=self._prefix,
                me=incarnation,
                inbox=inbox,
            )
            try:
                yield inbox
            finally:
                self._watch = None

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask who is present, with ``PUBSUB NUMSUB`` on the server.

        Asking about the same ones again costs least if it is the same frozenset.
        """
        session, watch = self._session, self._watch
        if watch is None:
            raise TransportError("this transport does not attend")
        asked = frozenset(incarnations)
        missing = await self._in_thread(lambda: watch.missing(asked))
        if session != self._session:
            raise TransportError("the connection by which this transport attended is gone")
        connected = asked - missing if missing else asked
        return Connections(session=session, asked=asked, connected=connected)

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox."""
        publish = "SPUBLISH" if self._sharded else "PUBLISH"
        channel = self._channel(to)
        await self._in_thread(lambda: self._client.execute_command(publish, channel, data))

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read what is kept of some nodes or of all."""
        return await self._in_thread(lambda: self._last_beats(nodes))

    @asynccontextmanager
    async def contend(
        self, incarnation: Incarnation, seats: int
    ) -> AsyncIterator[AsyncIterator[bool]]:
        """Contend for a seat, by a lease of 5 seconds that is renewed while it is iterated."""
        contender = Contender(
            client=self._client,
            seat=self._seat,
            prefix=self._prefix,
            incarnation=incarnation,
            seats=seats,
            in_thread=self._in_thread,
        )
        self._contenders.add(contender)
        try:
            await contender.ask()
            yield contender
        finally:
            self._contenders.discard(contender)
            await contender.leave()

    async def aclose(self) -> None:
        """Close every connection."""
        for subscription in list(self._subscriptions):
            subscription.close()
        for contender in list(self._contenders):
            contender.close()
        close(self._pool)

    # -- in threads ---------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(THREADS)
        return await in_thread(call, self._threads)

    def _channel(self, incarnation: Incarnation) -> str:
        return f"{self._prefix}node:{incarnation}"

    def _last_beats(self, nodes: Collection[str] | None) -> list[bytes]:
        if nodes is None:
            nodes = [name.decode() for name in self._client.zrange(self._nodes, 0, -1)]
        found: list[bytes] = []
        for chunk in chunks(nodes):
            values = self._client.mget([f"{self._prefix}beat:{name}" for name in chunk])
            found.extend(value for value in values if value is not None)
        return found

    @asynccontextmanager
    async def _subscribed(self, channel: str) -> AsyncIterator[Subscription]:
        subscription = Subscription(self._pool, channel, sharded=self._sharded)
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()
