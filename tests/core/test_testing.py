"""What the core offers for tests: the clock, and the network's faults."""

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from heartbeat_core import (
    Beat,
    Detector,
    Heartbeat,
    Incarnation,
    MemoryTransport,
    Settings,
    State,
    Transition,
    TransportError,
)
from heartbeat_core.testing import ManualClock, MemoryNetwork

A, B = Incarnation("a", 1), Incarnation("b", 1)
SENT = [b"%02d" % number for number in range(60)]
FAST = Settings(frequency=0.05, max_freq=0.2, min_freq=0.5, expire=3.0, disconnect_interval=0.05)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


def test_a_clock_moves_only_when_told() -> None:
    """It stands still between two calls, and a step is what it was told to be."""
    clock = ManualClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    assert clock.advance(2.5) == clock() == 7.5
    assert clock.advance(0) == 7.5
    assert repr(clock) == "ManualClock(7.5)"


def test_ten_small_steps_are_a_large_one() -> None:
    """Steps add up without the noise of floating point."""
    clock = ManualClock()
    for _ in range(10):
        clock.advance(0.1)
    assert clock() == ManualClock().advance(1) == 1001.0


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_a_clock_never_goes_back(seconds: float) -> None:
    """Neither backwards nor to where there is no time; it stays as it was."""
    clock = ManualClock(5.0)
    with pytest.raises(ValueError, match=r"go back|finite"):
        clock.advance(seconds)
    assert clock() == 5.0


def test_a_clock_begins_somewhere() -> None:
    """It does not begin at a time that is none."""
    with pytest.raises(ValueError, match="finite"):
        ManualClock(float("nan"))


def test_a_clock_drives_the_detector() -> None:
    """Who is on record and never beats dies in due time, and no test has slept."""
    clock, settings = ManualClock(), Settings()
    detector = Detector(settings, A)
    began = clock()
    seen: list[Transition] = []
    while not detector.is_dead(B):
        beat = Beat(incarnation=A, sequence=len(seen) + 1, sent=clock(), gap=1)
        detector.observe(beat, clock())
        seen += [*detector.expect(B, clock()), *detector.check(clock())]
        assert clock.advance(0.5) <= began + settings.expire
    assert [transition.state for transition in seen] == [State.SUSPECT, State.DEAD]


async def read(network: MemoryNetwork, *, node: str = "reader", wait: float = 0.0) -> list[bytes]:
    """Send 60 messages, and give those that a reader gets."""
    sender, reader = network.transport("sender"), network.transport(node)
    arrived: list[bytes] = []
    async with reader.subscribe() as batches:
        for data in SENT:
            await sender.publish(data, sender=A, ttl=30)
        with anyio.move_on_after(wait + 0.02):
            async for batch in batches:
                arrived += batch
    return arrived


@pytest.mark.anyio
async def test_a_network_without_faults_loses_nothing() -> None:
    """What is sent arrives, in order, once."""
    assert await read(MemoryNetwork()) == SENT


@pytest.mark.anyio
async def test_loss_hits_the_way_to_the_readers() -> None:
    """About so many messages are lost, and the broker has kept the last one all the same."""
    network = MemoryNetwork(loss=0.3)
    arrived = await read(network)
    assert 30 <= len(arrived) <= 54
    assert arrived == [data for data in SENT if data in arrived]
    network.loss = 1.0
    assert await read(network) == []
    assert await network.transport("reader").last_beats() == [SENT[-1]]


@pytest.mark.anyio
async def test_duplication_gives_some_twice() -> None:
    """About so many arrive twice, all others once."""
    arrived = await read(MemoryNetwork(duplication=0.3))
    assert sorted(set(arrived)) == SENT
    assert 66 <= len(arrived) <= 90
    assert sorted(await read(MemoryNetwork(duplication=1.0))) == sorted(SENT * 2)


@pytest.mark.anyio
async def test_delay_is_waited_for() -> None:
    """Nothing arrives before its time; a fixed delay keeps the order."""
    network = MemoryNetwork(delay=(0.1, 0.1))
    transport = network.transport("a")
    async with transport.subscribe() as batches:
        began = anyio.current_time()
        await transport.publish(b"1", sender=A, ttl=0)
        await transport.publish(b"2", sender=A, ttl=0)
        arrived: list[bytes] = []
        with anyio.fail_after(10):
            while len(arrived) < 2:
                arrived += await anext(batches)
        assert anyio.current_time() - began >= 0.1
        assert arrived == [b"1", b"2"]


