"""Claims: the record, beside Kombu's own, of which incarnation holds which message.

Kombu on Redis keeps an unacknowledged message in a hash (``unacked``) and the time at which it
was taken in a sorted set (``unacked_index``); it does not say who took it. A claim does::

    {prefix}heartbeat:{namespace}:claims:{incarnation}    hash: delivery tag -> "time list"
    {prefix}heartbeat:{namespace}:moved:{incarnation}     list: a message that it waited for
    {prefix}heartbeat:{namespace}:running:{incarnation}   hash: what it acknowledged and still runs
    {prefix}heartbeat:{namespace}:holders                 set of incarnations with any of these
    {prefix}heartbeat:{namespace}:fence:{incarnation}     says that it is dead, for a day

**A claim holds only while Kombu's index still carries the time that the claim recorded.** When
anybody else has taken the message since, by our scripts or by stock Kombu's visibility timeout,
the times differ and the claim is worth nothing: an ack under it changes nothing for the new
owner. Each script below checks that, and does all of its writing, in one atomic step.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import attrs

from heartbeat_celery._keys import Keys
from heartbeat_celery._running import Early
from heartbeat_celery._scripts import Client, Script, execute
from heartbeat_core import Incarnation

__all__ = ("CLAIM", "FENCE_TTL", "GIVE_BACK", "SCRIPTS", "Claims", "Popped")

FENCE_TTL = 86_400
"""For so many seconds an incarnation that was declared dead can learn of it."""


_RECORD = """
local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end
local function record(me, list, tag, message)
  local time = now()
  redis.call('ZADD', KEYS[2], time, tag)
  redis.call('HSET', KEYS[1], tag, message)
  redis.call('HSET', KEYS[3], tag, time .. ' ' .. list)
  redis.call('SADD', KEYS[4], me)
end
"""

_LIST_OF = """
local function list_of(tag)
  local claim = redis.call('HGET', KEYS[3], tag)
  if not claim then return nil end
  local time, list = string.match(claim, '^(%S+) (.*)$')
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if score and tonumber(score) == tonumber(time) then return list end
  return nil
end
"""

# Takes the next message, in the order of the lists given, and records the claim in the same
# step; ahead of all others one that was moved to this incarnation and never arrived. What is not
# a message as Kombu writes it is handed out unrecorded, as stock does. If there is none, it is put
# on record for which list the incarnation is going to wait.
CLAIM = Script(
    _RECORD
    + """
if redis.call('EXISTS', KEYS[5]) == 1 then return 'FENCED' end
local item, list = redis.call('RPOP', KEYS[6]), nil
if item then
  list = redis.call('HGET', KEYS[3], '') or KEYS[7]
else
  for i = 7, #KEYS do
    item, list = redis.call('RPOP', KEYS[i]), KEYS[i]
    if item then break end
  end
end
if not item then
  if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[3], '', ARGV[2])
    redis.call('SADD', KEYS[4], ARGV[1])
  end
  return false
end
local ok, message = pcall(cjson.decode, item)
local properties = ok and type(message) == 'table' and message['properties']
local tag = type(properties) == 'table' and properties['delivery_tag']
if type(tag) ~= 'string' then return {list, item, 0} end
local info = properties['delivery_info']
if type(info) ~= 'table' then info = {} end
record(ARGV[1], list, tag, '[' .. item
  .. ',' .. cjson.encode(info['exchange'] or '')
  .. ',' .. cjson.encode(info['routing_key'] or '') .. ']')
return {list, item, 1}
"""
)

# Records a message that came while its claimant waited. If it was moved to the claimant it must
# still be there: else somebody has recovered it. A fenced incarnation may not hold it: it goes
# back to where it was.
RECORD = Script(
    _RECORD
    + """
local moved = ARGV[6] == '1'
if moved and redis.call('LREM', KEYS[6], 1, ARGV[5]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[5]) == 1 then
  redis.call('RPUSH', ARGV[2], ARGV[5])
  return 0
