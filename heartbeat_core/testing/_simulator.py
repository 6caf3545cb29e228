"""A deterministic simulation of a whole fleet: its nodes, their broker, and their observers.

Discrete events, in whole microseconds; all chance comes from one seeded generator, of which only
whole numbers are drawn. So a seed replays the same everywhere. Every detector in it is the real
one, driven just as the runtime drives it.
"""

import copy
import hashlib
import random
from collections.abc import Iterator

import attrs

from heartbeat_core._beat import Beat, Incarnation, Kind
from heartbeat_core._states import State, Transition
from heartbeat_core.testing._broker import Broker
from heartbeat_core.testing._observer import Observer
from heartbeat_core.testing._process import Clock, Line, Process
from heartbeat_core.testing._promises import BrokenPromise, Promises
from heartbeat_core.testing._scenario import Scenario
from heartbeat_core.testing._timeline import Timeline
from heartbeat_core.testing.models import SECOND, microseconds

__all__ = ("BrokenPromise", "Report", "Simulation", "simulate")

FIRST_RETRY, LAST_RETRY = SECOND // 50, SECOND


@attrs.frozen(kw_only=True)
class Report:
    """What a simulation came to.

    Attributes:
        transitions: All of them: when in microseconds, by which observer, and itself.
        events: How many steps there were.
        excused: How many living nodes were buried, by what excuses it.
        suspected: From crash to suspicion, in microseconds, at observers that could hear.
        died: From crash to death, in microseconds, at observers that could hear.
    """

    transitions: tuple[tuple[int, str, Transition], ...]
    events: int
    excused: dict[str, int]
    suspected: tuple[int, ...]
    died: tuple[int, ...]

    def digest(self) -> str:
        """Give a short text that is the same for the same transitions."""
        lines = "\n".join(
            f"{at} {observer} {each.incarnation} {each.previous} {each.state} {each.cause.name}"
            for at, observer, each in self.transitions
        )
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


