"""What happens to brokers and networks: nobody dies of it, and everything goes on afterwards.

Each fault is tried on nodes that beat and observe in this process, over a network that can be
cut. It lasts longer than silence that would kill, were it counted.
"""

import logging
import pathlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
import redis

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent)]

from proxy import Proxy

from heartbeat_core import Heartbeat, Settings, State, Transport
from heartbeat_kombu import AmqpTransport, KombuTransport
from heartbeat_redis import RedisTransport

pytestmark = pytest.mark.anyio

SETTINGS = Settings(frequency=0.2, max_freq=0.8, min_freq=1.5, expire=6.0, discard_delay=20.0)
LASTS = 3.0
"""So long a fault lasts: twice the silence that would kill."""


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: the conformance suite runs on both."""
    return "asyncio"


@attrs.define
class Broker:
    """A broker behind a network, and how to reach it.

    Attributes:
        server: The server itself.
        proxy: The network before it.
        transport: Makes a transport through that network.
    """

    server: Any
    proxy: Proxy
    transport: Callable[[], Transport]


@pytest.fixture(params=["redis", "amqp", "kombu on amqp", "kombu on redis"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Each kind of broker."""
    fixture, url, make = KINDS[request.param]
    server = request.getfixturevalue(fixture)
    with Proxy(server.port) as proxy:
        yield Broker(server, proxy, lambda: make(url.format(proxy.port)))


REDIS, AMQP = "redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"

KINDS: dict[str, tuple[str, str, Callable[[str], Transport]]] = {
    "redis": ("valkey_private", REDIS, lambda url: RedisTransport(url, timeout=0.5)),
    # It takes seconds to start, so all tests share it.
    "amqp": ("rabbitmq", AMQP, lambda url: AmqpTransport(url, timeout=0.5)),
    "kombu on amqp": ("rabbitmq", AMQP, lambda url: KombuTransport(url, timeout=0.5)),
    "kombu on redis": ("valkey_private", REDIS, lambda url: KombuTransport(url, timeout=0.5)),
}


def _names(heartbeat: Heartbeat) -> dict[str, State]:
    return {view.incarnation.node: view.state for view in heartbeat.nodes()}


class Fleet:
    """Three nodes, which all observe."""

    def __init__(self, heartbeats: list[Heartbeat]) -> None:
        self.heartbeats = heartbeats
        self.deaths: list[str] = []

    def is_well(self) -> bool:
        """Tell whether all hold each other for alive, and hear themselves."""
        return all(_names(each) == dict.fromkeys("abc", State.ALIVE) for each in self.heartbeats)

    def sequences(self) -> list[int]:
        """Give the last of their own beats that each has heard."""
        return [each._echoed for each in self.heartbeats]

    async def until_well(self, seconds: float) -> None:
        """Wait until all goes on: they beat, hear themselves, hold each other for alive."""
        before = self.sequences()
        with anyio.fail_after(seconds):
            while not self.is_well() or any(
                now <= then for now, then in zip(self.sequences(), before, strict=True)
            ):
                await anyio.sleep(0.02)


@asynccontextmanager
async def running(broker: Broker) -> AsyncIterator[Fleet]:
    """Run three nodes, and keep account of who was declared dead."""
    async with (
        Heartbeat("a", broker.transport(), settings=SETTINGS) as a,
        Heartbeat("b", broker.transport(), settings=SETTINGS) as b,
        Heartbeat("c", broker.transport(), settings=SETTINGS) as c,
        anyio.create_task_group() as tasks,
    ):
        fleet = Fleet([a, b, c])

        async def follow(heartbeat: Heartbeat) -> None:
            async for transition in heartbeat.transitions():
                if transition.state is State.DEAD:
                    fleet.deaths.append(transition.reason)

        for each in fleet.heartbeats:
            tasks.start_soon(follow, each)
        await fleet.until_well(30)
        yield fleet
        tasks.cancel_scope.cancel()


Act = Callable[[Broker], object]


async def _in_thread(act: Act, broker: Broker) -> None:
    await anyio.to_thread.run_sync(act, broker)


