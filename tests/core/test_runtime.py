"""The runtime, on asyncio and on trio, over the memory transport."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from heartbeat_core import (
    Beat,
    Cause,
    Heartbeat,
    Incarnation,
    Kind,
    MemoryBroker,
    MemoryTransport,
    Settings,
    State,
    Transition,
    encode,
)

pytestmark = pytest.mark.anyio

FAST = Settings(
    frequency=0.05,
    max_freq=0.4,
    min_freq=0.8,
    expire=3.0,
    discard_delay=60.0,
    disconnect_interval=0.05,
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


class Peer:
    """A node that can be made to crash."""

    def __init__(self, broker: MemoryBroker, name: str, **options: object) -> None:
        self.broker = broker
        self.heartbeat = Heartbeat(name, MemoryTransport(broker), settings=FAST, **options)  # type: ignore[arg-type]
        self.crashed = anyio.Event()

    def crash(self) -> None:
        """End without a goodbye."""
        self.crashed.set()


@asynccontextmanager
async def running(*peers: Peer) -> AsyncIterator[None]:
    """Run nodes until the end of the context; who crashes ends before."""

    async def run(peer: Peer) -> None:
        with anyio.CancelScope() as scope:
            async with peer.heartbeat as heartbeat, anyio.create_task_group() as tasks:

                async def end() -> None:
                    await peer.crashed.wait()

                    async def silent() -> None:
                        return

                    heartbeat._say_goodbye = silent  # type: ignore[method-assign]
                    peer.broker.disconnect(heartbeat.incarnation)
                    scope.cancel()

                tasks.start_soon(end)
                await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for peer in peers:
                tasks.start_soon(run, peer)
            for peer in peers:
                await peer.heartbeat.wait_joined()
            yield
            tasks.cancel_scope.cancel()


async def until(what: Callable[[], object]) -> None:
    """Wait until something is true."""
    while not what():
        await anyio.sleep(0.005)


def states(peer: Peer) -> dict[str, State]:
    """Give the table of nodes as a peer sees it."""
    return {view.incarnation.node: view.state for view in peer.heartbeat.nodes()}


class Follower:
    """Keeps what a node reports."""

    def __init__(self, peer: Peer) -> None:
        self.seen: list[Transition] = []
        self._peer = peer

    async def follow(self) -> None:
        """Follow it."""
        async for transition in self._peer.heartbeat.transitions():
            self.seen.append(transition)

    def causes(self, node: str) -> list[Cause]:
        """Give why a node changed."""
        return [each.cause for each in self.seen if each.node == node]


async def test_nodes_see_each_other_die_and_leave() -> None:
    """Who crashes is suspected and dead, who leaves is gone, in the eyes of those who stay."""
    broker = MemoryBroker()
    a, b, c = (Peer(broker, name) for name in "abc")
    follower = Follower(a)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        async with running(a):
            async with running(c):
                async with running(b):
                    await until(lambda: len(states(a)) == 3)
                    await until(lambda: len(broker.inboxes) == 3)
                    await anyio.sleep(3 * FAST.disconnect_interval)
                    b.crash()
                    await until(lambda: states(a).get("b") is State.DEAD)
                assert states(c)["a"] is State.ALIVE
            await until(lambda: "c" not in states(a))
        tasks.cancel_scope.cancel()
    assert follower.causes("b")[-2:] == [Cause.DISCONNECTED, Cause.CHECKS_FAILED]
    assert follower.causes("c") == [Cause.FIRST_BEAT, Cause.GOODBYE]


async def test_who_does_not_observe_only_beats() -> None:
    """A node that does not observe is seen, and sees itself only."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b", observe=False)
    async with running(a, b):
        await until(lambda: states(a) == {"a": State.ALIVE, "b": State.ALIVE})
        assert states(b) == {"b": State.ALIVE}


async def test_an_outage_of_the_broker_kills_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The broker goes for longer than anybody may be silent: two lines a node, and no more."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    broker = MemoryBroker()
    peers = [Peer(broker, name) for name in "ab"]
    async with running(*peers):
        await until(lambda: all(len(states(peer)) == 2 for peer in peers))
        broker.stop()
        await anyio.sleep(2 * FAST.min_freq)
        broker.start()
        await until(lambda: len(broker.inboxes) == len(broker.subscribers) == 2)
        await anyio.sleep(2 * FAST.max_freq)
        for peer in peers:
            assert set(states(peer).values()) == {State.ALIVE}
    for name in "ab":
        assert caplog.text.count(f"{name} lost the broker") == 1
        assert caplog.text.count(f"{name} is back at the broker") == 1
    assert "dead" not in caplog.text


async def test_a_node_knows_whether_the_broker_knows_it() -> None:
    """It has joined while its beats get through: not before, in no outage, and not afterwards."""
    broker = MemoryBroker()
    broker.stop()
    with anyio.fail_after(20):
        async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as a:
            await anyio.sleep(2 * FAST.frequency)
            assert not a.joined
            for _ in range(2):
                broker.start()
                await until(lambda: a.joined)
                broker.stop()
                await until(lambda: not a.joined)
            broker.start()
            await until(lambda: a.joined)
        assert not a.joined


