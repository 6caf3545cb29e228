"""What one reader of a memory broker has not read yet."""

from collections import deque
from collections.abc import Sequence
from typing import Self

import anyio
import anyio.lowlevel

from heartbeat_core._errors import TransportError

__all__ = ("Mailbox",)


class Mailbox:
    """Iterates what arrives, in batches; of what is not read in time the newest stays.

    It is no generator, since nobody would close it. It belongs to one event loop, and
    :meth:`put` and :meth:`close` never wait.

    Args:
        backlog: So many messages may be unread; a further one displaces the oldest.
    """

    def __init__(self, backlog: int) -> None:
        self._unread: deque[bytes] = deque(maxlen=backlog)
        self._changed = anyio.Event()
        self._closed = False

    def put(self, data: bytes) -> None:
        """Let a message arrive."""
        self._unread.append(data)
        self._changed.set()

    def close(self) -> None:
        """Break the connection; what has arrived can still be read."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[bytes]:
        # Also where something is there already: a reader must not keep the loop to itself.
        await anyio.lowlevel.checkpoint()
        while not self._unread:
            if self._closed:
                raise TransportError("the connection to the broker is gone")
            self._changed = anyio.Event()
            await self._wait()
        batch = list(self._unread)
        self._unread.clear()
        return batch

    async def _wait(self) -> None:
        """Wait until something has arrived, or the connection is gone."""
        await self._changed.wait()
