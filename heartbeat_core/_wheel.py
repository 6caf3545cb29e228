"""The timer: a lazy hashed wheel, with a heap for what falls due within the current slot.

After Varghese and Lauck, "Hashed and hierarchical timing wheels" (1987), made lazy: a beat moves a
deadline by writing a number, and nobody tells the timer. When the slot comes up in which a node
stands, the timer looks at its deadline as it is now, and mostly finds that it has moved: then the
node goes into a later slot. Whose deadline lies within the current slot goes into a small heap,
which makes the timer exact.

A node costs one reference in a slot. No call looks at more than ``BUDGET`` nodes; whoever drives
the timer calls again.
"""

import heapq
import math
from collections.abc import Callable

from heartbeat_core._record import Record

__all__ = ("BUDGET", "Wheel")

SLOTS = 512
BUDGET = 1024
FEW = 64
INF = float("inf")


class Wheel:
    """Tells which records are due. Times are of one clock that never goes backwards.

    Args:
        width: The width of a slot, in seconds.
        deadline: Tells when a record is due, as of now; ``inf`` for never.
    """

    def __init__(self, width: float, deadline: Callable[[Record], float]) -> None:
        self._width = width
        self._deadline = deadline
        self._slots: list[list[Record]] = [[] for _ in range(SLOTS)]
        self._cursor = 0
        self._count = 0
        self._heap: list[tuple[float, int, Record]] = []
        self._pushed = 0

    def arm(self, record: Record) -> None:
        """Look at a record at its deadline, unless it will be looked at earlier anyway."""
        deadline = self._deadline(record)
        if deadline < record.due:
            self._place(record, deadline)

    def disarm(self, record: Record) -> None:
        """Forget a record: where it still stands it is passed over."""
        record.due = INF

    def advance(self, now: float) -> None:
        """Bring what is due by now into the heap, within the budget."""
        target = int(now / self._width)
        if target - self._cursor > SLOTS:
            # Once around is enough: every slot comes up.
            self._cursor = target - SLOTS
        looked = 0
        while self._count and self._cursor <= target and looked < BUDGET:
            slot = self._slots[self._cursor % SLOTS]
            looked += self._empty(slot, BUDGET - looked)
            if slot:
                return
            self._cursor += 1
        if self._cursor <= target and looked < BUDGET:
            self._cursor = target + 1
        self._freshen(now, BUDGET)

    def due(self, now: float) -> list[Record]:
        """Give the records that are due by now, of those that ``advance`` has found; takes none."""
        found = (
            record
            for due, _, record in self._heap
            if due <= now and record.due == due and self._deadline(record) <= now
        )
        # Who was armed back and forth may stand there twice.
        return list(dict.fromkeys(found))

    def take(self, now: float) -> Record | None:
        """Take one that is due by now, the earliest first; it has to be armed again."""
        while self._heap and self._heap[0][0] <= now:
            due, _, record = heapq.heappop(self._heap)
            if record.due != due:
                continue
            record.due = INF
            deadline = self._deadline(record)
            if deadline <= due:
                return record
            self._place(record, deadline)
        return None

    def next_look(self) -> float | None:
        """Tell when ``advance`` or ``take`` has something to do: no later than the next deadline.

        With few records it is just that deadline.
        """
        if self._count + len(self._heap) <= FEW:
            records = [record for _, _, record in self._heap]
            for slot in self._slots:
                records += slot
            deadlines = [self._deadline(each) for each in records if each.due != INF]
            return min(deadlines, default=None)
        first = self._heap[0][0] if self._heap else None
        if not self._count:
            return first
        around = range(self._cursor, self._cursor + SLOTS)
        start = self._start(next(each for each in around if self._slots[each % SLOTS]))
        return start if first is None else min(first, start)

    def _start(self, slot: int) -> float:
        """Give the first moment that is in a slot, as ``advance`` rounds."""
        start = slot * self._width
        while int(start / self._width) < slot:
            start = math.nextafter(start, INF)
        return start

    def _place(self, record: Record, deadline: float) -> None:
        record.due = deadline
        if deadline == INF:
            return
        slot = int(deadline / self._width)
        if slot < self._cursor:
            self._push(record)
            return
        if slot >= self._cursor + SLOTS:
            # Beyond the wheel's reach: looked at on the way.
            slot = self._cursor + SLOTS - 1
            record.due = (slot + 0.5) * self._width
        self._slots[slot % SLOTS].append(record)
        self._count += 1

    def _empty(self, slot: list[Record], budget: int) -> int:
        """Look at the records of the slot under the cursor; tell how many."""
        looked = min(len(slot), budget)
        for _ in range(looked):
            record = slot.pop()
            self._count -= 1
            if record.due == INF or self._is_elsewhere(int(record.due / self._width)):
                continue
            deadline = self._deadline(record)
            if deadline != INF and int(deadline / self._width) <= self._cursor:
                record.due = deadline
                self._push(record)
            else:
                self._place(record, deadline)
        return looked

    def _is_elsewhere(self, slot: int) -> bool:
        """Tell whether a record of this slot is a leftover: it was armed in another one since."""
        return slot > self._cursor or (self._cursor - slot) % SLOTS != 0

    def _push(self, record: Record) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (record.due, self._pushed, record))

    def _freshen(self, now: float, budget: int) -> None:
        """Move on those at the head of the heap that are not due after all."""
        while budget and self._heap and self._heap[0][0] <= now:
            due, _, record = self._heap[0]
            if record.due == due:
                deadline = self._deadline(record)
                if deadline <= now:
                    return
                heapq.heappop(self._heap)
                self._place(record, deadline)
            else:
                heapq.heappop(self._heap)
            budget -= 1
