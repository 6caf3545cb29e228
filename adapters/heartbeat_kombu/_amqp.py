"""RabbitMQ's transport: Kombu's, and besides whose connection stands, and seats."""

import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

import kombu

from heartbeat_core import Connections, Incarnation, TransportError
from heartbeat_kombu._line import Line
from heartbeat_kombu._names import name_of
from heartbeat_kombu._presence import Attendance, Directory
from heartbeat_kombu._reader import Mailbox
from heartbeat_kombu._seats import Answers, Contention
from heartbeat_kombu._transport import KombuTransport

__all__ = ("AmqpTransport",)

CHUNK = 50
"""About so many incarnations the broker is asked between two beats."""

ROUNDS = 3
"""So often it is asked again in one call, where news came in between."""


class AmqpTransport(KombuTransport):
    """Carries beats through RabbitMQ, 3.10 or later.

    It has two abilities, presence and seats, and needs no plugin for them. A node that only beats
    has two connections, one for calls and one by which it is present; one that observes has one
    more for listening, and who contends for a seat one more for that. Its user needs all
    permissions for what is called ``heartbeat.*`` and ``amq.gen-*``.

    A node whose process ends is known to be absent within milliseconds. One that is cut off
    without a word, or stands still, is known to be absent only after two or three minutes, and
    its silence tells first.

    Args:
        broker: A URL, ``amqp://user:password@host//`` or ``amqps://...`` for TLS; or a
            ``kombu.Connection``, which is read and never used, with whatever TLS and transport
            options you need.
        namespace: The fleet; nodes of different namespaces do not see each other.
        timeout: After so many seconds without an answer the broker counts as away.

    Raises:
        TransportError: The URL is not one of AMQP.
    """

    def __init__(
        self, broker: str | kombu.Connection, *, namespace: str = "default", timeout: float = 2.0
    ) -> None:
        super().__init__(broker, namespace=namespace, timeout=timeout)
        if self._broker.driver != "amqp":
            raise TransportError("AmqpTransport needs a URL such as amqp://user:password@host//")
        self._news = name_of(namespace, "news")
        self._attendance: Attendance | None = None
        self._session = 0
        self._directory: Directory | None = None

    @asynccontextmanager
    async def attend(
        self, incarnation: Incarnation
    ) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        """Be present under an incarnation, over a connection of its own."""
        self._session += 1
        mailbox = Mailbox[bytes]()
        attendance = Attendance(
            self._broker, self._calls, self._inbox(incarnation), self._news, mailbox
        )
        async with self._reading(attendance):
            self._attendance = attendance
            try:
                yield mailbox
            finally:
                if self._attendance is attendance:
                    self._attendance = None

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Tell who is present: the broker is asked once, and again about whom it has news of."""
        session, attendance = self._session, self._attendance
        asked = frozenset(incarnations)
        if attendance is None or not attendance.alive:
            raise TransportError("this transport's own connection is not there")
        connected = await self._in_thread(lambda: self._connected(asked))
        if session != self._session or not attendance.alive:
            raise TransportError("this transport's own connection is not there")
        return Connections(session=session, asked=asked, connected=connected)

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to one inbox, and wait until the broker has it."""
        inbox = self._inbox(to)
        await self._call(lambda line: line.send("", inbox, data))

    @asynccontextmanager
    async def contend(
        self,
        incarnation: Incarnation,  # noqa: ARG002 - the broker tells them by their connections
        seats: int,
    ) -> AsyncIterator[AsyncIterator[bool]]:
        """Contend for a seat, over a connection of its own."""
        changes = Mailbox[bool]()
        queues = [name_of(self.namespace, "seat", str(number)) for number in range(seats)]
        async with self._reading(Contention(self._broker, self._calls, queues, changes)):
            yield Answers(changes)

    def _inbox(self, incarnation: Incarnation) -> str:
        return name_of(self.namespace, "node", str(incarnation))

    # -- in threads ---------------------------------------------------------------------------

    def _connected(self, asked: frozenset[Incarnation]) -> frozenset[Incarnation]:
        since = time.monotonic()
        look = partial(self._look, asked, since)
        present, unknown = self._calls.run(look)
        for _ in range(ROUNDS):
            if not unknown:
                break
            for begin in range(0, len(unknown), CHUNK):
                # Each takes the connection anew, so that a beat can go out in between.
                self._calls.run(partial(self._learn, unknown[begin : begin + CHUNK]))
            present, unknown = self._calls.run(look)
        return present

    def _look(
        self, asked: frozenset[Incarnation], since: float, line: Line
    ) -> tuple[frozenset[Incarnation], Sequence[Incarnation]]:
        return self._directory_of(line).look(asked, since)

    def _learn(self, incarnations: Collection[Incarnation], line: Line) -> None:
        self._directory_of(line).learn(incarnations)

    def _directory_of(self, line: Line) -> Directory:
        if self._directory is None or self._directory.line is not line:
            self._directory = Directory(line, self._news, self._inbox)
        return self._directory
