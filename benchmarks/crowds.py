"""Crowds: thousands of nodes that one process plays, for measuring what observers cost.

Each beats once a second and is present, as a node's own heartbeat would have it. A crowd writes
what the transports write, past their public names, since they are made for one node.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from heartbeat_core import Beat, Incarnation, encode

__all__ = ("CROWDS",)

SLICES = 20
"""A second is cut into so many parts, in each of which its share of the nodes beats."""


class Crowd:
    """What all crowds share: when who beats."""

    def __init__(self, url: str, namespace: str, count: int) -> None:
        self.url = url
        self.namespace = namespace
        self.nodes = [Incarnation(f"celery@worker-{number}.example", 1) for number in range(count)]

    def begin(self) -> None:
        """Become present."""
        raise NotImplementedError

    def beat(self, nodes: Sequence[tuple[Incarnation, bytes]]) -> None:
        """Let these beat."""
        raise NotImplementedError

    def run(self) -> None:
        """Beat until the process is ended; say so once all have."""
        self.begin()
        sequence, planned = 0, time.monotonic()
        while True:
            sequence += 1
            for part in range(SLICES):
                now = time.monotonic()
                self.beat(
                    [(each, self._encode(each, sequence, now)) for each in self.nodes[part::SLICES]]
                )
                planned += 1 / SLICES
                time.sleep(max(0.0, planned - time.monotonic()))
            if sequence == 1:
                print(json.dumps({"nodes": len(self.nodes)}), flush=True)

    def _encode(self, incarnation: Incarnation, sequence: int, now: float) -> bytes:
        return encode(
            Beat(
                incarnation=incarnation,
                sequence=sequence,
                sent=now,
                gap=1.0,
                namespace=self.namespace,
            )
        )


class RedisCrowd(Crowd):
    """On Redis: a script a beat, in pipelines; one connection holds all channels."""

    def begin(self) -> None:
        """Hold the channels."""
        from heartbeat_redis import RedisTransport  # noqa: PLC0415

        self._transport: Any = RedisTransport(self.url, namespace=self.namespace)
        self._client: Any = self._transport._client
        self._channels = self._client.pubsub()
        names = [self._transport._channel(each) for each in self.nodes]
        for first in range(0, len(names), 500):
            self._channels.subscribe(*names[first : first + 500])
        self._script = self._transport._publish
        self._client.script_load(self._script.script)

    def beat(self, nodes: Sequence[tuple[Incarnation, bytes]]) -> None:
        """Send them all in one go."""
        prefix = self._transport._prefix
        with self._client.pipeline(transaction=False) as pipeline:
            for incarnation, data in nodes:
                pipeline.evalsha(
                    self._script.sha,
                    2,
                    f"{prefix}beat:{incarnation.node}",
                    f"{prefix}nodes",
                    b"30 " + data,
                )
            pipeline.execute()


class AmqpCrowd(Crowd):
    """On RabbitMQ: an inbox with a baton each, all over one connection; beats unconfirmed."""

    def begin(self) -> None:
        """Hold the batons."""
        import amqp  # noqa: PLC0415

        from heartbeat_kombu.connections import name_of  # noqa: PLC0415

        self._amqp: Any = amqp
        self._exchange = name_of(self.namespace)
        news = name_of(self.namespace, "news")
        self._connection = amqp.Connection(self.url.split("@")[1].strip("/"), heartbeat=0)
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.exchange_declare(self._exchange, "fanout", durable=False, auto_delete=True)
        self._channel.exchange_declare(news, "fanout", durable=False, auto_delete=True)
        arguments = {"x-expires": 10_000, "x-message-ttl": 0, "x-dead-letter-exchange": news}
        for each in self.nodes:
            queue = name_of(self.namespace, "node", str(each))
            self._channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
            self._channel.basic_consume(queue, callback=lambda _message: None)
            self._channel.basic_publish(
                amqp.Message(b"", type="baton", delivery_mode=1), routing_key=queue
            )

    def beat(self, nodes: Sequence[tuple[Incarnation, bytes]]) -> None:
        """Publish them one after another."""
        for _, data in nodes:
            message = self._amqp.Message(data, delivery_mode=1)
            self._channel.basic_publish(message, exchange=self._exchange)
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=0.001)


CROWDS: dict[str, Callable[[str, str, int], Crowd]] = {"redis": RedisCrowd, "amqp": AmqpCrowd}
