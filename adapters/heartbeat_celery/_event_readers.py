"""Readers of a broker's event exchange, one kind a broker: what blocks is here.

A reader hears the events of workers by their type, so that the events of tasks, of which there may
be a thousand times as many, are not even sent to it. And it asks the broker, not the workers, which
of those that fell silent are still connected.
"""

import base64
import binascii
import json
import math
import selectors
import socket
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import amqp
import attrs
import redis
from celery import Celery
from celery.events.event import get_exchange

from heartbeat_celery._event_workers import EVENTS, Worker, Workers
from heartbeat_core import no_fork
from heartbeat_kombu.connections import BACKLOG, Broker, Line, Mailbox, Reader
from heartbeat_redis._connections import own

__all__ = (
    "AmqpEvents",
    "EventsReader",
    "RedisBroker",
    "RedisEvents",
    "Silences",
    "declare",
    "matched",
)

HEARTBEAT = 4.0
"""Four times in so many seconds silent workers are looked for; AMQP's heartbeats go as often."""

QUEUE_TTL = 10.0
QUEUE_EXPIRES = 60.0
LONGEST_QUEUE_NAME = 255

MOST_ASKED = 500
"""So many workers are asked for in one go, which takes a second on RabbitMQ."""

LARGEST_ENVELOPE = 16_384

QUIET_FOR = 5.0
"""After so many seconds without a message a Redis server is asked whether it is there."""

LEEWAY = 1.5
"""Redis tells times in whole seconds, and an event takes a moment to arrive."""

Message = tuple[object, bytes]
"""A content type, and a body. What is no message of Kombu's has no content type."""

Client = tuple[float, float]
"""For how many seconds a connection has been there, and for how many it has said nothing."""


@attrs.frozen(kw_only=True)
class Silences:
    """Who is silent; times are the observer's, in seconds.

    Attributes:
        now: The time.
        late: All workers that are silent for longer than they promised.
        longest_freq: The longest gap between heartbeats that any worker promises.
        listening_since: From when on everything was heard.
    """

    now: float
    late: Sequence[Worker]
    longest_freq: float
    listening_since: float


class EventsReader(Reader):
    """Puts beats into a mailbox, made of events, and of what the broker knows of the silent.

    Args:
        app: The app whose settings name the exchange and the queues.
        broker: Where to connect.
        key: The routing key of the echoes of the namespace.
        workers: Who is known. They outlive a reader.
        translate: Gives the beat that is in a message, if any.
    """

    def __init__(
        self,
        app: Celery,
        broker: Broker,
        key: str,
        workers: Workers,
        translate: Callable[[Message, float], bytes | None],
    ) -> None:
        self.mailbox = Mailbox[bytes]()
        super().__init__(broker, "heartbeat events", HEARTBEAT, self.mailbox)
        self._app = app
        self._keys = [*(kind.replace("-", ".") for kind in EVENTS), key]
        self._workers = workers
        self._translate = translate
        self._since = 0.0
        self._asked: dict[str, float] = {}

    def connected(self, line: Line, due: Sequence[Worker], silences: Silences) -> list[Worker]:
        """Ask the broker which of some silent workers are certainly connected."""
        raise NotImplementedError

    def tick(self, line: Line) -> None:
        """Speak for those that are silent, but connected."""
        now = time.monotonic()
        late = self._workers.late(now)
        asked = {worker.node: self._asked.get(worker.node, -math.inf) for worker in late}
        # Those first who wait longest, should there be too many.
        due = sorted(
            (worker for worker in late if now - asked[worker.node] >= worker.freq),
            key=lambda worker: asked[worker.node],
        )[:MOST_ASKED]
        self._asked = asked | {worker.node: now for worker in due}
        if not due:
            return
        silences = Silences(
            now=now,
            late=late,
            longest_freq=self._workers.longest_freq(),
            listening_since=self._since,
        )
        for worker in self.connected(line, due, silences):
            self.mailbox.put(self._workers.stall(worker, now))

    def _hear(self, content_type: object, body: bytes) -> None:
        beat = self._translate((content_type, body), self._since)
        if beat is not None:
            self.mailbox.put(beat)


