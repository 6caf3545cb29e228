"""The agent: a worker's heartbeat, in a thread of its own.

It shares nothing with the worker but :class:`~heartbeat_celery._claims.Claims`: it has its own
event loop and its own connections, so that no task and no main loop can silence it, and nothing
that goes wrong in it reaches the worker.
"""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import attrs
import redis
from celery import Celery

from heartbeat_celery._claims import SCRIPTS, Claims, Keys
from heartbeat_celery._recovery import Recovery
from heartbeat_core import (
    Cause,
    Heartbeat,
    Incarnation,
    Settings,
    State,
    TransportError,
    no_fork,
    run_loop,
    shard_of,
)
from heartbeat_redis import RedisTransport

__all__ = ("Agent",)

logger = logging.getLogger("heartbeat_celery")

T = TypeVar("T")

JOIN_TIMEOUT = 2.0
STOP_TIMEOUT = 3.0
RETRY = 1.0


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
    """

    app: Celery
    node: str
    namespace: str
    settings: Settings
    shards: int = 1
    claims: Claims | None = attrs.field(default=None, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _joined: threading.Event = attrs.field(factory=threading.Event, init=False)
    _portal: anyio.from_thread.BlockingPortal | None = attrs.field(default=None, init=False)
    _stop: anyio.Event | None = attrs.field(default=None, init=False)
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)
    _heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    _pid: int = attrs.field(factory=os.getpid, init=False)

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

    def attach(self, channel: Any) -> None:
        """Make a worker's task channel claim what it takes. Blocks for a few round trips.

        What the broker says this worker holds and what it never got, since the connection
        broke in between, goes back to its queue.

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
                recovery = Recovery(client, claims.keys)
                for tag in claims.unknown(client, me):
                    recovery.give_back(me, tag)
        channel.claims = claims

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

        recovery = Recovery(redis.Redis(connection_pool=pool), keys)
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
                work = _Work(heartbeat, claims, recovery, self._shard, transport_for, self._joined)
                for loop in (work.follow, work.look_up, work.renew):
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
                return await _in_thread(lambda: _pool_and_keys(self.app, self.namespace))
            except Exception as exc:  # noqa: BLE001 - whatever Kombu and its brokers raise
                if not said:
                    logger.warning(
                        "heartbeat: %s does not reach the broker yet: %s", self.node, exc
                    )
                    said = True
            await anyio.sleep(RETRY)
        return None


@attrs.define(eq=False)
class _Work:
    """What the agent does besides beating."""

    heartbeat: Heartbeat
    claims: Claims
    recovery: Recovery
    shard: Callable[[str], str]
    transport_for: Callable[[str], RedisTransport]
    joined: threading.Event

    async def follow(self) -> None:
        """Recover whoever dies or leaves; become somebody new when declared dead oneself."""
        transitions = self.heartbeat.transitions()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._join)
            async for transition in transitions:
                if transition.cause is Cause.OBITUARY:
                    self.claims.incarnation = None
                    tasks.start_soon(self._join)
                elif transition.state is State.DEAD:
                    tasks.start_soon(self._recover, transition.incarnation)
                elif transition.cause is Cause.GOODBYE:
                    tasks.start_soon(self._recover, transition.incarnation, True)

    async def look_up(self) -> None:
        """Look, again and again, who is on record with claims and does not beat.

        So nothing is forgotten that was left half done, by whomever and however long ago.
        """
        missed: set[Incarnation] = set()
        while True:
            me = await self.heartbeat.wait_joined()
            if self.heartbeat.observing:
                unknown = await self._recover_the_known(me)
                ours = {each for each in unknown if self.shard(each.node) == self.shard(me.node)}
                self.heartbeat.expect(ours)
                missed = await self._recover_the_missed(unknown - ours, missed)
            await anyio.sleep(self.heartbeat.settings.expire)

    async def _recover_the_known(self, me: Incarnation) -> set[Incarnation]:
        """Recover what the dead hold; give the holders of whom nothing is known."""
        unknown: set[Incarnation] = set()
        for holder, fenced in (await _until_done(self.recovery.holders)).items():
            if holder == me or holder in list(self.claims.held.values()):
                continue
            earlier_life = holder.node == me.node and holder.number < me.number
            if fenced or earlier_life or self.heartbeat.is_dead(holder):
                await self._recover(holder)
            else:
                unknown.add(holder)
        return unknown

    async def _recover_the_missed(
        self, strangers: set[Incarnation], missed: set[Incarnation]
    ) -> set[Incarnation]:
        """Recover the holders of other shards that have not beaten at two looks.

        Their own observers are faster; this is for a shard in which nobody is left. A look
        counts while the broker keeps our own last beat.
        """
        absent: set[Incarnation] = set()
        for stranger in strangers:
            if not await self._beats(stranger.node):
                absent.add(stranger)
        if not absent or not await self._beats(self.heartbeat.incarnation.node):
            return set()
        for stranger in absent & missed:
            await self._recover(stranger)
        return absent - missed

    async def _beats(self, node: str) -> bool:
        """Tell whether the broker keeps a last beat of a node."""
        while True:
            try:
                return bool(await self.transport_for(node).last_beats([node]))
            except TransportError as exc:
                logger.debug("heartbeat: the broker did not answer: %s", exc)
            await anyio.sleep(RETRY)

    async def renew(self) -> None:
        """Keep the visibility timeout from taking what this worker holds."""
        while True:
            await anyio.sleep(self.claims.keys.renew_every)
            me = self.claims.incarnation
            if me is not None:
                renew = functools.partial(self.claims.renew, self.recovery.client, me)
                await _until_done(renew)

    async def leave(self) -> None:
        """Take this worker off the record, unless it still holds something."""
        with anyio.move_on_after(RETRY, shield=True):
            await self._recover(self.heartbeat.incarnation, left=True)

    async def _join(self) -> None:
        self.claims.incarnation = await self.heartbeat.wait_joined()
        self.joined.set()

    async def _recover(self, dead: Incarnation, left: bool = False) -> None:
        began = time.monotonic()
        tasks = await _until_done(lambda: self.recovery.recover(dead, left=left))
        if tasks:
            logger.warning(
                "heartbeat: %d messages of %s are back in their queues after %.3f s: %s",
                len(tasks),
                dead,
                time.monotonic() - began,
                ", ".join(tasks[:20]) + (", ..." if len(tasks) > 20 else ""),
                extra={"heartbeat_node": dead.node, "heartbeat_recovered": tasks},
            )


async def _in_thread(call: Callable[[], T]) -> T:
    """Run what blocks for a round trip or a few."""

    def run() -> T:
        with no_fork():
            return call()

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)


async def _until_done(call: Callable[[], T]) -> T:
    """Run what blocks in a thread, again and again until the broker answers."""
    while True:
        try:
            return await _in_thread(call)
        except redis.RedisError as exc:
            logger.debug("heartbeat: the broker did not answer: %r", exc)
        await anyio.sleep(RETRY)


def _pool_and_keys(app: Celery, namespace: str) -> tuple[redis.ConnectionPool, Keys]:
    """Ask Kombu how it connects. Blocks."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        pool = channel._get_pool()  # noqa: SLF001 - the one place that knows TLS, Sentinel, ...
        return pool, Keys.of_channel(channel, namespace)
