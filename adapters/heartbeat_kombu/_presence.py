"""Who is present, told by RabbitMQ itself: without a plugin, and without being asked over and over.

Each attending node has a queue, ``heartbeat.{namespace}:node:{incarnation}``: its inbox. It holds
one message of it unacknowledged, its *baton*. When its connection ends, however that comes, the
broker puts the baton back; the queue lets nothing lie (its time to live is 0), so the baton is
dead-lettered at once, to the fanout exchange ``heartbeat.{namespace}:news``, where all who ask
have a queue. That is a push, a few milliseconds after the death of a process. Who comes sends
news of its own.

News says that something has changed, never what: whoever gets it asks the broker anew, at its next
look, how many consumers the inbox has. So it does no harm if a node connects again before the
broker has noticed that its old connection is gone, and the baton of that falls then.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import amqp.exceptions
import attrs

from heartbeat_core import Incarnation, TransportError
from heartbeat_kombu._calls import Calls
from heartbeat_kombu._line import MOMENT, Broker, Line
from heartbeat_kombu._reader import Mailbox, Reader

__all__ = ("Attendance", "Directory")

HEARTBEAT = 60.0
"""Who is cut off or stands still is given up after two or three times so many seconds."""

BATON = "baton"
"""The type of the message that falls. Whatever else is dead-lettered was posted to nobody."""

RENEWAL = 30.0
"""So often the baton is renewed: brokers close a channel on which one lies for long."""

EXPIRES = 10_000
"""So many milliseconds an inbox outlives its node."""

SHORTEST_GAP, LONGEST_GAP = 0.005, 10.0
"""So rarely an absent incarnation is asked about: first, and after many times in vain."""

Name = Callable[[Incarnation], str]


class Attendance(Reader):
    """The connection by which an incarnation is present, and its inbox.

    Args:
        broker: Where to connect.
        calls: The connection by which it publishes: one that reads should never be blocked.
        inbox: The name of its queue.
        news: The name of the exchange of news.
        mailbox: Where goes what is posted to it.
    """

    def __init__(
        self, broker: Broker, calls: Calls, inbox: str, news: str, mailbox: Mailbox[bytes]
    ) -> None:
        super().__init__(broker, inbox, HEARTBEAT, mailbox)
        self._calls = calls
        self._inbox = inbox
        self._news = news
        self._mail = mailbox
        self._batons: list[Any] = []
        self._renewed = 0.0

    def begin(self, line: Line) -> None:
        """Take the baton, and tell everybody."""
        line.fanout(self._news)
        line.channel.queue_declare(
            queue=self._inbox,
            durable=True,
            auto_delete=False,
            arguments={
                "x-expires": EXPIRES,
                "x-message-ttl": 0,
                "x-dead-letter-exchange": self._news,
            },
        )
        # An older connection of the same incarnation may still seem to be there. It gets nothing.
        newest = {"x-priority": int(time.time() * 1000)}
        line.channel.basic_consume(queue=self._inbox, callback=self._take, arguments=newest)
        self._renew()
        until = time.monotonic() + self._broker.timeout
        while not self._batons:
            if time.monotonic() > until:
                raise TransportError("the broker sends nothing back")
            line.take(MOMENT)
        self._calls.run(lambda calls: calls.send(self._news, self._inbox, b""))

    def react(self, line: Line) -> None:
        """Hold one baton only, the newest."""
        while len(self._batons) > 1:
            line.channel.basic_ack(self._batons.pop(0))

    def tick(self, line: Line) -> None:  # noqa: ARG002
        """Renew the baton."""
        if time.monotonic() - self._renewed > RENEWAL:
            # If it cannot be done now it is done at the next tick. The old baton is still held.
            with contextlib.suppress(TransportError):
                self._renew()

    def _renew(self) -> None:
        self._calls.run(lambda calls: calls.send("", self._inbox, b"", kind=BATON))
        self._renewed = time.monotonic()

    def _take(self, message: Any) -> None:
        if message.properties.get("type") == BATON:
            self._batons.append(message.delivery_tag)
        else:
            message.channel.basic_ack(message.delivery_tag)
            self._mail.put(bytes(message.body))


@attrs.define
class _Absence:
    """What is known of an incarnation that was not there."""

    asked_at: float
    gap: float


class Directory:
    """What the broker has told of who is present. It is as good as the connection that told.

    It is used by one thread at a time, the one that uses the line.
    """

    def __init__(self, line: Line, news: str, name: Name) -> None:
        self.line = line
        self._name = name
        self._present: set[Incarnation] = set()
        self._absent: dict[Incarnation, _Absence] = {}
        self._names: dict[str, Incarnation] = {}
        self._asking = ""
        # What is not there closes the channel on which it was asked about.
        self._questions = line.new_channel()
        line.listen(news, "", self._hear)

    def look(
        self, asked: frozenset[Incarnation], since: float
    ) -> tuple[frozenset[Incarnation], Sequence[Incarnation]]:
        """Give those that are present, so far as is known, and those that have to be learnt.

        Args:
            asked: Who is asked about.
            since: Those that were found absent later than this are absent.
        """
        self.line.drain()
        if len(self._absent) > 2 * len(asked) + 1000:
            self._forget(self._absent.keys() - asked)
        unknown = []
        for incarnation in asked - self._present:
            absence = self._absent.get(incarnation)
            if absence is None or since > absence.asked_at + absence.gap:
                unknown.append(incarnation)
        return asked & self._present, unknown

    def learn(self, incarnations: Collection[Incarnation]) -> None:
        """Ask the broker about each: a round trip, a few if it is absent."""
        for incarnation in incarnations:
            self._asking = name = self._name(incarnation)
            self._names[name] = incarnation
            before = self._absent.pop(incarnation, None)
            asked_at = time.monotonic()
            consumed = self._is_consumed(name)
            if not self._asking:
                continue  # There was news meanwhile, and nobody knows which of the two is newer.
            if consumed:
                self._present.add(incarnation)
            else:
                gap = SHORTEST_GAP if before is None else min(2 * before.gap, LONGEST_GAP)
                self._absent[incarnation] = _Absence(asked_at, gap)

    def _is_consumed(self, queue: str) -> bool:
        try:
            return bool(self._questions.queue_declare(queue=queue, passive=True).consumer_count)
        except amqp.exceptions.NotFound:
            return False

    def _hear(self, message: Any) -> None:
        """Forget what was known of one of which there is news."""
        name = message.delivery_info["routing_key"]
        if name == self._asking:
            self._asking = ""
        incarnation = self._names.get(name)
        if incarnation is not None:
            self._forget({incarnation})

    def _forget(self, incarnations: Collection[Incarnation]) -> None:
        for incarnation in incarnations:
            self._present.discard(incarnation)
            self._absent.pop(incarnation, None)
            self._names.pop(self._name(incarnation), None)
