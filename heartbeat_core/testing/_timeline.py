"""The time of a simulation: what happens next, and what happened last."""

import functools
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from heartbeat_core.testing._process import Process
from heartbeat_core.testing.models import SECOND

__all__ = ("Timeline",)

STORY = 60
"""So many of the last events are told when something did not hold."""


class Timeline:
    """A queue of events, in whole microseconds; what is due at once happens as it was put in.

    Attributes:
        now: The time.
    """

    def __init__(self) -> None:
        self.now = 0
        self._queue: list[_Event] = []
        self._pushed = 0
        self._told: deque[tuple[int, str, tuple[Any, ...]]] = deque(maxlen=STORY)

    def run_until(self, end: int, after_each: Callable[[], None]) -> int:
        """Let happen what is due by then; tell how many events that were."""
        queue, events = self._queue, 0
        while queue and queue[0][0] <= end:
            self.now, _, process, life, due, act, arguments = heapq.heappop(queue)
            if process is not None:
                if process.life != life:
                    continue
                if process.paused_until:
                    process.deferred.append((due, functools.partial(act, *arguments)))
                    continue
            act(*arguments)
            after_each()
            events += 1
        self.now = end
        return events

    def at(self, when: int, act: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time, whatever becomes of the processes."""
        self._push(when, None, None, act, arguments)

    def timer(
        self, process: Process, delay: int, act: Callable[..., None], *arguments: Any
    ) -> None:
        """Let a process do something after a while, unless it ends before."""
        due = self.now + delay
        self._push(due, process, due, act, arguments)

    def deliver(
        self, process: Process, delay: int, act: Callable[..., None], *arguments: Any
    ) -> None:
        """Let something reach a process after a while, unless it ends before."""
        self._push(self.now + delay, process, None, act, arguments)

    def _push(
        self,
        when: int,
        process: Process | None,
        due: int | None,
        act: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        self._pushed += 1
        life = process.life if process is not None else 0
        heapq.heappush(self._queue, (when, self._pushed, process, life, due, act, arguments))

    def note(self, text: str, *arguments: Any) -> None:
        """Remember an event, to tell if something does not hold soon after."""
        self._told.append((self.now, text, arguments))

    def recall(self) -> list[str]:
        """Tell the last events, one a line."""
        return [f"{at / SECOND:12.6f}  {text % arguments}" for at, text, arguments in self._told]


_Event = tuple[int, int, Process | None, int, int | None, Callable[..., None], tuple[Any, ...]]
"""When, in which order, of whom and of which life of his, when due if it is a timer, and what."""
