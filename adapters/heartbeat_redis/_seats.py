"""One contender for a seat: asks the server again and again, by a lease."""

import contextlib
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self, TypeVar

import anyio
import redis

from heartbeat_core import Incarnation, TransportError

__all__ = ("Contender",)

T = TypeVar("T")

LEAVING = 1.0
"""So many seconds whoever leaves waits for the server at most; it hears of it later, or never."""

JITTER = 0.25
"""By this share of the time more or less those ask again who have no seat."""


class InThread(Protocol):
    """Runs what blocks in a worker thread; raises ``TransportError``."""

    def __call__(self, call: Callable[[], T]) -> Awaitable[T]:
        """Run it."""
        ...


class Contender:
    """Iterates whether an incarnation has a seat.

    Nothing runs between two iterations. Whoever does not iterate loses the seat to somebody else
    when the lease ends, and is told so by the next answer.

    Args:
        client: Where the seats are.
        seat: The script ``SEAT``.
        prefix: Of all keys of the namespace.
        incarnation: Who contends.
        seats: How many seats there are.
        in_thread: How to wait for the server.
    """

    def __init__(
        self,
        *,
        client: Any,
        seat: Any,
        prefix: str,
        incarnation: Incarnation,
        seats: int,
        in_thread: InThread,
    ) -> None:
        self._client = client
        self._seat = seat
        self._keys = [f"{prefix}observers", f"{prefix}contenders"]
        self._me = str(incarnation)
        self._seats = seats
        self._in_thread = in_thread
        self._held = False
        self._told: bool | None = None
        self._due = 0.0
        self._over = anyio.Event()
        # What was asked for by a call that was cancelled must not come after what leaving says.
        self._lock = threading.Lock()
        self._left = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        while self._held is self._told or self._due <= anyio.current_time() or self._over.is_set():
            with anyio.CancelScope(deadline=self._due):
                await self._over.wait()
            await self.ask()
        self._told = self._held
        return self._held

    async def ask(self) -> None:
        """Ask for the seat, or hold on to it.

        Raises:
            TransportError: The server could not be asked. It is over then.
        """
        if self._over.is_set():
            raise TransportError("the contest for a seat is over")
        try:
            held, wait = await self._in_thread(self._ask)
        except TransportError:
            self.close()
            raise
        self._held = bool(held)
        share = 1.0 if held else random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._due = anyio.current_time() + wait / 1000 * share

    def close(self) -> None:
        """Let whoever iterates get an error; the lease ends by itself."""
        self._over.set()

    async def leave(self) -> None:
        """Give the seat to the others, unless it is over already. Raises nothing."""
        if self._over.is_set():
            return
        self.close()
        with anyio.move_on_after(LEAVING, shield=True), contextlib.suppress(TransportError):
            await self._in_thread(self._give_up)

    # -- in threads ---------------------------------------------------------------------------

    def _ask(self) -> tuple[int, int]:
        with self._lock:
            if self._left:
                raise redis.ConnectionError("the contest for a seat is over")
            held, wait = self._seat(keys=self._keys, args=[self._me, self._seats])
            return held, wait

    def _give_up(self) -> None:
        with self._lock:
            self._left = True
            for key in self._keys:
                self._client.zrem(key, self._me)