async def _suffer(broker: Broker, begin: Act, end: Act, log: pytest.LogCaptureFixture) -> None:
    """Let a fault begin, last and end; hold the nodes to what is promised."""
    log.set_level(logging.INFO)
    async with running(broker) as fleet:
        log.clear()
        cpu = time.process_time()
        await _in_thread(begin, broker)
        await anyio.sleep(LASTS)
        busy = (time.process_time() - cpu) / LASTS
        await _in_thread(end, broker)
        await fleet.until_well(SETTINGS.max_freq + 2 + 2)
        await anyio.sleep(2 * SETTINGS.max_freq)
        await fleet.until_well(SETTINGS.max_freq + 2)
        assert fleet.deaths == []
        assert busy < 0.5
        lost = [each.getMessage() for each in log.records if "lost the broker" in each.getMessage()]
        back = [each.getMessage() for each in log.records if "is back at" in each.getMessage()]
        assert len(lost) == len(back) <= 3, lost + back


FAULTS: dict[str, tuple[Act, Act]] = {
    "stopped": (lambda broker: broker.server.stop(), lambda broker: broker.server.start()),
    "killed": (lambda broker: broker.server.kill(), lambda broker: broker.server.start()),
    "frozen": (lambda broker: broker.server.freeze(), lambda broker: broker.server.thaw()),
    "cut": (lambda broker: broker.proxy.cut(), lambda broker: broker.proxy.heal()),
    "cut on the way there": (
        lambda broker: broker.proxy.cut(down=False),
        lambda broker: broker.proxy.heal(),
    ),
    "cut on the way back": (
        lambda broker: broker.proxy.cut(up=False),
        lambda broker: broker.proxy.heal(),
    ),
    "refused": (lambda broker: broker.proxy.refuse(), lambda broker: broker.proxy.heal()),
    "dropped": (lambda broker: broker.proxy.drop(), lambda broker: broker.proxy.heal()),
}


@pytest.mark.parametrize("fault", list(FAULTS))
async def test_a_fault_kills_nobody(
    broker: Broker, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody dies, nobody spins, one line at loss and one at return, and all goes on."""
    await _suffer(broker, *FAULTS[fault], caplog)


async def test_a_full_server_kills_nobody(
    valkey_private: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """While a Redis server has no memory left, beats go on, and nobody dies."""
    with redis.Redis.from_url(valkey_private.url) as client, Proxy(valkey_private.port) as proxy:
        broker = Broker(
            valkey_private,
            proxy,
            lambda: RedisTransport(valkey_private.url, timeout=0.5),
        )

        def fill(_broker: Broker) -> None:
            client.config_set("maxmemory", "1")

        def free(_broker: Broker) -> None:
            client.config_set("maxmemory", "0")

        await _suffer(broker, fill, free, caplog)
        assert "lost the broker" not in caplog.text


async def test_a_rabbitmq_without_memory_kills_nobody(
    rabbitmq: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """While RabbitMQ blocks who publishes, nobody beats, and nobody dies of it."""
    url = AMQP.format(rabbitmq.port)
    with Proxy(rabbitmq.port) as proxy:
        broker = Broker(rabbitmq, proxy, lambda: AmqpTransport(url, timeout=0.5))

        def set_limit(share: str) -> None:
            rabbitmq.control("set_vm_memory_high_watermark", share)

        await _suffer(broker, lambda _: set_limit("0.00001"), lambda _: set_limit("0.4"), caplog)
        assert "takes no messages now" in caplog.text


async def test_nothing_grows_in_the_broker(valkey_private: Any) -> None:
    """Nodes that come and go leave nothing behind in a Redis server but what expires."""
    with redis.Redis.from_url(valkey_private.url, decode_responses=True) as client:
        for number in range(20):
            async with Heartbeat(
                f"n{number}", RedisTransport(valkey_private.url), settings=SETTINGS
            ) as heartbeat:
                await heartbeat.wait_joined()
        left = {key: client.ttl(key) for key in client.scan_iter()}
        assert all(0 <= seconds <= 90 for seconds in left.values()), left
        assert not client.pubsub_channels()
