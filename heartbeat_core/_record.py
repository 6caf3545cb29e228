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
    gap: float = attrs.field(default=1.0, kw_only=True)
    offset: float = attrs.field(default=math.inf, kw_only=True)
    age: float = attrs.field(default=0.0, kw_only=True)
    status: Status = attrs.field(default=NO_STATUS, kw_only=True)
    connected: bool | None = attrs.field(default=None, kw_only=True)


@attrs.define(eq=False, weakref_slot=False)
class Record(_Hot):
    """What is kept of a node, one a node. Times are on the observer's clock of hearing.

    Attributes:
        number: The number of its latest life.
        state: What the observer holds it for.
        heard: When it was last heard.
        sequence: The largest sequence number of that life.
        gap: The gap that it promises, in seconds.
        offset: The smallest (arrival - sending) seen of that life, with some drift.
        age: How old its latest beat was on arrival, if that was late; else 0.
        status: What it last said of itself.
        connected: What is known of its connections.
        incarnation: Its latest life.
        slack: How much more time it needs than the settings give.
        late_at: When its latest late beat arrived, on the clock that drives the detector.
        stalled: Whether its work does not move.
        disconnected_at: When its connection went, on the clock that drives the detector.
        next_look: When the next look without a connection counts, on that clock.
        checks_failed: How many looks have failed; of a dead one, how many checks.
        checks_from: When the first check counts as failed, if not by its silence alone.
        mean: The learned gap between two beats (phi).
        variance: The learned variance of that (phi).
        due: At which of its deadlines the timer will look at it.
    """

    incarnation: Incarnation
    slack: float = 1.0
    late_at: float = -math.inf
    stalled: bool = False
    disconnected_at: float = -math.inf
    next_look: float = -math.inf
    checks_failed: int = 0
    checks_from: float = -math.inf
    mean: float = 0.0
    variance: float = 0.0
    due: float = math.inf