def declare(app: Celery, line: Line) -> str:
    """Make sure that the event exchange is there, as Celery does; give its name."""
    exchange = get_exchange(app.connection_for_read(), name=app.conf.event_exchange)
    exchange(line.channel).declare()
    return str(exchange.name)


class AmqpEvents(EventsReader):
    """Reads from RabbitMQ, over a queue that ends with its connection."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asking: Any = None

    def begin(self, line: Line) -> None:
        """Declare a queue, and consume it."""
        exchange = declare(self._app, line)
        queue = f"{self._app.conf.event_queue_prefix}.{uuid.uuid4()}"
        limits = line.channel.prepare_queue_arguments(
            {}, max_length=BACKLOG, message_ttl=QUEUE_TTL, expires=QUEUE_EXPIRES
        )
        line.channel.queue_declare(queue, exclusive=True, auto_delete=True, arguments=limits)
        for key in self._keys:
            line.channel.queue_bind(queue, exchange, key)
        self._since = time.monotonic()
        line.channel.basic_consume(queue, no_ack=True, callback=self._take)

    def _take(self, message: Any) -> None:
        self._hear(message.properties.get("content_type"), bytes(message.body))

    def connected(
        self,
        line: Line,
        due: Sequence[Worker],
        silences: Silences,  # noqa: ARG002 - each has a queue of its own
    ) -> list[Worker]:
        """Ask for the queues of their remote control, which have a consumer while they run."""
        return [worker for worker in due if self._is_consumed(line, worker.node)]

    def _is_consumed(self, line: Line, node: str) -> bool:
        control: Any = self._app.control
        queue = control.mailbox.get_queue(node).name
        if len(queue.encode()) > LONGEST_QUEUE_NAME:
            return False
        try:
            if self._asking is None:
                self._asking = line.new_channel()
            return bool(self._asking.queue_declare(queue, passive=True).consumer_count)
        except amqp.ResourceLocked:
            # It is exclusive, and so it is there as long as the connection that declared it.
            self._asking = None
            return True
        except (amqp.NotFound, amqp.AccessRefused):
            self._asking = None
            return False


class RedisEvents(EventsReader):
    """Reads from Redis or Valkey, over a connection that is subscribed; another one asks."""

    def begin(self, line: Line) -> None:
        """Subscribe to the channels into which Kombu puts these events."""
        cast("_Subscription", line).subscribe(self._keys, self._hear)
        self._since = time.monotonic()

    def connected(self, line: Line, due: Sequence[Worker], silences: Silences) -> list[Worker]:
        """Look for connections that sent their last event when a worker did."""
        found = matched(silences, cast("_Subscription", line).publishers())
        return [worker for worker in due if worker in found]


class RedisBroker(Broker):
    """Opens connections to Redis or Valkey that are not read through Kombu.

    Kombu subscribes without waiting for the answer, and trips over what others publish.
    """

    def __init__(self, app: Celery, timeout: float) -> None:
        super().__init__(app.connection_for_read(), timeout)
        self._events = str(app.conf.event_exchange)

    def open(self, name: str, heartbeat: float) -> Line:
        """Connect; through Kombu first, which alone knows TLS, Sentinel, prefixes and patterns."""
        line = super().open(name, heartbeat)
        try:
            channel = line.channel
            pool = channel._get_pool()  # noqa: SLF001
            own(pool, self.timeout)

            def topic(key: str) -> str:
                published = channel._get_publish_topic(self._events, key)  # noqa: SLF001
                return f"{channel.global_keyprefix}{published}"

            with self.translated():
                return cast("Line", _Subscription(pool, topic))
        finally:
            line.close()


class _Subscription:
    """A connection that is subscribed, with as much of a :class:`Line` as is read."""

    def __init__(self, pool: Any, topic: Callable[[str], str]) -> None:
        # Any: its types differ from release to release.
        self._pool = pool
        self._topic = topic
        self._take: Callable[[object, bytes], None] = lambda *_: None
        self._heard = time.monotonic()
        try:
            self._connection: Any = pool.get_connection()
        except TypeError:  # before redis-py 5.3
            self._connection = pool.get_connection("_")
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._connection._sock, selectors.EVENT_READ)  # noqa: SLF001

    def wake_by(self, sock: socket.socket) -> None:
        """Let ``take`` end early when something can be read from a socket."""
        self._waiting.register(sock, selectors.EVENT_READ)

    def subscribe(self, keys: Collection[str], take: Callable[[object, bytes], None]) -> None:
        """Have what is sent under these routing keys from now on handed to ``take``."""
        self._take = take
        topics = {self._topic(key) for key in keys}
        self._connection.send_command("SUBSCRIBE", *topics)
        for _ in topics:
            self._connection.read_response(push_request=True)

    def take(self, longest: float) -> bool:
        """Hand on what arrives next; wait up to so many seconds. Tell whether something came."""
        if not self._connection.can_read(timeout=0):
            self._waiting.select(longest)
            if not self._connection.can_read(timeout=0):
                return False
        with no_fork():
            response = self._connection.read_response(push_request=True)
            self._heard = time.monotonic()
            if response[0] == b"message":
                self._take(*_unwrapped(response[-1]))
        return True

    def beat(self) -> None:
        """Make sure that the server is there, if nothing comes."""
        quiet = time.monotonic() - self._heard
        if quiet > 2 * QUIET_FOR:
            raise redis.TimeoutError("the server does not answer")
        if quiet > QUIET_FOR:
            self._connection.send_command("PING", check_health=False)

    def publishers(self) -> list[Client]:
        """Ask for the connections that published last, as those of workers' events always do."""
        try:
            clients: Any = redis.Redis(connection_pool=self._pool).client_list(_type="normal")
        except redis.ResponseError:
            return []  # It is not allowed to ask.
        database = str(self._pool.connection_kwargs.get("db") or 0)
        return [
            (float(client["age"]), float(client["idle"]))
            for client in clients
            if client.get("cmd") == "publish" and client.get("db") == database
        ]

    def close(self) -> None:
        """Close both connections."""
        self._waiting.close()
        self._connection.disconnect()
        self._pool.disconnect()

    drop = close


