"""Recovery: giving the claims of a dead incarnation back to their queues.

Each message moves in one atomic step, from the claim to the head of the list that it came from; or
to the dead-letter queue, if it has outlived as many owners as it may. So anybody may recover, any
number of observers at once, and whoever is killed in the middle leaves nothing half done: what is
left is recovered by the others, or by the next who looks.
"""

import json
import logging
import time
from typing import Any

import attrs
import redis

from heartbeat_celery._claims import FENCE_TTL, give_back, read, shut
from heartbeat_celery._dead_letters import DEAD_LETTER, RECOVERIES
from heartbeat_celery._keys import Keys
from heartbeat_celery._qos import mark_redelivered
from heartbeat_celery._scripts import Client, Script, execute
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._verdicts import Kind, Verdict, Verdicts
from heartbeat_core import BeatError, Incarnation

__all__ = ("Recovered", "Recovery")

logger = logging.getLogger("heartbeat_celery")

# Puts up a fence. What removes comes first: a server that is full refuses a script that begins by
# adding, and the dead are to be recovered there too.
FENCE = Script("""
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
""")

# Ends what an incarnation had acknowledged and still ran: gives its message back to a list, posts
# what has to be told of it, or both.
END = Script("""
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local list = ARGV[2]
local kind = list ~= '' and redis.call('TYPE', list)['ok']
if kind and kind ~= 'list' and kind ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. list .. ' is a ' .. kind .. ' instead of a list')
end
redis.call('HDEL', KEYS[1], ARGV[1])
if list ~= '' then redis.call(ARGV[4], list, ARGV[3]) end
if ARGV[5] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[5]) end
return 1
""")


@attrs.frozen
class Recovered:
    """A message that is back in its queue.

    Attributes:
        task_id: The id of its task; empty if it has none.
        task: The name of its task; empty if it has none.
        queue: Its queue.
        recoveries: How often it has been recovered, this time included.
    """

    task_id: str
    task: str
    queue: str
    recoveries: int


@attrs.frozen
class _Move:
    """Where a message goes, and what is told of it.

    Attributes:
        list: The list to which it goes; empty if it is the one that it came from.
        push: The command that puts it there.
        message: What is put there.
        verdict: What is posted; empty if nothing is.
        recovered: What it is then, if it goes back.
    """

    list: str
    push: str
    message: str
    verdict: str
    recovered: Recovered | None


