"""The same heartbeat for services that use threads: no event loop of their own is needed."""

import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from heartbeat_core._beat import Incarnation, Status
from heartbeat_core._errors import HeartbeatError
from heartbeat_core._fork import run_loop
from heartbeat_core._record import NodeView
from heartbeat_core._reports import Subscriber
from heartbeat_core._runtime import Heartbeat
from heartbeat_core._settings import Settings
from heartbeat_core._states import Transition
from heartbeat_core._transport import Transport

__all__ = ("BlockingHeartbeat",)

T = TypeVar("T")


class BlockingHeartbeat:
    """The heartbeat of one node, in a thread of its own.

    Use it as a context manager. Entering does not wait for the broker; leaving says goodbye, which
    takes a second at most. Every method may be called from any thread. The beat goes on whatever
    the service's threads do, as long as they let go of the interpreter now and then. The process
    may fork meanwhile: the child is no node, and there every method raises.

    Args:
        node: As for :class:`Heartbeat`; ``None`` for who only watches.
        transport: What carries the beats. It is closed on leaving.
        settings: How to beat and judge.
        observe: As for :class:`Heartbeat`: whether to take turns in judging the others.
        status: As for :class:`Heartbeat`; called in the heartbeat's thread.
        stalled: As for :class:`Heartbeat`; called in the heartbeat's thread.
    """

    def __init__(
        self,
        node: str | None,
        transport: Transport,
        *,
        settings: Settings | None = None,
        observe: bool = True,
        status: Callable[[], Status] | None = None,
        stalled: Callable[[], bool] | None = None,
    ) -> None:
        self._heartbeat = Heartbeat(
            node, transport, settings=settings, observe=observe, status=status, stalled=stalled
        )
        self._pid = os.getpid()
        self._begun = threading.Event()
        self._portal: BlockingPortal | None = None
        self._stop: anyio.Event | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        """Start to beat."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say goodbye, and stop.

        Raises:
            HeartbeatError: The heartbeat had ended by an error of its own, which is the cause.
        """
        if os.getpid() != self._pid:
            return
        portal, stop, thread = self._portal, self._stop, self._thread
        if portal is not None and stop is not None:
            portal.start_task_soon(stop.set)
        if thread is not None:
            thread.join()
        if self._error is not None and exc is None:
            raise HeartbeatError("the heartbeat had ended by an error") from self._error

    @property
    def incarnation(self) -> Incarnation:
        """Which life of the node this is; it changes when the node finds itself declared dead."""
        return self._heartbeat.incarnation

    @property
    def observing(self) -> bool:
        """Whether this node judges the others now."""
        return self._heartbeat.observing

    @property
    def joined(self) -> bool:
        """Whether the broker knows this node now: it is present, and its beats get through."""
        return self._heartbeat.joined

    @property
    def dropped(self) -> dict[str, int]:
        """How many messages were dropped, by reason."""
        return dict(self._heartbeat.dropped)

    def wait_joined(self, timeout: float | None = None) -> Incarnation:
        """Wait until the node is known to the broker, and return its incarnation.

        Args:
            timeout: For how many seconds to wait at most; for ever if none is given.

        Raises:
            TimeoutError: It did not become known in that time.
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """

        async def wait() -> Incarnation:
            with anyio.fail_after(timeout):
                return await self._heartbeat.wait_joined()

        return self._await(wait)

    def nodes(self) -> list[NodeView]:
        """Give the table of nodes by name, this one included.

        Raises:
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """
        return self._call(self._heartbeat.nodes)

    def transitions(self) -> Iterator[Transition]:
        """Iterate what changes from now on; blocks while nothing does.

        The iteration ends when the heartbeat does. Whoever falls behind by more than 16,384
        loses the newest.

        Raises:
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """
        return self._iterate(self._call(self._heartbeat.transitions))

    def expect(self, incarnations: Iterable[Incarnation]) -> None:
        """Say that these are on record somewhere, so that they are missed if they do not beat.

        Raises:
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """
        expected = list(incarnations)
        self._call(lambda: self._heartbeat.expect(expected))

    def is_dead(self, incarnation: Incarnation) -> bool:
        """Tell whether this node holds an incarnation for dead, or knows a larger one.

        Raises:
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """
        return self._call(lambda: self._heartbeat.is_dead(incarnation))

    def rejoin(self, fenced: Incarnation) -> None:
        """Begin a new, larger incarnation, since this one was found to be fenced.

        Raises:
            HeartbeatError: The heartbeat has ended, or belongs to the parent process.
        """
        self._call(lambda: self._heartbeat.rejoin(fenced))

    def _iterate(self, subscriber: Subscriber) -> Iterator[Transition]:
        async def next_one() -> Transition | None:
            return await anext(subscriber, None)

        with contextlib.suppress(HeartbeatError):
            while (transition := self._await(next_one)) is not None:
                yield transition
        # The loop has ended; what it had reported before is still there.
        yield from subscriber.rest()

    # -- in and out of the thread ---------------------------------------------------------------

    def _call(self, call: Callable[[], T]) -> T:
        """Run something in the heartbeat's loop, and wait for what it gives."""

        async def run() -> T:
            return call()

        return self._await(run)

    def _await(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Let the heartbeat's loop wait for something, and wait for that."""
        if os.getpid() != self._pid:
            raise HeartbeatError("this heartbeat runs in the parent process; begin one of your own")
        if self._portal is None:
            raise HeartbeatError("the heartbeat does not run: it was not entered, or has ended")
        try:
            result: T = self._portal.call(call)
        except (RuntimeError, CancelledError) as exc:
            raise HeartbeatError("the heartbeat has ended") from exc
        return result

    def _run(self) -> None:
        try:
            run_loop(self._main)
        except BaseException as exc:  # noqa: BLE001 - it is raised where somebody can see it
            self._error = exc
        finally:
            self._portal = None
            self._begun.set()

    async def _main(self) -> None:
        stop = self._stop = anyio.Event()
        async with BlockingPortal() as portal:
            async with self._heartbeat:
                self._portal = portal
                self._begun.set()
                await stop.wait()
                self._portal = None
            # Whoever still waits for something waits in vain.
            await portal.stop(cancel_remaining=True)
