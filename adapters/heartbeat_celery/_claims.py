"""Claims: the record, beside Kombu's own, of which incarnation holds which message.

Kombu on Redis keeps an unacknowledged message in a hash (``unacked``) and the time at which it
was taken in a sorted set (``unacked_index``); it does not say who took it. A claim does::

    {prefix}heartbeat:{namespace}:claims:{incarnation}        hash: delivery tag -> "time list"
    {prefix}heartbeat:{namespace}:waits:{incarnation}         set of lists for which it waits
    {prefix}heartbeat:{namespace}:moved:{incarnation}:{list}  list: what came for it from there
    {prefix}heartbeat:{namespace}:running:{incarnation}       hash: what it acknowledged and runs
    {prefix}heartbeat:{namespace}:holders                     set of incarnations with any of these
    {prefix}heartbeat:{namespace}:fence:{incarnation}         says that it is dead, for a day

**A claim holds only while Kombu's index still carries the time that the claim recorded.** When
anybody else has taken the message since, by our scripts or by stock Kombu's visibility timeout,
the times differ and the claim is worth nothing: an ack under it changes nothing for the new
owner. Each script below checks that, and does all of its writing, in one atomic step.

**Who waits is open, or shut.** While an incarnation waits for a list, the server moves the next
message of it to a list of the incarnation's own (``BLMOVE``). When it is to take nothing more, a
text is put where that list would stand. Redis then refuses the move, and the message is, in the
same step in which it came, the next one's who waits. So no connection has to be called back.
"""

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
import redis

from heartbeat_celery._keys import Keys
from heartbeat_celery._running import Early
from heartbeat_celery._scripts import Client, Script, execute
from heartbeat_core import Incarnation

__all__ = ("CLAIM", "FENCE_TTL", "MOST", "SCRIPTS", "Claims", "Popped", "give_back", "read", "shut")

logger = logging.getLogger("heartbeat_celery")

MOST = 16
"""How many messages are claimed at once, at most."""

SHARE = 32
"""Beyond the first, one message more is claimed for each so many that stand in a list."""

MOST_BACK = 100
"""How many messages are given back at once, at most."""

MUCH = 1_000_000
"""With so many bytes of them no more messages are read at once."""

FENCE_TTL = 86_400
"""For so many seconds an incarnation that was declared dead can learn of it."""


_NOW = """
local function now(later)
  local time = redis.call('TIME')
  local micros = time[2] + (later or 0)
  return string.format('%d.%06d', time[1] + math.floor(micros / 1000000), micros % 1000000)
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

# Takes the next messages, in the order of the lists given, and records the claims in the same step.
# A list gives at most a share of what stands in it, so that others who wait have their part of a
# few; and the lists of one group (of the same priority, say) give in turn. What came for this
# incarnation while it waited is the first of its list; what is too much of that goes back.
# With messages in its hands the incarnation is shut; without any it is open, and that it is going
# to wait is on record. What is not a message as Kombu writes it is handed out unrecorded, as
# stock does.
CLAIM = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[5]) == 1 then return 'FENCED' end
local me, count, group, lists = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local moved, kinds = {}, {}
for i = 7, #ARGV do
  local list = tonumber(ARGV[i])
  moved[list] = KEYS[lists + i]
  kinds[list] = redis.call('TYPE', moved[list])['ok']
end
local shares = {}
local function take(i)
  local item = kinds[i] == 'list' and redis.call('RPOP', moved[i])
  if item or shares[i] == 0 then return item end
  item = redis.call('RPOP', KEYS[6 + i])
  if item and count > 1 then
    local share = shares[i] or 1 + math.floor(redis.call('LLEN', KEYS[6 + i]) / ARGV[6])
    shares[i] = share - 1
  end
  return item
end
local taken = {}
local function record(i, item)
  local ok, message = pcall(cjson.decode, item)
  local properties = ok and type(message) == 'table' and message['properties']
  local tag = type(properties) == 'table' and properties['delivery_tag']
  taken[#taken + 1] = {i, item, type(tag) == 'string' and 1 or 0}
  if type(tag) ~= 'string' then return end
  local info = properties['delivery_info']
  if type(info) ~= 'table' then info = {} end
  -- One after another, although the server's clock stands still meanwhile.
  local time = now(#taken)
  redis.call('ZADD', KEYS[2], time, tag)
  redis.call('HSET', KEYS[1], tag, '[' .. item
    .. ',' .. cjson.encode(info['exchange'] or '')
    .. ',' .. cjson.encode(info['routing_key'] or '') .. ']')
  redis.call('HSET', KEYS[3], tag, time .. ' ' .. KEYS[6 + i])
end
for first = 1, lists, group do
  local more = true
  while more do
    more = false
    for i = first, math.min(first + group - 1, lists) do
      local item = #taken < count and take(i)
      if item then
        record(i, item)
        more = true
      end
    end
  end
end
for i, key in pairs(moved) do
  if #taken == 0 then
    if kinds[i] == 'string' then redis.call('DEL', key) end
    redis.call('SADD', KEYS[6], KEYS[6 + i])
  elseif kinds[i] ~= 'string' then
    while redis.call('LMOVE', key, KEYS[6 + i], 'LEFT', 'RIGHT') do end
    redis.call('SET', key, 'shut', 'EX', ARGV[5])
  end
end
if #taken > 0 or next(moved) then redis.call('SADD', KEYS[4], me) end
return #taken > 0 and taken
"""
)