@attrs.frozen
class Recovery:
    """Recovers for one namespace. Its methods block; call them from a thread of your own."""

    client: Client
    keys: Keys
    settings: RecoverySettings = attrs.field(factory=RecoverySettings)
    _said: set[bytes] = attrs.field(factory=set, init=False)

    def holders(self) -> dict[Incarnation, bool]:
        """Tell which incarnations may hold anything, and whether each is fenced already."""
        found: dict[Incarnation, bool] = {}
        for name in execute(self.client, "SMEMBERS", self.keys.holders):
            try:
                incarnation = Incarnation.parse(name.decode())
            except (BeatError, UnicodeDecodeError):
                logger.error("heartbeat: %r among the holders is no incarnation", name)
                continue
            fenced = execute(self.client, "EXISTS", self.keys.fence(incarnation))
            found[incarnation] = bool(fenced)
        return found

    def recover(self, dead: Incarnation, *, left: bool = False) -> list[Recovered]:
        """Fence an incarnation and give back what it held; tell what is back in its queue.

        What comes back stands ahead of all that waits, the oldest first. A message that
        cannot be read or moved stays where it is, and is reported. What became of the others is
        posted among the verdicts.

        Args:
            dead: Whose claims to give back.
            left: Whether it said goodbye: then it needs no fence if it holds nothing, and what
                it does hold is not counted as having outlived an owner.

        Raises:
            redis.RedisError: The broker went away; call again.
        """
        client, keys = self.client, self.keys
        if not (left and self._holds_nothing(dead)):
            FENCE.run(client, [keys.fence(dead)], [FENCE_TTL])
        moved = self._give_back_moved(dead)
        claims = execute(client, "HGETALL", keys.claims(dead))
        newest_first = sorted(claims, key=lambda tag: _time_of(claims[tag]), reverse=True)
        recovered: list[Recovered] = []
        for batch in read(client, keys, newest_first):
            recovered += self._give_back(dead, batch, claims, counted=not left)
        # After the claims: until now a late answer could turn one of them into one of these.
        for tag, entry in execute(client, "HGETALL", keys.running(dead)).items():
            each = self._end(dead, tag, entry, left=left)
            recovered += [each] if each else []
        Verdicts(client, keys).recover(dead)
        if self._holds_nothing(dead):
            execute(client, "SREM", keys.holders, str(dead))
        return recovered[::-1] + moved

    def _holds_nothing(self, owner: Incarnation) -> bool:
        keys = self.keys
        # What came while it waited is in a list that is on record among those.
        kinds = [keys.claims, keys.waits, keys.running, keys.taken_verdicts]
        return not execute(self.client, "EXISTS", *[kind(owner) for kind in kinds])

    def _give_back_moved(self, dead: Incarnation) -> list[Recovered]:
        lists = execute(self.client, "SMEMBERS", self.keys.waits(dead))
        names = [list_.decode() for list_ in lists]
        items = shut(self.client, self.keys, dead, names, FENCE_TTL)
        return [_read_recovered(item, self.keys.queue_of(list_)) for list_, item in items]

    def _give_back(
        self,
        owner: Incarnation,
        batch: list[tuple[bytes, bytes | None]],
        claims: dict[bytes, bytes],
        *,
        counted: bool,
    ) -> list[Recovered]:
        """Move messages that were claimed; those that cannot be moved do not keep the others."""
        moves: dict[bytes, _Move] = {}
        for tag, raw in batch:
            list_ = claims[tag].partition(b" ")[2].decode()
            move = _Move("", "RPUSH", "", "", None)
            if raw is not None:
                try:
                    move = self._move(owner, list_, json.loads(raw)[0], counted=counted)
                except (ValueError, TypeError, LookupError, AttributeError) as exc:
                    where = self.keys.unacked
                    self._say(owner, tag, f"cannot be read, and stays in {where}: {exc!r}")
                    continue
            moves[tag] = move
        answers = give_back(
            self.client,
            self.keys,
            owner,
            [
                (tag, move.message, move.push, move.list, move.verdict)
                for tag, move in moves.items()
            ],
        )
        recovered: list[Recovered] = []
        for (tag, move), answer in zip(moves.items(), answers, strict=True):
            if isinstance(answer, bytes):
                self._say(owner, tag, f"cannot be moved, and stays where it is: {answer.decode()}")
            elif answer and move.recovered:
                recovered.append(move.recovered)
        return recovered

    def _end(self, owner: Incarnation, tag: bytes, entry: bytes, *, left: bool) -> Recovered | None:
        """Move or report what was acknowledged, and ran."""
        keys = self.keys
        try:
            on_lost, list_, (message, *_) = json.loads(entry)
            if on_lost == "rerun":
                move = self._move(owner, list_, message, counted=not left)
                move = attrs.evolve(move, list=move.list or list_)
            else:
                verdict = self._verdict(Kind.LOST, owner, list_, message, left=left)
                move = _Move("", "", "", verdict.dumps(), None)
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            self._say(owner, tag, f"cannot be read, and stays in {keys.running(owner)}: {exc!r}")
            return None
        arguments = [tag, move.list, move.message, move.push, move.verdict]
        lists = [keys.running(owner), keys.verdicts]
        try:
            is_done = END.run(self.client, lists, arguments)
        except redis.ResponseError as exc:
            if not str(exc).startswith("WRONGTYPE"):
                raise
            self._say(owner, tag, f"cannot be moved, and stays where it is: {exc}")
            return None
        return move.recovered if is_done else None

    def _move(
        self, owner: Incarnation, list_: str, message: dict[str, Any], *, counted: bool
    ) -> _Move:
        """Decide where a message goes."""
        headers = message["headers"]
        before = int(headers.get(RECOVERIES) or 0)
        if counted and before >= self.settings.max_recoveries:
            return self._to_dead_letters(owner, list_, message)
        mark_redelivered(message)
        if counted:
            headers[RECOVERIES] = before + 1
        recovered = _recovered(message, self.keys.queue_of(list_))
        return _Move("", "RPUSH", json.dumps(message), "", recovered)

    def _to_dead_letters(self, owner: Incarnation, list_: str, message: dict[str, Any]) -> _Move:
        verdict = self._verdict(Kind.DEAD_LETTERED, owner, list_, message, left=False)
        message["headers"][DEAD_LETTER] = {
            "reason": verdict.reason,
            "queue": list_.removeprefix(self.keys.prefix),
            "recoveries": verdict.recoveries,
            "owner": str(owner),
            "at": time.time(),
        }
        return _Move(self.keys.dead_letters, "LPUSH", json.dumps(message), verdict.dumps(), None)

    def _verdict(
        self, kind: Kind, owner: Incarnation, list_: str, message: dict[str, Any], *, left: bool
    ) -> Verdict:
        return Verdict(
            kind=kind,
            node=owner.node,
            incarnation=owner.number,
            left=left,
            queue=self.keys.queue_of(list_),
            dead_letters=self.keys.queue_of(self.keys.dead_letters),
            recoveries=int(message["headers"].get(RECOVERIES) or 0),
            message=message,
        )

    def _say(self, owner: Incarnation, tag: bytes, what: str) -> None:
        """Report a message once; it is looked at again and again."""
        if tag not in self._said:
            self._said.add(tag)
            logger.error(
                "heartbeat: message %s of %s %s",
                tag.decode(errors="replace"),
                owner,
                what,
                extra={"heartbeat_node": owner.node, "heartbeat_incarnation": owner.number},
            )


def _recovered(message: dict[str, Any], queue: str) -> Recovered:
    headers = message["headers"]
    return Recovered(
        task_id=str(headers.get("id") or ""),
        task=str(headers.get("task") or ""),
        queue=queue,
        recoveries=int(headers.get(RECOVERIES) or 0),
    )


def _read_recovered(item: bytes, queue: str) -> Recovered:
    try:
        return _recovered(json.loads(item), queue)
    except (ValueError, TypeError, LookupError, AttributeError):
        return Recovered("", "", queue, 0)


def _time_of(claim: bytes) -> float:
    try:
        return float(claim.partition(b" ")[0])
    except ValueError:
        return 0.0
