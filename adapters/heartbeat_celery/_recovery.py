"""Recovery: giving the claims of a dead incarnation back to their queues.

Each message moves in one atomic step, from the claim to the head of the list that it came from.
So anybody may recover, any number of observers at once, and whoever is killed in the middle
leaves nothing half done: what is left is recovered by the others, or by the next who looks.
"""

import json
import logging
from typing import Any

import attrs

from heartbeat_celery._claims import FENCE_TTL, GIVE_BACK, GIVE_BACK_MOVED, Client, Keys
from heartbeat_celery._kombu import mark_redelivered
from heartbeat_core import BeatError, Incarnation

__all__ = ("RECOVERIES", "Recovery")

logger = logging.getLogger("heartbeat_celery")

RECOVERIES = "heartbeat_recoveries"
"""The header in which a message carries how many of its owners died."""


@attrs.frozen
class Recovery:
    """Recovers for one namespace. Its methods block; call them from a thread of your own."""

    client: Client
    keys: Keys

    def holders(self) -> dict[Incarnation, bool]:
        """Tell which incarnations may have claims, and whether each is fenced already."""
        found: dict[Incarnation, bool] = {}
        for name in self.client.smembers(self.keys.holders):
            try:
                incarnation = Incarnation.parse(name.decode())
            except (BeatError, UnicodeDecodeError):
                logger.error("heartbeat: %r among the holders is no incarnation", name)
                continue
            found[incarnation] = bool(self.client.exists(self.keys.fence(incarnation)))
        return found

    def recover(self, dead: Incarnation, *, left: bool = False) -> list[str]:
        """Fence an incarnation and give back what it held; return the ids of the tasks.

        What comes back stands ahead of all that waits, the oldest first. A message that
        cannot be read stays where it is, and is reported.

        Args:
            dead: Whose claims to give back.
            left: Whether it said goodbye: then it needs no fence if it holds nothing, and what
                it does hold is not counted as having outlived an owner.

        Raises:
            redis.RedisError: The broker went away; call again.
        """
        client, keys = self.client, self.keys
        if left and not self._holds_any(dead):
            client.delete(keys.claims(dead))
            client.srem(keys.holders, str(dead))
            return []
        client.set(keys.fence(dead), 1, ex=FENCE_TTL)
        moved = [_task_of(item) for item in GIVE_BACK_MOVED.run(client, keys.of(dead), [])]
        claims = client.hgetall(keys.claims(dead))
        newest_first = sorted(claims, key=lambda tag: _time_of(claims[tag]), reverse=True)
        returned: list[str] = []
        for tag in newest_first:
            task = self._give_back(dead, tag, counted=not left)
            if task is not None:
                returned.append(task)
        if not client.hlen(keys.claims(dead)):
            client.srem(keys.holders, str(dead))
        return returned[::-1] + moved

    def _holds_any(self, owner: Incarnation) -> bool:
        # The field without a name says for which list it waited.
        fields = set(self.client.hkeys(self.keys.claims(owner))) - {b""}
        return bool(fields or self.client.exists(self.keys.moved(owner)))

    def give_back(self, living: Incarnation, tag: str) -> None:
        """Give back one message that a living incarnation claimed and never got. Blocks."""
        self._give_back(living, tag.encode(), counted=False)

    def _give_back(self, owner: Incarnation, tag: bytes, *, counted: bool) -> str | None:
        raw = self.client.hget(self.keys.unacked, tag)
        message: dict[str, Any] = {}
        task = ""
        if raw is not None:
            try:
                message = json.loads(raw)[0]
                mark_redelivered(message)
                headers = message["headers"]
                task = str(headers.get("id", ""))
                if counted:
                    headers[RECOVERIES] = int(headers.get(RECOVERIES, 0)) + 1
            except (ValueError, TypeError, KeyError, LookupError, AttributeError) as exc:
                logger.error(
                    "heartbeat: message %s of %s cannot be read, and stays in %s: %r",
                    tag.decode(errors="replace"),
                    owner,
                    self.keys.unacked,
                    exc,
                )
                return None
        arguments = [tag, json.dumps(message), "RPUSH"]
        moved = GIVE_BACK.run(self.client, self.keys.of(owner), arguments)
        return task if moved else None


def _task_of(item: bytes) -> str:
    try:
        return str(json.loads(item)["headers"]["id"])
    except (ValueError, TypeError, LookupError):
        return "?"


def _time_of(claim: bytes) -> float:
    try:
        return float(claim.partition(b" ")[0])
    except ValueError:
        return 0.0