async def test_the_buried_come_back_as_somebody_larger() -> None:
    """A node that reads its obituary says so, and goes on as a larger incarnation."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    follower = Follower(b)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        async with running(a, b):
            await until(lambda: len(states(a)) == 2)
            first = b.heartbeat.incarnation
            obituary = Beat(
                incarnation=first,
                sequence=0,
                sent=0,
                gap=1,
                namespace="default",
                kind=Kind.OBITUARY,
            )
            await MemoryTransport(broker).post(encode(obituary), first)
            await until(lambda: b.heartbeat.incarnation.number > first.number)
            second = await b.heartbeat.wait_joined()
            await until(lambda: second in {view.incarnation for view in a.heartbeat.nodes()})
            assert a.heartbeat.is_dead(first)
            assert follower.causes("b") == [Cause.OBITUARY]
            b.heartbeat.rejoin(b.heartbeat.incarnation)
            await until(lambda: a.heartbeat.is_dead(second))
        tasks.cancel_scope.cancel()


async def test_a_name_that_is_taken_is_made_different(caplog: pytest.LogCaptureFixture) -> None:
    """The second of two nodes with one name beats under a name of its own, and says so."""
    broker = MemoryBroker()
    a, b, again = Peer(broker, "a"), Peer(broker, "b"), Peer(broker, "b")
    async with running(a, b):
        await until(lambda: len(states(a)) == 2)
        async with running(again):
            await until(lambda: len(states(a)) == 3)
            assert set(states(a).values()) == {State.ALIVE}
    assert caplog.text.count("a node called b is there already") == 1


async def test_a_restart_is_larger_than_the_life_before() -> None:
    """Even if the wall clock went back, a restarted node has the larger incarnation."""
    broker = MemoryBroker()
    late = Incarnation("a", 2**62)
    beat = Beat(incarnation=late, sequence=1, sent=0, gap=1)
    await MemoryTransport(broker).publish(encode(beat), sender=late, ttl=30)
    a = Peer(broker, "a")
    async with running(a):
        assert a.heartbeat.incarnation == Incarnation("a", 2**62 + 1)


async def test_a_status_that_fails_costs_no_beat(caplog: pytest.LogCaptureFixture) -> None:
    """If the status raises or does not fit, beats go out without one, with one traceback."""
    answers = iter([{"load": 1}, {"load": "x" * 5000}])

    def status() -> dict[str, object]:
        return next(answers)  # StopIteration at the third beat

    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b", status=status)
    async with running(a, b):
        await until(lambda: b.heartbeat.dropped.get("status", 0) > 3)
        assert states(a)["b"] is State.ALIVE
    assert caplog.text.count("status of b could not be asked for") <= 1


async def test_what_is_no_beat_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Noise, and beats of other fleets, are counted and dropped, with one warning a kind."""
    broker = MemoryBroker()
    a = Peer(broker, "a")
    stranger = Incarnation("x", 1)
    foreign = Beat(incarnation=stranger, sequence=1, sent=0, gap=1, namespace="other")
    async with running(a):
        for data in 3 * (b"noise", b"{}", b" " * 4000, encode(foreign)):
            await MemoryTransport(broker).publish(data, sender=stranger, ttl=0)
        expected = {"malformed": 3, "version": 3, "oversized": 3, "namespace": 3}
        await until(lambda: a.heartbeat.dropped == expected)
        warnings = [each.getMessage() for each in caplog.records if "dropped" in each.getMessage()]
        assert len(warnings) == 4
        assert any("version None, this is 1" in each for each in warnings)
        assert any("'other'" in each for each in warnings)
        assert states(a) == {"a": State.ALIVE}


async def test_who_is_expected_and_does_not_come_is_dead() -> None:
    """A node that is only on record is suspected at once, and dead after ``min_freq``."""
    a = Peer(MemoryBroker(), "a")
    async with running(a):
        a.heartbeat.expect([Incarnation("b", 1)])
        assert states(a)["b"] is State.SUSPECT
        await until(lambda: states(a)["b"] is State.DEAD)


