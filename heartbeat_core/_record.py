"""What an observer keeps of a node, and what it shows of that."""

import math

import attrs

from heartbeat_core._beat import NO_STATUS, Incarnation, Status
from heartbeat_core._states import State

__all__ = ("NodeView", "Record")


@attrs.frozen(kw_only=True)
class NodeView:
    """A line of the table of nodes.

    Attributes:
        incarnation: The node and its latest incarnation.
        state: What the observer holds it for.
        silence: For how many seconds it was not heard, as ``Detector`` counts them.
        connected: Whether it has a connection to the broker; ``None`` if nothing is known.
        checks_failed: How many checks of it have failed.
        stalled: Whether it says that its work does not move.
        status: What it last said of itself.
    """

    incarnation: Incarnation
    state: State
    silence: float
    connected: bool | None = None
    checks_failed: int = 0
    stalled: bool = False
    status: Status = NO_STATUS


@attrs.define(eq=False, weakref_slot=False)
class _Hot:
    """What every beat reads or writes: a base class's slots lie side by side in memory."""

    number: int
    state: State
    heard: float
    sequence: int = attrs.field(default=0, kw_only=True)
    regular: float = attrs.field(default=math.nan, kw_only=True)
    offset: float = attrs.field(default=math.inf, kw_only=True)
    status: Status = attrs.field(default=NO_STATUS, kw_only=True)


@attrs.define(eq=False, weakref_slot=False)
class Record(_Hot):
    """What is kept of a node, one a node. Times are on the observer's clock of hearing.

    Attributes:
        number: The number of its latest life.
        state: What the observer holds it for.
        heard: When it was last heard.
        sequence: The largest sequence number of that life.
        regular: The gap that it promises, as long as a beat of that gap changes nothing else: it
            is alive, and not known to be without connection. Else not a number.
        offset: The smallest (arrival - sending) seen of that life, with some drift; infinite
            while no beat of it came live, since one that was kept tells nothing of its age.
        status: What it last said of itself.
        incarnation: Its latest life.
        gap: The gap that it promises, in seconds.
        slack: How much more time it needs than the settings give.
        age: How old its latest late beat was on arrival.
        late_at: When that arrived, on the clock that drives the detector.
        late_sequence: The sequence number of that.
        stalled: Whether its work does not move.
        connected: What is known of its connections.
        disconnected_at: When its connection went, on the clock that drives the detector.
        next_look: When the next look without a connection counts, on that clock.
        checks_failed: How many looks have failed; of a dead one, how many checks.
        checks_from: When the first check counts as failed, if not by its silence alone.
        mean: The learned gap between two beats (phi).
        variance: The learned variance of that (phi).
        due: At which of its deadlines the timer will look at it.
    """

    incarnation: Incarnation
    gap: float = 1.0
    slack: float = 1.0
    age: float = 0.0
    late_at: float = -math.inf
    late_sequence: int = -1
    stalled: bool = False
    connected: bool | None = None
    disconnected_at: float = -math.inf
    next_look: float = -math.inf
    checks_failed: int = 0
    checks_from: float = -math.inf
    mean: float = 0.0
    variance: float = 0.0
    due: float = math.inf

    def settle(self) -> None:
        """Say what a regular beat is, after anything else has changed."""
        ordinary = self.state is State.ALIVE and self.connected is not False
        self.regular = self.gap if ordinary else math.nan
