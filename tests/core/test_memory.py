"""The memory transport keeps the promises of the protocol, also behind a network."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from heartbeat_core import Incarnation, MemoryBroker, MemoryTransport, Transport, TransportError
from heartbeat_core.testing import MemoryNetwork, TransportConformance

pytestmark = pytest.mark.anyio

A, B = Incarnation("a", 1), Incarnation("b", 1)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


class TestMemoryTransport(TransportConformance):
    """It passes the suite."""

    grace = 0.02

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        self.brokers = defaultdict[str, MemoryBroker](MemoryBroker)
        yield lambda namespace: MemoryTransport(self.brokers[namespace], namespace=namespace)

    async def stop(self) -> None:
        for broker in self.brokers.values():
            broker.stop()

    async def start(self) -> None:
        for broker in self.brokers.values():
            broker.start()


class TestMemoryNetwork(TransportConformance):
    """Without faults it passes the suite."""

    grace = 0.03
    network = MemoryNetwork()

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield lambda namespace: self.network.transport("node", namespace=namespace)

    async def cut(self) -> None:
        self.network.disconnect()

    async def stop(self) -> None:
        self.network.stop()

    async def start(self) -> None:
        self.network.start()


class TestSlowMemoryNetwork(TestMemoryNetwork):
    """Delays, and the disorder that follows, break no promise."""

    network = MemoryNetwork(delay=(0.0, 0.02))


async def test_what_waits_comes_in_one_batch() -> None:
    """A reader that comes late gets all at once, in order, and leaves nothing in the broker."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    async with transport.subscribe() as batches:
        for data in (b"1", b"2", b"3"):
            await transport.publish(data, sender=A, ttl=0)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"1", b"2", b"3"]
    assert not broker.subscribers


async def test_a_slow_reader_does_not_make_the_broker_grow() -> None:
    """Of what nobody reads only so much is held, and the newest wins; inboxes are alike."""
    broker = MemoryBroker(backlog=3)
    transport = MemoryTransport(broker)
    async with transport.subscribe() as batches, transport.attend(A) as inbox:
        for number in range(1000):
            await transport.publish(b"%d" % number, sender=A, ttl=0)
            await transport.post(b"%d" % number, A)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"997", b"998", b"999"]
            assert await anext(inbox) == [b"997", b"998", b"999"]


async def test_what_has_expired_does_not_make_the_broker_grow() -> None:
    """Last beats that have expired are let go of, whoever is asked for."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    await transport.publish(b"a", sender=A, ttl=0.001)
    await transport.publish(b"b", sender=B, ttl=30)
    await anyio.sleep(0.01)
    assert await transport.last_beats(["a"]) == []
    assert set(broker.last) == {"b"}


async def test_one_connection_can_be_cut() -> None:
    """``disconnect`` takes the presence of one incarnation, and nothing of the others."""
    broker = MemoryBroker()
    transport, other = MemoryTransport(broker), MemoryTransport(broker)
    async with transport.attend(A) as inbox, other.attend(B):
        before = await other.connections([A, B])
        broker.disconnect(Incarnation("c", 1))
        assert await other.connections([A, B]) == before
        broker.disconnect(A)
        assert (await other.connections([A, B])).connected == {B}
        with anyio.fail_after(10), pytest.raises(TransportError):
            await anext(inbox)


async def test_what_arrived_before_the_broker_went_can_be_read() -> None:
    """An outage takes nothing back."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    async with transport.subscribe() as batches:
        await transport.publish(b"1", sender=A, ttl=0)
        broker.stop()
        with anyio.fail_after(10):
            assert await anext(batches) == [b"1"]
            with pytest.raises(TransportError):
                await anext(batches)
