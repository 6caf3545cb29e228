"""Kombu's Redis transport with claims: who takes a message is on record from that moment.

Stock Kombu pops a message with BRPOP and records afterwards that it is unacknowledged; a kill in
between loses it. A worker's task channel, once it was given :class:`Claims`, sends a script
that pops and records in one step, and while its queues are empty lets the server move what comes to
lists of its own. Channels without claims (producers, remote control) behave as stock.

Everything here runs where Kombu runs it: in the consumer's thread, an ack at times in another.
"""

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import NoScriptError, RedisError

from heartbeat_celery._claims import CLAIM, Claims, Popped
from heartbeat_celery._qos import QoS
from heartbeat_celery._running import Running
from heartbeat_celery._waiting import Line, Lines, is_shut
from heartbeat_core import Incarnation

__all__ = ("ALIASES", "Channel", "SentinelChannel", "SentinelTransport", "Transport")

logger = logging.getLogger("heartbeat_celery")

# Kombu's types, where there are any, do not know these parts of it.
stock: Any = redis
_Mixin: Any = object

PAUSE_AFTER_REFUSAL = 1.0

MOST_LINES = 16
"""For so many lists a worker waits, at most."""


class _Claiming(_Mixin):
    """Mixed into a Redis channel: takes messages by claim once it was given claims.

    It asks for messages over the channel's own connection. When there are none it waits: for one
    list over that connection too, for several over a :class:`~heartbeat_celery._waiting.Line` each.
    What comes has left its list, so it is then claimed like any other.
    """

    QoS = QoS
    claims: Claims | None = None
    running: Running | None = None
    runs_on: Callable[[Any], bool] = bool
    fenced: Incarnation | None = None
    drop: Callable[[Incarnation], None]
    popped: Popped | None = None
    _in_poll: Any
    _claimant: Incarnation | None = None
    _asked = ""
    _asked_at = 0.0
    _asked_of: Sequence[str] = ()
    _open_for: Incarnation | None = None
    _is_in_doubt = False
    _is_broken = False
    _is_idle = True
    _is_waiting = False
    _is_woken = False
    _refused_until = 0.0
    _brpop_sent_at: float | None = None
    _no_lines_until = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Claimed, and not delivered yet.
        self._claimed: deque[Popped] = deque()
        # From which lists something may come for whom, as far as the broker knows.
        self._open: set[str] = set()
        # Of the lists for priorities those that were ever used; most never are.
        self._priorities: set[str] = set()
        self._lines = Lines(self._open_line)
        self._said: set[str] = set()
        # What is refused now, and why.
        self._refusals: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    # -- what Kombu calls ---------------------------------------------------------------------

    def _brpop_start(self, *args: Any, **kwargs: Any) -> None:
        """Ask for messages, or wait for them; called at each turn of Kombu's loop."""
        if self._claimed:
            self._hand_on()
            if not self.qos.can_consume():
                return
        self._claimant = None
        if self.claims is not None and not self._is_broken:
            self._claimant = self.claims.incarnation
            self._or_by_stock(self._turn)
        if self._claimant is None:
            self._brpop_sent_at = monotonic()  # kombu 5.6 and later does so too
            super()._brpop_start(*args, **kwargs)

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
        if asked == "BLMOVE":
            self._is_waiting = False
            if reply:
                self._or_by_stock(self._wake)
        elif reply == b"FENCED":
            self._open = set()
            self.claims.fenced(self._claimant)
        elif reply:
            self._take(reply)
            self._hand_on()
            return True
        elif reply is None and not self._closing:
            self._or_by_stock(self._wait)
        raise Empty

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()
        if self.claims is not None and not self._is_broken:
            try:
                self._or_by_stock(self._change)
            except self.connection_errors as exc:
                # It ends what waits, and its loss is found out where messages are asked for.
                logger.info("heartbeat: queues were changed without the broker: %s", exc)

    def close(self) -> None:
        """Close the channel; what came and was not delivered goes back first."""
        self._closing = True
        try:
            if self.claims is not None:
                self._or_by_stock(self._leave)
        finally:
            super().close()

    def _after_fork(self) -> None:
        self._lines.forget()
        super()._after_fork()

    # -- claiming -----------------------------------------------------------------------------

    def _or_by_stock(self, act: Callable[[], None]) -> None:
        """Act; if that is broken, by a Kombu of another kind, say, do without claims from now."""
        try:
            act()
        except Exception as exc:
            # Kombu counts a KeyError among the errors of a connection.
            if isinstance(exc, self.connection_errors) and not isinstance(exc, KeyError):
                raise
            logger.exception("heartbeat: messages cannot be claimed here; taken the stock way")
            self._is_broken = True
            self._claimant = None
            self._in_poll = None
            self._lines.close()
            with contextlib.suppress(Exception):
                self._shut(self._open)

    def _turn(self) -> None:
        if self._claimant is None:
            return
        if self._is_in_doubt:
            self._recall()
        now = monotonic()
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or now < self._refused_until:
            return
        if self._is_waiting and now < self._asked_at + self._timeout:
            self._wait()
        else:
            self._claim(queues)

    def _claim(self, queues: list[str]) -> None:
        assert self.claims is not None
        assert self._claimant is not None
        lists = [
            f"{self.global_keyprefix}{self._q_for_pri(queue, step)}"
            for step in self.priority_steps
            for queue in queues
        ]
        if self._is_idle or self._open:
            self._choose(lists, len(queues))
        room = self.qos.can_consume_max_estimate()
        command = self.claims.claim_command(
            self._claimant,
            lists,
            self._open,
            count=self.claims.most if room is None else min(room, self.claims.most),
            # As Kombu has it: the queues give in turn, or one goes before the other.
            group=1 if isinstance(self._queue_cycle, priority_cycle) else len(queues),
            timeout=self._timeout,
        )
        self._asked_of, self._is_waiting, self._is_in_doubt = lists, False, True
        self._ask(*command)

    def _ask(self, *command: Any) -> None:
        self._asked = command[0]
        connection = self._in_poll = self.client.connection
        self._asked_at = self._brpop_sent_at = monotonic()
        connection.send_command(*command)

    def _read_reply(self, asked: str, options: dict[str, Any]) -> Any:
        """Read an answer: false if it is none, ``None`` if there is nothing."""
        connection = self.client.connection
        try:
            reply = self.client.parse_response(connection, asked, **options)
        except self.connection_errors:
            # The next turn of the loop connects again.
            connection.disconnect()
            raise
        except NoScriptError:
            with self.conn_or_acquire() as client:
                CLAIM.load(client)
            reply = False
        except self.ResponseError as exc:
            # One who waits and was shut is told that his own list is none.
            if asked != "BLMOVE" or not is_shut(exc):
                self._refuse(asked, exc)
            return False
        self._refusals.pop(asked, None)
        if asked != "BLMOVE":
            self._is_in_doubt = False
        return reply

    def _refuse(self, asked: str, exc: Exception) -> None:
        # Out of memory, say: the messages are safe where they are.
        self._refused_until = monotonic() + PAUSE_AFTER_REFUSAL
        is_known = str(exc) in self._refusals.values()
        self._refusals[asked] = str(exc)
        if not is_known:
            logger.error("heartbeat: the broker refuses to hand out messages: %s", exc)

    def _take(self, reply: list[tuple[int, bytes, int]]) -> None:
        """Take over what was claimed; with that in its hands, the broker has shut the claimant."""
        assert self._claimant is not None
        self._open = set()
        self._is_idle, self._is_woken = self._is_woken, False
        for place, item, recorded in reply:
            list_ = self._asked_of[place - 1]
            self._claimed.append(Popped(list_, item, self._claimant, recorded == 1))
            if list_ != self._base(list_):
                self._priorities.add(list_)

    def _hand_on(self) -> None:
        """Deliver what was claimed; what nobody wants any more goes back."""
        is_unwanted = False
        while self._claimed:
            popped = self._claimed[0]
            message = self._read_message(popped)
            self._claimed.popleft()
            if message is None:
                continue
            queue = self._base(popped.list).removeprefix(self.global_keyprefix)
            if popped.recorded and (self._closing or queue not in self.connection._callbacks):
                is_unwanted = True
                continue
            self._queue_cycle.rotate(queue)
            self.popped = popped if popped.recorded else None
            try:
                self.connection._deliver(message, queue)
            except Exception as exc:
                if self.popped is None:
                    raise  # It was delivered, and this is the affair of who received it.
                self._set_aside(popped, exc)
            finally:
                self.popped = None
        if is_unwanted:
            self._recall()

    def _read_message(self, popped: Popped) -> dict[str, Any] | None:
        """Read a message; what is none is set aside."""
        try:
            message: dict[str, Any] = loads(bytes_to_str(popped.item))
            message["properties"]["delivery_tag"]
        except (ValueError, TypeError, LookupError) as exc:
            self._set_aside(popped, exc)
            return None
        return message

    def _set_aside(self, popped: Popped, exc: Exception) -> None:
        """Keep what nobody can begin anything with; with stock Kombu it would end each worker."""
        assert self.claims is not None
        with self.conn_or_acquire() as client:
            where = self.claims.set_aside(client, popped)
        logger.error(
            "heartbeat: what came from %s is no message (%r), and stands in %s",
            popped.list,
            exc,
            where,
        )

    def _recall(self) -> None:
        """Put back what was claimed and did not come, or was not wanted."""
        assert self.claims is not None
        assert self._claimant is not None
        here = {popped.tag for popped in self._claimed if popped.recorded} - {""}
        with self.conn_or_acquire() as client:
            # By its answer the broker has done what was sent over a connection before.
            client.ping()
            self.claims.recall(client, self._claimant, here)
        self._is_in_doubt = False

    def _base(self, list_: str) -> str:
        """Give the list without its priority."""
        return str(list_.rsplit(self.sep, 1)[0])

    # -- waiting ------------------------------------------------------------------------------

    @property
    def _timeout(self) -> float:
        return float(getattr(self.connection, "brpop_timeout", 0) or 1)  # kombu 5.6 and later

    def _choose(self, lists: list[str], queues: int) -> None:
        """Choose for which lists to wait, if there is nothing to claim: for those in use."""
        wanted = sorted(lists[:queues]) + sorted(self._priorities.intersection(lists))
        if len(wanted) > MOST_LINES:
            self._say(
                f"heartbeat: for {MOST_LINES} of the {len(wanted)} lists of its queues this worker "
                f"waits; at the others it looks every {self._timeout:g} s"
            )
        if self._open_for != self._claimant:
            # What came for an earlier life of this worker is recovered from it.
            self._open_for, self._open = self._claimant, set()
        chosen = set(wanted[:MOST_LINES])
        self._shut(self._open - chosen)
        self._open = chosen

    def _wait(self) -> None:
        """Wait, since there was nothing to claim."""
        assert self.claims is not None
        assert self._claimant is not None
        self._is_idle = True
        if not self._open:
            return  # The next claim opens, and comes at once.
        self._is_waiting = True
        me, timeout = self._claimant, self._timeout
        commands = [self.claims.wait_command(me, list_, timeout) for list_ in self._open]
        if len(commands) == 1:
            self._ask(*commands[0])
        elif monotonic() >= self._no_lines_until:
            self._wait_by_lines(commands)

    def _wait_by_lines(self, commands: list[tuple[Any, ...]]) -> None:
        timeout = self._timeout
        try:
            self._lines.wait(commands, timeout + (self.health_check_interval or math.inf))
        except (RedisError, OSError) as exc:
            # If it is the broker that is away, the next claim finds that out.
            if self._no_lines_until:
                self._say(
                    "heartbeat: there are not as many connections as lists that this worker waits "
                    f"for; it looks every {timeout:g} s: {exc}"
                )
            self._no_lines_until = monotonic() + timeout
        else:
            self._no_lines_until = 0.0

    def _open_line(self) -> Line:
        # Made as those of the pool are, and not one of them: of those others need all.
        pool = self.pool
        connection = pool.connection_class(**pool.connection_kwargs)
        return Line(connection, self.connection.cycle, self._line_ended)

    def _line_ended(self, command: tuple[Any, ...], reply: Any) -> None:
        if isinstance(reply, Exception):
            if not is_shut(reply):
                self._refuse(command[0], reply)
            return
        self._refusals.pop(command[0], None)
        if reply is not None:
            self._open.add(command[1])
            self._or_by_stock(self._wake)

    def _wake(self) -> None:
        """Claim what came, at the next turn; if it cannot be taken any more, it goes back."""
        self._is_idle = self._is_woken = True
        self._change()
        if not self.qos.can_consume():
            self._shut(self._open)

    def _change(self) -> None:
        """Wait anew; and for nothing of a queue that is not consumed any more."""
        self._is_waiting = False
        if not self.active_queues:
            self._settle()
        active = {f"{self.global_keyprefix}{queue}" for queue in self.active_queues}
        self._shut({list_ for list_ in self._open if self._base(list_) not in active})

    def _shut(self, lists: set[str]) -> None:
        """See that nothing comes from these lists any more."""
        if lists and self._open_for is not None:
            assert self.claims is not None
            with self.conn_or_acquire() as client:
                self.claims.shut(client, self._open_for, lists, self._timeout)
            self._open = self._open - lists

    def _settle(self) -> None:
        """Read the answer to a claim that is on its way."""
        if self._in_poll and self._asked == "EVALSHA":
            with contextlib.suppress(Empty):
                self._brpop_read()

    def _leave(self) -> None:
        """Take nothing more, and keep nothing that was not delivered."""
        self._lines.close()
        connection = getattr(self.__dict__.get("client"), "connection", None)
        if getattr(connection, "_sock", None) is None:
            return  # The broker is away. What is left goes back at the next connection, or goodbye.
        try:
            self._settle()
            self._shut(self._open)
            self._hand_on()
        except self.connection_errors as exc:
            logger.info("heartbeat: a channel is closed without the broker: %s", exc)
            self._open = set()
        if self._asked == "BLMOVE":
            self._asked, self._in_poll = "", None  # What came over it is back.

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(what)


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


def _nothing() -> None:
    """Do nothing."""
