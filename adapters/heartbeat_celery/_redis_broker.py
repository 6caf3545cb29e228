"""A broker that is Redis or Valkey: claims, and their recovery."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import redis
from celery import Celery
from celery.concurrency import solo

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._claims import MOST, SCRIPTS, Claims
from heartbeat_celery._delivery import Delivery
from heartbeat_celery._fencing import Fencing, active_requests
from heartbeat_celery._hang_up import hang_up
from heartbeat_celery._keys import Keys
from heartbeat_celery._native import InWorker, native_lock
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._redis_custody import RedisCustody
from heartbeat_celery._running import Running, keep_what_runs, runs_on
from heartbeat_celery._scripts import execute
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._telling import Telling
from heartbeat_celery._verdicts import Verdicts
from heartbeat_core import Heartbeat, Incarnation, shard_of
from heartbeat_redis import RedisTransport

__all__ = ("RedisBroker", "pool_and_keys")


CONNECTIONS = 100
"""So many connections a heartbeat may have at a time; a few are the rule."""


class FencedError(redis.ConnectionError):
    """Ends a connection, so that a worker connects again; there is nothing wrong with it."""


def _nothing(_: Incarnation) -> None:
    """Do nothing."""


@attrs.define(eq=False)
class RedisBroker:
    """The Redis or Valkey over which a worker's tasks come.

    Args:
        app: The worker's app.
        namespace: The fleet.
        shards: Into how many the fleet is split.
        settings: What becomes of what the dead held.

    Attributes:
        on_fenced: Called, from the consumer's thread, when the broker says that an incarnation of
            this worker is dead.
        running: The tasks that run although their messages are acknowledged.
        fencing: Deals with what this worker runs that others run too.
        claims: What this worker holds; there is none before the broker was reached.
    """

    app: Celery
    namespace: str
    shards: int = 1
    settings: RecoverySettings = attrs.field(factory=RecoverySettings)
    on_fenced: Callable[[Incarnation], None] = attrs.field(default=_nothing, init=False)
    running: Running = attrs.field(init=False)
    fencing: Fencing = attrs.field(init=False)
    claims: Claims | None = attrs.field(default=None, init=False)
    _dead: set[Incarnation] = attrs.field(factory=set, init=False)
    _channel: Any = attrs.field(default=None, init=False)
    _pool: redis.ConnectionPool | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=native_lock, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with no task."""
        self.running = Running(self.app, self.settings.on_lost)
        self.fencing = Fencing(self.settings.on_fenced)

    def connect(self) -> None:
        """Make a pool of connections like those that Kombu makes."""
        pool, keys = pool_and_keys(self.app, self.namespace)
        self._claims_at(keys)
        self._pool = pool

    def transport_for(self, node: str) -> RedisTransport:
        """Make the transport of the shard that a node is in."""
        assert self._pool is not None
        assert self.claims is not None
        prefix = self.claims.keys.prefix
        return RedisTransport(pool=self._pool, namespace=self._shard(node), key_prefix=prefix)

    def claim_as(self, incarnation: Incarnation) -> None:
        """Take messages as this incarnation from now on."""
        assert self.claims is not None
        self.claims.incarnation = incarnation

    def is_fenced(self, incarnation: Incarnation) -> bool:
        """Ask whether an incarnation is fenced. Blocks for a round trip."""
        assert self.claims is not None
        fence = self.claims.keys.fence(incarnation)
        return bool(execute(redis.Redis(connection_pool=self._pool), "EXISTS", fence))

    def fence(self, incarnation: Incarnation) -> None:
        """Let go of what this worker held as an incarnation that was declared dead."""
        claims, channel = self.claims, self._channel
        if claims is None:
            return
        self._dead.add(incarnation)
        if claims.incarnation == incarnation:
            claims.incarnation = None
        self.fencing.refuse_results(self._late(incarnation))
        if channel is not None and incarnation in list(claims.held.values()):
            channel.fenced = incarnation  # It looks, in its own thread, before it takes more.

    def may_begin(self, request: Any) -> bool:
        """Tell whether a task still is this worker's."""
        self.fencing.gate.wait_after_pause()
        claims, tag = self.claims, request.message.delivery_tag
        if not self._dead or claims is None or claims.held.get(tag) not in self._dead:
            return True
        claims.held.pop(tag, None)
        return False

    def _drop(self, channel: Any, pool: Any, incarnation: Incarnation) -> None:
        """Drop, in the consumer's thread, what this worker held as a fenced incarnation.

        Raises:
            FencedError: Always: Celery drops what it has not begun, and connects again.
        """
        assert self.claims is not None
        running = [*self._late(incarnation), *self.running.requests(incarnation)]
        self.fencing.let_go(incarnation, running, pool)
        if not channel.closed:
            raise FencedError(f"heartbeat: {incarnation} was declared dead; it begins anew")

    def _late(self, incarnation: Incarnation) -> list[Any]:
        """Give the tasks that run under claims of an incarnation."""
        assert self.claims is not None
        held = self.claims.held
        return [
            request
            for request in active_requests()
            if held.get(request.message.delivery_tag) == incarnation
        ]

    def custody(
        self, heartbeat: Heartbeat, announcer: Announcer, in_worker: InWorker
    ) -> RedisCustody:
        """Begin to recover what the dead held."""
        assert self.claims is not None
        client, keys = redis.Redis(connection_pool=self._pool), self.claims.keys
        verdicts = Verdicts(client, keys)
        telling = Telling(self.app, in_worker)
        return RedisCustody(
            heartbeat=heartbeat,
            claims=self.claims,
            running=self.running,
            recovery=Recovery(client, keys, self.settings),
            delivery=Delivery(telling, verdicts, lambda: heartbeat.incarnation),
            announcer=announcer,
            shard=self._shard,
            transport_for=self.transport_for,
        )

    def attach(self, consumer: Any) -> None:
        """Make a worker's task channel claim what it takes. Blocks for a few round trips.

        What the broker says this worker holds and what it never got, since the connection
        broke in between, goes back to its queue.

        Raises:
            redis.RedisError: The broker cannot run the scripts; the channel stays as it was.
        """
        channel: Any = consumer.task_consumer.channel
        claims = self._claims_at(Keys.of_channel(channel, self.namespace))
        with channel.conn_or_acquire() as client:
            for script in SCRIPTS:
                script.load(client)
            me = claims.incarnation
            if me is not None:
                claims.settle(client, me)
        # A task that is run while its message is delivered would keep the others waiting.
        claims.most = 1 if isinstance(consumer.pool, solo.TaskPool) else MOST
        # Its own, not the agent's: greenlets of one thread cannot use the sockets of another's.
        claims.client = redis.Redis(connection_pool=_pool_of(channel))
        channel.drop = functools.partial(self._drop, channel, consumer.pool)
        channel.runs_on = functools.partial(runs_on, pool=consumer.pool)
        keep_what_runs(consumer.pool)
        channel.running = self.running
        channel.claims = claims
        self._channel = channel

    def waits(self, consumer: Any) -> float | None:
        """Tell since when an answer is overdue: the server limits how long it keeps us waiting."""
        channel: Any = getattr(consumer.task_consumer, "channel", None)
        if channel is None or not channel._in_poll or not channel.qos.has_room():  # noqa: SLF001
            return None
        limit = getattr(channel.connection, "brpop_timeout", 1)  # kombu 5.6 and later
        asked: float | None = channel._brpop_sent_at  # noqa: SLF001 - as Kombu does itself
        overdue = limit and asked is not None and time.monotonic() - asked > limit
        return asked if overdue else None

    def owes(self, consumer: Any) -> bool:
        """Tell that the answer should have come, if the server answers us. Blocks."""
        del consumer
        return bool(redis.Redis(connection_pool=self._pool).ping())

    def hang_up(self, consumer: Any) -> None:
        """End all connections of the consumer's channels."""
        events = getattr(consumer.event_dispatcher, "connection", None)
        connections = [each for each in (consumer.connection, events) if each is not None]
        for channel in [one for each in connections for one in each.transport.channels]:
            for pool in (channel._pool, channel._async_pool):  # noqa: SLF001 - no other way
                # A copy in one step: the consumer takes and gives back meanwhile.
                for connection in list(getattr(pool, "_in_use_connections", ())):
                    if connection._sock is not None:  # noqa: SLF001
                        hang_up(connection._sock)  # noqa: SLF001

    def _shard(self, node: str) -> str:
        return shard_of(self.namespace, node, self.shards)

    def _fenced(self, incarnation: Incarnation) -> None:
        """Take note, in the consumer's thread, that the broker calls an incarnation dead."""
        if self.claims is not None and self.claims.incarnation == incarnation:
            self.fence(incarnation)
            self.on_fenced(incarnation)

    def _claims_at(self, keys: Keys) -> Claims:
        """Give the claims of this worker, which are the same whoever asks first."""
        with self._lock:
            if self.claims is None:
                self.claims = Claims(keys, self._fenced)
            return self.claims


def pool_and_keys(app: Celery, namespace: str) -> tuple[redis.ConnectionPool, Keys]:
    """Ask Kombu how it connects to Redis, and where it keeps what. Blocks."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        return _pool_of(channel), Keys.of_channel(channel, namespace)


def _pool_of(channel: Any) -> redis.ConnectionPool:
    """Make a pool of connections like Kombu's, but for more at a time: it allows ten."""
    pool: redis.ConnectionPool = channel._get_pool()  # noqa: SLF001 - it knows TLS, Sentinel, ...
    pool.max_connections = max(pool.max_connections, CONNECTIONS)
    return pool
