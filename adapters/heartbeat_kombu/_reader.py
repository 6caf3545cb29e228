"""What arrives on a connection: read by a thread, iterated by a task.

The thread reads all the time, whether anybody iterates or not: it also keeps the connection alive,
with AMQP's heartbeats. What nobody has read in time is dropped here, the oldest first.
"""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from heartbeat_core import TransportError, in_thread, no_fork
from heartbeat_kombu._line import BACKLOG, GOODBYE, Broker, Line

__all__ = ("Mailbox", "Reader")

T = TypeVar("T")

LONGEST_WAIT = 5.0
"""So long a thread waits at most that nobody asks for any more."""

AT_ONCE = 4096
"""So many nudges are answered by one reaction."""

LEAVE = GOODBYE + 0.5
"""For so many seconds whoever leaves waits until the broker knows."""


class Mailbox(Generic[T]):
    """Iterates what arrives, in batches. Any thread may put something in, and close it."""

    def __init__(self) -> None:
        self._unread: deque[T] = deque(maxlen=BACKLOG)
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = anyio.CapacityLimiter(1)

    def put(self, item: T) -> None:
        """Let something arrive. Whoever waits for it is woken by :meth:`tell`."""
        with self._changed:
            self._unread.append(item)

    def tell(self) -> None:
        """Wake whoever waits, if something has arrived."""
        with self._changed:
            if self._unread:
                self._changed.notify_all()

    def close(self, error: Exception) -> None:
        """Let the iteration raise, once it has given what was there before."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing arrives any more."""
        return self._error is not None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[T]:
        await anyio.lowlevel.checkpoint()
        while not (batch := self._take()):
            await anyio.to_thread.run_sync(self._wait, abandon_on_cancel=True, limiter=self._thread)
        return batch

    def _take(self) -> list[T]:
        with self._changed:
            batch = list(self._unread)
            self._unread.clear()
            if not batch and self._error is not None:
                raise self._error
            return batch

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._unread or self._error, LONGEST_WAIT)


class Reader:
    """A connection of its own, read by a thread of its own, until it is closed or breaks.

    Args:
        broker: Where to connect.
        name: What the connection is called in the broker.
        heartbeat: The interval of its AMQP heartbeats, in seconds.
        mailbox: What is closed with it.

    Attributes:
        gather: For so many seconds what has arrived waits for more, so that a flood of messages
            costs few changes of threads.
        writing: Held while something is written, for those in whose connection others write too.
    """

    gather = 0.0
    writing: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __init__(self, broker: Broker, name: str, heartbeat: float, mailbox: Mailbox[T]) -> None:
        self._broker = broker
        self._name = name
        self._heartbeat = heartbeat
        self._mailbox = mailbox
        self._opened: Future[None] = Future()
        self._closed = False
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="heartbeat-kombu", daemon=True)

    # What to do, all in the thread.

    def begin(self, line: Line) -> None:
        """Say what is to be read. Called once, connected."""
        raise NotImplementedError

    def react(self, line: Line) -> None:
        """Called after something has arrived, and when :meth:`nudge` asks for it."""

    def tick(self, line: Line) -> None:
        """Called a few times in an interval of the heartbeats."""

    def end(self, line: Line) -> None:
        """Called before the connection is closed, unless it broke."""

    def nudge(self) -> None:
        """Have :meth:`react` called soon. Any thread may call."""
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    @property
    def alive(self) -> bool:
        """Whether it is open, so far as anybody knows."""
        return not self._mailbox.closed

    async def open(self, threads: anyio.CapacityLimiter) -> None:
        """Connect, and begin to read.

        Raises:
            TransportError: The broker could not be reached, or refused.
        """
        self._thread.start()
        await in_thread(self._opened.result, threads)

    def close(self) -> None:
        """Let the thread take leave of the broker. Does not wait for it. May be called twice."""
        self._closed = True
        self._mailbox.close(TransportError("the connection was closed"))
        self.nudge()

    async def aclose(self) -> None:
        """Close it, and wait until the broker knows, but never long."""
        self.close()
        if self._thread.is_alive():
            with anyio.CancelScope(shield=True):
                await in_thread(lambda: self._thread.join(LEAVE), anyio.CapacityLimiter(1))

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._broker.translated():
                self._read()
        except Exception as exc:  # noqa: BLE001 - whoever opens it or iterates gets it
            self._mailbox.close(exc)
            if not self._opened.done():
                self._opened.set_exception(exc)
        finally:
            self._wake.close()
            self._woken.close()

    def _read(self) -> None:
        with no_fork():
            line = self._broker.open(self._name, self._heartbeat)
        try:
            line.wake_by(self._woken)
            with no_fork():
                self.begin(line)
            self._mailbox.tell()
            self._opened.set_result(None)
            self._keep_reading(line)
            with no_fork():
                self.end(line)
                line.close()
        finally:
            line.drop()

    def _keep_reading(self, line: Line) -> None:
        gap = self._heartbeat / 4
        next_tick = time.monotonic() + gap
        while not self._closed:
            if line.take(max(0, next_tick - time.monotonic())) or self._was_nudged():
                until = time.monotonic() + self.gather
                while (left := until - time.monotonic()) > 0 and not self._closed:
                    line.take(left)
                self.react(line)
                self._mailbox.tell()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + gap
                with no_fork(), self.writing:
                    line.beat()
                with no_fork():
                    self.tick(line)
                self._mailbox.tell()

    def _was_nudged(self) -> bool:
        try:
            return bool(self._woken.recv(AT_ONCE))
        except OSError:
            return False