# Shuts an incarnation: what came for it and was not claimed goes back ahead of all others, and
# nothing more comes. What removes comes first: a server that is full refuses a script that begins
# by adding.
SHUT = Script("""
local items = {}
for i = 2, #KEYS, 2 do
  local list, moved = KEYS[i], KEYS[i + 1]
  while redis.call('TYPE', moved)['ok'] == 'list' do
    items[#items + 1] = {list, redis.call('LMOVE', moved, list, 'LEFT', 'RIGHT')}
  end
  redis.call('SREM', KEYS[1], list)
  redis.call('SET', moved, 'shut', 'EX', ARGV[1])
end
return items
""")

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

# Gives messages back to their lists, each to another one if that is named, and posts what has to be
# told of them. Of what it gives back to a list the last stands ahead; and who waits for that list
# is served when the script has ended, so it is the first for him too. Nothing is deleted before it
# is certain that the list takes it; of each message it answers whether it moved, or why it cannot.
GIVE_BACK = Script(
    _LIST_OF
    + """
local function obstacle(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'list' or kind == 'none' then return nil end
  return key .. ' is a ' .. kind .. ' instead of a list'
end
local function give_back(tag, message, push, target, verdict)
  local list = list_of(tag)
  if list then
    if target ~= '' then list = target end
    local why = obstacle(list) or verdict ~= '' and obstacle(KEYS[7])
    if why then return why end
  end
  redis.call('HDEL', KEYS[3], tag)
  if not list then return 0 end
  redis.call('ZREM', KEYS[2], tag)
  if redis.call('HDEL', KEYS[1], tag) == 0 then return 0 end
  redis.call(push, list, message)
  if verdict ~= '' then redis.call('RPUSH', KEYS[7], verdict) end
  return 1
end
local answers = {}
for i = 1, #ARGV, 5 do
  answers[#answers + 1] = give_back(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
return answers
"""
)

# Puts something into a list, where it then stands once.
SET_ASIDE = Script("""
redis.call('LREM', KEYS[1], 1, ARGV[1])
return redis.call('LPUSH', KEYS[1], ARGV[1])
""")

# Reads messages by their tags: the first, and as many more as are not too much at once.
READ = Script("""
local items, size = {}, 0
for i = 2, #ARGV do
  if size >= tonumber(ARGV[1]) then break end
  local item = redis.call('HGET', KEYS[1], ARGV[i])
  items[i - 1] = item
  size = size + (item and #item or 0)
end
return items
""")