end
record(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return 1
"""
)

# Deletes a message that was dealt with. If it is being dealt with only now, since it was
# acknowledged early, it is kept elsewhere, with what is to become of it if its owner dies.
RELEASE = Script(
    _LIST_OF
    + """
local list = list_of(ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if not list then return redis.call('EXISTS', KEYS[5]) == 1 and 'FENCED' or 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
local message = ARGV[2] ~= '' and redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
if message then
  redis.call('HSET', KEYS[7], ARGV[1],
    '["' .. ARGV[2] .. '",' .. cjson.encode(list) .. ',' .. message .. ']')
end
return 1
"""
)

# Gives a message back to its list, or to another one if that is named, and posts what has to be
# told of it. Nothing is deleted before it is certain that the list takes it.
GIVE_BACK = Script(
    _LIST_OF
    + """
local list = list_of(ARGV[1])
if list then
  if ARGV[4] ~= '' then list = ARGV[4] end
  local kind = redis.call('TYPE', list)['ok']
  if kind ~= 'list' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. list .. ' is a ' .. kind .. ' instead of a list')
  end
end
redis.call('HDEL', KEYS[3], ARGV[1])
if not list then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call(ARGV[3], list, ARGV[2])
if ARGV[5] ~= '' then redis.call('RPUSH', KEYS[7], ARGV[5]) end
return 1
"""
)

# Keeps the visibility timeout of stock Kombu from taking what a living incarnation holds.
RENEW = Script(
    _RECORD
    + """
local time = now()
local claims = redis.call('HGETALL', KEYS[3])
for i = 1, #claims, 2 do
  local tag = claims[i]
  local claimed, list = string.match(claims[i + 1], '^(%S+) (.*)$')
  local score = tag ~= '' and redis.call('ZSCORE', KEYS[2], tag)
  if score and tonumber(score) == tonumber(claimed) then
    redis.call('ZADD', KEYS[2], time, tag)
    redis.call('HSET', KEYS[3], tag, time .. ' ' .. list)
  end
end
return #claims / 2
"""
)

SCRIPTS = (CLAIM, RECORD, RELEASE, GIVE_BACK, RENEW)


@attrs.frozen
class Popped:
    """A message on its way from its list to the consumer.

    Attributes:
        list: Where it came from.
        item: What stood there.
        me: For whom it was taken.
        recorded: Whether the claim is on record.
        moved: Whether it stands in the claimant's own list until it is.
    """

    list: str
    item: bytes
    me: Incarnation
    recorded: bool
    moved: bool


@attrs.define
class Claims:
    """What this worker holds, and under which incarnation it may take more.

    The heartbeat's thread sets ``incarnation``; the worker's consumer reads it and does the
    rest. Every method that takes a client blocks for one round trip.

    Attributes:
        keys: Where the claims stand.
        incarnation: Under which messages are claimed now; ``None`` while the worker has not
            joined, or was declared dead and has not come back yet. What it takes then is
            recorded the stock way only.
        fenced: Called, from the consumer's thread, when the broker says that this incarnation
            is dead.
        client: A client that is there though the consumer has lost its connection.
        held: The delivery tags that this process was handed and has not let go, with the
            incarnation under which each was claimed.
        late: Which of these are dealt with, though the broker could not be told yet; each with
            its task, if that ran on.
    """

    keys: Keys
    fenced: Callable[[Incarnation], None] = attrs.field(repr=False)
    incarnation: Incarnation | None = None
    client: Client = None
    held: dict[str, Incarnation] = attrs.field(factory=dict, init=False)
    late: dict[str, Early | None] = attrs.field(factory=dict, init=False)

    def claim_command(
        self, me: Incarnation, lists: Iterable[str], then_wait_for: str | None
    ) -> tuple[Any, ...]:
        """Give the command that takes the next message of these lists.

        Args:
            me: The claimant.
            lists: Where to look, in this order.
            then_wait_for: From which list a message is going to be moved to the claimant, if
                there is none now.
        """
        return CLAIM.command([*self.keys.of(me), *lists], [str(me), then_wait_for or ""])

    def wait_command(self, me: Incarnation, list_: str, timeout: float) -> tuple[Any, ...]:
        """Give the command that waits for a message of one list.

        The server moves it to a list of the claimant's own, so that it is lost to nobody; and
        wakes nobody else.
        """
        return ("BLMOVE", list_, self.keys.moved(me), "RIGHT", "LEFT", timeout)

    def record(self, client: Client, tag: str, message: Popped, unacked: str) -> bool:
        """Record a message that came while its claimant waited.

        Returns:
            Whether it is the claimant's; if not, it is back in its queue.
        """
        me = message.me
        arguments = [str(me), message.list, tag, unacked, message.item, int(message.moved)]
        if not RECORD.run(client, self.keys.of(me), arguments):
            return False
        self.held[tag] = me
        return True

    def release(self, client: Client, tag: str, on_lost: str = "") -> bool:
        """Delete a message that was dealt with; false if it was no longer this worker's.

        Args:
            client: A client of the broker.
            tag: The message's delivery tag.
            on_lost: What is to become of it if this worker dies now, in case it runs on; then it
                is kept until :meth:`forget`.

        Raises:
            redis.RedisError: It may be deleted, or not; this worker holds it until it is released.
        """
        me = self.held[tag]
        keys = [*self.keys.of(me), self.keys.running(me)]
        answer = RELEASE.run(client, keys, [tag, on_lost])
        # Another thread may have done it too, when the answer to a first one was lost.
        self.held.pop(tag, None)
        if answer == b"FENCED":
            self.fenced(me)
        return bool(answer == 1)

    def release_late(self, client: Client) -> None:
        """Tell the broker, now that it is there again, what was dealt with meanwhile."""
        for tag, early in list(self.late.items()):
            if tag in self.held:
                self.release(client, tag, early.on_lost if early and early.runs() else "")
            del self.late[tag]

    def forget(self, client: Client, ended: Mapping[Incarnation, Collection[str]]) -> None:
        """Delete what was kept since it ran on after it was acknowledged."""
        for me, tags in ended.items():
            execute(client, "HDEL", self.keys.running(me), *tags)

    def give_back(self, client: Client, tag: str, message: str, *, last: bool) -> bool:
        """Put a message back into its queue; false if it was no longer this worker's.

        Args:
            client: A client of the broker.
            tag: The message's delivery tag.
            message: What to put back.
            last: Whether it goes behind all the others instead of ahead of them.
        """
        keys = [*self.keys.of(self.held.pop(tag)), self.keys.verdicts]
        push = "LPUSH" if last else "RPUSH"
        return bool(GIVE_BACK.run(client, keys, [tag, message, push, "", ""]))

    def renew(self, client: Client, me: Incarnation) -> None:
        """Begin the visibility timeout of all that this worker holds anew."""
        # A copy in one step: the consumer changes the table meanwhile.
        for incarnation in {me, *list(self.held.values())}:
            RENEW.run(client, self.keys.of(incarnation), [])

    def unknown(self, client: Client, me: Incarnation) -> list[str]:
        """Give what the broker says this worker holds and it does not know of, the newest first."""
        claims = execute(client, "HGETALL", self.keys.claims(me))
        tags = sorted(filter(None, claims), key=lambda tag: claims[tag], reverse=True)
        return [tag for tag in map(bytes.decode, tags) if tag not in self.held]
