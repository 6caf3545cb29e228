"""Being asked to end, by Ctrl-C or otherwise, and ending in good order."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import anyio

__all__ = ("run",)

ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""What asks a process to end, on one platform or another."""


def run(main: Callable[[], Awaitable[int]], *, interrupted: int) -> int:
    """Run an event loop to the end of ``main``, and give what that gives.

    When the process is asked to end, ``main`` is cancelled, and may still say goodbye; asked a
    second time, the process ends at once. Call it in the main thread.

    Args:
        main: What to do.
        interrupted: What to give if the process was asked to end.
    """

    async def until_asked() -> int:
        with anyio.CancelScope() as scope, _asked_to_end(scope.cancel):
            return await main()
        return interrupted

    return anyio.run(until_asked, backend="asyncio")


@contextlib.contextmanager
def _asked_to_end(end: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(_number: int, _frame: FrameType | None) -> None:
        give_back()
        loop.call_soon_threadsafe(end)

    for name in ENDING:
        number = getattr(signal, name, None)
        # What is ignored stays so: who started us, nohup say, wants it.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, asked)
    try:
        yield
    finally:
        give_back()