class Simulation(Timeline):
    """One run of a scenario.

    Attributes:
        scenario: What is simulated.
        now: The time, in microseconds.
        chance: Where all chance comes from.
        broker: In the midst of the processes.
        processes: By name.
        promises: What must hold.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario
        self.chance = random.Random(scenario.seed)  # noqa: S311 - it is to replay
        self.broker = Broker(self)
        self.processes: dict[str, Process] = {}
        self.promises = Promises(self)
        for number in range(scenario.nodes):
            self._add(number)

    def _add(self, number: int) -> None:
        scenario, chance = self.scenario, self.chance
        name = f"n{number}"
        observes = number < scenario.observers
        promise = scenario.settings.frequency
        if not observes and chance.randrange(1000) < scenario.sloppy:
            promise *= 2
        ahead = chance.randrange(1_000_000) * SECOND
        if not observes:
            ahead -= chance.randrange(2) * 10**9 * SECOND
        self.processes[name] = Process(
            name=name,
            clock=Clock(ahead=ahead, drift=chance.randrange(-scenario.drift, scenario.drift + 1)),
            line=Line(
                up_delay=copy.copy(scenario.delay),
                down_delay=copy.copy(scenario.delay),
                up_loss=copy.copy(scenario.up_loss),
                down_loss=copy.copy(scenario.down_loss),
                twice=scenario.twice,
                overtaken=scenario.overtaken,
            ),
            gap=microseconds(promise),
            promise=promise,
            observes=observes,
        )

    def run(self) -> Report:
        """Run it to its end.

        Raises:
            BrokenPromise: Something that must hold did not.
        """
        frequency = microseconds(self.scenario.settings.frequency)
        for process in self.processes.values():
            self.at(self.chance.randrange(frequency), self.start, process)
        for fault in self.scenario.faults:
            self.at(fault.at, fault.strike, self)
        hold = self.promises.hold
        events = self.run_until(self.scenario.healed_at, hold)
        limit = self.now + self.scenario.settling
        # What is settled stays so: it is looked at every now and then.
        while self.now < limit and self.promises.disagreement():
            events += self.run_until(min(limit, self.now + frequency), hold)
        self.promises.settle()
        return Report(
            transitions=tuple(self.promises.made),
            events=events,
            excused=self.promises.excused,
            suspected=tuple(self.promises.latencies[State.SUSPECT]),
            died=tuple(self.promises.latencies[State.DEAD]),
        )

    def story(self, what: str) -> str:
        """Tell what did not hold, of which seed, and what happened before."""
        lines = [
            what,
            f"seed {self.scenario.seed}, at {self.now / SECOND:.6f} s of {self.scenario}",
            "the last events:",
            *(f"  {line}" for line in self.recall()),
        ]
        return "\n".join(lines)

    def observers(self) -> Iterator[Observer]:
        """Give the observers that exist now."""
        for process in self.processes.values():
            if process.observer is not None:
                yield process.observer

    # -- lives -------------------------------------------------------------------------------

    def start(self, process: Process) -> None:
        """Start a process, unless it runs."""
        if process.up:
            return
        scenario = self.scenario
        process.life += 1
        process.up = True
        process.deferred.clear()
        process.paused_until = 0
        process.incarnation = Incarnation(process.name, process.number(self.now))
        process.sequence = process.echoed = process.lost = 0
        process.joined = process.attending = process.subscribed = False
        process.retry = 0
        process.well_since = self.now
        self.note("%s starts", process.incarnation)
        if process.observes:
            process.observer = Observer(self, process)
        self._connect(process)
        if not scenario.presence:
            self._join(process)
        if process.observer is not None:
            process.observer.start()

    def crash(self, process: Process, noticed: int) -> None:
        """End a process without a word; the broker notices after a while."""
        if process.up:
            self.note("%s crashes", process.incarnation)
            self._end(process, "crashed")
            self.at(self.now + process.line.longest + noticed, self._forget, process.incarnation)

    def leave(self, process: Process) -> None:
        """Let a process say goodbye, and end."""
        if not process.up or process.paused_until:
            return
        self.note("%s leaves", process.incarnation)
        self.broker.publish(
            process, self._beat_of(process, process.sequence + 1, Kind.GOODBYE), 0.0
        )
        self._end(process, "left")
        interval = microseconds(self.scenario.settings.disconnect_interval)
        delay = interval + process.line.longest
        self.at(self.now + delay, self._forget, process.incarnation)

    def _end(self, process: Process, how: str) -> None:
        process.life += 1
        process.up = False
        process.paused_until = 0
        process.deferred.clear()
        process.attending = process.subscribed = False
        process.observer = None
        self.promises.end(process.incarnation, how)

    def fence(self, process: Process, obituary: Beat) -> None:
        """Let a process begin a new, larger incarnation, since it read its obituary."""
        old = process.incarnation
        if obituary.incarnation != old:
            return
        number = max(process.number(self.now), max(old.number, obituary.sequence) + 1)
        self.promises.end(old, "read its obituary")
        process.incarnation = Incarnation(process.name, number)
        process.sequence = process.echoed = process.lost = 0
        process.well_since = self.now
        self.note("%s reads its obituary: %s", old, process.incarnation)
        if process.observer is not None:
            process.observer.detector.me = process.incarnation
        if self.scenario.presence:
            process.joined = process.attending = False
            self.broker.present.pop(old, None)
            self._connect(process)

    # -- connections -------------------------------------------------------------------------

    def can_ask(self, process: Process) -> bool:
        """Tell whether a process gets answers from the broker."""
        line, now = process.line, self.now
        if self.broker.stalled or not self.broker.up:
            return False
        if self.scenario.presence and not process.attending:
            return False
        return line.up_cut <= now and line.down_cut <= now

    def can_hear(self, process: Process) -> bool:
        """Tell whether an observer can hear itself, as far as it does not depend on chance."""
        return process.subscribed and process.joined and self.can_ask(process)

    def drop(self, process: Process) -> None:
        """Break the connections of a process."""
        if not process.up or not (process.attending or process.subscribed):
            return
        self.broker.present.pop(process.incarnation, None)
        process.attending = process.subscribed = False
        self.disturb(process)
        self.note("%s loses its connections", process.name)
        # It notices: it beats at once, to see whether it still can.
        self.timer(process, 0, self._lost, process)

    def _lost(self, process: Process) -> None:
        if process.attending:
            return
        process.retry = FIRST_RETRY
        self.beat_at_once(process)
        self._connect_later(process)

    def _connect_later(self, process: Process) -> None:
        half = max(process.retry, FIRST_RETRY) // 2
        delay = half + self.chance.randrange(half + 1)
        process.retry = min(2 * process.retry, LAST_RETRY)
        self.timer(process, delay, self._connect, process)

    def _connect(self, process: Process) -> None:
        """Attend, and subscribe."""
        line = process.line
        if process.subscribed and (process.attending or not self.scenario.presence):
            return
        if self.broker.stalled or not self.broker.up or max(line.up_cut, line.down_cut) > self.now:
            self._connect_later(process)
            return
        self.timer(process, line.up_delay.draw(self.chance, self.now), self._attend, process)

    def _attend(self, process: Process) -> None:
        line = process.line
        if not self.broker.up or max(line.up_cut, line.down_cut) > self.now:
            self._connect_later(process)
            return
        process.retry = FIRST_RETRY
        process.session += 1
        if self.scenario.presence and not process.attending:
            self._choose_number(process)
            process.attending = True
            self.broker.present[process.incarnation] = process
            self._join(process)
        if not process.subscribed:
            process.subscribed = True
            observer = process.observer
            if observer is not None:
                if self.scenario.last_beats:
                    for message in self.broker.last_beats(list(self.processes)):
                        observer.take(message, kept=True)
                self.beat_at_once(process)
        self.disturb(process)

    def _choose_number(self, process: Process) -> None:
        """Let an incarnation be the largest of its node, where that can be asked."""
        last = self.broker.last_beats([process.name]) if self.scenario.last_beats else []
        if process.joined or not last:
            return
        largest = last[0].beat.incarnation.number
        if (
            last[0].beat.incarnation != process.incarnation
            and largest >= process.incarnation.number
        ):
            process.incarnation = Incarnation(process.name, largest + 1)
            if process.observer is not None:
                process.observer.detector.me = process.incarnation

    def _join(self, process: Process) -> None:
        process.joined = True
        self.beat_at_once(process)

    def _forget(self, incarnation: Incarnation) -> None:
        """Let the broker notice that a connection is gone."""
        if self.broker.present.pop(incarnation, None) is not None:
            self.note("the connection of %s is gone", incarnation)

    def disturb(self, process: Process) -> None:
        """Note that an observer was cut off, or is again connected."""
        if process.observer is not None:
            process.observer.witness.disturb(self.now)

    # -- beats -------------------------------------------------------------------------------

    def beat_at_once(self, process: Process) -> None:
        """Let a process beat now, and then every gap."""
        process.beating += 1
        self.timer(process, 0, self._beat, process, process.beating)

    def _beat(self, process: Process, beating: int) -> None:
        if beating != process.beating or not process.joined:
            return
        process.sequence += 1
        beat = self._beat_of(process, process.sequence, Kind.BEAT)
        self.broker.publish(process, beat, self.scenario.settings.expire)
        self.timer(process, process.gap, self._beat, process, beating)

    def _beat_of(self, process: Process, sequence: int, kind: Kind) -> Beat:
        return Beat(
            incarnation=process.incarnation,
            sequence=sequence,
            # As it is written on the wire.
            sent=round(process.clock.read(self.now), 3),
            gap=process.promise,
            kind=kind,
        )

    # -- what faults do ----------------------------------------------------------------------

    def pause(self, process: Process, length: int, *, suspended: bool, keeps: bool) -> None:
        """Stop a process for a while, or its whole machine, whose clock then stands."""
        if not process.up:
            return
        until = self.now + length
        if not process.paused_until:
            process.troubles += 1
            self.note("%s is paused for %.6f s", process.name, length / SECOND)
            self.at(until, self._resume, process, process.life, self.now, suspended, keeps)
            process.paused_until = until

    def _resume(
        self, process: Process, life: int, since: int, suspended: bool, keeps: bool
    ) -> None:
        process.troubles -= 1
        process.well_since = self.now
        if process.life != life:
            return
        self.note("%s runs again", process.name)
        process.paused_until = 0
        if suspended:
            process.clock.stood += self.now - since
        self.disturb(process)
        deferred, process.deferred = process.deferred, []
        arrived = [act for due, act in deferred if due is None]
        due = [act for due, act in deferred if due is not None]
        if not keeps:
            arrived.clear()
            self.drop(process)
        if suspended and process.observer is not None:
            process.observer.witness.stand(since, self.now)
        # Whether the clock or the connection is looked at first is chance.
        for act in arrived + due if self.chance.randrange(2) else due + arrived:
            if process.life == life and not process.paused_until:
                act()

    def cut(self, process: Process, length: int, *, up: bool, down: bool, holds: bool) -> None:
        """Cut one or both ways between a process and the broker for a while."""
        line, until = process.line, self.now + length
        self.note(
            "%s is cut off (up %s, down %s) for %.6f s", process.name, up, down, length / SECOND
        )
        line.holds = holds
        if up:
            process.troubles += 1
            line.up_cut = max(line.up_cut, until)
        if down:
            line.down_cut = max(line.down_cut, until)
        self.disturb(process)
        self.at(until, self._mend, process, up)

    def _mend(self, process: Process, up: bool) -> None:
        line = process.line
        if up:
            process.troubles -= 1
            process.well_since = self.now
        self.disturb(process)
        self.note("%s is no longer cut off", process.name)
        if line.up_cut <= self.now:
            held_up, line.held_up = line.held_up, []
            for message, ttl in held_up:
                self.broker.receive(process, message, ttl)
        if line.down_cut <= self.now:
            held_down, line.held_down = line.held_down, []
            if process.observer is not None:
                for message in held_down:
                    self.deliver(process, 0, process.observer.take, message)

    def stop_broker(self, length: int, *, stalls: bool, forgets: bool) -> None:
        """Let the broker go away for a while, or only take in and not answer."""
        if self.broker.stalled or not self.broker.up:
            return
        self.note("the broker %s for %.6f s", "stalls" if stalls else "goes away", length / SECOND)
        if stalls:
            self.broker.stalled = True
        else:
            self.broker.up = False
            for process in self.processes.values():
                self.drop(process)
            self.broker.present.clear()
            if forgets:
                self.broker.last.clear()
        for process in self.processes.values():
            self.disturb(process)
        self.at(self.now + length, self._start_broker)

    def _start_broker(self) -> None:
        self.note("the broker is back")
        self.broker.up, self.broker.stalled = True, False
        backlog, self.broker.backlog = self.broker.backlog, []
        for process in self.processes.values():
            self.disturb(process)
        for message, ttl in backlog:
            self.broker.receive(self.processes[message.beat.incarnation.node], message, ttl)


def simulate(scenario: Scenario) -> Report:
    """Run a scenario.

    Raises:
        BrokenPromise: Something that must hold did not.
    """
    return Simulation(scenario).run()
