"""Seats on RabbitMQ: who holds the token of a queue has the seat.

There is a queue a seat, ``heartbeat.{namespace}:seat:{number}``, with a single active consumer:
only the one that has consumed it the longest gets what is in it. Each who contends consumes all of
them and puts a token into each. Whoever gets one has the seat, as long as it does not acknowledge
it, and consumes the other queues no more: another is next there. When its connection ends, the
broker puts the token back, and hands it to the next: a push. There may be more than one token in a
queue, since only one gets them; of those it keeps the newest.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Self

from heartbeat_core import TransportError
from heartbeat_kombu._calls import Calls
from heartbeat_kombu._line import MOMENT, Broker, Line
from heartbeat_kombu._reader import Mailbox, Reader

__all__ = ("Answers", "Contention")

HEARTBEAT = 3.0
"""Who is cut off or stands still is given up after two or three times so many seconds."""

RENEWAL = 30.0
"""So often a token is renewed: brokers close a channel on which one lies for long."""

EXPIRES = 60_000
"""So many milliseconds a queue outlives the last who contended."""

SETTLED = 1.0
"""So many seconds the first answer takes at most."""


class Answers:
    """Iterates whether a seat is held: at once, and whenever it has changed."""

    def __init__(self, changes: Mailbox[bool]) -> None:
        self._changes = changes
        self._told: bool | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        while (now := (await anext(self._changes))[-1]) is self._told:
            pass
        self._told = now
        return now


class Contention(Reader):
    """The connection by which somebody contends for a seat.

    Args:
        broker: Where to connect.
        calls: The connection by which it publishes: one that reads should never be blocked.
        queues: The names of the seats' queues.
        answers: Where goes whether a seat is held.
    """

    def __init__(
        self, broker: Broker, calls: Calls, queues: Sequence[str], answers: Mailbox[bool]
    ) -> None:
        super().__init__(broker, queues[0], HEARTBEAT, answers)
        self._calls = calls
        self._queues = queues
        self._answers = answers
        self._consumed: set[str] = set()
        self._arrived: list[tuple[str, Any]] = []
        self._seat: str | None = None
        self._token: Any = None
        self._renewed = 0.0

    def begin(self, line: Line) -> None:
        """Get in line for every seat, and wait for one that nobody holds."""
        vacant = False
        for queue in self._queues:
            declared = line.channel.queue_declare(
                queue=queue,
                durable=True,
                auto_delete=False,
                arguments={
                    "x-expires": EXPIRES,
                    "x-max-length": 1,
                    "x-single-active-consumer": True,
                },
            )
            vacant = vacant or not declared.consumer_count
            line.channel.basic_consume(queue=queue, callback=self._take, consumer_tag=queue)
            self._consumed.add(queue)
        self._send_tokens(self._queues)
        until = time.monotonic() + SETTLED
        while vacant and self._seat is None and time.monotonic() < until:
            line.take(MOMENT)
            self.react(line)
        self._answers.put(self._seat is not None)

    def react(self, line: Line) -> None:
        """Keep one token, the newest of one seat; give back those of others."""
        while self._arrived:
            queue, token = self._arrived.pop(0)
            if self._seat is None:
                self._seat, self._token = queue, token
                for other in self._consumed - {queue}:
                    line.channel.basic_cancel(other)
                self._consumed = {queue}
                self._answers.put(True)
            elif queue == self._seat:
                line.channel.basic_ack(self._token)
                self._token = token
            else:
                line.channel.basic_reject(token, requeue=True)

    def tick(self, line: Line) -> None:  # noqa: ARG002
        """Renew the token that is held."""
        if self._seat is not None and time.monotonic() - self._renewed > RENEWAL:
            # If it cannot be done now it is done at the next tick. The old token is still held.
            with contextlib.suppress(TransportError):
                self._send_tokens([self._seat])

    def _send_tokens(self, queues: Sequence[str]) -> None:
        for queue in queues:
            self._calls.run(lambda calls, queue=queue: calls.send("", queue, b""))  # type: ignore[misc]
        self._renewed = time.monotonic()

    def _take(self, message: Any) -> None:
        self._arrived.append((message.delivery_info["consumer_tag"], message.delivery_tag))
