"""Verdicts: what has to be told of tasks that ended with their workers.

A verdict is posted in the same atomic step as the message moves, so that neither is ever without
the other. Whoever tells it first moves it to a list of its own, and removes it from there when all
is told::

    {prefix}heartbeat:{namespace}:verdicts                  list: nobody tells them yet
    {prefix}heartbeat:{namespace}:verdicts:{incarnation}    list: this one does

If that one dies, what stands in its list goes back. Each entry begins with how often it was taken,
so that a verdict that kills or defeats whoever tells it comes to an end.
"""

import enum
import json
from typing import Any

import attrs

from heartbeat_celery._keys import Keys
from heartbeat_celery._scripts import Client, Script, execute
from heartbeat_core import Incarnation

__all__ = ("Kind", "Taken", "Verdict", "Verdicts")

TAKE = Script("""
local entry = redis.call('LPOP', KEYS[1])
if not entry then return false end
local times, rest = string.match(entry, '^(%d+)( .*)$')
entry = string.format('%d', (tonumber(times) or 0) + 1) .. (rest or ' ' .. entry)
redis.call('RPUSH', KEYS[2], entry)
redis.call('SADD', KEYS[3], ARGV[1])
return entry
""")

PUT_BACK = Script("""
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[2])
return 1
""")

# Puts back all that one was about to tell, ahead of the others. Not by LMOVE: a server that is full
# refuses a script that begins by adding.
RECOVER = Script("""
while true do
  local entry = redis.call('RPOP', KEYS[2])
  if not entry then return 1 end
  redis.call('LPUSH', KEYS[1], entry)
end
""")


class Kind(enum.Enum):
    """What became of a task."""

    LOST = "lost"
    DEAD_LETTERED = "dead-lettered"


@attrs.frozen(kw_only=True)
class Verdict:
    """What has to be told of one task.

    Attributes:
        kind: What became of it.
        node: The worker that held it last; empty if nobody knows.
        incarnation: The number of that worker's life.
        left: Whether that worker stopped, instead of dying.
        queue: Where its message came from.
        dead_letters: The queue in which it is now, if it is dead-lettered.
        recoveries: How often it had been recovered.
        message: As Kombu wrote it.
    """

    kind: Kind
    node: str
    incarnation: int
    left: bool
    queue: str
    dead_letters: str
    recoveries: int
    message: dict[str, Any]

    @property
    def task_id(self) -> str:
        """The id of the task; empty if the message has none."""
        return str(self._header("id"))

    @property
    def task(self) -> str:
        """The name of the task; empty if the message has none."""
        return str(self._header("task"))

    @property
    def reason(self) -> str:
        """One sentence for people, the same whoever tells it."""
        life = f"{self.node} (incarnation {self.incarnation})"
        if self.kind is Kind.LOST:
            went = "stopped" if self.left else "died"
            return (
                f"heartbeat: worker {life} {went} while it ran this task, which had been "
                "acknowledged before and so is not run again"
            )
        if not self.node:
            return (
                f"heartbeat: this task's message came back {self.recoveries} times from who held "
                f"it; it is in the dead-letter queue {self.dead_letters}"
            )
        owners = "1 owner" if self.recoveries == 1 else f"{self.recoveries} owners"
        return (
            f"heartbeat: this task's message outlived {owners}, and then worker {life} died "
            f"holding it; it is in the dead-letter queue {self.dead_letters}"
        )

    def dumps(self) -> str:
        """Write it down, as not taken yet."""
        return "0 " + json.dumps({**attrs.asdict(self, recurse=False), "kind": self.kind.value})

    @classmethod
    def loads(cls, text: str) -> "Verdict":
        """Read it.

        Raises:
            ValueError: It is no verdict.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "kind": Kind(fields["kind"])})
        except (LookupError, TypeError) as exc:
            raise ValueError(f"no verdict: {exc!r}") from exc

    def _header(self, name: str) -> Any:
        return (self.message.get("headers") or {}).get(name) or ""


@attrs.frozen
class Taken:
    """A verdict that is this worker's to tell.

    Attributes:
        me: Under which incarnation.
        entry: As it stands in the list.
        times: How often it was taken, this time included.
    """

    me: Incarnation
    entry: bytes
    times: int

    @classmethod
    def of(cls, me: Incarnation, entry: bytes) -> "Taken":
        """Read how often it was taken."""
        return cls(me, entry, int(entry.partition(b" ")[0]))

    def verdict(self) -> Verdict:
        """Read what has to be told.

        Raises:
            ValueError: It is no verdict.
        """
        return Verdict.loads(self.entry.partition(b" ")[2].decode())


@attrs.frozen
class Verdicts:
    """The verdicts of one namespace. Its methods block for a round trip or two.

    Raises:
        redis.RedisError: From every method: the broker went away; call again.
    """

    client: Client
    keys: Keys

    def take(self, me: Incarnation) -> Taken | None:
        """Take the next one to tell, if there is one."""
        lists = [self.keys.verdicts, self.keys.taken_verdicts(me), self.keys.holders]
        entry = TAKE.run(self.client, lists, [str(me)])
        return None if entry is None else Taken.of(me, entry)

    def holds(self, taken: Taken) -> bool:
        """Tell whether it still is this worker's to tell."""
        found = execute(self.client, "LPOS", self.keys.taken_verdicts(taken.me), taken.entry)
        return found is not None

    def done(self, taken: Taken) -> None:
        """Remove what is told."""
        execute(self.client, "LREM", self.keys.taken_verdicts(taken.me), 1, taken.entry)

    def put_back(self, taken: Taken, *, counted: bool) -> None:
        """Let anybody tell it later, after all the others.

        Args:
            taken: Which one.
            counted: Whether this was one of its few trials.
        """
        rest = taken.entry.partition(b" ")[2]
        entry = b"%d %b" % (taken.times if counted else taken.times - 1, rest)
        lists = [self.keys.verdicts, self.keys.taken_verdicts(taken.me)]
        PUT_BACK.run(self.client, lists, [taken.entry, entry])

    def recover(self, dead: Incarnation) -> None:
        """Let anybody tell what a dead incarnation was about to tell."""
        RECOVER.run(self.client, [self.keys.verdicts, self.keys.taken_verdicts(dead)], [])
