"""Kombu's Redis transport with claims: who takes a message is on record from that moment.

Stock Kombu pops a message with BRPOP and records afterwards that it is unacknowledged; a kill in
between loses it. A worker's task channel, once it was given :class:`Claims`, first sends a script
that pops and records in one step, and falls back to BRPOP only while its queues are empty.
Channels without claims (producers, remote control) behave as stock.

Everything here runs where Kombu runs it: in the consumer's thread, an ack at times in another.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import NoScriptError, RedisError

from heartbeat_celery._claims import CLAIM, Claims, Popped
from heartbeat_celery._running import Early, Running
from heartbeat_core import Incarnation

__all__ = ("ALIASES", "Channel", "SentinelChannel", "SentinelTransport", "Transport")

logger = logging.getLogger("heartbeat_celery")

# Kombu's types, where there are any, do not know these parts of it.
stock: Any = redis
_Mixin: Any = object

PAUSE_AFTER_REFUSAL = 1.0


class QoS(stock.QoS):
    """Acknowledges, rejects and restores only what is still this worker's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What came by claim, and for whom. When it is not held so any more it is never treated the
        # stock way: that would act for whoever holds it now, which may be this worker's next life.
        self._claimed: dict[str, Incarnation] = {}

    def can_consume(self) -> bool:
        """Tell whether there is room for another message; asked before each is asked for."""
        fenced, self.channel.fenced = self.channel.fenced, None
        if fenced is not None:
            self.channel.drop(fenced)
        return bool(super().can_consume())

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take note of a message that was delivered, and record it unless that is done."""
        claims: Claims | None = self.channel.claims
        popped: Popped | None = self.channel.popped
        self.channel.popped = None
        if claims is None or popped is None:
            super().append(message, delivery_tag)
            return
        if popped.recorded:
            claims.held[delivery_tag] = popped.me
        else:
            info = message.delivery_info
            unacked = dumps([message._raw, info["exchange"], info["routing_key"]])
            with self.channel.conn_or_acquire() as client:
                recorded = claims.record(client, delivery_tag, popped, unacked)
            if not recorded:
                claims.fenced(popped.me)
                raise Empty
        self._claimed[delivery_tag] = popped.me
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Delete a message that was dealt with, if it is still this worker's."""
        if self._holds(delivery_tag):
            self._release(delivery_tag, self._early(delivery_tag))
        elif delivery_tag in self._claimed:
            self._let_go(delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Delete a message or put it back, if it is still this worker's."""
        if delivery_tag in self._claimed and not self._holds(delivery_tag):
            self._let_go(delivery_tag)
        elif requeue or delivery_tag not in self._claimed:
            super().reject(delivery_tag, requeue=requeue)
        else:
            self._release(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back; what others hold goes back the stock way."""
        if not self._holds(tag):
            if tag not in self._claimed:
                super().restore_by_tag(tag, client=client, leftmost=leftmost)
            return
        message = self._delivered[tag]._raw
        mark_redelivered(message)
        with self._client(client) as acquired:
            if not self.channel.claims.give_back(acquired, tag, dumps(message), last=leftmost):
                _say_taken(tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Keep what runs on, now that the channel is closed; let go of the rest.

        Stock Kombu puts back all that a worker held, also what it goes on to run. Here a task that
        runs stays this worker's, and is acknowledged over another connection. The rest stays
        on record until the worker is connected again, or stops, and goes back then.
        """
        claims: Claims | None = self.channel.claims
        if claims is None:
            super().restore_unacked_once(stderr)
            return
        self._on_collect.cancel()
        self._flush()
        runs_on: Callable[[Any], bool] = self.channel.runs_on
        for tag in list(self._delivered):
            if tag not in self._claimed:
                # Taken before this worker had joined: it goes back the stock way.
                super().restore_by_tag(tag)
                del self._delivered[tag]
            elif not runs_on(self._delivered[tag]):
                if self._holds(tag):
                    del claims.held[tag]
                del self._delivered[tag]

    def _let_go(self, tag: str) -> None:
        """Ignore an answer to what came by claim, and is not held any more."""
        _say_taken(tag)
        self._is_answered(tag)

    def _is_answered(self, tag: str) -> None:
        self._claimed.pop(tag, None)
        virtual.QoS.ack(self, tag)

    @contextmanager
    def _client(self, client: Any = None) -> Iterator[Any]:
        """Give a client; the channel's own has gone when it is closed."""
        if self.channel.closed:
            yield self.channel.claims.client
        else:
            with self.channel.conn_or_acquire(client) as acquired:
                yield acquired

    def _holds(self, tag: str) -> bool:
        claims: Claims | None = self.channel.claims
        me = self._claimed.get(tag)
        return claims is not None and me is not None and claims.held.get(tag) == me

    def _early(self, tag: str) -> Early | None:
        """Tell whether a message is acknowledged although its task runs; never fails."""
        running: Running | None = self.channel.running
        if running is None:
            return None
        try:
            return running.early(self._delivered[tag])
        except Exception:
            logger.exception("heartbeat: tasks that are acknowledged early are not kept any more")
            self.channel.running = None
            return None

    def _release(self, tag: str, early: Early | None = None) -> None:
        claims: Claims = self.channel.claims
        me = claims.held[tag]
        is_ours = True
        try:
            with self._client() as client:
                is_ours = claims.release(client, tag, early.on_lost if early else "")
        except (RedisError, OSError) as exc:
            # The worker's connection is its own affair; this answer waits for the next one.
            if not claims.late:
                logger.warning(
                    "heartbeat: message %s, and others that are dealt with meanwhile, can only be "
                    "acknowledged when the broker answers again: %s",
                    tag,
                    exc,
                )
            claims.late[tag] = early
        # Also when the answer was lost: then the broker may have kept it.
        if early is not None and is_ours:
            self.channel.running.add(me, early)
        if not is_ours:
            _say_taken(tag)
        self._is_answered(tag)


class _Claiming(_Mixin):
    """Mixed into a Redis channel: takes messages by claim once it was given claims."""

    QoS = QoS
    claims: Claims | None = None
    running: Running | None = None
    runs_on: Callable[[Any], bool] = bool
    fenced: Incarnation | None = None
    drop: Callable[[Incarnation], None]
    popped: Popped | None = None
    _claimant: Incarnation | None = None
    _asked = ""
    _waits_for: str | None = None
    _has_priorities = False
    _is_broken = False
    _refused_until = 0.0
    _brpop_sent_at: float | None = None

    def _brpop_start(self, *args: Any, **kwargs: Any) -> None:
        """Ask for the next message, by claim; ``_brpop_read`` waits when there is none."""
        self._claimant = None
        if self.claims is not None and not self._is_broken:
            self._claimant = self.claims.incarnation
        if self._claimant is None:
            self._brpop_sent_at = monotonic()  # kombu 5.6 and later does so too
            super()._brpop_start(*args, **kwargs)
        else:
            self._or_by_stock(self._claim)

    def _or_by_stock(self, ask: Callable[[], None]) -> None:
        """Ask; if that is broken, by a Kombu of another kind, say, do without claims from now."""
        try:
            ask()
        except self.connection_errors:
            raise
        except Exception:
            logger.exception("heartbeat: messages cannot be claimed here; taken the stock way")
            self._is_broken = True
            self._claimant = None
            self._in_poll = None

    def _claim(self) -> None:
        assert self.claims is not None
        assert self._claimant is not None
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or monotonic() < self._refused_until:
            return
        lists = [
            f"{self.global_keyprefix}{self._q_for_pri(queue, step)}"
            for step in self.priority_steps
            for queue in queues
        ]
        one = len(queues) == 1 and not self._has_priorities
        self._waits_for = lists[0] if one else None
        self._ask(*self.claims.claim_command(self._claimant, lists, self._waits_for))

    def _ask(self, *command: Any) -> None:
        self._asked = command[0]
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        connection.send_command(*command)

    def _wait(self) -> None:
        """Wait for a message that is moved to the claimant, if there is one list to wait for.

        Redis can move from one list only; with several, the message is popped as stock does.
        """
        if self._waits_for is None:
            self._asked = "BRPOP"
            self._brpop_sent_at = monotonic()
            super()._brpop_start()
        else:
            assert self.claims is not None
            assert self._claimant is not None
            timeout = getattr(self.connection, "brpop_timeout", 1)  # kombu 5.6 and later
            self._ask(*self.claims.wait_command(self._claimant, self._waits_for, timeout))

    def _brpop_read(self, **options: Any) -> bool:
        """Read what came, and hand it on; wait for what is still to come."""
        if self.claims is None or self._claimant is None or not self._asked:
            return bool(super()._brpop_read(**options))
        asked, self._asked = self._asked, ""
        try:
            reply = self._read_reply(asked, options)
        finally:
            self._in_poll = None
            # The connection is idle: the moment for a pending re-authentication (kombu 5.6).
            getattr(self, "_flush_brpop_reauth", _nothing)()
        if reply == b"FENCED":
            self.claims.fenced(self._claimant)
        elif reply:
            self._hand_on(asked, reply)
            return True
        elif asked == "EVALSHA" and not self._closing and monotonic() >= self._refused_until:
            self._or_by_stock(self._wait)
        raise Empty

    def _read_reply(self, asked: str, options: dict[str, Any]) -> Any:
        connection = self.client.connection
        try:
            return self.client.parse_response(connection, asked, **options)
        except self.connection_errors:
            # The next turn of the loop connects again.
            connection.disconnect()
            raise
        except NoScriptError:
            with self.conn_or_acquire() as client:
                CLAIM.load(client)
        except self.ResponseError as exc:
            # Out of memory, say: the messages are safe where they are.
            self._refused_until = monotonic() + PAUSE_AFTER_REFUSAL
            logger.error("heartbeat: the broker refuses to hand out messages: %s", exc)
        return None

    def _hand_on(self, asked: str, reply: Any) -> None:
        assert self._claimant is not None
        prefix, recorded = self.global_keyprefix, asked == "EVALSHA"
        if asked == "BLMOVE":
            list_, item = self._waits_for or "", reply
        elif asked == "BRPOP":
            # Kombu's client has taken the prefix off.
            list_, item = f"{prefix}{bytes_to_str(reply[0])}", reply[1]
        else:
            list_, item = bytes_to_str(reply[0]), reply[1]
            recorded = reply[2] == 1
        queue, *priority = list_.removeprefix(prefix).rsplit(self.sep, 1)
        self._has_priorities = self._has_priorities or bool(priority)
        self._queue_cycle.rotate(queue)
        if recorded or asked != "EVALSHA":
            self.popped = Popped(list_, item, self._claimant, recorded, asked == "BLMOVE")
        try:
            self.connection._deliver(loads(bytes_to_str(item)), queue)
        finally:
            self.popped = None


class Channel(_Claiming, stock.Channel):
    """A Redis channel that can claim."""


class Transport(stock.Transport):
    """Kombu's Redis transport with channels that can claim."""

    Channel = Channel


class SentinelChannel(_Claiming, stock.SentinelChannel):
    """A channel to the master that Sentinel names, which can claim."""


class SentinelTransport(stock.SentinelTransport):
    """Kombu's Sentinel transport with channels that can claim."""

    Channel = SentinelChannel


ALIASES = {Transport: "redis-claims", SentinelTransport: "sentinel-claims"}
"""The names by which Kombu knows our transports, and shows them in a worker's banner."""

for _kind, _alias in ALIASES.items():
    TRANSPORT_ALIASES[_alias] = f"{_kind.__module__}:{_kind.__name__}"


def mark_redelivered(message: dict[str, Any]) -> None:
    """Say in a message that it was delivered before, as stock Kombu does."""
    message.setdefault("headers", {})["redelivered"] = True
    message["properties"].setdefault("delivery_info", {})["redelivered"] = True


def _say_taken(tag: str) -> None:
    logger.warning(
        "heartbeat: message %s is not this worker's any more; its answer to it was ignored",
        tag,
    )


def _nothing() -> None:
    """Do nothing."""
