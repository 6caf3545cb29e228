"""What runs inside the server, each in one step. Times there are the server's, in milliseconds."""

__all__ = ("ASK", "PUBLISH", "SEAT", "TELL", "sharded")

_NOW = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
"""

# KEYS: {prefix}beat:{node}, {prefix}nodes. ARGV: the ttl in seconds, a space and the beat.
# Whatever the server can tell from these does not go over the wire with every beat. What removes
# comes first: a server that is full refuses a script that begins by adding.
PUBLISH = f"""{_NOW}
local ttl, beat = string.match(ARGV[1], '^(%S+) (.*)$')
ttl = math.floor(ttl * 1000 + 0.5)
local prefix = string.sub(KEYS[2], 1, -1 - #'nodes')
local node = string.sub(KEYS[1], 1 + #prefix + #'beat:')
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. now)
if ttl > 0 then
  redis.call('SET', KEYS[1], beat, 'PX', ttl)
  redis.call('ZADD', KEYS[2], now + ttl, node)
  if redis.call('PTTL', KEYS[2]) < ttl then redis.call('PEXPIRE', KEYS[2], ttl) end
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], node)
end
return redis.call('PUBLISH', prefix .. 'beats', beat)
"""

# KEYS: {prefix}watched:{me}. ARGV: ZADD or ZREM, and its arguments. No channel has an empty name.
TELL = """
redis.call('ZREM', KEYS[1], '')
redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], 60000)
"""

# KEYS: {prefix}watched:{me}. ARGV: my own channel, and which of the watched to ask about: the
# ranks of the first and the last. Gives how many hold my channel, how many are watched in all,
# and whose channel nobody holds.
ASK = """
local ttl = redis.call('PTTL', KEYS[1])
if ttl > 0 and ttl < 30000 then redis.call('PEXPIRE', KEYS[1], 60000) end
local watched = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[3])
local holders = redis.call('PUBSUB', 'NUMSUB', ARGV[1], unpack(watched))
local missing = {}
for i = 4, #holders, 2 do
  if holders[i] == 0 then missing[#missing + 1] = holders[i - 1] end
end
return {holders[2], redis.call('ZCARD', KEYS[1]), missing}
"""

# KEYS: {prefix}observers, {prefix}contenders. ARGV: the incarnation, the number of seats. Gives
# whether it has a seat, and after how many milliseconds it asks again: a holder well within its
# lease, the others so that all together ask a hundred times a second.
SEAT = f"""{_NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local holds = redis.call('ZSCORE', KEYS[1], ARGV[1])
if holds or redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[1], now + 5000, ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 5000)
  return {{1, 1500}}
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local wait = math.max(1000, 10 * redis.call('ZCARD', KEYS[2]))
redis.call('ZADD', KEYS[2], now + 2 * wait, ARGV[1])
if redis.call('PTTL', KEYS[2]) < 2 * wait then redis.call('PEXPIRE', KEYS[2], 2 * wait) end
return {{0, wait}}
"""


def sharded(script: str) -> str:
    """Give the form of a script for a cluster, in which a channel belongs to a hash slot."""
    return script.replace("'PUBLISH'", "'SPUBLISH'").replace("'NUMSUB'", "'SHARDNUMSUB'")
