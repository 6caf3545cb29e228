"""Transitions on their way to people and programs: subscribers and log lines."""

import logging
from collections import deque
from collections.abc import Iterator
from typing import Self

import anyio

from heartbeat_core._states import Cause, State, Transition

__all__ = ("Subscriber", "log")

logger = logging.getLogger("heartbeat_core")

BUFFER = 16_384
"""So many transitions wait for a slow subscriber; of more, the newest are dropped and counted."""

_LEVELS = {State.SUSPECT: logging.WARNING, State.DEAD: logging.ERROR}


class Subscriber:
    """What one reader of the transitions has not read yet.

    It needs no closing: whom nobody iterates any more is forgotten with it.
    """

    def __init__(self) -> None:
        self._unread: deque[Transition] = deque()
        self._changed = anyio.Event()
        self._ended = False

    def put(self, transition: Transition) -> bool:
        """Add one, if there is room."""
        if len(self._unread) >= BUFFER:
            return False
        self._unread.append(transition)
        self._changed.set()
        return True

    def end(self) -> None:
        """Let the iteration end after what is unread."""
        self._ended = True
        self._changed.set()

    def rest(self) -> Iterator[Transition]:
        """Give what is unread, when no loop runs any more."""
        while self._unread:
            yield self._unread.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Transition:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._changed = anyio.Event()
            await self._changed.wait()
        return self._unread.popleft()


def log(transition: Transition) -> None:
    """Write the one line of a transition."""
    level = _LEVELS.get(transition.state, logging.INFO) if transition.state else logging.INFO
    if transition.cause is Cause.MASS_LOSS:
        level = logging.WARNING
    logger.log(
        level,
        "heartbeat: %s %s -> %s (%s): %s",
        transition.node,
        transition.previous.value if transition.previous else "unknown",
        transition.state.value if transition.state else "gone",
        transition.cause.value,
        transition.reason,
        extra={
            "heartbeat_node": transition.node,
            "heartbeat_incarnation": transition.incarnation.number,
            "heartbeat_previous": transition.previous.value if transition.previous else None,
            "heartbeat_state": transition.state.value if transition.state else None,
            "heartbeat_cause": transition.cause.name.lower(),
            "heartbeat_silence": transition.silence,
        },
    )
