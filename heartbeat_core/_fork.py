"""A forked child never inherits a lock that one of our threads held.

A child has one thread, but all locks of its parent as they were. What another thread held when the
process forked (the lock of a module that it was importing, of a stream that it was logging to, of
the resolver) is held in the child for ever, and stops it when it needs the same. A Celery pool
forks whenever it likes, and the heartbeat's threads run all the time. So a fork waits until they
are at rest, which takes microseconds: between two events, or waiting for something outside.
"""

import contextlib
import os
import selectors
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import anyio
import anyio.to_thread

__all__ = ("in_thread", "no_fork", "run_loop")

T = TypeVar("T")

LONGEST_WAIT = 0.1
"""For so many seconds a fork waits at most: somebody may be connecting to a host that is away."""


class _Gate:
    """Lets any number of threads be busy, and makes a fork wait for them."""

    def __init__(self) -> None:
        self.open_again()

    def open_again(self) -> None:
        """Begin anew, in a child: whoever was busy is not here."""
        self._changed = threading.Condition(threading.Lock())
        self._busy: Counter[int] = Counter()
        self._forking = False

    def enter(self) -> None:
        """Become busy; wait while the process forks."""
        me = threading.get_ident()
        with self._changed:
            while self._forking and me not in self._busy:
                self._changed.wait()
            self._busy[me] += 1

    def leave(self) -> None:
        """Come to rest."""
        me = threading.get_ident()
        with self._changed:
            self._busy[me] -= 1
            if not self._busy[me]:
                del self._busy[me]
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for all the others to rest, and keep them from going on."""
        self._changed.acquire()
        self._forking = True
        me = threading.get_ident()
        self._changed.wait_for(lambda: not self._busy.keys() - {me}, LONGEST_WAIT)

    def open(self) -> None:
        """Let them go on."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


# A process forks as a whole, so there is one gate in it.
_gate = _Gate()

# There is no fork on Windows. And where gevent or eventlet have replaced the locks nobody waits at
# the gate: the heartbeat may be on another hub than who forks, and what forks there is to be
# another program at once.
_forks = hasattr(os, "register_at_fork") and type(threading.Lock()).__module__ == "_thread"

if _forks:  # pragma: no branch
    os.register_at_fork(
        before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.open_again
    )


@contextlib.contextmanager
def no_fork() -> Generator[None]:
    """Keep the process from forking while a thread does what could lock a child for ever.

    For the threads of transports: connecting, importing, logging. A fork waits for it, but never
    longer than 0.1 s, so it may also stand around a call to a broker. It may be nested. Entering
    blocks while the process forks; does nothing else where there is no fork.
    """
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


async def in_thread(call: Callable[[], T], threads: anyio.CapacityLimiter | None = None) -> T:
    """Run in a worker thread what blocks for a round trip, or a few; the process forks after it.

    If it is cancelled the thread goes on, and nobody waits for it. Raises what the call raises.

    Args:
        call: What to run.
        threads: How many may run at once. A transport has a limiter of its own: in an application
            that has none of anyio's default threads left it would have no heartbeat, and be taken
            for dead.
    """

    def run() -> T:
        with no_fork():
            return call()

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=threads)


class _RestingSelector(selectors.DefaultSelector):
    """Lets the process fork while an event loop waits, which otherwise runs in ``no_fork``."""

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events."""
        _gate.leave()
        try:
            return super().select(timeout)
        finally:
            _gate.enter()


def run_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Run an event loop in a thread of its own, beside whatever the process does.

    It is ``anyio.run`` on asyncio, but the process forks only while the loop waits. Blocks until
    ``main`` is done, and gives its result or raises its error.
    """
    if not _forks:
        return anyio.run(main, backend="asyncio")
    with no_fork():
        import asyncio  # noqa: PLC0415 - on trio it is not needed

        def loop() -> asyncio.AbstractEventLoop:
            return asyncio.SelectorEventLoop(_RestingSelector())

        return anyio.run(main, backend="asyncio", backend_options={"loop_factory": loop})
