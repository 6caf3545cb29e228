"""A connection that consumes one queue, and holds what came until it is told to let it go."""

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import amqp
import attrs

from heartbeat_celery._native import native_lock
from heartbeat_kombu.connections import Broker, Line, Mailbox, Reader

__all__ = ("NEVER", "Delivery", "Holding", "declare")

HEARTBEAT = 10.0
"""Who is cut off gives back what it holds after two or three times so many seconds."""

NEVER = {"x-consumer-timeout": 365 * 86_400_000}
"""Something may be held for a long time: RabbitMQ 3.12 and later are told so by this."""


@attrs.frozen(eq=False)
class Delivery:
    """A message that is held.

    Attributes:
        tag: By which it is let go.
        body: What it says.
    """

    tag: int
    body: bytes


def declare(channel: Any, queue: str, arguments: Mapping[str, Any]) -> None:
    """Make sure that there is a durable queue. If there is one of another kind, it is used."""
    try:
        channel.queue_declare(
            queue=queue, durable=True, auto_delete=False, arguments=dict(arguments)
        )
    except amqp.PreconditionFailed:
        channel.queue_declare(queue=queue, passive=True)


class Holding(Reader):
    """Consumes one queue.

    Args:
        broker: Where to connect.
        name: What the connection is called in the broker.
        mailbox: Where goes what comes.
        queue: The queue's name.
        arguments: The queue's arguments.
        most: So much is held at a time; 0 for any number.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        mailbox: Mailbox[Delivery],
        *,
        queue: str,
        arguments: Mapping[str, Any],
        most: int,
    ) -> None:
        super().__init__(broker, name, HEARTBEAT, mailbox)
        self._lock = self.writing = native_lock()
        self._queue = queue
        self._arguments = arguments
        self._most = most
        self._mail = mailbox
        self._done: deque[int] = deque()

    def begin(self, line: Line) -> None:
        """Begin to consume."""
        line.bears_blocking = True
        declare(line.channel, self._queue, self._arguments)
        line.channel.basic_qos(0, self._most, False)
        line.channel.basic_consume(queue=self._queue, callback=self.take)

    def let_go(self, *tags: int) -> None:
        """Let the broker forget these. Any thread may call; without effect once it broke."""
        self._done.extend(tags)
        self.nudge()

    def react(self, line: Line) -> None:
        """Tell the broker what can go."""
        with self.writing:
            while self._done:
                line.channel.basic_ack(self._done.popleft())

    def end(self, line: Line) -> None:
        """Tell the broker the rest of it."""
        with contextlib.suppress(amqp.AMQPError, OSError):
            self.react(line)

    def take(self, message: Any) -> None:
        """Hold what came. Called in the thread."""
        self._mail.put(Delivery(message.delivery_tag, bytes(message.body)))
