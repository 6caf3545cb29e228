"""A simulated process: its clocks, its way to the broker and back, and what it was through."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from heartbeat_core._beat import Beat, Incarnation
from heartbeat_core.testing.models import SECOND, Delay, Loss

if TYPE_CHECKING:
    from heartbeat_core.testing._observer import Observer

__all__ = ("Clock", "Line", "Message", "Process")


@attrs.frozen(weakref_slot=False)
class Message:
    """A beat on its way, and when it was truly sent."""

    beat: Beat
    sent: int


@attrs.define(eq=False)
class Clock:
    """A clock that never goes back: ahead by anything, drifting, standing while suspended.

    Attributes:
        ahead: So many microseconds it shows at the start of the simulation.
        drift: So many microseconds it gains in a second.
        stood: For so many microseconds it stood still.
    """

    ahead: int = 1_000 * SECOND
    drift: int = 0
    stood: int = 0

    def read(self, now: int) -> float:
        """Give what it shows, in seconds."""
        return (now + self.ahead + now * self.drift // SECOND - self.stood) / SECOND


@attrs.define(eq=False)
class Line:
    """The way from a process to the broker and back.

    Attributes:
        up_delay: How long a message takes to the broker.
        down_delay: How long one takes back.
        up_loss: What gets lost on the way to the broker.
        down_loss: What gets lost on the way back.
        up_cut: Until when nothing gets to the broker.
        down_cut: Until when nothing gets back.
        holds: Whether what cannot pass waits, and passes later all at once.
        held_up: What waits for the way to the broker.
        held_down: What waits for the way back.
        to_lose: So many of the next beats to the broker are lost.
        twice: So many out of a million are delivered twice.
        overtaken: So many out of a million are delivered up to three seconds late.
    """

    up_delay: Delay
    down_delay: Delay
    up_loss: Loss
    down_loss: Loss
    up_cut: int = 0
    down_cut: int = 0
    holds: bool = False
    held_up: list[tuple[Message, float]] = attrs.field(factory=list[tuple[Message, float]])
    held_down: list[Message] = attrs.field(factory=list[Message])
    to_lose: int = 0
    twice: int = 0
    overtaken: int = 0

    @property
    def usual(self) -> int:
        """The longest time there and back that is nothing unusual, in microseconds."""
        return self.up_delay.usual + self.down_delay.usual

    @property
    def longest(self) -> int:
        """The longest time there and back that the models give, in microseconds."""
        return self.up_delay.longest + self.down_delay.longest

    def down(self, chance: random.Random, now: int) -> int:
        """Give how long one message takes back, if it is not lost."""
        delay = self.down_delay.draw(chance, now)
        if self.overtaken and chance.randrange(SECOND) < self.overtaken:
            delay += chance.randrange(3 * SECOND)
        return delay


@attrs.define(eq=False)
class Process:
    """A node, through all its lives.

    Attributes:
        name: The node's name.
        clock: By which it beats and judges.
        wall: How far its wall clock is ahead. It only chooses the numbers of incarnations.
        line: Its way to the broker and back.
        gap: The gap between its beats, in microseconds.
        promise: The gap that it promises.
        observes: Whether it observes.
        incarnation: Its present life.
        life: Grows with each start and end of the process; timers of another life mean nothing.
        up: Whether the process exists.
        paused_until: Until when it does not run; 0 if it runs.
        deferred: What waits for it to run again: what to do, and when it was due if it is a timer.
        sequence: How many beats it has sent in this life.
        echoed: The largest of them that came back.
        joined: Whether it may beat: where there is presence, once it was attending.
        attending: Whether it holds a connection.
        subscribed: Whether it gets what is published.
        session: Grows with each connection.
        retry: How long it waits before it tries to connect again.
        beating: Tells the timer of the next beat from those that were replaced.
        well_since: Since when it beats as it promises, and gets it as far as the broker.
        troubles: So many things now keep it from that.
        lost: So many of its last beats in a row did not get as far as the broker in time.
        lost_before: How many those were, before one got there.
        found_at: When that was.
        observer: Its observer, if it observes.
    """

    name: str
    clock: Clock
    line: Line
    gap: int
    promise: float
    observes: bool
    wall: int = 0
    incarnation: Incarnation = attrs.field(factory=lambda: Incarnation("nobody", 0))
    life: int = 0
    up: bool = False
    paused_until: int = 0
    deferred: list[tuple[int | None, Callable[[], None]]] = attrs.field(
        factory=list[tuple[int | None, Callable[[], None]]]
    )
    sequence: int = 0
    echoed: int = 0
    joined: bool = False
    attending: bool = False
    subscribed: bool = False
    session: int = 0
    retry: int = 0
    beating: int = 0
    well_since: int = 0
    troubles: int = 0
    lost: int = 0
    lost_before: int = 0
    found_at: int = 0
    observer: "Observer | None" = None

    def number(self, now: int) -> int:
        """Give what the wall clock says, as the number of an incarnation."""
        return 1_700_000_000 * SECOND + now + self.wall
