"""A broker that is Redis or Valkey: claims, and their recovery."""

import threading
from collections.abc import Callable
from typing import Any

import attrs
import redis
from celery import Celery

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._claims import SCRIPTS, Claims
from heartbeat_celery._delivery import Delivery
from heartbeat_celery._keys import Keys
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._redis_custody import RedisCustody
from heartbeat_celery._running import Running
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._telling import Telling
from heartbeat_celery._verdicts import Verdicts
from heartbeat_core import Heartbeat, Incarnation, shard_of
from heartbeat_redis import RedisTransport

__all__ = ("RedisBroker", "pool_and_keys")


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
        claims: What this worker holds; there is none before the broker was reached.
    """

    app: Celery
    namespace: str
    shards: int = 1
    settings: RecoverySettings = attrs.field(factory=RecoverySettings)
    on_fenced: Callable[[Incarnation], None] = attrs.field(default=_nothing, init=False)
    running: Running = attrs.field(init=False)
    claims: Claims | None = attrs.field(default=None, init=False)
    _pool: redis.ConnectionPool | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with no task."""
        self.running = Running(self.app, self.settings.on_lost)

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

    def claim_as(self, incarnation: Incarnation | None) -> None:
        """Take messages as this incarnation from now on."""
        assert self.claims is not None
        self.claims.incarnation = incarnation

    def custody(self, heartbeat: Heartbeat, announcer: Announcer) -> RedisCustody:
        """Begin to recover what the dead held."""
        assert self.claims is not None
        client, keys = redis.Redis(connection_pool=self._pool), self.claims.keys
        verdicts = Verdicts(client, keys)
        return RedisCustody(
            heartbeat=heartbeat,
            claims=self.claims,
            running=self.running,
            recovery=Recovery(client, keys, self.settings),
            delivery=Delivery(Telling(self.app), verdicts, lambda: heartbeat.incarnation),
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
                recovery = Recovery(client, claims.keys)
                for tag in claims.unknown(client, me):
                    recovery.give_back(me, tag)
        channel.claims = claims
        channel.running = self.running

    def _shard(self, node: str) -> str:
        return shard_of(self.namespace, node, self.shards)

    def _fenced(self, incarnation: Incarnation) -> None:
        """Take note, in the consumer's thread, that the broker calls an incarnation dead."""
        if self.claims is not None and self.claims.incarnation == incarnation:
            self.claims.incarnation = None
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
        pool = channel._get_pool()  # noqa: SLF001 - the one place that knows TLS, Sentinel, ...
        return pool, Keys.of_channel(channel, namespace)
