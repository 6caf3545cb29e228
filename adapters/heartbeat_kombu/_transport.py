"""The Kombu transport: a fanout exchange, and a queue an observer that ends with it.

Names in the broker, ``heartbeat.{namespace}`` being both:

* a fanout exchange, which is not durable, and goes with the last observer;
* on Redis, the queue of every observer, since there it is but a name.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import kombu

from heartbeat_core import Incarnation, TransportError, in_thread
from heartbeat_kombu._calls import Calls
from heartbeat_kombu._line import MOMENT, Broker, Line
from heartbeat_kombu._names import name_of
from heartbeat_kombu._reader import Mailbox, Reader

__all__ = ("KombuTransport",)

T = TypeVar("T")

THREADS = 40
"""So many calls of one transport run at once."""

HEARTBEAT = 5.0
"""Who listens notices within twice so many seconds that the broker is cut off."""

PROBE = "heartbeat-probe"
"""The header of what who begins to listen sends to itself."""


class KombuTransport:
    """Carries beats through any broker of which Kombu makes a fanout exchange.

    RabbitMQ, Redis, and ``memory://`` for tests; on RabbitMQ,
    :class:`~heartbeat_kombu.AmqpTransport` can do more. It has no abilities: a new observer meets
    a node at its next beat, and learns of a death by silence. Nothing connects before the first
    call. Publishing has one connection, and each subscription one more. A network that swallows
    everything is noticed by who listens only where there are AMQP's heartbeats. Brokers that Kombu
    polls (all but those two) are polled twenty times a second, unless the transport option
    ``polling_interval`` says otherwise.

    Args:
        broker: A URL, such as ``amqp://user:password@host//`` or ``amqps://...`` for TLS; or a
            ``kombu.Connection``, which is read and never used, with whatever TLS and transport
            options you need.
        namespace: The fleet; nodes of different namespaces do not see each other.
        timeout: After so many seconds without an answer the broker counts as away.

    Raises:
        TransportError: The URL is not one that Kombu knows.
    """

    def __init__(
        self, broker: str | kombu.Connection, *, namespace: str = "default", timeout: float = 2.0
    ) -> None:
        self.namespace = namespace
        self._broker = Broker(broker, timeout)
        self._exchange = name_of(namespace)
        self._calls = Calls(
            self._broker, f"{self._exchange} calls", lambda line: line.fanout(self._exchange)
        )
        self._readers: set[Reader] = set()
        self._threads: anyio.CapacityLimiter | None = None

    async def publish(
        self,
        data: bytes,
        *,
        sender: Incarnation,  # noqa: ARG002 - nothing is kept
        ttl: float,  # noqa: ARG002
    ) -> None:
        """Send a beat, and wait until the broker has it, where it says so (AMQP)."""
        await self._call(lambda line: line.send(self._exchange, "", data))

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        """Listen to the beats of all nodes, over a connection of its own."""
        mailbox = Mailbox[bytes]()
        async with self._reading(_Subscription(self._broker, self._exchange, mailbox)):
            yield mailbox

    async def aclose(self) -> None:
        """Close every connection; takes a second at most."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for reader in list(self._readers):
                    tasks.start_soon(reader.aclose)
                tasks.start_soon(in_thread, self._calls.close, anyio.CapacityLimiter(1))

    async def _call(self, call: Callable[[Line], T]) -> T:
        return await self._in_thread(lambda: self._calls.run(call))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await in_thread(call, self._limiter())

    @asynccontextmanager
    async def _reading(self, reader: Reader) -> AsyncIterator[None]:
        self._readers.add(reader)
        try:
            await reader.open(self._limiter())
            yield
        finally:
            await reader.aclose()
            self._readers.discard(reader)

    def _limiter(self) -> anyio.CapacityLimiter:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(THREADS)
        return self._threads


class _Subscription(Reader):
    """Puts what a fanout exchange hands out into a mailbox."""

    gather = 0.01

    def __init__(self, broker: Broker, exchange: str, mailbox: Mailbox[bytes]) -> None:
        super().__init__(broker, f"{exchange} listens", HEARTBEAT, mailbox)
        self._exchange = exchange
        self._mail = mailbox
        self._queue = exchange
        self._probe = secrets.token_hex(8)
        self._heard = broker.driver == "amqp"

    def begin(self, line: Line) -> None:
        """Bind a queue, and make sure that it gets something."""
        if self._broker.driver != "redis":
            # There the name of each would be kept if its observer was killed.
            self._queue = f"{self._exchange}:{self._probe}"
        line.listen(self._exchange, self._queue, self._take)
        until = time.monotonic() + self._broker.timeout
        while not self._heard:
            # Redis is told only while Kombu waits for messages, and Kombu does not wait for its
            # answer.
            if time.monotonic() > until:
                raise TransportError("the broker sends nothing back")
            line.send(self._exchange, "", b"", headers={PROBE: self._probe})
            line.take(MOMENT)

    def end(self, line: Line) -> None:
        """Remove the queue where nobody else does."""
        line.unlisten(self._exchange, self._queue)

    def _take(self, message: Any) -> None:
        probe = message.headers.get(PROBE) if self._broker.driver != "amqp" else None
        if probe is None:
            body = message.body
            self._mail.put(body.encode() if isinstance(body, str) else bytes(body))
        else:
            self._heard = self._heard or probe == self._probe
