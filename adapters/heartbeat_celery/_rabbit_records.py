"""The records of a worker: what it runs although it has acknowledged it.

The worker's consumer sends a record to the queue of its incarnation, over a connection of the
heartbeat's, right before it acknowledges the message. It is not the consumer's own: while
RabbitMQ is short of memory it reads nothing more from a connection that publishes, and so would not
see its acknowledgements either. The heartbeat's thread consumes that queue and holds the record
until the task has ended. If the process dies, RabbitMQ puts the record back; the queue lets nothing
lie, so it goes to the queue of verdicts, where the observers are.
"""

import logging
from typing import Any

from heartbeat_celery._rabbit_holding import NEVER, Delivery, Holding
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._rabbit_record import Record
from heartbeat_celery._running import Running
from heartbeat_core import Incarnation
from heartbeat_kombu.connections import Broker, Line, Mailbox

__all__ = ("Records",)

logger = logging.getLogger("heartbeat_celery")

MOMENT = 0.05
"""For so many seconds the worker's consumer waits at most while others write."""

LIFE = 1000
"""So many milliseconds a record may wait until the heartbeat's thread takes it, in a flood, say.

It counts from when the record was sent, so one that was held longer goes to the verdicts at once.
"""

EXPIRES = 600_000
"""So many milliseconds the queue outlives its worker, which may yet come back."""


class Records(Holding):
    """The records of one incarnation.

    Args:
        broker: Where to connect.
        names: What the queues are called.
        me: Whose records they are.
        running: What it runs.
        mailbox: Is closed when the connection ends.
    """

    def __init__(
        self,
        broker: Broker,
        names: Names,
        me: Incarnation,
        running: Running,
        mailbox: Mailbox[Delivery],
    ) -> None:
        queue = names.running(me)
        arguments = {
            "x-expires": EXPIRES,
            "x-message-ttl": LIFE,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": names.verdicts(me.node),
            **NEVER,
        }
        super().__init__(broker, queue, mailbox, queue=queue, arguments=arguments, most=0)
        self.me = me
        self._verdicts = names.verdicts(me.node)
        self._running = running
        self._line: Line | None = None
        self._held: dict[str, int] = {}

    gather = 0.02

    def begin(self, line: Line) -> None:
        """Begin to take records, once it is sure that they cannot be lost."""
        line.channel.queue_declare(
            queue=self._verdicts, durable=True, auto_delete=False, arguments=dict(NEVER)
        )
        super().begin(line)
        # Whoever may not publish learns it now. The broker drops it: there is no such queue.
        line.send("", f"{self._queue}:trial", b"")
        assert line.posting.is_open
        self._line = line

    def end(self, line: Line) -> None:
        """Leave no queue behind if nothing runs any more; what is in it then has ended."""
        with self.writing:
            self._line = None
        super().end(line)
        if not self._running.incarnations():
            line.channel.queue_delete(queue=self._queue)

    def keep(self, record: Record) -> bool:
        """Send a record; tell whether it could be sent without waiting. Any thread may call."""
        message = record.message()
        if not self._lock.acquire(timeout=MOMENT):
            return False
        line = self._line
        try:
            if line is None or not self.alive or not line.takes_more():
                return False
            line.post(self._queue, message)
        except Exception as exc:  # noqa: BLE001 - greenlets have errors of their own
            logger.debug("heartbeat: a record could not be sent: %r", exc)
            if line is not None:
                line.interrupt()  # Half of it may be sent.
            return False
        finally:
            self._lock.release()
        return True

    def ended(self, keys: list[str]) -> None:
        """Let go of the records of tasks that have ended."""
        tags = [self._held.pop(key) for key in keys if key in self._held]
        if tags:
            self.let_go(*tags)

    def take(self, message: Any) -> None:
        """Hold a record once, as long as its task runs."""
        key = message.properties.get("message_id")
        if key is None or key in self._held or not self._running.has(key):
            self._done.append(message.delivery_tag)
        else:
            self._held[key] = message.delivery_tag

    def held(self) -> list[str]:
        """Give the keys of what is held."""
        return list(self._held)
