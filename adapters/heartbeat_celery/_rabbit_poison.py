"""Poison: messages that come back again and again, since they end whoever gets them.

RabbitMQ brings back by itself what a closed connection held. A quorum queue counts that, so a
worker that gets a message can tell that it has outlived as many owners as it may; a classic queue
does not count.
"""

import logging
import time
from typing import Any

import attrs

from heartbeat_celery._dead_letters import DEAD_LETTER
from heartbeat_celery._rabbit_calls import RabbitCalls
from heartbeat_celery._rabbit_holding import NEVER
from heartbeat_celery._rabbit_messages import DELIVERIES, described, rebuilt
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._rabbit_record import Record
from heartbeat_celery._verdicts import Kind, Verdict
from heartbeat_core import TransportError

__all__ = ("Poison", "dead_letter")

logger = logging.getLogger("heartbeat_celery")


def dead_letter(verdict: Verdict, owner: str) -> dict[str, Any]:
    """Give the message of a verdict, with why it is a dead letter."""
    message = verdict.message
    why = {
        "reason": verdict.reason,
        "queue": verdict.queue,
        "recoveries": verdict.recoveries,
        "owner": owner,
        "at": time.time(),
    }
    return {**message, "headers": {**message["headers"], DEAD_LETTER: why}}


@attrs.define(eq=False)
class Poison:
    """Takes poison out of a worker's way.

    Args:
        names: What the queues are called.
        node: The worker.
        most: So often a message may come back.
        calls: How to reach the broker.
    """

    names: Names
    node: str
    most: int
    calls: RabbitCalls

    def take(self, message: Any, queue: str) -> bool:
        """Dead-letter a message if it came back too often. Blocks then, for a few round trips.

        It is in the dead-letter queue, and what has to be told of it is in that of verdicts, before
        it is acknowledged.

        Returns:
            Whether the worker is rid of it.
        """
        count = message.headers.get(DELIVERIES) or 0
        if count <= self.most:
            return False
        verdict = Verdict(
            kind=Kind.DEAD_LETTERED,
            node="",
            incarnation=0,
            left=False,
            queue=queue,
            dead_letters=self.names.dead_letters,
            recoveries=count,
            message=described(message, queue),
        )
        record = Record(key="", on_lost="fail", verdict=verdict)
        try:
            self.calls.send(self.names.dead_letters, rebuilt(dead_letter(verdict, "")), {})
            self.calls.send(self.names.verdicts(self.node), record.message(), NEVER)
        except TransportError as exc:
            logger.error(
                "heartbeat: task %s[%s] came back %d times and cannot be dead-lettered, so it is "
                "run once more: %s",
                verdict.task,
                verdict.task_id,
                count,
                exc,
            )
            return False
        message.ack()
        return True
