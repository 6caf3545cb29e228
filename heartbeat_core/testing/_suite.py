"""What all parts of the conformance suite stand on."""

import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import NoReturn, Protocol, TypeVar, cast
from unittest import SkipTest

import anyio

from heartbeat_core._beat import Incarnation
from heartbeat_core._errors import TransportError
from heartbeat_core._transport import Transport

__all__ = ("ANY_BYTES", "ODD_NAMES", "A", "B", "Make", "Suite", "drain", "enter", "refused", "same")

T = TypeVar("T")
Batches = AsyncIterator[Sequence[bytes]]

A, B = Incarnation("a", 1), Incarnation("b", 1)

ODD_NAMES = (
    *("a", "A", "a#1", "a#", "#", "with space", " ", "a:b", "a/b\\c", "{a}", "[a-z]", "*", "?"),
    *("%s", "$1", "'\"", "-", "a.b", "a\u0308", "\u00e4", "\u6771\u4eac", "\U0001f600"),
    *("x" * 255, "\u00e4" * 255, "\U0001f600" * 255),
)
"""Names that a node may have, some of which are easily taken for each other."""

ANY_BYTES = (
    *(bytes([value]) for value in range(256)),
    bytes(range(256)) * 8,
    b"\x00" * 2048,
    b"\xff" * 2048,
    b"\r\n",
    b"*1\r\n$4\r\nPING\r\n",
)
"""Messages that are no text: each byte, and the longest."""


class Make(Protocol):
    """Makes a transport of a namespace; the same name gives the same namespace."""

    def __call__(self, name: str = "") -> Transport:
        """Make it."""
        ...


class Suite:
    """How transports are made and brokers are maltreated: what an author says."""

    timeout: float = 10.0
    grace: float = 0.1

    def transports(self) -> AbstractAsyncContextManager[Callable[[str], Transport]]:
        """Give what makes a transport of a namespace, within a context of a test's length.

        Override it, as an ``asynccontextmanager`` say. All transports that it makes reach one
        broker. The suite closes them.
        """
        raise NotImplementedError("override transports() to say how a transport is made")

    async def cut(self) -> None:
        """Break each connection between the transports and the broker, which stays up.

        Override it if you can. Without it those tests are skipped.
        """
        raise SkipTest("nothing is said of how to cut connections")

    async def stop(self) -> None:
        """Stop the broker; return when nobody can reach it.

        Override it if you can, and :meth:`start` with it. Without it those tests are skipped.
        """
        raise SkipTest("nothing is said of how to stop the broker")

    async def start(self) -> None:
        """Start the broker again; return when it can be reached."""
        raise NotImplementedError("override start() where you override stop()")

    # -- for the tests ------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Make]:
        """Make transports, and close them afterwards."""
        fresh = f"conformance-{secrets.token_hex(4)}"
        opened: list[Transport] = []
        with anyio.move_on_after(self.timeout) as scope, _ungrouped():
            async with self.transports() as factory:

                def make(name: str = "") -> Transport:
                    transport = factory(f"{fresh}{name}")
                    opened.append(transport)
                    same(transport.namespace, f"{fresh}{name}", "the namespace of a transport")
                    return transport

                try:
                    yield make
                finally:
                    with anyio.fail_after(self.timeout, shield=True):
                        for transport in opened:
                            await transport.aclose()
        if scope.cancelled_caught:
            raise AssertionError(f"not done within {self.timeout} s: something waits in vain")

    @asynccontextmanager
    async def _stopped(self) -> AsyncGenerator[None]:
        """Take the broker away meanwhile."""
        await self.stop()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self.start()

    async def _take(self, batches: Batches, count: int) -> list[bytes]:
        """Read so many messages, and give them in order of their bytes: any order is allowed."""
        taken: list[bytes] = []
        with anyio.move_on_after(self.timeout / 2):
            while len(taken) < count:
                taken += await _next(batches)
            return sorted(taken)
        raise AssertionError(f"of {count} messages {len(taken)} came: {taken!r:.300}")

    async def _nothing_more(self, *iterations: Batches) -> None:
        """Make sure that nothing comes any more. The iterations are over afterwards."""
        found: list[bytes] = []

        async def watch(batches: Batches) -> None:
            found.extend(await _next(batches))

        with anyio.move_on_after(self.grace):
            async with anyio.create_task_group() as tasks:
                for batches in iterations:
                    tasks.start_soon(watch, batches)
        if found:
            raise AssertionError(f"nobody should get {found!r:.300} here, or not again")

    async def _becomes(self, ask: Callable[[], Awaitable[T]], promised: T, what: str) -> None:
        """Ask until the answer is what it should be: brokers may take a moment."""
        found = await ask()
        with anyio.move_on_after(self.timeout / 2):
            while found != promised:
                await anyio.sleep(0.01)
                found = await ask()
        same(found, promised, what)


def same(found: T, promised: T, what: str) -> None:
    """Compare, and say what was promised: a bare assert tells nothing in an installed package.

    Raises:
        AssertionError: It is not the same.
    """
    if found != promised:
        raise AssertionError(f"{what}: got {found!r:.300}, promised {promised!r:.300}")


async def refused(calls: Iterable[tuple[str, Awaitable[object]]]) -> None:
    """Make sure that each of these raises a ``TransportError``, and nothing else.

    Raises:
        AssertionError: One did not.
    """
    for what, call in calls:
        try:
            await call
        except TransportError:
            continue
        except AssertionError:
            raise
        except Exception as exc:
            raise AssertionError(f"{what} raised {exc!r}, promised a TransportError") from exc
        raise AssertionError(f"{what} raised nothing, promised a TransportError")


async def enter(context: AbstractAsyncContextManager[object]) -> None:
    """Enter a context, and leave it at once."""
    async with context:
        pass


async def drain(batches: Batches) -> NoReturn:
    """Read until it raises."""
    while True:
        await _next(batches)


async def _next(batches: Batches) -> Sequence[bytes]:
    try:
        batch = await anext(batches)
    except StopAsyncIteration:
        raise AssertionError("the iteration ended, promised that only an error ends it") from None
    if not batch:
        raise AssertionError("a batch was empty")
    for data in batch:
        if type(data) is not bytes:
            raise AssertionError(f"{data!r:.100} arrived, promised bytes")
    return batch


@contextmanager
def _ungrouped() -> Generator[None]:
    """Show an error as itself that the author's task group, or ours, has wrapped."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _sole(group) from None


def _sole(error: BaseException) -> BaseException:
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _sole(group.exceptions[0]) if len(group.exceptions) == 1 else group
