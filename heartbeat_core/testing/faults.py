"""What can happen to a fleet: faults with their time, to be scripted by hand or drawn by a seed.

All times are in microseconds since the start of the simulation, and all lengths too.
"""

from typing import TYPE_CHECKING, Protocol

import attrs

from heartbeat_core.testing.models import SECOND, microseconds

if TYPE_CHECKING:
    from heartbeat_core.testing._simulator import Simulation

__all__ = (
    "Burst",
    "ClockDrift",
    "Crash",
    "Cut",
    "Disconnect",
    "Fault",
    "Leave",
    "Outage",
    "Pause",
    "Slow",
    "Start",
    "WallClock",
)


class Fault(Protocol):
    """Something that happens to a fleet."""

    @property
    def at(self) -> int:
        """When it happens."""
        ...

    @property
    def lasts(self) -> int:
        """For how long, until all is as before."""
        ...

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        ...


@attrs.frozen
class Crash:
    """A process ends without a word.

    Attributes:
        noticed: After how long the broker notices that its connection is gone.
    """

    at: int
    node: str
    noticed: int = 0
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.crash(simulation.processes[self.node], self.noticed)


@attrs.frozen
class Start:
    """A process that does not run starts: a restart, a new incarnation."""

    at: int
    node: str
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.start(simulation.processes[self.node])


@attrs.frozen
class Leave:
    """A process says goodbye and ends."""

    at: int
    node: str
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.leave(simulation.processes[self.node])


@attrs.frozen
class Pause:
    """A process does not run for a while, its connection stays.

    Attributes:
        suspended: Whether its whole machine stands still, and so the clock by which it beats.
        keeps: Whether what arrives meanwhile waits for it; otherwise the broker lets go of it.
    """

    at: int
    node: str
    lasts: int
    suspended: bool = False
    keeps: bool = True

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        process = simulation.processes[self.node]
        simulation.pause(process, self.lasts, suspended=self.suspended, keeps=self.keeps)


@attrs.frozen
class Slow:
    """A node beats with longer gaps than it promises, for a while."""

    at: int
    node: str
    lasts: int
    gap: int

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.processes[self.node].gap = self.gap
        simulation.note("%s beats every %d us", self.node, self.gap)
        simulation.at(self.at + self.lasts, self._end, simulation)

    def _end(self, simulation: "Simulation") -> None:
        process = simulation.processes[self.node]
        process.gap = microseconds(process.promise)
        process.well_since = simulation.now


@attrs.frozen
class WallClock:
    """A wall clock jumps, forward or back. It only chooses the numbers of incarnations."""

    at: int
    node: str
    by: int
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.processes[self.node].wall += self.by


@attrs.frozen
class ClockDrift:
    """The clock by which a node beats goes faster or slower from now on.

    Attributes:
        drift: So many microseconds it gains in a second.
    """

    at: int
    node: str
    drift: int
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        clock = simulation.processes[self.node].clock
        # It goes on from what it shows.
        now = simulation.now
        clock.ahead += now * clock.drift // SECOND - now * self.drift // SECOND
        clock.drift = self.drift


@attrs.frozen
class Cut:
    """A partition: nothing gets through between a process and the broker, one way or both.

    Attributes:
        up: Whether the way to the broker is cut.
        down: Whether the way back is cut.
        holds: Whether what is sent meanwhile arrives afterwards, all at once.
        noticed: After how long both ends find the connection broken; never if ``None``.
    """

    at: int
    node: str
    lasts: int
    up: bool = True
    down: bool = True
    holds: bool = False
    noticed: int | None = None

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        process = simulation.processes[self.node]
        simulation.cut(process, self.lasts, up=self.up, down=self.down, holds=self.holds)
        if self.noticed is not None and self.noticed < self.lasts:
            simulation.at(self.at + self.noticed, simulation.drop, process)


@attrs.frozen
class Outage:
    """The broker goes away.

    Attributes:
        stalls: Whether it keeps its connections, takes in what is sent, and hands it on in the
            end, all at once. Otherwise it takes in nothing, and all connections break.
        forgets: Whether it comes back without the last beats.
    """

    at: int
    lasts: int
    stalls: bool = False
    forgets: bool = False

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.stop_broker(self.lasts, stalls=self.stalls, forgets=self.forgets)


@attrs.frozen
class Burst:
    """The next few beats of a node are lost on the way to the broker."""

    at: int
    node: str
    beats: int = 2
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        simulation.processes[self.node].line.to_lose = self.beats


@attrs.frozen
class Disconnect:
    """The connections of some nodes break in one moment; they connect again."""

    at: int
    nodes: tuple[str, ...]
    lasts: int = attrs.field(default=0, init=False)

    def strike(self, simulation: "Simulation") -> None:
        """Let it happen."""
        for node in self.nodes:
            simulation.drop(simulation.processes[node])