def matched(silences: Silences, clients: Sequence[Client]) -> list[Worker]:
    """Give the silent workers whose connection is certainly one of these.

    A worker sends its events over a connection on which nothing else is sent. So the one of a
    worker that is silent has been so for just as long as the worker, and has spoken for as long
    before. If fewer such connections are there than workers that they could belong to, nobody can
    tell whose is gone.
    """
    now = silences.now
    quiet = [client for client in clients if client[1] > silences.longest_freq + 1]

    def fits(worker: Worker, client: Client) -> bool:
        age, idle = client
        # With -E it may have sent the event of a task after its last heartbeat.
        last = max(worker.heard, silences.listening_since) + worker.freq
        return (
            now - last - LEEWAY <= idle <= now - worker.heard + LEEWAY
            # Else it is one on which a worker speaks to the others when it starts, and never again.
            and age - idle >= worker.heard - worker.since - LEEWAY
        )

    found: list[Worker] = []
    for worker in silences.late:
        candidates = [client for client in quiet if fits(worker, client)]
        rivals = [each for each in silences.late if any(fits(each, one) for one in candidates)]
        if candidates and len(candidates) >= len(rivals):
            found.append(worker)
    return found


def _unwrapped(data: bytes) -> Message:
    """Take a body out of the envelope in which Kombu sends it through Redis."""
    if len(data) > LARGEST_ENVELOPE:
        return None, b""
    try:
        envelope = cast("dict[str, Any]", json.loads(data))
        if envelope["properties"]["body_encoding"] != "base64":
            return None, b""
        return envelope["content-type"], base64.b64decode(envelope["body"])
    except (ValueError, TypeError, LookupError, RecursionError, binascii.Error):
        return None, b""
