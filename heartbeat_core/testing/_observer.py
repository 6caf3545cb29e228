"""A simulated observer: drives a detector just as the runtime drives it."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from heartbeat_core._beat import Beat, Incarnation, Kind
from heartbeat_core._looks import Connections
from heartbeat_core._states import Cause, State, Transition
from heartbeat_core.testing._process import Message, Process
from heartbeat_core.testing._witness import Witness
from heartbeat_core.testing.models import SECOND, microseconds

if TYPE_CHECKING:
    from heartbeat_core.testing._simulator import Simulation

__all__ = ("Observer",)

ENOUGH = 200
"""After so many calls in one moment that leave more to do, an observer waits for its next echo."""

MOST_EXTRA = 20
"""So many extra beats in a second, and four more for each node, are not a storm."""


class Observer:
    """One life of an observer.

    Attributes:
        process: Whose it is.
        detector: What it drives.
        witness: Knows what truly reached it.
        table: What its transitions say of each node.
        buried: When it declared them dead.
        judged: As of which of its echoes it last judged everybody, in microseconds.
    """

    def __init__(self, simulation: "Simulation", process: Process) -> None:
        self._simulation = simulation
        self._settings = simulation.scenario.settings
        self.process = process
        self.detector = simulation.scenario.detector(self._settings, process.incarnation)
        self.witness = Witness(self._settings)
        self.table: dict[str, tuple[Incarnation, State]] = {}
        self.buried: dict[Incarnation, int] = {}
        self.judged = -SECOND
        self._wakes = 0
        self._awake_at = -1
        self._judging = False
        self._judge_again = False
        self._judged_all = False
        self._spins = 0
        self._extra = self._extra_in = 0
        self._acted_at = 0

    def start(self) -> None:
        """Begin to judge, and to look."""
        self._poke()
        self._tick_later()
        if self._simulation.scenario.presence:
            self._look_later()

    # -- what comes in -----------------------------------------------------------------------

    def take(self, message: Message, *, kept: bool = False) -> None:
        """Take in one message, or a last beat that the broker has kept."""
        simulation, beat, process = self._simulation, message.beat, self.process
        now = simulation.now
        is_own = beat.incarnation == process.incarnation
        if is_own and beat.kind is Kind.OBITUARY:
            simulation.fence(process, beat)
            return
        if is_own and beat.kind is Kind.BEAT:
            self.witness.hear_self(now)
        elif beat.kind is Kind.BEAT:
            self.witness.hear(beat, message.sent, now, kept=kept)
        observe = self.detector.recall if kept else self.detector.observe
        transitions = observe(beat, self._clock())
        if transitions:
            self._emit(transitions)
        elif is_own:
            process.echoed = max(process.echoed, beat.sequence)
            self._poke()
        elif self.detector.is_dead(beat.incarnation):
            self._tell(beat.incarnation)

    def _look_later(self) -> None:
        interval = microseconds(self._settings.disconnect_interval)
        self._simulation.timer(self.process, interval, self._look)

    def _look(self) -> None:
        simulation, process = self._simulation, self.process
        living = self.detector.living()
        if not living or not process.joined or not simulation.can_ask(process):
            self._look_later()
            return
        seen = Connections(
            session=process.session,
            asked=living,
            connected=living & simulation.broker.present.keys(),
        )
        delay = process.line.down_delay.draw(simulation.chance, simulation.now)
        if delay:
            simulation.timer(process, delay, self._answer, seen)
        else:
            self._answer(seen)

    def _answer(self, seen: Connections) -> None:
        self._look_later()
        if seen.session != self.process.session:
            return
        self.witness.look(seen, len(self.detector.living()), self._simulation.now)
        transitions = self.detector.connections(seen, self._clock())
        if transitions:
            self._emit(transitions)
        if seen.connected != seen.asked:
            self._judge()

    # -- judging -----------------------------------------------------------------------------

    def _poke(self) -> None:
        now = self._simulation.now
        if self._awake_at != now:
            self._awake_at = now
            self._wakes += 1
            self._simulation.timer(self.process, 0, self._wake, self._wakes)

    def _wake(self, wakes: int) -> None:
        if wakes == self._wakes:
            self._awake_at = -1
            self._judge()

    def _tick_later(self) -> None:
        frequency = self._settings.frequency
        planned = self._clock() + frequency
        self._simulation.timer(self.process, microseconds(frequency), self._tick, planned)

    def _tick(self, planned: float) -> None:
        """Notice that it stood still."""
        acted_at, clock, simulation = self._acted_at, self._clock(), self._simulation
        late = clock - planned
        if late > self._settings.frequency / 2:
            simulation.note("%s overslept by %.6f s", self.process.name, late)
            if late <= self.witness.longest_gap / SECOND:
                # Of a short pause counts what came before something was read after it.
                late = min(late, (simulation.now - acted_at) / SECOND)
            self.witness.oversleep(simulation.now, microseconds(late))
            self.detector.oversleep(clock, clock - planned)
        self._tick_later()

    def _wait(self) -> None:
        """Wait for the next deadline; where it has passed, for an echo that is younger."""
        if self._awake_at == self._simulation.now:
            return
        deadline = self.detector.next_deadline()
        self._wakes += 1
        if deadline is None:
            return
        wait = deadline - self._clock()
        more = wait <= 0 and self._judged_all and self.detector.overdue
        self._spins = self._spins + 1 if more else 0
        if more and self._spins < ENOUGH:
            wait = 0.0  # There is more to do than one call does.
        elif wait <= 0:
            wait = self._settings.frequency
            if self.process.echoed == self.process.sequence and self._may_beat():
                self._simulation.beat_at_once(self.process)
        # Never early, as a clock would be that is read in whole microseconds.
        delay = math.ceil(wait * SECOND)
        self._simulation.timer(self.process, delay, self._wake, self._wakes)

    def _may_beat(self) -> bool:
        """Beat at once, unless it has done so all the time: that does not help."""
        second = self._simulation.now // SECOND
        self._extra = self._extra + 1 if second == self._extra_in else 1
        self._extra_in = second
        if self._extra <= MOST_EXTRA + 4 * self._simulation.scenario.nodes:
            return True
        self._simulation.promises.storm(self)
        return False

    def _judge(self) -> None:
        """Read the last beats of those about to die, then judge."""
        if self._judging:
            self._judge_again = True
            return
        dying = self.detector.dying()
        if not dying or not self._simulation.scenario.last_beats:
            self._check(dying)
            return
        line, simulation = self.process.line, self._simulation
        if not simulation.can_ask(self.process):
            self._judged_all = False
            self._wait()
            return
        self._judging = True
        there = line.up_delay.draw(simulation.chance, simulation.now)
        back = line.down_delay.draw(simulation.chance, simulation.now)
        simulation.timer(self.process, there, self._read, dying, back)

    def _read(self, dying: list[Incarnation], back: int) -> None:
        """The broker reads, and answers."""
        last = self._simulation.broker.last_beats([each.node for each in dying])
        self._simulation.timer(self.process, back, self._has_read, dying, last)

    def _has_read(self, dying: list[Incarnation], last: list[Message]) -> None:
        self._judging = False
        if not self._simulation.can_ask(self.process):
            self._judged_all = False
            self._wait()
            return
        for message in last:
            self.take(message, kept=True)
        self._check(dying)

    def _check(self, may_die: list[Incarnation]) -> None:
        transitions = self.detector.check(self._clock(), may_die=frozenset(may_die))
        self._judged_all = True
        self.judged = self.witness.echo
        if transitions:
            self._emit(transitions)
        if self._judge_again:
            self._judge_again = False
            self._judge()
        else:
            self._wait()

    def _emit(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            self._simulation.promises.take(self, transition)
            if transition.state is State.DEAD and transition.cause is not Cause.OBITUARY:
                self._tell(transition.incarnation)
        self._poke()

    def _tell(self, incarnation: Incarnation) -> None:
        """Post its obituary to an incarnation."""
        latest = self.detector.latest(incarnation.node) or incarnation
        beat = Beat(
            incarnation=incarnation,
            sequence=latest.number,
            sent=round(self._clock(), 3),
            gap=self._settings.frequency,
            kind=Kind.OBITUARY,
        )
        self._simulation.broker.post(self.process, beat)

    def _clock(self) -> float:
        """Read its clock; it does so whenever it does something."""
        self._acted_at = self._simulation.now
        return self.process.clock.read(self._simulation.now)
