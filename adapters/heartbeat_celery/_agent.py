"""The agent: a worker's heartbeat, in a thread of its own.

It shares little with the worker, and waits for nothing of it: it has its own event loop and its own
connections, so that no task and no main loop can silence it, and nothing that goes wrong in it
reaches the worker.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import anyio
import attrs
from celery import Celery

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Broker
from heartbeat_celery._gate import Gate
from heartbeat_celery._native import NativeThread, wait_until
from heartbeat_celery._role import Role
from heartbeat_celery._sign_writer import SignWriter
from heartbeat_celery._threads import RETRY
from heartbeat_celery._work import Work
from heartbeat_core import Heartbeat, Incarnation, Settings, in_thread, run_loop

__all__ = ("Agent",)

logger = logging.getLogger("heartbeat_celery")

JOIN_TIMEOUT = 2.0
STOP_TIMEOUT = 4.0


@attrs.define(eq=False)
class Agent:
    """Beats, judges and recovers for one worker, or beats for a scheduler.

    Its public methods are called from the worker's threads.

    Args:
        app: The node's app.
        node: The node's name.
        settings: How to beat and judge.
        broker: The broker over which its tasks come.
        role: What the node is.
        gate: Stands before a worker's result backend.
        sign_writer: Writes a worker's sign of life for probes of its machine.
    """

    app: Celery
    node: str
    settings: Settings
    broker: Broker
    role: Role
    gate: Gate = attrs.field(factory=Gate)
    sign_writer: SignWriter | None = None
    _thread: NativeThread = attrs.field(init=False)
    _joined: threading.Event = attrs.field(factory=threading.Event, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _stop: anyio.Event | None = attrs.field(default=None, init=False)
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)
    _heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    _pid: int = attrs.field(factory=os.getpid, init=False)

    def __attrs_post_init__(self) -> None:
        """Listen to what the broker says of this worker; there is no thread yet."""
        self._thread = NativeThread(self._run)
        self.broker.on_fenced = self._rejoin

    def start(self) -> None:
        """Begin to beat; does not wait for the broker."""
        self._thread.start()

    def attach(self, consumer: Any) -> None:
        """Make a worker's consumer claim what it takes.

        Waits until the broker knows this worker's incarnation, but not long, and blocks for a few
        round trips.

        Raises:
            Exception: It works without claims, or its connection is gone.
        """
        self.role.attach(consumer)
        if not wait_until(self._joined.is_set, JOIN_TIMEOUT):
            logger.warning(
                "heartbeat: %s has not joined the others yet; what it takes until then is "
                "not recovered if it dies",
                self.node,
            )
        self.broker.attach(consumer)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Say goodbye and stop; waits for that, but never long. May be called twice."""
        self._stopping.set()
        stop = self._stop
        if os.getpid() != self._pid:
            return  # A forked child has the agent's memory, but not its thread.
        if stop is not None:
            self._in_loop(stop.set)
        if not self._thread.join(timeout):
            logger.warning("heartbeat: %s could not say goodbye within %g s", self.node, timeout)

    def _rejoin(self, fenced: Incarnation) -> None:
        """Become somebody new, since the broker calls this worker dead; from any thread."""
        heartbeat = self._heartbeat
        if heartbeat is not None:
            self._in_loop(lambda: heartbeat.rejoin(fenced))

    def _in_loop(self, call: Callable[[], object]) -> None:
        """Have something done in the heartbeat's loop; does not wait for it."""
        if self._loop is None:
            return

        async def run() -> None:
            call()

        coroutine = run()
        try:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # It has ended by itself.
            coroutine.close()

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                run_loop(self._main_with_sign)
            except Exception:
                logger.exception(
                    "heartbeat: %s stopped beating; the worker goes on, and beats again in %g s",
                    self.node,
                    RETRY,
                )
                wait_until(self._stopping.is_set, RETRY)
        if self.sign_writer is not None:
            self.sign_writer.remove()

    async def _main_with_sign(self) -> None:
        """Beat, and write a sign of life from before the broker is reached until the goodbye."""
        async with anyio.create_task_group() as tasks:
            if self.sign_writer is not None:
                tasks.start_soon(self.sign_writer.keep_writing, lambda: self._heartbeat)
            await self._main()
            tasks.cancel_scope.cancel()

    async def _main(self) -> None:
        await self._connect()
        stop = self._stop = anyio.Event()
        if self._stopping.is_set():
            return
        self._loop = asyncio.get_running_loop()
        async with (
            Heartbeat(
                self.node,
                self.broker.transport_for(self.node),
                settings=self.settings,
                observe=self.role.observes,
                stalled=self.role.is_stalled,
                status=self.role.status,
            ) as heartbeat,
            anyio.create_task_group() as tasks,
        ):
            self._heartbeat = heartbeat
            tasks.start_soon(self.role.run)
            if not self.role.observes:
                await stop.wait()
                tasks.cancel_scope.cancel()
                return
            announcer = Announcer(self.app, self._thread.in_worker)
            custody = self.broker.custody(heartbeat, announcer, self._thread.in_worker)
            work = Work(heartbeat, self.broker, custody, announcer, self.gate, self._joined)
            for loop in (work.follow, work.notice_pauses, announcer.run, *custody.loops()):
                tasks.start_soon(loop)
            try:
                await stop.wait()
            finally:
                # Whatever ends this: no result waits for it any more.
                self.gate.leave_open()
            tasks.cancel_scope.cancel()
            await custody.leave()

    async def _connect(self) -> None:
        """Reach the broker, however long that takes."""
        said = False
        while not self._stopping.is_set():
            try:
                await in_thread(self.broker.connect)
            except Exception as exc:  # noqa: BLE001 - whatever Kombu and its brokers raise
                if not said:
                    logger.warning(
                        "heartbeat: %s does not reach the broker yet: %s", self.node, exc
                    )
                    said = True
            else:
                return
            await anyio.sleep(RETRY)
