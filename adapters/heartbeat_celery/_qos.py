"""What a worker holds, and how it lets go of it: Kombu's account of messages, with claims.

Everything here runs where Kombu runs it: in the consumer's thread, an ack at times in another.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from heartbeat_celery._claims import Claims, Popped
from heartbeat_celery._running import Early, Running
from heartbeat_core import Incarnation

__all__ = ("QoS", "mark_redelivered")

logger = logging.getLogger("heartbeat_celery")

# Kombu's types, where there are any, do not know these parts of it.
stock: Any = redis


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
        return self.has_room()

    def has_room(self) -> bool:
        """Tell the same, and do nothing else; from any thread."""
        return bool(super().can_consume())

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take note of a message that was delivered, and record it unless that is done."""
        claims: Claims | None = self.channel.claims
        popped: Popped | None = self.channel.popped
        self.channel.popped = None
        if claims is None or popped is None:
            super().append(message, delivery_tag)
        else:
            claims.held[delivery_tag] = self._claimed[delivery_tag] = popped.me
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


def mark_redelivered(message: dict[str, Any]) -> None:
    """Say in a message that it was delivered before, as stock Kombu does."""
    message.setdefault("headers", {})["redelivered"] = True
    message["properties"].setdefault("delivery_info", {})["redelivered"] = True


def _say_taken(tag: str) -> None:
    logger.warning(
        "heartbeat: message %s is not this worker's any more; its answer to it was ignored",
        tag,
    )
