"""The transport of workers that know nothing of it: their own events."""

import base64
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from celery.utils.time import utcoffset
from kombu.utils.json import dumps

from heartbeat_celery._event_readers import AmqpEvents, EventsReader, RedisBroker, RedisEvents
from heartbeat_celery._event_readers import declare as declare_exchange
from heartbeat_celery._event_workers import ECHO, EventError, Workers, read_echo, read_event
from heartbeat_core import Incarnation, TransportError
from heartbeat_kombu import KombuTransport
from heartbeat_kombu.connections import Broker, Calls, Line, name_of

__all__ = ("EventsTransport",)


class EventsTransport(KombuTransport):
    """Watches plain Celery workers by the events that they send anyway.

    The workers need nothing: no adapter, no ``-E``, no restart, and they are sent nothing. It reads
    ``worker-online``, ``worker-heartbeat`` and ``worker-offline`` from Celery's event exchange, on
    RabbitMQ, Redis or Valkey, and no event of any task. It has no abilities. Nothing connects
    before the first call.

    Workers beat every 2 s, or as ``--heartbeat-interval`` says, and are judged by that: at the
    default settings a killed one is dead after 6 to 9 s. One that says nothing since it runs a
    long task (``-P solo``) is told from a dead one by its connection, and held for suspect and
    stalled while that is open.

    Args:
        app: The app of the workers; or the URL of their broker, if the app's settings have the
            defaults in ``event_exchange`` and ``control_exchange``.
        namespace: What the workers and those who watch them are called together. Whoever watches
            hears the echoes of this namespace only, and all workers.
        timeout: After so many seconds without an answer the broker counts as away.

    Attributes:
        dropped: How many events were dropped, by reason: ``malformed``, ``oversized``,
            ``content type`` (not JSON: nothing else is decoded), ``unknown`` (its type),
            ``outdated`` (of a process that was succeeded by another, or went offline), ``crowded``
            (more than 10,000 workers).

    Raises:
        TransportError: The URL is not one that Kombu knows, or the broker is of another kind.
    """

    def __init__(
        self, app: Celery | str, *, namespace: str = "celery", timeout: float = 2.0
    ) -> None:
        given = app if isinstance(app, str) else app.connection_for_read()
        super().__init__(given, namespace=namespace, timeout=timeout)
        if isinstance(app, str):
            app = Celery(broker=app, set_as_current=False)
        self.dropped: dict[str, int] = {}
        self._app = app
        self._key = name_of(namespace)
        self._workers = Workers(namespace)
        self._calls = Calls(self._broker, "heartbeat echoes", self._declare)
        self._listening: tuple[type[EventsReader], Broker]
        if self._broker.driver == "amqp":
            self._listening = AmqpEvents, self._broker
        elif self._broker.driver == "redis":
            self._listening = RedisEvents, RedisBroker(app, timeout)
        else:
            raise TransportError("Celery's events are watched on RabbitMQ, Redis and Valkey only")

    async def publish(
        self,
        data: bytes,
        *,
        sender: Incarnation,
        ttl: float,  # noqa: ARG002 - nothing is kept
    ) -> None:
        """Send an echo: an event of a type that workers do not hear and monitors do not know."""
        event = {
            "type": ECHO,
            "hostname": sender.node,
            "pid": os.getpid(),
            "clock": 0,
            "timestamp": time.time(),
            "utcoffset": utcoffset(),
            "namespace": self.namespace,
            "data": base64.b64encode(data).decode(),
        }
        body = dumps(event).encode()
        await self._call(lambda line: self._send(line, body))

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:
        """Hear the workers and the echoes, over a connection of its own."""
        kind, broker = self._listening
        reader = kind(self._app, broker, self._key, self._workers, self._translate)
        async with self._reading(reader):
            yield reader.mailbox

    def _declare(self, line: Line) -> None:
        declare_exchange(self._app, line)

    def _send(self, line: Line, body: bytes) -> None:
        message: Any = line.channel.prepare_message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            headers={},
            properties={"delivery_mode": 1},
        )
        line.channel.basic_publish(
            message, exchange=self._app.conf.event_exchange, routing_key=self._key
        )

    def _translate(self, message: tuple[object, bytes], listening_since: float) -> bytes | None:
        try:
            event = read_event(*message)
            if event["type"] == ECHO:
                return read_echo(event, self.namespace)
            return self._workers.hear(
                event, time.monotonic(), wall=time.time(), listening_since=listening_since
            )
        except EventError as exc:
            self.dropped[exc.reason] = self.dropped.get(exc.reason, 0) + 1
            return None
