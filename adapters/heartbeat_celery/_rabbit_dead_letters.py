"""The dead-letter queue on RabbitMQ: messages that came back more often than they may.

Each stands there whole, with one header more, ``heartbeat_dead_letter``, which says why. Whoever
reads them takes them and gives them back; they keep their order.
"""

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from heartbeat_celery._dead_letters import DEAD_LETTER, RECOVERIES, DeadLetter
from heartbeat_celery._rabbit_calls import RabbitCalls
from heartbeat_celery._rabbit_holding import declare
from heartbeat_celery._rabbit_messages import described, rebuilt

__all__ = ("RabbitDeadLetters",)


@attrs.frozen
class RabbitDeadLetters:
    """The dead letters of one namespace. Its methods block.

    Raises:
        TransportError: From every method: the broker went away, or refuses.
    """

    calls: RabbitCalls
    queue: str

    def __len__(self) -> int:
        return self.calls.run(self._count)

    def read(self, most: int = 1000) -> tuple[list[DeadLetter], int]:
        """Give the oldest of them, and how many others among these are no dead letters.

        Args:
            most: How many to look at.
        """

        def read(channel: Any) -> tuple[list[DeadLetter], int]:
            found = [letter for letter, _ in self._taken(channel, most)]
            letters = [letter for letter in found if letter is not None]
            return letters, len(found) - len(letters)

        return self.calls.run(read)

    def requeue(self, letter: DeadLetter) -> bool:
        """Put one back into its queue, behind what waits there, as if it had had no owner yet.

        Returns:
            Whether it was still there, and its queue too.
        """
        return bool(self._requeue(lambda each: each == letter, 1))

    def requeue_all(self) -> int:
        """Put all that are there now back into their queues; tell how many."""
        return self._requeue(lambda _: True, len(self))

    def purge(self) -> int:
        """Delete all of them for ever; tell how many there were."""

        def purge(channel: Any) -> int:
            return int(channel.queue_purge(self.queue)) if self._count(channel) else 0

        return self.calls.run(purge)

    def _requeue(self, wanted: Callable[[DeadLetter], bool], most: int) -> int:
        def requeue(channel: Any) -> int:
            done = 0
            for letter, tag in self._taken(channel, self._count(channel)):
                if done == most:
                    break
                if letter is None or not wanted(letter):
                    continue
                channel.basic_publish(
                    _as_new(letter), exchange="", routing_key=letter.queue, mandatory=True
                )
                channel.basic_ack(tag)
                done += 1
            return done

        return self.calls.run(requeue)

    def _count(self, channel: Any) -> int:
        declare(channel, self.queue, {})
        return int(channel.queue_declare(queue=self.queue, passive=True).message_count)

    def _taken(self, channel: Any, most: int) -> Iterator[tuple[DeadLetter | None, int]]:
        """Take them one by one; those that are not acknowledged go back with the channel."""
        declare(channel, self.queue, {})
        for _ in range(most):
            message = channel.basic_get(self.queue)
            if message is None:
                return
            yield _read(channel.message_to_python(message)), message.delivery_tag


def _read(message: Any) -> DeadLetter | None:
    try:
        return DeadLetter.of(described(message, ""), b"")
    except ValueError:
        return None


def _as_new(letter: DeadLetter) -> Any:
    headers = dict(letter.message["headers"])
    for header in (DEAD_LETTER, RECOVERIES):
        headers.pop(header, None)
    return rebuilt({**letter.message, "headers": headers})
