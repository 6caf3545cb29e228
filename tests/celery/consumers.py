"""Consumers without a worker, and the account of what they hold."""

import base64
import json
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import redis
from kombu import Connection, Consumer, Producer, Queue

from heartbeat_celery._claims import Claims
from heartbeat_celery._keys import Keys
from heartbeat_celery._kombu import Transport
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._redis_broker import RedisBroker
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._verdicts import Verdict
from heartbeat_core import Incarnation

A, B = Incarnation("a", 1), Incarnation("b", 1)
PRIORITIES = Queue("tasks", max_priority=9)


class Node:
    """A consumer that takes messages under an incarnation, or the stock way without one."""

    def __init__(
        self,
        url: str,
        me: Incarnation | None,
        prefetch: int = 10,
        queues: Sequence[Queue] = (PRIORITIES,),
        **options: Any,
    ) -> None:
        transport = Transport if me else "redis"
        self.connection = Connection(url, transport=transport, transport_options=options)
        self.channel: Any = self.connection.default_channel
        self.fenced: list[Incarnation] = []
        if me is not None:
            keys = Keys.of_channel(self.channel, "test")
            self.channel.claims = Claims(keys, self.fenced.append, me)
        self.got: list[Any] = []
        self.channel.basic_qos(0, prefetch, False)
        self.consumer = Consumer(self.channel, queues, on_message=self._on_message)
        self.consumer.consume()

    def _on_message(self, message: Any) -> None:
        self.got.append(message)

    def take(self, count: int) -> list[Any]:
        """Take so many messages, and give the latest of them."""
        wanted = len(self.got) + count
        until = time.monotonic() + 10
        while len(self.got) < wanted:
            assert time.monotonic() < until, f"got {len(self.got)} of {wanted} messages"
            self.drain()
        return self.got[-count:]

    def drain(self) -> None:
        """Let Kombu do what there is to do."""
        try:
            self.connection.drain_events(timeout=0.05)
        except OSError:
            pass

    def die(self) -> None:
        """Go without a word: nothing is given back."""
        self.channel.claims = None
        if hasattr(self.channel, "_lines"):
            self.channel._lines.close()
        self.channel._in_poll = None
        self.channel.qos._on_collect.cancel()
        self.channel.qos._delivered.clear()
        self.connection.collect()


class World:
    """A broker, those who take messages from it, and a look behind the scenes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: redis.Redis[bytes] = redis.Redis.from_url(url)
        self.nodes: list[Node] = []
        self.keys = Keys("", "test", "unacked", "unacked_index")
        self.recovery = Recovery(self.client, self.keys)

    def __enter__(self) -> "World":
        """Begin with nothing."""
        self.client.flushdb()
        return self

    def __exit__(self, *exc: object) -> None:
        """Let all of them die."""
        for node in self.nodes:
            node.die()
        self.client.close()

    def node(self, me: Incarnation | None, **options: Any) -> Node:
        """Let somebody consume."""
        node = Node(self.url, me, **options)
        self.nodes.append(node)
        return node

    def send(self, *numbers: int, priority: int = 0, queue: Queue = PRIORITIES) -> None:
        """Send messages with these numbers."""
        with Connection(self.url) as connection:
            producer = Producer(connection)
            for number in numbers:
                producer.publish(
                    {"n": number},
                    routing_key=queue.name,
                    declare=[queue],
                    priority=priority,
                    headers={"id": f"task-{number}"},
                )

    def recovery_of(self, most: int) -> Recovery:
        """Give one that recovers a message so often."""
        return Recovery(self.client, self.keys, RecoverySettings(max_recoveries=most))

    def verdicts(self) -> list[Verdict]:
        """Give what has to be told, and is not taken by anybody yet."""
        entries = self.client.lrange(self.keys.verdicts, 0, -1)
        return [Verdict.loads(entry.partition(b" ")[2].decode()) for entry in entries]

    def recover(self, dead: Incarnation) -> list[str]:
        """Recover what it held, and give the ids of the tasks that are back in their queues."""
        return [each.task_id for each in self.recovery.recover(dead)]

    def waiting(self, list_: str = "tasks") -> list[int]:
        """Give the numbers in a list, in the order in which they will be taken."""
        return [number_of(json.loads(item)) for item in self.client.lrange(list_, 0, -1)][::-1]

    def moved(self, owner: Incarnation, list_: str = "tasks") -> list[int]:
        """Give the numbers of what came from a list for an incarnation, and is not claimed."""
        moved = self.keys.moved(owner, list_)
        return self.waiting(moved) if self.client.type(moved) == b"list" else []

    def held(self, owner: Incarnation) -> set[bytes]:
        """Give the tags that an incarnation holds by record."""
        return set(self.client.hkeys(self.keys.claims(owner)))


def number_of(message: dict[str, Any]) -> int:
    """Give the number in a message as it stands in a list."""
    return int(json.loads(base64.b64decode(message["body"]))["n"])


def connect_again(node: Node, channel: Any = None) -> None:
    """Do what a worker does when it has a connection again, perhaps by another channel."""
    broker = RedisBroker(None, "test")  # type: ignore[arg-type] # no app is needed here
    broker.claims = node.channel.claims
    task_consumer = SimpleNamespace(channel=channel or node.channel)
    broker.attach(SimpleNamespace(task_consumer=task_consumer, pool=None))
