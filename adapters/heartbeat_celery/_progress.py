"""The progress of a worker's main loop: it counts its turns, and the heartbeat's thread reads them.

What the loop pays is an addition a second, or one a turn where there is no hub.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ("TURN", "Progress", "Stopwatch")

logger = logging.getLogger("heartbeat_celery")

TURN = 1.0
"""At least every so many seconds a hub turns; without one Celery's loop turns every 2 s."""

LONGEST_LOOK = 2.0
"""A gap between two looks counts for so many seconds at most."""


@attrs.define
class Stopwatch:
    """How long a value has stayed as it is, counting only the time in which somebody looked.

    While the looker could not look (its process was stopped, say, or its machine suspended) the
    value had no chance to change either.

    Attributes:
        stood: For how many seconds.
    """

    stood: float = 0.0
    _value: object = None
    _looked: float = 0.0

    def look(self, value: object, now: float) -> float:
        """Take note of the value at a time; ``None`` is one that nobody expects to change."""
        passed, self._looked = now - self._looked, now
        if value is None or value != self._value:
            self.stood = 0.0
        else:
            self.stood += min(passed, LONGEST_LOOK)
        self._value = value
        return self.stood


@attrs.define(eq=False)
class Progress:
    """Counts the turns of a worker's main loop.

    Attributes:
        turns: How many there were; ``None`` while the loop does not run: before the start, while
            the worker connects to the broker, and when it stops.
        thread: In which thread the loop runs.
    """

    turns: int | None = None
    thread: int = 0
    _timer: Any = None

    def follow(self, consumer: Any) -> None:
        """Follow the loop of a worker's consumer; may be called at each connection."""
        if not isinstance(consumer.loop, _Followed):
            consumer.loop = _Followed(self, consumer.loop)

    def begin(self, consumer: Any) -> None:
        """Begin to count. Called in the consumer's thread, as the rest is."""
        self.thread = threading.get_ident()
        self.turns = 0
        try:
            if consumer.hub is not None:
                self._timer = consumer.timer.call_repeatedly(TURN, self.turn)
            else:
                consumer.perform_pending_operations = self._before(
                    type(consumer).perform_pending_operations.__get__(consumer)
                )
        except Exception:
            self.turns = None
            logger.exception("heartbeat: it is not watched whether the worker's main loop turns")

    def turn(self) -> None:
        """Count a turn."""
        if self.turns is not None:
            self.turns += 1

    def end(self) -> None:
        """Cease to count."""
        self.turns = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _before(self, operation: Callable[[], None]) -> Callable[[], None]:
        def counted() -> None:
            self.turn()
            operation()

        return counted


@attrs.frozen(eq=False)
class _Followed:
    """A consumer's loop, with its beginning and its end told."""

    progress: Progress
    loop: Callable[..., None]

    def __call__(self, consumer: Any, *args: Any, **kwargs: Any) -> None:
        self.progress.begin(consumer)
        try:
            self.loop(consumer, *args, **kwargs)
        finally:
            self.progress.end()
