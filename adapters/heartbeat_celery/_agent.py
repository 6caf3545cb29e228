"""The agent: a worker's heartbeat, in a thread of its own.

It shares nothing with the worker but :class:`~heartbeat_celery._claims.Claims`: it has its own
event loop and its own connections, so that no task and no main loop can silence it, and nothing
that goes wrong in it reaches the worker.
"""

import contextlib
import logging
import os
import threading
from typing import Any

import anyio
import anyio.from_thread
import attrs
import redis
from celery import Celery

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._claims import MOST, SCRIPTS, Claims
from heartbeat_celery._delivery import Delivery
from heartbeat_celery._keys import Keys
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._running import Running
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._threads import RETRY
from heartbeat_celery._verdicts import Verdicts
from heartbeat_celery._work import Work
from heartbeat_core import Heartbeat, Incarnation, Settings, in_thread, run_loop, shard_of
from heartbeat_redis import RedisTransport

__all__ = ("Agent", "pool_and_keys")

logger = logging.getLogger("heartbeat_celery")

JOIN_TIMEOUT = 2.0
STOP_TIMEOUT = 4.0


@attrs.define(eq=False)
class Agent:
    """Beats, judges and recovers for one worker.

    Its public methods are called from the worker's threads.

    Args:
        app: The worker's app.
        node: The worker's name.
        namespace: The fleet.
        settings: How to beat and judge.
        shards: Into how many the fleet is split.
        recovery: What becomes of what the dead held.
    """

    app: Celery
    node: str
    namespace: str
    settings: Settings
    shards: int = 1
    recovery: RecoverySettings = attrs.field(factory=RecoverySettings)
    claims: Claims | None = attrs.field(default=None, init=False)
    running: Running = attrs.field(init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _joined: threading.Event = attrs.field(factory=threading.Event, init=False)
    _portal: anyio.from_thread.BlockingPortal | None = attrs.field(default=None, init=False)
    _stop: anyio.Event | None = attrs.field(default=None, init=False)
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)
    _heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    _pid: int = attrs.field(factory=os.getpid, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with no task."""
        self.running = Running(self.app, self.recovery.on_lost)

    def start(self) -> None:
        """Begin to beat; does not wait for the broker."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def wait_joined(self, timeout: float = JOIN_TIMEOUT) -> bool:
        """Wait until the broker knows this worker's incarnation; tell whether it does."""
        return self._joined.wait(timeout)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Say goodbye and stop; waits for that, but never long. May be called twice."""
        self._stopping.set()
        portal, stop, thread = self._portal, self._stop, self._thread
        if thread is None or os.getpid() != self._pid:
            return  # A forked child has the agent's memory, but not its thread.
        if portal is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # It has stopped by itself.
                portal.start_task_soon(stop.set)
        thread.join(timeout)
        if thread.is_alive():
            logger.warning("heartbeat: %s could not say goodbye within %g s", self.node, timeout)

    def attach(self, channel: Any, most: int = MOST) -> None:
        """Make a worker's task channel claim what it takes. Blocks for a few round trips.

        What the broker says this worker holds and what it never got, since the connection
        broke in between, goes back to its queue.

        Args:
            channel: The channel.
            most: How many messages it may claim at once.

        Raises:
            redis.RedisError: The broker cannot run the scripts; the channel stays as it was.
        """
        keys = Keys.of_channel(channel, self.namespace)
        with self._lock:
            claims = self.claims = self.claims or Claims(keys, self._fenced)
        with channel.conn_or_acquire() as client:
            for script in SCRIPTS:
                script.load(client)
            me = claims.incarnation
            if me is not None:
                claims.settle(client, me)
        claims.most = most
        channel.claims = claims
        channel.running = self.running

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                run_loop(self._main)
            except Exception:
                logger.exception(
                    "heartbeat: %s stopped beating; the worker goes on, and beats again in %g s",
                    self.node,
                    RETRY,
                )
                self._stopping.wait(RETRY)

    async def _main(self) -> None:
        found = await self._find_broker()
        if found is None:
            return
        pool, keys = found
        with self._lock:
            claims = self.claims = self.claims or Claims(keys, self._fenced)

        def transport_for(node: str) -> RedisTransport:
            return RedisTransport(pool=pool, namespace=self._shard(node), key_prefix=keys.prefix)

        client = redis.Redis(connection_pool=pool)
        stop = self._stop = anyio.Event()
        if self._stopping.is_set():
            return
        async with anyio.from_thread.BlockingPortal() as portal:
            self._portal = portal
            async with (
                Heartbeat(self.node, transport_for(self.node), settings=self.settings) as heartbeat,
                anyio.create_task_group() as tasks,
            ):
                self._heartbeat = heartbeat
                work = Work(
                    heartbeat=heartbeat,
                    claims=claims,
                    running=self.running,
                    recovery=Recovery(client, keys, self.recovery),
                    delivery=Delivery(
                        self.app, Verdicts(client, keys), lambda: heartbeat.incarnation
                    ),
                    announcer=Announcer(self.app),
                    shard=self._shard,
                    transport_for=transport_for,
                    joined=self._joined,
                )
                for loop in work.loops():
                    tasks.start_soon(loop)
                await stop.wait()
                tasks.cancel_scope.cancel()
                await work.leave()
            self._portal = None

    def _shard(self, node: str) -> str:
        return shard_of(self.namespace, node, self.shards)

    def _fenced(self, incarnation: Incarnation) -> None:
        """Take note, in the consumer's thread, that the broker calls an incarnation dead."""
        claims, portal, heartbeat = self.claims, self._portal, self._heartbeat
        if claims is None or portal is None or heartbeat is None:
            return
        if claims.incarnation == incarnation:
            claims.incarnation = None
            portal.start_task_soon(heartbeat.rejoin, incarnation)

    async def _find_broker(self) -> tuple[redis.ConnectionPool, Keys] | None:
        """Make a pool of connections like those that Kombu makes, once the broker answers."""
        said = False
        while not self._stopping.is_set():
            try:
                return await in_thread(lambda: pool_and_keys(self.app, self.namespace))
            except Exception as exc:  # noqa: BLE001 - whatever Kombu and its brokers raise
                if not said:
                    logger.warning(
                        "heartbeat: %s does not reach the broker yet: %s", self.node, exc
                    )
                    said = True
            await anyio.sleep(RETRY)
        return None


def pool_and_keys(app: Celery, namespace: str) -> tuple[redis.ConnectionPool, Keys]:
    """Ask Kombu how it connects to Redis, and where it keeps what. Blocks."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        pool = channel._get_pool()  # noqa: SLF001 - the one place that knows TLS, Sentinel, ...
        return pool, Keys.of_channel(channel, namespace)
