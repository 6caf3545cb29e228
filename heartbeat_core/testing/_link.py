"""One node's way to a memory broker and back, and what may go wrong on it."""

import heapq
import math
import random
from collections.abc import Sequence
from typing import Protocol

import anyio
import attrs

from heartbeat_core._beat import Incarnation
from heartbeat_core._errors import TransportError
from heartbeat_core._mailbox import Mailbox
from heartbeat_core._memory import MemoryBroker, MemoryTransport

__all__ = ("Faults", "Link", "LinkTransport", "delays")


class Faults(Protocol):
    """How bad a network is; see ``MemoryNetwork``."""

    seed: int
    loss: float
    duplication: float
    delay: tuple[float, float]


def delays(faults: Faults, chance: random.Random) -> list[float]:
    """Decide what becomes of a message: how long each copy takes; none if it is lost."""
    # Always as many draws, so that one setting does not change what the others decide.
    lost = chance.random() < faults.loss
    twice = chance.random() < faults.duplication
    copies = [chance.uniform(*faults.delay), chance.uniform(*faults.delay)]
    return [] if lost else copies[: 1 + twice]


@attrs.define
class Link:
    """The way between a node and the broker.

    Attributes:
        node: Whose it is.
        faults: How bad it is where it is not cut.
        mute: Whether what the node sends is lost.
        deaf: Whether what is sent to the node is lost.
        cut: Whether there is no way at all.
    """

    node: str
    faults: Faults
    mute: bool = False
    deaf: bool = False
    cut: bool = False
    _opened: int = attrs.field(default=0, init=False)
    _wires: "list[_Wire]" = attrs.field(factory=list["_Wire"], init=False)

    def send(self) -> bool:
        """Tell whether what is sent now reaches the broker.

        Raises:
            TransportError: It cannot even be sent.
        """
        if self.cut:
            raise TransportError(f"{self.node} is cut off from the broker")
        return not self.mute

    def ask(self) -> None:
        """Ask the broker for something.

        Raises:
            TransportError: There will be no answer.
        """
        if not self.send() or self.deaf:
            raise TransportError(f"{self.node} got no answer from the broker")

    def connect(self, broker: MemoryBroker) -> Mailbox:
        """Open a connection on which a reader at the node is served."""
        self._wires = [wire for wire in self._wires if not wire.closed]
        self._opened += 1
        # Text seeds it alike in every process and on every platform.
        seed = f"{self.faults.seed}/{self.node}/{self._opened}"
        wire = _Wire(self, broker, random.Random(seed))  # noqa: S311 - faults, not secrets
        self._wires.append(wire)
        return wire

    def lose(self) -> None:
        """Lose what is on its way to the node."""
        for wire in self._wires:
            wire.lose()

    def disconnect(self) -> None:
        """Break every connection."""
        for wire in self._wires:
            wire.broker.drop(wire)


class _Wire(Mailbox):
    """One connection from the broker to a reader at the end of a link."""

    def __init__(self, link: Link, broker: MemoryBroker, chance: random.Random) -> None:
        super().__init__(broker.backlog)
        self.broker = broker
        self._link = link
        self._chance = chance
        self._backlog = broker.backlog
        self._sent = 0
        self._underway: list[tuple[float, int, bytes]] = []

    @property
    def closed(self) -> bool:
        """Whether the connection is broken."""
        return self._closed

    def put(self, data: bytes) -> None:
        """Send a message on its way."""
        self._arrive()
        fates = delays(self._link.faults, self._chance)
        if self._link.deaf:
            return
        for delay in fates:
            if delay:
                self._sent += 1
                due = anyio.current_time() + delay
                heapq.heappush(self._underway, (due, self._sent, data))
                # It may be due before what the reader waits for.
                self._changed.set()
            else:
                super().put(data)
        while len(self._underway) > self._backlog:
            heapq.heappop(self._underway)

    def close(self) -> None:
        """Break the connection; what was on its way is lost."""
        self.lose()
        super().close()

    def lose(self) -> None:
        """Lose what is on its way."""
        self._arrive()
        self._underway.clear()

    def _arrive(self) -> None:
        """Take in what has arrived by now."""
        while self._underway and self._underway[0][0] <= anyio.current_time():
            super().put(heapq.heappop(self._underway)[2])

    async def __anext__(self) -> Sequence[bytes]:
        self._arrive()
        return await super().__anext__()

    async def _wait(self) -> None:
        self._arrive()
        if self._unread:
            return
        due = self._underway[0][0] if self._underway else math.inf
        with anyio.CancelScope(deadline=due):
            await super()._wait()
        self._arrive()


@attrs.define
class LinkTransport(MemoryTransport):
    """A memory transport at the end of a link."""

    link: Link = attrs.field(kw_only=True)

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send to every subscriber, as far as the link lets it."""
        await super()._call()
        if self.link.send():
            self.broker.publish(sender.node, data, ttl)

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox, as far as the link lets it."""
        await super()._call()
        if self.link.send():
            self.broker.post(to, data)

    async def _call(self) -> None:
        await super()._call()
        self.link.ask()

    def _mailbox(self) -> Mailbox:
        return self.link.connect(self.broker)
