"""The simulated broker: what it knows, and what becomes of each message."""

from typing import TYPE_CHECKING

import attrs

from heartbeat_core._beat import Beat, Incarnation
from heartbeat_core.testing._observer import Observer
from heartbeat_core.testing._process import Message, Process
from heartbeat_core.testing.models import SECOND, microseconds

if TYPE_CHECKING:
    from heartbeat_core.testing._simulator import Simulation

__all__ = ("Broker",)


@attrs.define(eq=False)
class Broker:
    """Takes in beats, keeps the last of each node, and hands them on to every observer.

    Attributes:
        up: Whether it is there.
        stalled: Whether it takes in everything and does nothing, for the time being.
        present: The connections that it holds.
        last: The last beat of each node, and until when it is kept.
        backlog: What it took in while stalled.
    """

    _simulation: "Simulation"
    up: bool = True
    stalled: bool = False
    present: dict[Incarnation, Process] = attrs.field(factory=dict[Incarnation, Process])
    last: dict[str, tuple[int, Message]] = attrs.field(factory=dict[str, tuple[int, Message]])
    backlog: list[tuple[Message, float]] = attrs.field(factory=list[tuple[Message, float]])

    def publish(self, process: Process, beat: Beat, ttl: float) -> None:
        line, message = process.line, Message(beat, self._simulation.now)
        if not self.up:
            return
        if line.up_cut > self._simulation.now:
            if line.holds:
                line.held_up.append((message, ttl))
            return
        lost = line.up_loss.loses(self._simulation.chance, self._simulation.now)
        if line.to_lose:
            line.to_lose -= 1
            lost = True
        if lost:
            self._simulation.note("%s of %s is lost", beat.sequence, process.name)
            process.lost += 1
            if process.observer is not None:
                process.observer.witness.echo_lost_at = self._simulation.now
            return
        delay = line.up_delay.draw(self._simulation.chance, self._simulation.now)
        if delay > line.usual:
            process.lost += 1
        self._simulation.at(self._simulation.now + delay, self.receive, process, message, ttl)

    def receive(self, process: Process, message: Message, ttl: float) -> None:
        """The broker takes in what was published, and hands it on."""
        if not self.up:
            return
        if self.stalled:
            self.backlog.append((message, ttl))
            return
        if process.lost and self._simulation.now - message.sent <= process.line.usual:
            for observer in self._simulation.observers():
                observer.witness.of(process.incarnation).lost += process.lost
            process.lost_before, process.lost, process.found_at = (
                process.lost,
                0,
                self._simulation.now,
            )
        name = message.beat.incarnation.node
        if ttl:
            self.last[name] = self._simulation.now + microseconds(ttl), message
        else:
            self.last.pop(name, None)
        for observer in self._simulation.observers():
            if observer.process.subscribed:
                self._send(observer, message)

    def _send(self, observer: Observer, message: Message) -> None:
        process, chance = observer.process, self._simulation.chance
        line = process.line
        if line.down_cut > self._simulation.now:
            if line.holds:
                line.held_down.append(message)
            return
        own = message.beat.incarnation == process.incarnation
        lost = line.down_loss.loses(chance, self._simulation.now)
        delay = line.down(chance, self._simulation.now)
        if lost or delay > line.usual:
            self._simulation.note(
                "%s of %s to %s is lost or late",
                message.beat.sequence,
                message.beat.incarnation,
                process.name,
            )
            if own:
                observer.witness.echo_lost_at = self._simulation.now
            else:
                observer.witness.of(message.beat.incarnation).lost += 1
            if lost:
                return
        self._simulation.deliver(process, delay, observer.take, message)
        if line.twice and chance.randrange(SECOND) < line.twice:
            self._simulation.deliver(
                process, line.down(chance, self._simulation.now), observer.take, message
            )

    def last_beats(self, nodes: list[str]) -> list[Message]:
        """Read what the broker keeps."""
        last = self.last
        return [
            last[node][1] for node in nodes if node in last and last[node][0] > self._simulation.now
        ]

    def post(self, sender: Process, obituary: Beat) -> None:
        """Send an obituary to the inbox of whom it is about, where there are inboxes."""
        if not self._simulation.scenario.presence or not self._simulation.can_ask(sender):
            return
        delay = sender.line.up_delay.draw(self._simulation.chance, self._simulation.now)
        self._simulation.at(self._simulation.now + delay, self._post, obituary)

    def _post(self, obituary: Beat) -> None:
        to = self.present.get(obituary.incarnation)
        if to is None or to.line.down_cut > self._simulation.now or not to.attending:
            return
        delay = to.line.down_delay.draw(self._simulation.chance, self._simulation.now)
        self._simulation.deliver(to, delay, self._read_inbox, to, obituary)

    def _read_inbox(self, process: Process, obituary: Beat) -> None:
        if process.observer is not None:
            process.observer.take(Message(obituary, self._simulation.now))
        else:
            self._simulation.fence(process, obituary)
