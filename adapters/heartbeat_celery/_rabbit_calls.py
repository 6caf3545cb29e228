"""What the adapter asks of RabbitMQ, and sends there for good."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import amqp
import attrs

from heartbeat_celery._rabbit_holding import declare
from heartbeat_kombu.connections import Calls, Line

__all__ = ("RabbitCalls",)

T = TypeVar("T")


@attrs.frozen(eq=False)
class RabbitCalls:
    """Calls over one connection, one at a time. Each blocks for a few round trips.

    Raises:
        TransportError: From every method: the broker is away, refuses, or takes no messages now.
    """

    calls: Calls

    def send(
        self, queue: str, message: amqp.Message, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Send a message; it is in the queue for good when this returns.

        Args:
            queue: Where to.
            message: What to send.
            arguments: Those of the queue, which is then made if there is none; else that fails.
        """

        def send(line: Line) -> None:
            if arguments is not None:
                declare(line.channel, queue, arguments)
            line.channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)

        self.calls.run(send)

    def consumers(self, *queues: str) -> int:
        """Tell how many consume these queues, as the broker sees it now."""

        def count(line: Line) -> int:
            return sum(_consumers(line, queue) for queue in queues)

        return self.calls.run(count)

    def run(self, call: Callable[[Any], T]) -> T:
        """Do something on a channel of its own."""

        def run(line: Line) -> T:
            channel = line.new_channel()
            try:
                return call(channel)
            finally:
                if channel.is_open:
                    channel.close()

        return self.calls.run(run)

    def close(self) -> None:
        """Close the connection."""
        self.calls.close()


def _consumers(line: Line, queue: str) -> int:
    # The channel is closed by the broker if there is no such queue.
    channel = line.new_channel()
    try:
        return int(channel.queue_declare(queue=queue, passive=True).consumer_count)
    except (amqp.NotFound, amqp.AccessRefused):
        return 0
    finally:
        if channel.is_open:
            channel.close()