# Keeps the visibility timeout of stock Kombu from taking what a living incarnation holds; for one
# that is fenced nobody does that. The order in which it was taken stays, and all of it is older
# than what is claimed next. A server that is full refuses to add, unless a script has removed
# something before.
RENEW = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[5]) == 1 then return 0 end
local claims = redis.call('HGETALL', KEYS[3])
local held = {}
for i = 1, #claims, 2 do
  local tag = claims[i]
  local claimed, list = string.match(claims[i + 1], '^(%S+) (.*)$')
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if score and tonumber(score) == tonumber(claimed) then
    held[#held + 1] = {tag, list, tonumber(score)}
  end
end
table.sort(held, function(one, other) return one[3] < other[3] end)
for i, each in ipairs(held) do
  local time = now(i - #held)
  redis.call('ZREM', KEYS[2], each[1])
  redis.call('ZADD', KEYS[2], time, each[1])
  redis.call('HSET', KEYS[3], each[1], time .. ' ' .. each[2])
end
return #held
"""
)

Move = tuple[str | bytes, str | bytes, str, str, str]
"""A tag; what is put into a list, and by which command; another list and a verdict, or nothing."""

SCRIPTS = (CLAIM, SHUT, SET_ASIDE, RELEASE, GIVE_BACK, READ, RENEW)


@attrs.frozen
class Popped:
    """A message on its way from its list to the consumer.

    Attributes:
        list: Where it came from.
        item: What stood there.
        me: For whom it was taken.
        recorded: Whether the claim is on record.
    """

    list: str
    item: bytes
    me: Incarnation
    recorded: bool

    @property
    def tag(self) -> str:
        """Give the delivery tag of one that is recorded; empty if it cannot be read."""
        try:
            return str(json.loads(self.item)["properties"]["delivery_tag"])
        except (ValueError, TypeError, LookupError):
            return ""


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
        client: The consumer's, for what it answers when its channel is closed.
        most: How many messages it may claim at once. One, where a task is run while its message
            is delivered: the others would wait for it, and so would a worker's stop.
        held: The delivery tags that this process was handed and has not let go, with the
            incarnation under which each was claimed.
        late: Which of these are dealt with, though the broker could not be told yet; each with
            its task, if that ran on.
    """

    keys: Keys
    fenced: Callable[[Incarnation], None] = attrs.field(repr=False)
    incarnation: Incarnation | None = None
    client: Client = None
    most: int = MOST
    held: dict[str, Incarnation] = attrs.field(factory=dict, init=False)
    late: dict[str, Early | None] = attrs.field(factory=dict, init=False)

    def claim_command(
        self,
        me: Incarnation,
        lists: Sequence[str],
        waits: Collection[str],
        *,
        count: int,
        group: int,
        timeout: float,
    ) -> tuple[Any, ...]:
        """Give the command that takes the next messages of these lists.

        Args:
            me: The claimant.
            lists: Where to look, in this order.
            waits: For which of them the claimant waits, or is going to if there is no message now.
            count: How many messages to take at most.
            group: How many lists at a time, one after another, give a message in turn.
            timeout: How long the claimant waits, in seconds.
        """
        places = [number for number, list_ in enumerate(lists, 1) if list_ in waits]
        moved = [self.keys.moved(me, lists[place - 1]) for place in places]
        arguments = [str(me), count, group, len(lists), shut_for(timeout), SHARE, *places]
        return CLAIM.command([*self.keys.of(me), *lists, *moved], arguments)

    def wait_command(self, me: Incarnation, list_: str, timeout: float) -> tuple[Any, ...]:
        """Give the command that waits for a message of one list.

        The server moves it to a list of the claimant's own, so that it is lost to nobody; and
        wakes nobody else.
        """
        return ("BLMOVE", list_, self.keys.moved(me, list_), "RIGHT", "LEFT", timeout)

    def shut(self, client: Client, me: Incarnation, lists: Collection[str], timeout: float) -> None:
        """Take nothing more from these lists; what came from them and is not claimed goes back."""
        shut(client, self.keys, me, lists, shut_for(timeout))

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
        push = "LPUSH" if last else "RPUSH"
        move = (tag, message, push, "", "")
        return give_back(client, self.keys, self.held.pop(tag), [move]) == [1]

    def set_aside(self, client: Client, popped: Popped) -> str:
        """Put what cannot be delivered among the dead letters; tell where it is then."""
        letters, item = self.keys.dead_letters, popped.item
        if not popped.recorded:
            try:
                SET_ASIDE.run(client, [letters], [item])
            except redis.ResponseError as exc:
                return f"nowhere, since it cannot be put into {letters}: {exc}: {item[:1000]!r}"
            return letters
        move = (popped.tag, item, "LPUSH", letters, "")
        moved = give_back(client, self.keys, popped.me, [move]) == [1]
        return letters if moved else self.keys.unacked

    def renew(self, client: Client, me: Incarnation) -> None:
        """Begin the visibility timeout of all that this worker holds anew."""
        # A copy in one step: the consumer changes the table meanwhile.
        for incarnation in {me, *list(self.held.values())}:
            RENEW.run(client, self.keys.of(incarnation), [])

    def settle(self, client: Client, me: Incarnation) -> None:
        """Put back what came or was claimed over a connection that broke, and never arrived."""
        lists = execute(client, "SMEMBERS", self.keys.waits(me))
        self.shut(client, me, [list_.decode() for list_ in lists], 0)
        self.recall(client, me)

    def recall(self, client: Client, me: Incarnation, but: Collection[str] = ()) -> None:
        """Put back what the broker says that this worker holds, and that it never got.

        Args:
            client: A client of the broker. Blocks for a round trip, and two a message.
            me: Under which incarnation it was claimed.
            but: The tags of what it got, and does not hold yet.
        """
        claims = execute(client, "HGETALL", self.keys.claims(me))
        here = {*self.held, *but}
        lost = [tag for tag in claims if tag.decode() not in here]
        # The oldest last, so that it stands ahead of the others.
        for batch in read(client, self.keys, sorted(lost, key=claims.__getitem__, reverse=True)):
            moves: list[Move] = []
            for tag, raw in batch:
                try:
                    message = json.dumps(json.loads(raw)[0]) if raw is not None else ""
                except (ValueError, TypeError, LookupError) as exc:
                    name = tag.decode()
                    logger.error(
                        "heartbeat: message %s never came, and cannot be read: %r", name, exc
                    )
                    continue
                moves.append((tag, message, "RPUSH", "", ""))
            give_back(client, self.keys, me, moves)


def read(
    client: Client, keys: Keys, tags: Sequence[bytes]
) -> Iterator[list[tuple[bytes, bytes | None]]]:
    """Read what is not acknowledged, as much of it as may be given back at once. Blocks.

    Yields:
        Tags with their messages, and ``None`` for one that is gone.
    """
    while tags:
        items = READ.run(client, [keys.unacked], [MUCH, *tags[:MOST_BACK]])
        yield list(zip(tags, items, strict=False))
        tags = tags[len(items) :]


def give_back(
    client: Client, keys: Keys, owner: Incarnation, moves: Sequence[Move]
) -> list[int | bytes]:
    """Move messages out of the claims of their owner, each in one step with all of it. Blocks.

    Returns:
        Of each whether it moved, or why it cannot.
    """
    if not moves:
        return []
    arguments = [each for move in moves for each in move]
    answers: list[int | bytes] = GIVE_BACK.run(client, [*keys.of(owner), keys.verdicts], arguments)
    return answers


def shut(
    client: Client, keys: Keys, me: Incarnation, lists: Collection[str], seconds: int
) -> list[tuple[str, bytes]]:
    """Shut an incarnation, for so long, from what comes from these lists. Blocks.

    Returns:
        What had come and went back, with its list.
    """
    pairs = [key for list_ in lists for key in (list_, keys.moved(me, list_))]
    items = SHUT.run(client, [keys.waits(me), *pairs], [seconds]) if pairs else []
    return [(list_.decode(), item) for list_, item in reversed(items)]


def shut_for(timeout: float) -> int:
    """Tell for how many seconds to be shut, so that nobody waits any more when that is over."""
    return math.ceil(timeout) + 60
