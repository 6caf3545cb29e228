"""Who is present on RabbitMQ, and how soon it is known."""

import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import heartbeat_kombu._presence as presence
from heartbeat_core import Cause, Heartbeat, Incarnation, State, TransportError
from heartbeat_kombu import AmqpTransport
from proxy import Proxy

pytestmark = pytest.mark.anyio

A, B = Incarnation("a", 1), Incarnation("b", 1)

ATTEND = """
import sys, anyio
from heartbeat_core import Incarnation
from heartbeat_kombu import AmqpTransport

async def main(url, namespace):
    async with AmqpTransport(url, namespace=namespace).attend(Incarnation("a", 1)):
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main, *sys.argv[1:])
"""

FORK = """
import os, sys, time, anyio
from heartbeat_core import Incarnation
from heartbeat_kombu import AmqpTransport

async def main(url, namespace):
    async with AmqpTransport(url, namespace=namespace).attend(Incarnation("a", 1)):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        print("ready", child, sep="\\n", flush=True)
        await anyio.sleep_forever()

anyio.run(main, *sys.argv[1:])
"""

BEAT = """
import sys, anyio
from heartbeat_core import Heartbeat
from heartbeat_kombu import AmqpTransport

async def main(url, namespace):
    async with Heartbeat("child", AmqpTransport(url, namespace=namespace)) as heartbeat:
        await heartbeat.wait_joined()
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def namespace() -> str:
    """A namespace that nobody has used."""
    return f"test-{secrets.token_hex(4)}"


@asynccontextmanager
async def observing(url: str, namespace: str) -> AsyncIterator[AmqpTransport]:
    """Attend, as somebody else."""
    transport = AmqpTransport(url, namespace=namespace)
    try:
        async with transport.attend(B):
            yield transport
    finally:
        await transport.aclose()


async def present(transport: AmqpTransport) -> bool:
    """Tell whether A is there."""
    return A in (await transport.connections([A])).connected


async def test_a_killed_process_is_absent_at_once(rabbitmq: Any, namespace: str, run: Any) -> None:
    """The broker pushes the news, so that nobody has to ask over and over."""
    async with observing(rabbitmq.url, namespace) as observer:
        child = await anyio.to_thread.run_sync(run, ATTEND, rabbitmq.url, namespace)
        assert await present(observer)
        child.kill()
        with anyio.fail_after(2):
            while await present(observer):
                await anyio.sleep(0.001)


async def test_a_process_that_stands_still_is_present(
    rabbitmq: Any, namespace: str, run: Any
) -> None:
    """It is mute and not gone, until its beats expire."""
    async with observing(rabbitmq.url, namespace) as observer:
        child = await anyio.to_thread.run_sync(run, ATTEND, rabbitmq.url, namespace)
        child.send_signal(signal.SIGSTOP)
        for _ in range(40):
            await anyio.sleep(0.1)
            assert await present(observer)


async def test_nothing_new_costs_the_broker_nothing(proxy: Proxy, namespace: str) -> None:
    """However often it is asked who is present, the broker is asked once."""
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    async with observing(url, namespace) as observer, observing(url, namespace + "x") as other:
        assert not await present(other)
        assert (await observer.connections([B])).connected == {B}
        await anyio.sleep(0.2)
        before = proxy.up
        for _ in range(100):
            assert (await observer.connections([B])).connected == {B}
        assert proxy.up == before


async def test_who_never_attends_is_asked_about_ever_more_rarely(
    proxy: Proxy, namespace: str
) -> None:
    """Nodes that have no presence do not make the broker answer all the time."""
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    async with observing(url, namespace) as observer:
        costs = []
        for _ in range(2):
            before = proxy.up
            for _ in range(60):
                assert not await present(observer)
                await anyio.sleep(0.01)
            costs.append(proxy.up - before)
        assert costs[1] < costs[0]


async def test_who_connects_anew_stays_present_when_its_old_connection_falls(
    rabbitmq: Any, proxy: Proxy, namespace: str, until: Any
) -> None:
    """While the broker has not noticed that a connection is dead, the newer one gets the post."""
    old = AmqpTransport(f"amqp://guest:guest@127.0.0.1:{proxy.port}//", namespace=namespace)
    new = AmqpTransport(rabbitmq.url, namespace=namespace)
    async with observing(rabbitmq.url, namespace) as observer:
        with pytest.raises(TransportError):
            async with old.attend(A) as lost:
                proxy.cut()
                async with new.attend(A) as inbox:
                    for number in range(10):
                        await observer.post(b"%d" % number, A)
                    heard: list[bytes] = []
                    with anyio.fail_after(10):
                        while len(heard) < 10:
                            heard += await anext(inbox)
                    assert await present(observer)
                    directory = observer._directory
                    assert directory is not None
                    proxy.refuse()
                    await until(lambda: has_news(observer, A))
                    assert await present(observer)
                    await anext(lost)
        await until(lambda: absent(observer))
    for each in (old, new):
        await each.aclose()


async def absent(observer: AmqpTransport) -> bool:
    """Tell whether A is not there."""
    return not await present(observer)


async def has_news(observer: AmqpTransport, incarnation: Incarnation) -> bool:
    """Tell whether the broker has pushed something about somebody that is not looked up yet."""

    def look() -> bool:
        directory = observer._directory
        assert directory is not None
        directory.line.drain()
        return incarnation not in directory._present

    return await anyio.to_thread.run_sync(look)


async def test_a_baton_is_not_held_for_long(
    rabbitmq: Any, namespace: str, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """It is renewed, since brokers close a channel that keeps a message; one is held at a time."""
    monkeypatch.setattr(presence, "HEARTBEAT", 1)
    monkeypatch.setattr(presence, "RENEWAL", 0.1)
    async with observing(rabbitmq.url, namespace) as observer:
        attendance: Any = observer._attendance
        (first,) = attendance._batons
        await until(lambda: attendance._batons[-1] > first + 2)
        queues = await anyio.to_thread.run_sync(rabbitmq.control, "list_queues", "name", "messages")
        (mine,) = [line for line in queues.splitlines() if f"{namespace}:node" in line]
        assert mine.split()[-1] in {"1", "2"}
        assert (await observer.connections([B])).connected == {B}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_child_does_not_keep_its_parent_present(
    rabbitmq: Any, namespace: str, run: Any, until: Any
) -> None:
    """A connection ends with the process that opened it, whatever children it has forked."""
    async with observing(rabbitmq.url, namespace) as observer:
        parent = await anyio.to_thread.run_sync(run, FORK, rabbitmq.url, namespace)
        child = int(await anyio.to_thread.run_sync(parent.stdout.readline))
        try:
            assert await present(observer)
            parent.kill()
            await until(lambda: absent(observer), 5)
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


async def test_a_killed_process_is_dead_by_its_connection(
    rabbitmq: Any, namespace: str, run: Any, until: Any
) -> None:
    """A process that is killed is dead long before its silence could tell."""
    transport = AmqpTransport(rabbitmq.url, namespace=namespace)
    async with Heartbeat("observer", transport) as heartbeat:
        child = await anyio.to_thread.run_sync(run, BEAT, rabbitmq.url, namespace)
        await until(lambda: [each for each in heartbeat.nodes() if each.connected])
        with anyio.fail_after(20):
            child.kill()
            async for transition in heartbeat.transitions():
                if transition.state is State.DEAD:
                    break
        assert transition.cause is Cause.CHECKS_FAILED
        assert transition.silence < heartbeat.settings.min_freq
