"""A transport within one process, for tests and for trying things out."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Self

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from heartbeat_core._beat import Incarnation
from heartbeat_core._detector import Connections
from heartbeat_core._errors import TransportError

__all__ = ("MemoryBroker", "MemoryTransport")


@attrs.define
class MemoryBroker:
    """What the memory transports of one namespace share: the broker in their midst.

    Attributes:
        up: While false, every call of every transport raises.
        subscribers: Where beats go.
        inboxes: Who is present, and where what is posted to it goes.
        last: The last beat of each node, and until when it is kept.
    """

    up: bool = True
    subscribers: set[MemoryObjectSendStream[bytes]] = attrs.field(
        factory=set[MemoryObjectSendStream[bytes]], init=False
    )
    inboxes: dict[Incarnation, MemoryObjectSendStream[bytes]] = attrs.field(
        factory=dict[Incarnation, MemoryObjectSendStream[bytes]], init=False
    )
    last: dict[str, tuple[float, bytes]] = attrs.field(
        factory=dict[str, tuple[float, bytes]], init=False
    )

    def stop(self) -> None:
        """Go away: connections break, and whoever calls gets an error."""
        self.up = False
        for stream in [*self.subscribers, *self.inboxes.values()]:
            stream.close()
        self.subscribers.clear()
        self.inboxes.clear()

    def disconnect(self, incarnation: Incarnation) -> None:
        """Cut the connection by which an incarnation is present."""
        stream = self.inboxes.pop(incarnation, None)
        if stream is not None:
            stream.close()

    def start(self) -> None:
        """Come back."""
        self.up = True


@attrs.define
class MemoryTransport:
    """Carries beats between the nodes of one process, through a ``MemoryBroker``.

    It has both abilities, last beats and presence. Use it from one event loop.
    """

    broker: MemoryBroker = attrs.field(factory=MemoryBroker)
    namespace: str = attrs.field(default="default", kw_only=True)
    _attending: Incarnation | None = attrs.field(default=None, init=False)
    _session: int = attrs.field(default=0, init=False)

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send to every subscriber; see ``Transport.publish``."""
        await self._call()
        last = self.broker.last
        if ttl > 0:
            last[sender.node] = (anyio.current_time() + ttl, data)
        else:
            last.pop(sender.node, None)
        for stream in list(self.broker.subscribers):
            stream.send_nowait(data)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[Sequence[bytes]]]:
        """Listen; see ``Transport.subscribe``."""
        await self._call()
        send, receive = anyio.create_memory_object_stream[bytes](math.inf)
        self.broker.subscribers.add(send)
        with send, receive:
            try:
                yield _Batches(receive)
            finally:
                self.broker.subscribers.discard(send)

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read what is kept; see ``LastBeats.last_beats``."""
        await self._call()
        now = anyio.current_time()
        return [
            data
            for node, (until, data) in self.broker.last.items()
            if until > now and (nodes is None or node in nodes)
        ]

    @asynccontextmanager
    async def attend(
        self, incarnation: Incarnation
    ) -> AsyncGenerator[AsyncIterator[Sequence[bytes]]]:
        """Be present; see ``Presence.attend``."""
        await self._call()
        send, receive = anyio.create_memory_object_stream[bytes](math.inf)
        self._session += 1
        self._attending = incarnation
        self.broker.inboxes[incarnation] = send
        with send, receive:
            try:
                yield _Batches(receive)
            finally:
                if self.broker.inboxes.get(incarnation) is send:
                    del self.broker.inboxes[incarnation]

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask who is present; see ``Presence.connections``."""
        await self._call()
        present = self.broker.inboxes
        if self._attending not in present:
            raise TransportError("this transport is not connected itself")
        asked = frozenset(incarnations)
        return Connections(
            session=self._session, asked=asked, connected=asked.intersection(present)
        )

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox; see ``Presence.post``."""
        await self._call()
        stream = self.broker.inboxes.get(to)
        if stream is not None:
            stream.send_nowait(data)

    async def aclose(self) -> None:
        """Do nothing: there is no connection to let go."""

    async def _call(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.broker.up:
            raise TransportError("the broker is away")


class _Batches:
    """Iterates what arrives; no generator, since nobody would close it."""

    def __init__(self, receive: MemoryObjectReceiveStream[bytes]) -> None:
        self._receive = receive

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[bytes]:
        try:
            batch = [await self._receive.receive()]
        except anyio.EndOfStream:
            raise TransportError("the broker went away") from None
        while self._receive.statistics().current_buffer_used:
            batch.append(self._receive.receive_nowait())
        return batch
