"""The memory transport keeps the promises of the protocol."""

import anyio
import pytest

from heartbeat_core import (
    Incarnation,
    LastBeats,
    MemoryBroker,
    MemoryTransport,
    Presence,
    Transport,
    TransportError,
)

pytestmark = pytest.mark.anyio

A, B = Incarnation("a", 1), Incarnation("b", 1)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


async def test_it_has_both_abilities() -> None:
    """It keeps last beats and knows of connections."""
    transport: Transport = MemoryTransport()
    assert isinstance(transport, LastBeats)
    assert isinstance(transport, Presence)
    await transport.aclose()
    await transport.aclose()


async def test_what_is_published_reaches_all_in_batches() -> None:
    """Every subscriber hears everybody, the sender too; what waits comes in one batch."""
    broker = MemoryBroker()
    one, other = MemoryTransport(broker), MemoryTransport(broker)
    await one.publish(b"before", sender=A, ttl=0)
    async with one.subscribe() as mine, other.subscribe() as its:
        await one.publish(b"1", sender=A, ttl=0)
        await other.publish(b"2", sender=B, ttl=0)
        with anyio.fail_after(10):
            assert await anext(mine) == [b"1", b"2"]
            assert await anext(its) == [b"1", b"2"]
    assert not broker.subscribers


async def test_last_beats_live_as_long_as_they_are_told_to() -> None:
    """The last beat of each node is kept for its ttl, and a ttl of 0 removes it."""
    transport = MemoryTransport()
    await transport.publish(b"old", sender=A, ttl=30)
    await transport.publish(b"new", sender=A, ttl=30)
    await transport.publish(b"short", sender=B, ttl=0.01)
    assert b"new" in await transport.last_beats()
    assert await transport.last_beats(["a"]) == [b"new"]
    assert await transport.last_beats(["c"]) == []
    await anyio.sleep(0.05)
    assert await transport.last_beats() == [b"new"]
    await transport.publish(b"goodbye", sender=A, ttl=0)
    assert await transport.last_beats() == []


async def test_who_attends_is_present_and_has_an_inbox() -> None:
    """Within the context an incarnation is connected and is posted to; after it, neither."""
    broker = MemoryBroker()
    one, other = MemoryTransport(broker), MemoryTransport(broker)
    async with one.attend(A):
        async with other.attend(B) as inbox:
            seen = await one.connections([A, B])
            assert seen.asked == seen.connected == {A, B}
            await one.post(b"letter", B)
            with anyio.fail_after(10):
                assert await anext(inbox) == [b"letter"]
        assert (await one.connections([A, B])).connected == {A}
        await one.post(b"letter", B)


async def test_an_own_loss_changes_the_session() -> None:
    """Who is not connected itself is told nothing, and afterwards it is another session."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    async with transport.attend(A) as inbox:
        before = await transport.connections([A])
        broker.disconnect(B)
        assert await transport.connections([A]) == before
        broker.disconnect(A)
        with pytest.raises(TransportError):
            await transport.connections([A])
        with anyio.fail_after(10), pytest.raises(TransportError):
            await anext(inbox)
    async with transport.attend(A), transport.attend(A):
        assert (await transport.connections([A])).session != before.session


async def test_while_the_broker_is_away_everything_fails() -> None:
    """Each call, and each iteration that had begun, raises until the broker is back."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    async with transport.subscribe() as batches, transport.attend(A) as inbox:
        broker.stop()
        for waiting in (batches, inbox):
            with anyio.fail_after(10), pytest.raises(TransportError):
                await anext(waiting)
        with pytest.raises(TransportError):
            await transport.publish(b"1", sender=A, ttl=1)
        with pytest.raises(TransportError):
            await transport.last_beats()
        with pytest.raises(TransportError):
            await transport.connections([A])
        with pytest.raises(TransportError):
            await transport.post(b"1", A)
        with pytest.raises(TransportError):
            await transport.subscribe().__aenter__()
        with pytest.raises(TransportError):
            await transport.attend(A).__aenter__()
    broker.start()
    await transport.publish(b"1", sender=A, ttl=1)
