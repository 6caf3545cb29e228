"""A thread that no greenlet can starve, and the way from it back into the worker.

Under gevent and eventlet a ``threading.Thread`` is a greenlet, and a task that computes keeps all
others from running. So the heartbeat gets a thread of the operating system. There it runs on a hub
of its own, with the same patched modules: both libraries have a hub a thread.

What was made for the worker's hub stays there: connections of the app, handlers of the log,
receivers of signals. Used on another hub, their sockets raise, and eventlet's locks wake nobody.
So the thread shares no lock with the worker, never waits for one, and hands such calls back.
Without greenlets none of this is needed: then it is a thread like any other.
"""

import asyncio
import contextlib
import functools
import importlib
import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from heartbeat_core import in_thread

__all__ = ("InWorker", "NativeThread", "native_lock", "wait_until")

T = TypeVar("T")

InWorker = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what belongs to the worker, and gives its result or raises its error."""

LOGGERS = ("heartbeat_celery", "heartbeat_core", "asyncio")
"""Who logs in the thread."""

LOOK_EVERY = 0.01
LONGEST_WARM_UP = 5.0


def wait_until(what: Callable[[], bool], timeout: float) -> bool:
    """Wait until something is true, and tell whether it is; meanwhile other greenlets run.

    It looks again and again, since no lock of eventlet's may be waited for on one hub and released
    on another.
    """
    until = time.monotonic() + timeout
    while not what():
        if time.monotonic() >= until:
            return False
        time.sleep(LOOK_EVERY)
    return True


def native_lock() -> threading.Lock:
    """Make a lock that the thread and the worker may share; it is held for no more than a moment.

    Whoever waits for it keeps all greenlets of its hub waiting.
    """
    return (_original("allocate_lock") or threading.Lock)()


class NativeThread:
    """Runs a function in a thread of the operating system, whatever has become of ``threading``.

    Args:
        target: What to run.
    """

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._ended = False
        self._native_id: int | None = None
        self._calls: deque[Callable[[], object]] = deque()
        self._bell: socket.socket | None = None

    def start(self) -> None:
        """Begin; call it in the worker's main thread."""
        start_new_thread = _original("start_new_thread")
        if start_new_thread is None:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
            return
        bell, heard = socket.socketpair()
        bell.setblocking(False)
        self._bell = bell
        threading.Thread(target=self._serve, args=(heard,), daemon=True).start()  # a greenlet
        is_warm = native_lock()
        is_warm.acquire()
        start_new_thread(self._run, (is_warm.release,))
        # What is imported, and what eventlet finds out about a thread once, takes locks that both
        # know: nobody else may want them then.
        is_warm.acquire(timeout=LONGEST_WARM_UP)

    def join(self, timeout: float) -> bool:
        """Wait until it has ended, and tell whether it has."""
        return wait_until(lambda: self._ended, timeout)

    async def in_worker(self, call: Callable[[], T]) -> T:
        """Run what belongs to the worker in the worker, and give its result or raise its error.

        To be awaited in the thread. Without greenlets it is run in a thread beside; with them, in
        a greenlet of the worker's hub, and so not before a task lets it. If it is cancelled the
        call goes on, and nobody waits for it.
        """
        if self._bell is None:
            return await in_thread(call)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def settle(settled: Callable[[Any], None], value: Any) -> None:
            if not outcome.done():
                settled(value)

        def run() -> None:
            try:
                done = functools.partial(settle, outcome.set_result, call())
            except Exception as exc:  # noqa: BLE001 - it is raised where it is waited for
                done = functools.partial(settle, outcome.set_exception, exc)
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(done)

        # One must not wait for the other.
        self._hand_back(lambda: threading.Thread(target=run, daemon=True).start())
        return await outcome

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record that is logged in the thread from the handlers until the worker runs."""
        if threading.get_native_id() != self._native_id:
            return True
        self._hand_back(lambda: logging.getLogger(record.name).handle(record))
        return False

    # -- in the thread ------------------------------------------------------------------------

    def _run(self, say_warm: Callable[[], None] | None = None) -> None:
        if say_warm is not None:
            with contextlib.suppress(ImportError):  # It is imported later, wherever it is.
                importlib.import_module("anyio._backends._asyncio")
            threading.current_thread()
            say_warm()
        loggers = [logging.getLogger(name) for name in LOGGERS if self._bell is not None]
        self._native_id = threading.get_native_id()
        try:
            for logger in loggers:
                logger.addFilter(self)
            self._target()
        finally:
            for logger in loggers:
                logger.removeFilter(self)
            self._ended = True

    def _hand_back(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        assert self._bell is not None
        with contextlib.suppress(OSError):  # It rings already, or nobody is there to hear it.
            self._bell.send(b".")

    # -- in the worker ------------------------------------------------------------------------

    def _serve(self, heard: socket.socket) -> None:
        while heard.recv(4096):
            while self._calls:
                self._calls.popleft()()


def _original(name: str) -> Any:
    """Give what Python's own ``_thread`` has under a name; ``None`` if nobody has replaced it."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return monkey.get_original("_thread", name)
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        return getattr(patcher.original("_thread"), name)
    return None
