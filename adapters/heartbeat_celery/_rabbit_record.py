"""Records: what has to be told of a task if its worker dies now.

A record lies in exactly one place: unacknowledged with the worker whose task it is of, on its way
in the queue of verdicts, or unacknowledged with an observer that is about to tell it.
"""

import json
from typing import Any

import amqp
import attrs
from kombu.utils import json as kombu_json

from heartbeat_celery._dead_letters import RECOVERIES
from heartbeat_celery._rabbit_messages import described
from heartbeat_celery._verdicts import Kind, Verdict
from heartbeat_core import BeatError, Incarnation

__all__ = ("LARGEST_BODY", "Record")

LARGEST_BODY = 128 * 1024
"""The body of a larger message is left out of its record, unless it is to be run again."""


@attrs.frozen(kw_only=True)
class Record:
    """What has to be told of one task.

    Attributes:
        key: Tells it from all others of its owner.
        on_lost: What becomes of the task, as its worker said.
        verdict: What is told.
    """

    key: str
    on_lost: str
    verdict: Verdict

    @classmethod
    def of(
        cls,
        message: Any,
        *,
        key: str,
        on_lost: str,
        owner: Incarnation,
        queue: str,
        dead_letters: str,
    ) -> "Record":
        """Write down a task that an incarnation runs.

        Args:
            message: Its message, as Kombu gave it to the worker.
            key: Tells it from all others of its owner.
            on_lost: What becomes of it if its worker dies.
            owner: Who runs it.
            queue: Where it came from.
            dead_letters: The dead-letter queue.
        """
        small = len(message.body) <= LARGEST_BODY
        return cls(
            key=key,
            on_lost=on_lost,
            verdict=Verdict(
                kind=Kind.LOST,
                node=owner.node,
                incarnation=owner.number,
                left=False,
                queue=queue,
                dead_letters=dead_letters,
                recoveries=int(message.headers.get(RECOVERIES) or 0),
                message=described(message, queue, with_body=small or on_lost == "rerun"),
            ),
        )

    @property
    def owner(self) -> Incarnation | None:
        """Who runs the task; ``None`` if nobody does any more."""
        if not self.verdict.node:
            return None
        return Incarnation(self.verdict.node, self.verdict.incarnation)

    def message(self) -> amqp.Message:
        """Write it down, for the broker to keep."""
        verdict = attrs.asdict(self.verdict, recurse=False)
        verdict["kind"] = self.verdict.kind.value
        fields = {"key": self.key, "on_lost": self.on_lost, "verdict": verdict}
        try:
            body = json.dumps(fields)
        except TypeError:
            body = kombu_json.dumps(fields)  # A date among the headers, say; three times slower.
        return amqp.Message(
            body.encode(), delivery_mode=2, message_id=self.key, content_type="application/json"
        )

    @classmethod
    def loads(cls, body: bytes) -> "Record":
        """Read it.

        Raises:
            ValueError: It is no record.
        """
        try:
            fields = kombu_json.loads(bytes(body).decode())
            verdict = fields["verdict"]
            record = cls(
                key=str(fields["key"]),
                on_lost=str(fields["on_lost"]),
                verdict=Verdict(**{**verdict, "kind": Kind(verdict["kind"])}),
            )
            _ = record.owner, record.verdict.message["headers"].get("id")
        except (LookupError, TypeError, AttributeError, BeatError) as exc:
            raise ValueError(f"no record: {exc!r}") from exc
        return record