@pytest.mark.anyio
async def test_delays_that_differ_change_the_order() -> None:
    """Messages overtake each other, none is lost, and none takes longer than the most."""
    arrived = await read(MemoryNetwork(delay=(0.0, 0.05)), wait=0.05)
    assert arrived != SENT
    assert sorted(arrived) == SENT


@pytest.mark.anyio
async def test_who_waits_for_a_late_message_gets_an_earlier_one_first() -> None:
    """A reader that waits is woken for what is sent later and arrives sooner."""
    network = MemoryNetwork(delay=(0.2, 0.2))
    transport = network.transport("a")

    async def overtake() -> None:
        await anyio.sleep(0.02)
        network.delay = (0.0, 0.0)
        await transport.publish(b"fast", sender=A, ttl=0)
        network.delay = (0.01, 0.01)
        await transport.publish(b"medium", sender=A, ttl=0)

    async with transport.subscribe() as batches, anyio.create_task_group() as tasks:
        await transport.publish(b"slow", sender=A, ttl=0)
        tasks.start_soon(overtake)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"fast"]
            assert await anext(batches) == [b"medium"]
            assert await anext(batches) == [b"slow"]


@pytest.mark.anyio
async def test_a_seed_replays_a_run() -> None:
    """The same seed gives the same faults, whoever else reads; another one gives others."""

    async def run(seed: int, *, company: bool = False) -> list[bytes]:
        network = MemoryNetwork(seed=seed, loss=0.3, duplication=0.3)
        other = network.transport("other")
        async with AsyncExitStack() as stack:
            if company:
                await stack.enter_async_context(other.subscribe())
            return await read(network)

    assert await run(1) == await run(1) == await run(1, company=True)
    assert await run(1) != await run(2)


@pytest.mark.anyio
async def test_two_readers_have_faults_of_their_own() -> None:
    """What one reader loses, another at the same node may get."""
    network = MemoryNetwork(loss=0.3)
    assert await read(network, node="a") != await read(network, node="a")


@pytest.mark.anyio
async def test_what_nobody_reads_is_bounded_underway_too() -> None:
    """A reader that never reads makes nothing grow, however long messages take."""
    network = MemoryNetwork(delay=(0.01, 0.02), backlog=5)
    transport = network.transport("a")
    async with transport.subscribe() as batches:
        for data in SENT:
            await transport.publish(data, sender=A, ttl=0)
        await anyio.sleep(0.04)
        for data in SENT[:3]:
            await transport.publish(data, sender=A, ttl=0)
        await anyio.sleep(0.04)
        with anyio.fail_after(10):
            batch = await anext(batches)
        assert len(batch) == 5
        assert set(SENT[:3]) < set(batch)


@pytest.mark.anyio
async def test_a_mute_node_is_present_and_not_heard() -> None:
    """What it sends is lost without an error, and what needs an answer raises, until it heals."""
    network = MemoryNetwork()
    mute, other = network.transport("mute"), network.transport("other")
    async with (
        mute.attend(A),
        mute.subscribe() as batches,
        other.attend(B) as inbox,
        other.subscribe() as heard,
    ):
        network.mute("mute")
        await mute.publish(b"lost", sender=A, ttl=30)
        await mute.post(b"lost", B)
        await raises(mute)
        assert (await other.connections([A])).connected == {A}
        assert await other.last_beats() == []
        await other.publish(b"1", sender=B, ttl=30)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"1"]
            assert await anext(heard) == [b"1"]
            network.heal("mute")
            await mute.publish(b"2", sender=A, ttl=30)
            await mute.post(b"3", B)
            assert await anext(heard) == [b"2"]
            assert await anext(inbox) == [b"3"]


