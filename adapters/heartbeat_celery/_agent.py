"""The agent: a worker's heartbeat, in a thread of its own.

It shares little with the worker, and waits for nothing of it: it has its own event loop and its own
connections, so that no task and no main loop can silence it, and nothing that goes wrong in it
reaches the worker.
"""

import contextlib
import logging
import os
import threading
from typing import Any

import anyio
import anyio.from_thread
import attrs
from celery import Celery

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Broker
from heartbeat_celery._role import Role
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
    """

    app: Celery
    node: str
    settings: Settings
    broker: Broker
    role: Role
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _joined: threading.Event = attrs.field(factory=threading.Event, init=False)
    _portal: anyio.from_thread.BlockingPortal | None = attrs.field(default=None, init=False)
    _stop: anyio.Event | None = attrs.field(default=None, init=False)
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)
    _heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    _pid: int = attrs.field(factory=os.getpid, init=False)

    def __attrs_post_init__(self) -> None:
        """Listen to what the broker says of this worker."""
        self.broker.on_fenced = self._rejoin

    def start(self) -> None:
        """Begin to beat; does not wait for the broker."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def attach(self, consumer: Any) -> None:
        """Make a worker's consumer claim what it takes.

        Waits until the broker knows this worker's incarnation, but not long, and blocks for a few
        round trips.

        Raises:
            Exception: It works without claims, or its connection is gone.
        """
        self.role.attach(consumer)
        if not self._joined.wait(JOIN_TIMEOUT):
            logger.warning(
                "heartbeat: %s has not joined the others yet; what it takes until then is "
                "not recovered if it dies",
                self.node,
            )
        self.broker.attach(consumer)

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

    def _rejoin(self, fenced: Incarnation) -> None:
        """Become somebody new, since the broker calls this worker dead; from any thread."""
        portal, heartbeat = self._portal, self._heartbeat
        if portal is not None and heartbeat is not None:
            portal.start_task_soon(heartbeat.rejoin, fenced)

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
        await self._connect()
        stop = self._stop = anyio.Event()
        if self._stopping.is_set():
            return
        async with anyio.from_thread.BlockingPortal() as portal:
            self._portal = portal
            transport = self.broker.transport_for(self.node)
            async with (
                Heartbeat(
                    self.node,
                    transport,
                    settings=self.settings,
                    stalled=self.role.is_stalled,
                    status=self.role.status,
                    observe=self.role.observes,
                ) as heartbeat,
                anyio.create_task_group() as tasks,
            ):
                self._heartbeat = heartbeat
                tasks.start_soon(self.role.run)
                if not self.role.observes:
                    await stop.wait()
                    tasks.cancel_scope.cancel()
                    return
                announcer = Announcer(self.app)
                custody = self.broker.custody(heartbeat, announcer)
                work = Work(heartbeat, self.broker, custody, announcer, self._joined)
                for loop in (work.follow, announcer.run, *custody.loops()):
                    tasks.start_soon(loop)
                await stop.wait()
                tasks.cancel_scope.cancel()
                await custody.leave()
            self._portal = None

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
