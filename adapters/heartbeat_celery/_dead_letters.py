"""The dead-letter queue: messages that outlived as many owners as they may.

Each stands there whole, as Kombu wrote it, with one header more, ``heartbeat_dead_letter``, which
says why. It is a list like those of Kombu's queues, so that Kombu can consume it too.
"""

import json
from typing import Any

import attrs

from heartbeat_celery._keys import Keys
from heartbeat_celery._scripts import Client, Script, execute

__all__ = ("DEAD_LETTER", "DELIVERY", "RECOVERIES", "DeadLetter", "DeadLetters")

DEAD_LETTER = "heartbeat_dead_letter"
"""The header in which a dead letter carries why it is one."""

RECOVERIES = "heartbeat_recoveries"
"""The header in which a message carries how many of its owners died."""

DELIVERY = "heartbeat_delivery"
"""The header by which a worker tells one delivery of a message from others, on RabbitMQ."""

# Looks first: whoever else has taken it has it.
REQUEUE = Script("""
if not redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LREM', KEYS[1], 1, ARGV[1])
return 1
""")

PURGE = Script("""
local count = redis.call('LLEN', KEYS[1])
redis.call('DEL', KEYS[1])
return count
""")


@attrs.frozen(kw_only=True)
class DeadLetter:
    """One dead letter.

    Attributes:
        task_id: The id of its task; empty if it has none.
        task: The name of its task; empty if it has none.
        queue: The list that it came from, without Kombu's ``global_keyprefix``: its queue's name,
            followed by its priority if it has one.
        reason: One sentence for people.
        recoveries: How often it had been recovered.
        owner: The incarnation that held it last.
        at: When it was put here, in seconds since the epoch.
        message: As Kombu wrote it, with all its headers.
        item: What stands in the list; empty where it is no list.
    """

    task_id: str
    task: str
    queue: str
    reason: str
    recoveries: int
    owner: str
    at: float
    message: dict[str, Any] = attrs.field(repr=False)
    item: bytes = attrs.field(repr=False)

    @classmethod
    def loads(cls, item: bytes) -> "DeadLetter":
        """Read what stands in the list.

        Raises:
            ValueError: It is no dead letter.
        """
        try:
            message = json.loads(item)
        except TypeError as exc:
            raise ValueError(f"no dead letter: {exc!r}") from exc
        return cls.of(message, item)

    @classmethod
    def of(cls, message: Any, item: bytes) -> "DeadLetter":
        """Read a message that is one.

        Raises:
            ValueError: It is none.
        """
        try:
            headers = message["headers"]
            why = headers[DEAD_LETTER]
            return cls(
                task_id=str(headers.get("id") or ""),
                task=str(headers.get("task") or ""),
                queue=str(why["queue"]),
                reason=str(why["reason"]),
                recoveries=int(why["recoveries"]),
                owner=str(why["owner"]),
                at=float(why["at"]),
                message=message,
                item=item,
            )
        except (LookupError, TypeError, AttributeError) as exc:
            raise ValueError(f"no dead letter: {exc!r}") from exc


@attrs.frozen
class DeadLetters:
    """The dead letters of one namespace. Its methods block.

    Raises:
        redis.RedisError: From every method: the broker went away.
    """

    client: Client
    keys: Keys

    def __len__(self) -> int:
        return int(execute(self.client, "LLEN", self.keys.dead_letters))

    def read(self, most: int = 1000) -> tuple[list[DeadLetter], int]:
        """Give the oldest of them, and how many others among these are no dead letters.

        Args:
            most: How many to look at.
        """
        found: list[DeadLetter] = []
        items = execute(self.client, "LRANGE", self.keys.dead_letters, -most, -1)
        for item in reversed(items):
            try:
                found.append(DeadLetter.loads(item))
            except ValueError:
                continue
        return found, len(items) - len(found)

    def requeue(self, letter: DeadLetter) -> bool:
        """Put one back into its queue, behind what waits there, as if it had had no owner yet.

        Returns:
            Whether it was still there.
        """
        message = json.loads(letter.item)
        for header in (DEAD_LETTER, RECOVERIES):
            message["headers"].pop(header, None)
        lists = [self.keys.dead_letters, f"{self.keys.prefix}{letter.queue}"]
        return bool(REQUEUE.run(self.client, lists, [letter.item, json.dumps(message)]))

    def requeue_all(self) -> int:
        """Put all that are there now back into their queues; tell how many."""
        letters, _ = self.read(len(self) or 1)
        return sum(self.requeue(letter) for letter in letters)

    def remove(self, letter: DeadLetter) -> bool:
        """Delete one for ever; tell whether it was still there."""
        return bool(execute(self.client, "LREM", self.keys.dead_letters, 1, letter.item))

    def purge(self) -> int:
        """Delete all of them for ever; tell how many there were."""
        return int(PURGE.run(self.client, [self.keys.dead_letters], []))
