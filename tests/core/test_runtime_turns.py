"""Who observes, and who only beats or only watches; on asyncio and on trio."""

import logging
import pathlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from test_runtime import FAST, Follower, Peer, running, states, until

from heartbeat_core import (
    BlockingHeartbeat,
    Cause,
    Heartbeat,
    Incarnation,
    MemoryBroker,
    MemoryTransport,
    State,
    TransportError,
    all_shards,
    shard_of,
)

pytestmark = pytest.mark.anyio

ALIVE, DEAD = State.ALIVE, State.DEAD


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


async def test_so_many_observe_as_there_are_seats() -> None:
    """Of five nodes three observe and see all five; the others see only themselves."""
    broker = MemoryBroker()
    peers = [Peer(broker, name) for name in "abcde"]
    async with running(*peers):
        observers = [each for each in peers if each.heartbeat.observing]
        assert len(observers) == 3
        await until(lambda: all(len(states(each)) == 5 for each in observers))
        for each in peers:
            if each not in observers:
                assert states(each) == {each.heartbeat.name: ALIVE}


async def test_another_steps_in_for_an_observer_that_dies() -> None:
    """With its last observers dead, a fleet has others, who meet everybody and judge."""
    broker = MemoryBroker()
    peers = [Peer(broker, name) for name in "abcdef"]
    async with running(*peers), anyio.create_task_group() as tasks:
        first = [each for each in peers if each.heartbeat.observing]
        rest = [each for each in peers if each not in first]
        follower = Follower(rest[0])
        tasks.start_soon(follower.follow)
        for each in first:
            each.crash()
        await until(lambda: all(each.heartbeat.observing for each in rest))
        await until(lambda: all(set(states(each).values()) >= {ALIVE} for each in rest))
        rest[1].crash()
        name = rest[1].heartbeat.name
        await until(lambda: Cause.CHECKS_FAILED in follower.causes(name))
        assert follower.causes(name)[0] is Cause.FIRST_BEAT
        assert states(rest[0])[name] is DEAD
        tasks.cancel_scope.cancel()


async def test_who_only_watches_is_no_node_and_takes_no_seat() -> None:
    """It sees all and judges; nobody sees it, and it says no goodbye."""
    broker = MemoryBroker()
    peers = [Peer(broker, name) for name in "abc"]
    watcher = Peer(broker, None)  # type: ignore[arg-type]
    async with running(watcher), running(*peers):
        assert watcher.heartbeat.observing
        assert all(each.heartbeat.observing for each in peers)
        await until(lambda: states(watcher) == dict.fromkeys("abc", ALIVE))
        peers[0].crash()
        await until(lambda: states(watcher)["a"] is DEAD)
        assert set(states(peers[1])) == set("abc")
        assert set(broker.last) <= set("abc")
    assert all(not each.heartbeat.dropped for each in [watcher, *peers])


async def test_an_observer_stays_one_while_the_broker_is_away() -> None:
    """What it knows outlives an outage: who dies in it is found afterwards."""
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    async with running(a, b):
        await until(lambda: states(a) == {"a": ALIVE, "b": ALIVE})
        follower = Follower(a)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower.follow)
            broker.stop()
            b.crash()
            await anyio.sleep(1.0)
            assert states(a)["b"] is not DEAD
            broker.start()
            await until(lambda: states(a)["b"] is DEAD)
            assert Cause.FIRST_BEAT not in follower.causes("b")
            tasks.cancel_scope.cancel()


async def test_who_cannot_contend_beats_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that gives out no seat costs one line; the node is known, and others see it."""

    class Seatless(MemoryTransport):
        @asynccontextmanager
        async def contend(
            self, incarnation: Incarnation, seats: int
        ) -> AsyncIterator[AsyncIterator[bool]]:
            if incarnation:
                raise TransportError("no permission for that")
            async with super().contend(incarnation, seats) as answers:
                yield answers

    broker = MemoryBroker()
    b = Peer(broker, "b")
    with anyio.fail_after(20):
        async with running(b), Heartbeat("a", Seatless(broker), settings=FAST) as a:
            await a.wait_joined()
            assert not a.observing
            await until(lambda: states(b) == {"a": ALIVE, "b": ALIVE})
            await anyio.sleep(0.3)
    assert caplog.text.count("a lost the broker: no permission for that") == 1


async def test_who_is_declared_dead_contends_as_somebody_new() -> None:
    """A new incarnation contends under its own name, and gets a seat again."""
    broker = MemoryBroker()
    a = Peer(broker, "a")
    async with running(a):
        first = a.heartbeat.incarnation
        a.heartbeat.rejoin(first)
        await until(lambda: list(broker.contenders) == [a.heartbeat.incarnation])
        assert a.heartbeat.incarnation > first
        assert await a.heartbeat.wait_joined() == a.heartbeat.incarnation
        await until(lambda: a.heartbeat.observing)


async def test_who_loses_its_seat_says_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    """It forgets the others without a word, and goes on beating."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    broker = MemoryBroker()
    a, b = Peer(broker, "a"), Peer(broker, "b")
    async with running(a, b):
        await until(lambda: states(a) == {"a": ALIVE, "b": ALIVE})
        caplog.clear()
        broker.contenders[a.heartbeat.incarnation].tell(False)
        await until(lambda: states(a) == {"a": ALIVE})
        assert not a.heartbeat.observing
        beats = a.heartbeat._sequence
        await until(lambda: a.heartbeat._sequence > beats + 2)
        assert states(b) == {"a": ALIVE, "b": ALIVE}
        assert not caplog.records


def test_the_blocking_one_tells_whether_it_observes() -> None:
    """A threaded watcher sees a node and is none."""
    broker = MemoryBroker()
    with BlockingHeartbeat(None, MemoryTransport(broker), settings=FAST) as watcher:
        watcher.wait_joined(10)
        assert watcher.observing
        assert watcher.nodes() == []


async def test_a_name_that_is_none_is_a_new_one_each_time() -> None:
    """Two watchers are not taken for each other."""
    names = {Heartbeat(None, MemoryTransport()).name for _ in range(10)}
    assert len(names) == 10


def test_a_shard_follows_from_the_name() -> None:
    """One shard is the fleet itself; of several each has its share, for ever the same."""
    assert shard_of("fleet", "a", 1) == "fleet"
    assert shard_of("fleet", "celery@host", 8) == "fleet/5"
    found = [shard_of("fleet", f"n{number}", 4) for number in range(1000)]
    assert sorted(set(found)) == all_shards("fleet", 4) == [f"fleet/{shard}" for shard in range(4)]
    assert all_shards("fleet", 1) == ["fleet"]
    assert min(found.count(each) for each in set(found)) > 200
