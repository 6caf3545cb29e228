"""What is kept of those who are gone: tombstones of the dead, and goodbyes, for a while."""

from collections import deque
from collections.abc import Iterator

from heartbeat_core._beat import Incarnation
from heartbeat_core._record import Record

__all__ = ("Gone",)


class Gone:
    """Remembers the dead and the left for ``discard_delay``. Every call is O(1) a node.

    Times are of the clock that drives the detector.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._left: dict[str, int] = {}
        self._departures: deque[tuple[float, Incarnation]] = deque()
        self._tombstones: deque[tuple[float, Record]] = deque()

    def __len__(self) -> int:
        """Count what is kept."""
        return len(self._departures) + len(self._tombstones)

    def leave(self, incarnation: Incarnation, now: float) -> None:
        """Remember a goodbye."""
        self._left[incarnation.node] = incarnation.number
        self._departures.append((now + self._delay, incarnation))

    def has_left(self, incarnation: Incarnation) -> bool:
        """Tell whether a node said goodbye as this incarnation, or as a larger one."""
        number = self._left.get(incarnation.node)
        return number is not None and incarnation.number <= number

    def come_back(self, node: str) -> None:
        """Forget the goodbye of a node that is there again."""
        self._left.pop(node, None)

    def bury(self, record: Record, now: float) -> None:
        """Set a tombstone."""
        self._tombstones.append((now + self._delay, record))

    @property
    def next_discard(self) -> float | None:
        """When a tombstone goes next."""
        return self._tombstones[0][0] if self._tombstones else None

    def discard(self, now: float, most: int) -> Iterator[Record]:
        """Let go of the tombstones whose time has come, and without a word of the goodbyes."""
        while self._departures and self._departures[0][0] <= now:
            _, incarnation = self._departures.popleft()
            if self._left.get(incarnation.node) == incarnation.number:
                del self._left[incarnation.node]
        for _ in range(min(len(self._tombstones), most)):
            until, record = self._tombstones[0]
            if until > now:
                break
            self._tombstones.popleft()
            yield record
