"""A transport within one process, for tests and for trying things out."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Self

import anyio
import anyio.lowlevel
import attrs

from heartbeat_core._beat import Incarnation
from heartbeat_core._errors import TransportError
from heartbeat_core._looks import Connections
from heartbeat_core._mailbox import Mailbox

__all__ = ("MemoryBroker", "MemoryTransport")


@attrs.define
class MemoryBroker:
    """What the memory transports of one namespace share: the broker in their midst.

    Namespaces are kept apart by giving each a broker of its own.

    Attributes:
        up: While false, every call of every transport raises.
        backlog: So many messages a subscriber may leave unread; of more, the newest stay.
        subscribers: Where beats go.
        inboxes: Who is present, and where what is posted to it goes.
        last: The last beat of each node, and until when it is kept.
        contenders: Who contends for a seat, and where the answer goes, the longest first.
    """

    up: bool = True
    backlog: int = attrs.field(default=10_000, kw_only=True)
    subscribers: set[Mailbox] = attrs.field(factory=set[Mailbox], init=False)
    inboxes: dict[Incarnation, Mailbox] = attrs.field(
        factory=dict[Incarnation, Mailbox], init=False
    )
    last: dict[str, tuple[float, bytes]] = attrs.field(
        factory=dict[str, tuple[float, bytes]], init=False
    )

    contenders: dict[Incarnation, "_Contender"] = attrs.field(
        factory=dict[Incarnation, "_Contender"], init=False
    )

    def stop(self) -> None:
        """Go away: connections break, and whoever calls gets an error."""
        self.up = False
        for mailbox in [*self.subscribers, *self.inboxes.values()]:
            self.drop(mailbox)
        for contender in self.contenders.values():
            contender.lose()
        self.contenders.clear()

    def start(self) -> None:
        """Come back."""
        self.up = True

    def disconnect(self, incarnation: Incarnation) -> None:
        """Cut the connection by which an incarnation is present."""
        mailbox = self.inboxes.get(incarnation)
        if mailbox is not None:
            self.drop(mailbox)

    def publish(self, node: str, data: bytes, ttl: float) -> None:
        """Keep a beat as the node's last one for so many seconds, and hand it to everybody."""
        if ttl > 0:
            self.last[node] = (anyio.current_time() + ttl, data)
        else:
            self.last.pop(node, None)
        for mailbox in self.subscribers:
            mailbox.put(data)

    def post(self, to: Incarnation, data: bytes) -> None:
        """Hand something to one inbox, if it is there."""
        mailbox = self.inboxes.get(to)
        if mailbox is not None:
            mailbox.put(data)

    def contend(self, contender: "_Contender") -> None:
        """Let somebody contend for a seat; the first to come have them."""
        self.contenders[contender.incarnation] = contender
        self._seat()

    def give_up(self, contender: "_Contender") -> None:
        """Let somebody contend no more, and the next in line step in."""
        if self.contenders.get(contender.incarnation) is contender:
            del self.contenders[contender.incarnation]
        self._seat()

    def _seat(self) -> None:
        for place, contender in enumerate(self.contenders.values()):
            contender.tell(place < contender.seats)

    def drop(self, mailbox: Mailbox) -> None:
        """Let go of one reader's connection."""
        mailbox.close()
        self.subscribers.discard(mailbox)
        for incarnation, other in list(self.inboxes.items()):
            if other is mailbox:
                del self.inboxes[incarnation]


@attrs.define
class MemoryTransport:
    """Carries beats between the nodes of one process, through a ``MemoryBroker``.

    It has all abilities: last beats, presence and seats. Use it from one event loop.
    """

    broker: MemoryBroker = attrs.field(factory=MemoryBroker)
    namespace: str = attrs.field(default="default", kw_only=True)
    _attending: Incarnation | None = attrs.field(default=None, init=False)
    _session: int = attrs.field(default=0, init=False)
    _open: set[Mailbox] = attrs.field(factory=set[Mailbox], init=False)
    _contending: "set[_Contender]" = attrs.field(factory=set["_Contender"], init=False)

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send to every subscriber; see ``Transport.publish``."""
        await self._call()
        self.broker.publish(sender.node, data, ttl)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[Sequence[bytes]]]:
        """Listen; see ``Transport.subscribe``."""
        await self._call()
        mailbox = self._connect()
        self.broker.subscribers.add(mailbox)
        try:
            yield mailbox
        finally:
            self._disconnect(mailbox)

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read what is kept; see ``LastBeats.last_beats``."""
        await self._call()
        last, now = self.broker.last, anyio.current_time()
        for node in [node for node, (until, _) in last.items() if until <= now]:
            del last[node]
        return [data for node, (_, data) in last.items() if nodes is None or node in nodes]

    @asynccontextmanager
    async def attend(
        self, incarnation: Incarnation
    ) -> AsyncGenerator[AsyncIterator[Sequence[bytes]]]:
        """Be present; see ``Presence.attend``."""
        await self._call()
        mailbox = self._connect()
        self._session += 1
        self._attending = incarnation
        self.broker.inboxes[incarnation] = mailbox
        try:
            yield mailbox
        finally:
            self._disconnect(mailbox)

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask who is present; see ``Presence.connections``."""
        await self._call()
        present = self.broker.inboxes
        if self._attending is None or present.get(self._attending) not in self._open:
            raise TransportError("this transport is not connected itself")
        asked = frozenset(incarnations)
        return Connections(
            session=self._session, asked=asked, connected=asked.intersection(present)
        )

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox; see ``Presence.post``."""
        await self._call()
        self.broker.post(to, data)

    @asynccontextmanager
    async def contend(
        self, incarnation: Incarnation, seats: int
    ) -> AsyncGenerator[AsyncIterator[bool]]:
        """Contend for a seat; see ``Seats.contend``."""
        await self._call()
        contender = _Contender(incarnation, seats)
        self._contending.add(contender)
        self.broker.contend(contender)
        try:
            yield contender
        finally:
            self._contending.discard(contender)
            self.broker.give_up(contender)

    async def aclose(self) -> None:
        """Let go of what is open; see ``Transport.aclose``."""
        for mailbox in list(self._open):
            self._disconnect(mailbox)
        for contender in list(self._contending):
            self.broker.give_up(contender)
            contender.lose()

    async def _call(self) -> None:
        """Reach the broker."""
        await anyio.lowlevel.checkpoint()
        if not self.broker.up:
            raise TransportError("the broker is away")

    def _connect(self) -> Mailbox:
        mailbox = self._mailbox()
        self._open.add(mailbox)
        return mailbox

    def _mailbox(self) -> Mailbox:
        return Mailbox(self.broker.backlog)

    def _disconnect(self, mailbox: Mailbox) -> None:
        self._open.discard(mailbox)
        self.broker.drop(mailbox)


class _Contender:
    """Iterates whether somebody has a seat."""

    def __init__(self, incarnation: Incarnation, seats: int) -> None:
        self.incarnation = incarnation
        self.seats = seats
        self._seated = self._told = self._lost = False
        self._first = True
        self._changed = anyio.Event()

    def tell(self, seated: bool) -> None:
        """Say whether it has one."""
        self._seated = seated
        self._changed.set()

    def lose(self) -> None:
        """Break the connection."""
        self._lost = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        await anyio.lowlevel.checkpoint()
        while not self._lost and not self._first and self._seated == self._told:
            self._changed = anyio.Event()
            await self._changed.wait()
        if self._lost:
            raise TransportError("the connection to the broker is gone")
        self._first = False
        self._told = self._seated
        return self._told