async def test_a_slow_subscriber_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subscriber does not read in time is counted, and the rest goes on."""
    monkeypatch.setattr("heartbeat_core._reports.BUFFER", 1)
    a = Peer(MemoryBroker(), "a")
    async with running(a), anyio.create_task_group() as tasks:
        reached = anyio.Event()

        async def read_one() -> None:
            async for _ in a.heartbeat.transitions():
                reached.set()
                await anyio.sleep_forever()

        tasks.start_soon(read_one)
        await anyio.sleep(0.05)
        a.heartbeat.expect(Incarnation(f"n{number}", 1) for number in range(10))
        await reached.wait()
        assert a.heartbeat.dropped["unread"] == 9
        tasks.cancel_scope.cancel()


async def test_one_last_beat_read_is_worth_a_life() -> None:
    """A node whose beats get lost, but are kept by the transport, is never buried."""

    class Lossy(MemoryTransport):
        async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
            subscribers, self.broker.subscribers = self.broker.subscribers, set()
            try:
                await super().publish(data, sender=sender, ttl=ttl)
            finally:
                self.broker.subscribers = subscribers

        connections = None  # type: ignore[assignment] # no presence

    broker = MemoryBroker()
    a = Peer(broker, "a")
    lossy = Peer(broker, "b")
    lossy.heartbeat = Heartbeat("b", Lossy(broker), settings=FAST, observe=False)
    async with running(a, lossy):
        await until(lambda: "b" in states(a) or a.heartbeat.expect([lossy.heartbeat.incarnation]))
        follower = Follower(a)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower.follow)
            await anyio.sleep(4 * FAST.min_freq)
            tasks.cancel_scope.cancel()
    assert Cause.CHECKS_FAILED not in follower.causes("b")
    assert Cause.EXPIRED not in follower.causes("b")


async def test_ten_thousand_transitions_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many nodes change at once, a reader gets every change, and beats go on."""
    caplog.set_level(logging.CRITICAL, "heartbeat_core")
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    follower = Follower(a)
    async with running(a, b), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        await until(lambda: len(states(a)) == 2)
        a.heartbeat.expect(Incarnation(f"n{number}", 1) for number in range(10_000))
        await until(lambda: sum(each.state is State.DEAD for each in follower.seen) == 10_000)
        assert states(a)["b"] is State.ALIVE
        assert "unread" not in a.heartbeat.dropped
        tasks.cancel_scope.cancel()


async def test_a_reader_that_raises_hurts_nobody() -> None:
    """An error in the midst of the transitions ends that iteration, and no other."""
    a = Peer(MemoryBroker(), "a")
    follower = Follower(a)
    async with running(a), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        transitions = a.heartbeat.transitions()
        await anyio.sleep(0.01)
        a.heartbeat.expect([Incarnation("b", 1)])

        async def fail() -> None:
            async for _ in transitions:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await until(lambda: states(a)["b"] is State.DEAD)
        await until(lambda: Cause.CHECKS_FAILED in follower.causes("b"))
        tasks.cancel_scope.cancel()


async def test_who_is_cancelled_says_goodbye() -> None:
    """A heartbeat that is cancelled from outside leaves like any other: no alarm is raised."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    follower = Follower(a)
    async with running(a), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        with anyio.CancelScope() as scope:
            async with b.heartbeat:
                await until(lambda: "b" in states(a))
                scope.cancel()
                await anyio.sleep_forever()
        await until(lambda: "b" not in states(a))
        tasks.cancel_scope.cancel()
    assert follower.causes("b") == [Cause.FIRST_BEAT, Cause.GOODBYE]


async def test_a_loop_that_is_blocked_buries_nobody() -> None:
    """While something blocks the observer's own event loop, nobody grows silent."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    follower = Follower(a)
    async with running(a, b), anyio.create_task_group() as tasks:
        await until(lambda: len(states(a)) == 2)
        tasks.start_soon(follower.follow)
        await anyio.sleep(0.01)
        for _ in range(5):
            time.sleep(0.9 * FAST.max_freq)
            await anyio.sleep(0.01)
        assert a.heartbeat._detector.frozen > 0
        tasks.cancel_scope.cancel()
    assert State.DEAD not in [each.state for each in follower.seen]


async def test_a_stalled_node_says_so() -> None:
    """A node whose work does not move is suspected for that, and alive when it moves again."""
    broker = MemoryBroker()
    hangs = True
    a, b = Peer(broker, "a"), Peer(broker, "b", stalled=lambda: hangs)
    follower = Follower(a)
    async with running(a), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.follow)
        async with running(b):
            await until(lambda: states(a).get("b") is State.SUSPECT)
            await anyio.sleep(2 * FAST.min_freq)
            hangs = False
            await until(lambda: states(a)["b"] is State.ALIVE)
        tasks.cancel_scope.cancel()
    assert follower.causes("b")[:3] == [Cause.FIRST_BEAT, Cause.STALLED, Cause.BEAT]


async def test_an_obituary_says_what_to_be_larger_than() -> None:
    """A node whose wall clock was set back comes back larger than what is known of it."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b", observe=False)
    late = Incarnation("b", 2**62)
    async with running(a, b):
        await until(lambda: len(states(a)) == 2)
        # Somebody has heard a later life of the same name.
        beat = Beat(incarnation=late, sequence=1, sent=0, gap=1)
        await MemoryTransport(broker).publish(encode(beat), sender=Incarnation("x", 1), ttl=0)
        await until(lambda: b.heartbeat.incarnation == Incarnation("b", 2**62 + 1))
        await until(lambda: a.heartbeat._detector.latest("b") == b.heartbeat.incarnation)