@pytest.mark.anyio
async def test_a_deaf_node_is_heard_and_hears_nothing() -> None:
    """What is sent to it, or was on its way, is lost; what it sends arrives."""
    network = MemoryNetwork(delay=(0.01, 0.01))
    deaf, other = network.transport("deaf"), network.transport("other")
    async with deaf.attend(A), deaf.subscribe() as batches, other.attend(B) as inbox:
        await other.publish(b"on its way", sender=B, ttl=30)
        network.deafen("deaf")
        await other.publish(b"lost", sender=B, ttl=30)
        await deaf.post(b"heard", B)
        await raises(deaf)
        assert (await other.connections([A])).connected == {A}
        with anyio.fail_after(10):
            assert await anext(inbox) == [b"heard"]
        await anyio.sleep(0.02)
        network.heal()
        await other.publish(b"found", sender=B, ttl=30)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"found"]


@pytest.mark.anyio
async def test_a_node_that_is_cut_off_gets_errors() -> None:
    """Its connections break, everything raises, and it is absent; afterwards it comes back."""
    network = MemoryNetwork(delay=(0.001, 0.001))
    cut, other = network.transport("cut"), network.transport("other")
    async with other.attend(B):
        async with cut.attend(A) as inbox, cut.subscribe() as batches:
            await other.publish(b"on its way", sender=B, ttl=30)
            network.cut("cut")
            for waiting in (inbox, batches):
                with anyio.fail_after(10), pytest.raises(TransportError):
                    await anext(waiting)
            await raises(cut)
            for call in (cut.publish(b"1", sender=A, ttl=1), cut.post(b"1", B)):
                with pytest.raises(TransportError, match="cut is cut off"):
                    await call
        assert (await other.connections([A, B])).connected == {B}
        network.heal("other")
        await raises(cut)
        network.heal("cut")
        async with cut.attend(A):
            assert (await other.connections([A, B])).connected == {A, B}


@pytest.mark.anyio
async def test_a_connection_can_break_without_a_partition() -> None:
    """Who was disconnected may connect again at once; the others notice nothing."""
    network = MemoryNetwork()
    a, b = network.transport("a"), network.transport("b")
    async with a.subscribe() as broken, b.subscribe() as whole:
        network.disconnect("a")
        with anyio.fail_after(10), pytest.raises(TransportError):
            await anext(broken)
        async with a.subscribe() as again:
            await b.publish(b"1", sender=B, ttl=0)
            with anyio.fail_after(10):
                assert await anext(again) == await anext(whole) == [b"1"]


@pytest.mark.anyio
async def test_a_broker_that_is_away_is_away_for_all() -> None:
    """Also for transports that are made meanwhile, in namespaces that are new."""
    network = MemoryNetwork()
    before = network.transport("a")
    await before.publish(b"1", sender=A, ttl=30)
    network.stop()
    for transport in (before, network.transport("b", namespace="new")):
        await raises(transport)
    network.start()
    assert await before.last_beats() == [b"1"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("loss", 1.1),
        ("loss", -0.1),
        ("duplication", float("nan")),
        ("delay", (0.2, 0.1)),
        ("delay", (-0.1, 0.1)),
        ("delay", (0.0, float("inf"))),
    ],
)
def test_a_fault_that_cannot_be_is_refused(option: str, value: Any) -> None:
    """At once, by its name, and also if it is set later."""
    with pytest.raises(ValueError, match=option):
        MemoryNetwork(**{option: value})
    network = MemoryNetwork()
    with pytest.raises(ValueError, match=option):
        setattr(network, option, value)


@pytest.mark.anyio
async def test_heartbeats_live_through_a_bad_network() -> None:
    """Nodes on a lossy, slow, doubling network see each other; a partition shows, and heals."""
    network = MemoryNetwork(loss=0.05, duplication=0.1, delay=(0.0, 0.02))
    async with (
        Heartbeat("a", network.transport("a"), settings=FAST) as a,
        Heartbeat("b", network.transport("b"), settings=FAST),
    ):

        async def until(state: State) -> None:
            with anyio.fail_after(10):
                while {v.incarnation.node: v.state for v in a.nodes()}.get("b") is not state:
                    await anyio.sleep(0.01)

        await until(State.ALIVE)
        network.cut("b")
        await until(State.DEAD)
        network.heal()
        await until(State.ALIVE)


async def raises(transport: MemoryTransport) -> None:
    """Make sure that whatever needs an answer of the broker gets none."""
    for call in (transport.last_beats(), transport.connections([A])):
        with pytest.raises(TransportError):
            await call
    for context in (transport.subscribe(), transport.attend(Incarnation("new", 1))):
        with pytest.raises(TransportError):
            await context.__aenter__()
