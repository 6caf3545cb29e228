"""What must hold of every observer, after every step of the simulator.

Whether a death is true, and whether it comes in time, is judged by what was done to the processes
and by what reached the observer (:mod:`heartbeat_core.testing._witness`).
"""

from typing import TYPE_CHECKING

from heartbeat_core._beat import Incarnation
from heartbeat_core._states import TRANSITIONS, Cause, State, Transition
from heartbeat_core.testing._process import Process
from heartbeat_core.testing._witness import TOLERANCE, Heard
from heartbeat_core.testing.models import SECOND, microseconds

if TYPE_CHECKING:
    from heartbeat_core.testing._observer import Observer
    from heartbeat_core.testing._simulator import Simulation

__all__ = ("BrokenPromise", "Promises")


class BrokenPromise(AssertionError):  # noqa: N818 - it is no error of the simulator's
    """Something that must hold did not. The message tells what, the seed and the last events."""


class Promises:
    """Judges what the observers of one simulation do.

    Attributes:
        ended: When and how the incarnations ended that exist no more.
        made: Every transition so far: when in microseconds, by which observer, and itself.
        excused: How many living nodes were buried, for reasons that excuse it.
        latencies: From crash to suspicion, and to death, at observers that could hear, in
            microseconds.
    """

    def __init__(self, simulation: "Simulation") -> None:
        settings = simulation.scenario.settings
        self._simulation = simulation
        self._settings = settings
        self._frequency = microseconds(settings.frequency)
        self._least = microseconds(settings.min_freq)
        self._expire = microseconds(settings.expire)
        self._interval = microseconds(settings.disconnect_interval)
        last_check = settings.max_freq + (settings.checks - 1) * settings.frequency
        self._checked = max(self._least, microseconds(last_check))
        self._owed: list[tuple[Observer, Incarnation]] = []
        self.ended: dict[Incarnation, tuple[int, str]] = {}
        self.made: list[tuple[int, str, Transition]] = []
        self.excused: dict[str, int] = {}
        self.latencies: dict[State, list[int]] = {State.SUSPECT: [], State.DEAD: []}

    def end(self, incarnation: Incarnation, how: str) -> None:
        """Note that an incarnation exists no more: it owes a death to everybody who knows it."""
        self.ended[incarnation] = self._simulation.now, how
        for observer in self._simulation.observers():
            known = observer.table.get(incarnation.node)
            if known is not None and known[0] == incarnation and known[1] is not State.DEAD:
                self._owed.append((observer, incarnation))

    # -- after each transition ---------------------------------------------------------------

    def take(self, observer: "Observer", transition: Transition) -> None:
        """Judge a transition."""
        simulation = self._simulation
        self.made.append((simulation.now, observer.process.name, transition))
        simulation.note("%s says: %s", observer.process.name, transition)
        key = transition.previous, transition.cause
        if key not in TRANSITIONS or TRANSITIONS[key] is not transition.state:
            self._broken(f"{key} -> {transition.state} is not in the table")
        if transition.cause is Cause.MASS_LOSS:
            return
        self._follow(observer, transition)
        incarnation = transition.incarnation
        ended = self.ended.get(incarnation)
        if transition.cause is Cause.DISCARDED:
            self._discard(observer, incarnation)
        if transition.state is State.DEAD:
            observer.buried[incarnation] = simulation.now
            if ended is None:
                if transition.cause is Cause.SUPERSEDED:
                    self._find_larger(incarnation)
                else:
                    self._justify(observer, transition)
            else:
                self._measure(observer, transition, *ended)
        elif transition.state is not None and ended is not None:
            if transition.previous is not State.SUSPECT:
                self._owed.append((observer, incarnation))
            if transition.previous is State.ALIVE:
                self._measure(observer, transition, *ended)
        if transition.cause is Cause.GOODBYE and (ended is None or ended[1] != "left"):
            self._broken(f"{incarnation} never said goodbye")

    def _find_larger(self, incarnation: Incarnation) -> None:
        """A life that goes on was superseded: by an earlier one, that a wall clock made larger."""
        node, number = incarnation.node, incarnation.number
        if not any(each.node == node and each.number > number for each in self.ended):
            self._broken(f"{incarnation} was superseded by nobody")
        self._excuse("its wall clock was set back, and an old beat came late")

    def _follow(self, observer: "Observer", transition: Transition) -> None:
        """A transition goes on from the last one of its node."""
        incarnation, node = transition.incarnation, transition.node
        known = observer.table.get(node)
        if (known[1] if known else None) is not transition.previous:
            self._broken(f"{observer.process.name} held {node} for {known}: {transition}")
        if known is not None:
            larger = transition.cause is Cause.LARGER_INCARNATION
            if (incarnation.number > known[0].number) if larger else (incarnation == known[0]):
                pass
            else:
                self._broken(f"{observer.process.name} held {node} for {known}: {transition}")
        if transition.state is None:
            del observer.table[node]
        else:
            observer.table[node] = incarnation, transition.state

    def _discard(self, observer: "Observer", incarnation: Incarnation) -> None:
        """The dead stay dead for ``discard_delay``; after that nothing is known of them here."""
        kept = self._simulation.now - observer.buried[incarnation]
        delay = microseconds(self._settings.discard_delay)
        if kept < delay - TOLERANCE - delay // 500:
            self._broken(
                f"{observer.process.name} forgot {incarnation} after {kept / SECOND:.3f} s"
            )

    def _measure(self, observer: "Observer", transition: Transition, at: int, how: str) -> None:
        witness = observer.witness
        undisturbed = max(witness.hears_since, witness.disturbed_at) <= at
        regular = self._simulation.processes[transition.node].promise <= self._settings.frequency
        if how == "crashed" and undisturbed and regular and transition.state is not None:
            self.latencies[transition.state].append(self._simulation.now - at)

    # -- no false death ----------------------------------------------------------------------

    def _justify(self, observer: "Observer", transition: Transition) -> None:
        """Find what excuses the burial of a node that lives; it must be something."""
        process = self._simulation.processes[transition.node]
        witness, settings = observer.witness, self._settings
        heard = witness.of(transition.incarnation)
        by_looks = transition.cause is Cause.CHECKS_FAILED and heard.seen is False
        if by_looks and heard.misses >= settings.checks:
            self._excuse("it had no connection")
            return
        least = self._least_silence(process, heard, transition)
        if observer.process.clock.stood:
            # What waited for it says nothing of its age, if the sender's clock stood as well.
            least -= process.clock.stood
        silence = witness.silence(heard)
        if silence < least - TOLERANCE - least // 500:
            self._broken(
                f"{observer.process.name} buried {process.name}, which lives, after a silence of "
                f"{silence / SECOND:.3f} s, and not {least / SECOND:.3f} s: {transition.reason}"
            )
        if process.troubles or heard.sent < process.well_since:
            self._excuse("it did not beat, or was cut off")
            return
        lost = self._lost(observer, process, heard)
        margin = process.line.usual + observer.process.line.usual + self._frequency // 4
        if witness.disturbed_at > heard.arrived:
            # Short deafness is not told from none. Who beats as it promised can afford it.
            margin += witness.longest_gap
            lost += process.gap > microseconds(process.promise)
        if lost and (lost + 1) * process.gap + margin >= least:
            self._excuse("too many of its beats were lost in a row")
            return
        self._broken(
            f"{observer.process.name} buried {process.name}, which lives and beats "
            f"({lost} beats lost in a row): {transition.reason}"
        )

    def _lost(self, observer: "Observer", process: Process, heard: Heard) -> int:
        """Count how many beats in a row the observer can know nothing of."""
        if not self._simulation.scenario.last_beats:
            return process.lost + heard.lost
        # What was kept too late for the answer that is on its way was as good as lost.
        reading = 2 * observer.process.line.longest
        just_now = self._simulation.now - process.found_at <= reading
        return max(process.lost, process.lost_before if just_now else 0)

    def _least_silence(self, process: Process, heard: Heard, transition: Transition) -> int:
        """Give the shortest silence that may bury a node."""
        if heard.seen or transition.cause is Cause.EXPIRED:
            return self._expire
        exact = self._settings.detector == "checks" and not self._simulation.scenario.presence
        least = self._checked if exact else self._least
        return min(int(least * self._slack(process)), self._expire)

    def _slack(self, process: Process) -> float:
        settings = self._settings
        longest = settings.expire / settings.min_freq
        return max(1.0, min(process.promise / settings.frequency, longest))

    def _excuse(self, why: str) -> None:
        self.excused[why] = self.excused.get(why, 0) + 1

    # -- detection in time -------------------------------------------------------------------

    def hold(self) -> None:
        """Make sure that nobody who is gone is held for alive for too long."""
        if self._owed:
            self._owed = [each for each in self._owed if self._is_owed(*each)]

    def _is_owed(self, observer: "Observer", incarnation: Incarnation) -> bool:
        known = observer.table.get(incarnation.node)
        process = observer.process
        if known is None or known[0] != incarnation or known[1] is State.DEAD:
            return False
        if process.observer is not observer:
            return False
        if process.paused_until or not self._simulation.can_hear(process):
            return True
        now, witness = self._simulation.now, observer.witness
        heard = witness.of(incarnation)
        base = max(heard.arrived, witness.hears_since, witness.disturbed_at)
        limit = self._silent_until(heard, base, self._simulation.processes[incarnation.node])
        slop = (limit - base) // 500 + 2 * TOLERANCE
        reading = 2 * process.line.longest + process.line.down_delay.longest
        if observer.judged >= limit + slop + reading:
            self._late(observer, incarnation, limit, "as of its last echo")
        # When its deadline passes it beats at once, and judges as of the echo.
        late = reading + process.line.longest
        if witness.echo_lost_at >= base:
            late += self._frequency + witness.longest_gap
        if now > limit + late + slop:
            self._late(observer, incarnation, limit + late, "although it could hear itself")
        if heard.seen is False:
            since, checks = heard.missed_at, self._settings.checks
            look = self._interval + process.line.down_delay.longest
            looks = (checks - 1) * look + look // 2
            if max(heard.arrived, witness.disturbed_at) >= since:
                # What came then may have begun the looks anew.
                since, looks = max(heard.arrived, witness.disturbed_at), (checks + 1) * look
            if now > since + looks + reading + slop:
                self._late(observer, incarnation, since + looks, "although its connection is gone")
        return True

    def _silent_until(self, heard: Heard, base: int, process: Process) -> int:
        """Tell when a silence that counts from ``base`` must be a death.

        Phi depends on the gaps that were observed, so it is held to ``expire`` alone, which bounds
        both detectors; and so is a node that is still connected, for it is mute, not gone.
        """
        expired = base + self._expire
        if heard.seen or self._settings.detector == "phi":
            return expired
        dead = max(base, heard.forgotten_at) + int(self._checked * self._slack(process))
        if heard.seen is False:
            # It was mute so far: now the looks decide.
            dead = max(dead, heard.missed_at + self._settings.checks * self._interval)
        return min(dead, expired)

    def _late(self, observer: "Observer", incarnation: Incarnation, limit: int, how: str) -> None:
        ended, why = self.ended[incarnation]
        self._broken(
            f"{observer.process.name} holds {incarnation} for alive, which {why} at "
            f"{ended / SECOND:.6f} s, but should be dead since {limit / SECOND:.6f} s, {how}"
        )

    # -- agreement ---------------------------------------------------------------------------

    def disagreement(self) -> str:
        """Tell who is wrong about whom; nobody, once everything has healed and settled."""
        living = {
            process.incarnation for process in self._simulation.processes.values() if process.up
        }
        for observer in self._simulation.observers():
            held = {
                incarnation
                for incarnation, state in observer.table.values()
                if state is State.ALIVE
            }
            suspect = {each for each, state in observer.table.values() if state is State.SUSPECT}
            expected = living - {observer.process.incarnation}
            if held != expected or suspect:
                return (
                    f"{observer.process.name} holds for alive: {sorted(map(str, held - expected))} "
                    f"that are not, and not {sorted(map(str, expected - held))} that are, and for "
                    f"suspect: {sorted(map(str, suspect))}"
                )
        return ""

    def storm(self, observer: "Observer") -> None:
        """Refuse that an observer beats all the time."""
        deadline = observer.detector.next_deadline()
        self._broken(
            f"{observer.process.name} beats at once again and again: its next deadline, "
            f"{deadline}, has passed and does not go away"
        )

    def settle(self) -> None:
        """Make sure, at the end, that all observers hold for alive who lives, and nobody else."""
        wrong = self.disagreement()
        if wrong:
            self._broken(f"all has healed and settled, but {wrong}")
        for observer in self._simulation.observers():
            table = {
                view.incarnation.node: (view.incarnation, view.state)
                for view in observer.detector.nodes()
            }
            if table != observer.table:
                self._broken(f"{observer.process.name} did not tell all that changed")

    def _broken(self, what: str) -> None:
        raise BrokenPromise(self._simulation.story(what))
