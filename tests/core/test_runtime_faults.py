"""The runtime when something goes wrong: it goes on, and nobody is hurt."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from heartbeat_core import (
    Beat,
    Heartbeat,
    Incarnation,
    Kind,
    MemoryBroker,
    MemoryTransport,
    Settings,
    State,
    Transport,
    TransportError,
    encode,
)

FAST = Settings(frequency=0.05, max_freq=0.4, min_freq=0.8, expire=3.0, disconnect_interval=0.05)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


async def until(what: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(10):
        while not what():
            await anyio.sleep(0.005)


def states(heartbeat: Heartbeat) -> dict[str, State]:
    """Give the table of nodes."""
    return {view.incarnation.node: view.state for view in heartbeat.nodes()}


def test_it_can_be_made_where_no_loop_runs() -> None:
    """A heartbeat may be made before the loop is, and entered in it."""
    heartbeat = Heartbeat("a", MemoryTransport(), settings=FAST)

    async def enter() -> Incarnation:
        with anyio.fail_after(10):
            async with heartbeat:
                return await heartbeat.wait_joined()

    assert anyio.run(enter) == heartbeat.incarnation


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status",
    [["no mapping"], "text", 5, {"a": [1]}, {"a": {}}, {"a": "\ud800"}, {"a": float("nan")}],
)
async def test_whatever_the_status_is_the_node_beats(
    status: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A status that nobody could read costs itself, not the beat, and is told once."""
    broker = MemoryBroker()
    async with (
        Heartbeat("a", MemoryTransport(broker), settings=FAST) as a,
        Heartbeat("b", MemoryTransport(broker), settings=FAST, status=lambda: status) as b,  # type: ignore[arg-type, return-value]
    ):
        await until(lambda: states(a).get("b") is State.ALIVE)
        await until(lambda: b.dropped.get("status", 0) > 1)
        assert a.dropped == {}
    assert caplog.text.count("the status of b is left out") == 1


@pytest.mark.anyio
async def test_a_status_that_raises_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A status that cannot be asked for leaves one traceback, however often it is asked for."""

    def status() -> dict[str, int]:
        raise RuntimeError("no status today")

    broker = MemoryBroker()
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST, status=status) as heartbeat:
        await until(lambda: heartbeat.dropped.get("status", 0) > 3)
    assert caplog.text.count("RuntimeError: no status today") == 1


@pytest.mark.anyio
async def test_a_restart_with_a_late_clock_is_present_as_what_it_is() -> None:
    """A node that takes a larger number than its clock's has its inbox under that number."""
    broker = MemoryBroker()
    before = Incarnation("a", 2**62)
    beat = Beat(incarnation=before, sequence=1, sent=0, gap=1)
    await MemoryTransport(broker).publish(encode(beat), sender=before, ttl=30)
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as heartbeat:
        assert await heartbeat.wait_joined() == Incarnation("a", 2**62 + 1)
        await until(lambda: set(broker.inboxes) == {heartbeat.incarnation})


@pytest.mark.anyio
async def test_fenced_again_before_it_is_back() -> None:
    """A node that is fenced twice while the broker is away beats again when it returns."""
    broker = MemoryBroker()
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as heartbeat:
        first = await heartbeat.wait_joined()
        broker.stop()
        heartbeat.rejoin(heartbeat.incarnation)
        second = heartbeat.incarnation
        await anyio.sleep(4 * FAST.frequency)
        heartbeat.rejoin(heartbeat.incarnation)
        third = heartbeat.incarnation
        assert first < second < third
        broker.start()
        with anyio.fail_after(10):
            assert await heartbeat.wait_joined() == third
        await until(lambda: heartbeat._sequence > 3)
        assert set(broker.inboxes) == {third}


@pytest.mark.anyio
async def test_the_longest_name_may_be_taken() -> None:
    """Even of two nodes with one name of 255 characters, both beat."""
    broker = MemoryBroker()
    name = "x" * 255
    async with Heartbeat(name, MemoryTransport(broker), settings=FAST) as one:
        await one.wait_joined()
        await until(lambda: name in broker.last)
        async with Heartbeat(name, MemoryTransport(broker), settings=FAST) as other:
            await other.wait_joined()
            await until(lambda: len(states(one)) == 2)
            assert other.incarnation.node.startswith("x" * 200)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "dropped"),
    [
        (b"noise", {"malformed": 1}),
        (encode(Beat(incarnation=Incarnation("x", 2**62), sequence=1, sent=0, gap=1)), {}),
    ],
)
async def test_what_is_no_last_beat_of_the_name_is_no_namesake(
    data: bytes, dropped: dict[str, int]
) -> None:
    """Noise, and beats of others, among the last beats of its name do not change a node's."""
    broker = MemoryBroker()
    await MemoryTransport(broker).publish(data, sender=Incarnation("a", 1), ttl=30)
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST, observe=False) as heartbeat:
        before = heartbeat.incarnation
        assert await heartbeat.wait_joined() == before
        assert heartbeat.dropped == dropped


@pytest.mark.anyio
async def test_fenced_before_it_has_joined() -> None:
    """A node may be told to begin anew before the broker was ever reached."""
    broker = MemoryBroker(up=False)
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as heartbeat:
        first = heartbeat.incarnation
        heartbeat.rejoin(heartbeat.incarnation)
        broker.start()
        with anyio.fail_after(10):
            assert await heartbeat.wait_joined() > first
        await until(lambda: set(broker.inboxes) == {heartbeat.incarnation})


class Plain:
    """Carries beats and keeps the last ones, and knows nothing of connections."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._memory = MemoryTransport(broker)
        self.namespace = self._memory.namespace
        self.publish = self._memory.publish
        self.subscribe = self._memory.subscribe
        self.aclose = self._memory.aclose
        self.asked: list[set[str] | None] = []
        self.fails = False

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Fail when told so."""
        self.asked.append(None if nodes is None else set(nodes))
        if self.fails:
            raise TransportError("the broker has no time")
        return await self._memory.last_beats(nodes)


class Bare:
    """Carries beats, and that is all."""

    def __init__(self, broker: MemoryBroker) -> None:
        memory = MemoryTransport(broker)
        self.namespace = memory.namespace
        self.publish = memory.publish
        self.subscribe = memory.subscribe
        self.aclose = memory.aclose


class Attending(Bare):
    """Carries beats and knows of connections, but keeps no last beats."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        memory = MemoryTransport(broker)
        self.attend = memory.attend
        self.connections = memory.connections
        self.post = memory.post


@pytest.mark.anyio
@pytest.mark.parametrize("transport", [Bare, Plain, Attending, MemoryTransport])
async def test_whatever_the_transport_lacks_the_rest_works(
    transport: Callable[[MemoryBroker], Transport],
) -> None:
    """Nodes see each other, die, leave and rejoin with any mixture of abilities."""
    broker = MemoryBroker()
    async with Heartbeat("a", transport(broker), settings=FAST) as a:
        async with Heartbeat("b", transport(broker), settings=FAST) as b:
            await until(lambda: len(states(a)) == len(states(b)) == 2)
            first = b.incarnation
            b.rejoin(b.incarnation)
            await until(lambda: b.incarnation in {view.incarnation for view in a.nodes()})
            assert a.is_dead(first)
        await until(lambda: states(a) == {"a": State.ALIVE})
        a.expect([Incarnation("c", 1)])
        await until(lambda: states(a)["c"] is State.DEAD)


@pytest.mark.anyio
async def test_who_was_cut_off_learns_that_it_was_buried() -> None:
    """A node that is cut off and comes back reads its obituary, and begins a new life."""

    class Cut(MemoryTransport):
        cut = False

        async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
            self._refuse()
            await super().publish(data, sender=sender, ttl=ttl)

        def attend(
            self, incarnation: Incarnation
        ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
            self._refuse()
            return super().attend(incarnation)

        def _refuse(self) -> None:
            if self.cut:
                raise TransportError("no route to the broker")

    broker = MemoryBroker()
    route = Cut(broker)
    async with (
        Heartbeat("a", MemoryTransport(broker), settings=FAST) as a,
        Heartbeat("b", route, settings=FAST) as b,
    ):
        first = await b.wait_joined()
        await until(lambda: {view.connected for view in a.nodes()} == {True, None})
        route.cut = True
        broker.disconnect(first)
        await until(lambda: states(a)["b"] is State.DEAD)
        assert b.incarnation == first
        route.cut = False
        await until(lambda: b.incarnation > first)
        await until(lambda: states(a)["b"] is State.ALIVE)
        assert a.is_dead(first)


@pytest.mark.anyio
async def test_nobody_is_buried_unasked(caplog: pytest.LogCaptureFixture) -> None:
    """While the last beat of a silent node cannot be read, it is not buried; one line says so."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    broker = MemoryBroker()
    transport = Plain(broker)
    async with Heartbeat("a", transport, settings=FAST) as a:
        await a.wait_joined()
        transport.fails = True
        a.expect([Incarnation("b", 1)])
        await until(lambda: transport.asked.count({"b"}) > 3)
        assert states(a)["b"] is State.SUSPECT
        transport.fails = False
        await until(lambda: states(a)["b"] is State.DEAD)
        await until(lambda: "a is back at the broker" in caplog.text)
    assert caplog.text.count("a lost the broker: the broker has no time") == 1


@pytest.mark.anyio
async def test_who_falls_due_while_another_is_asked_for_is_asked_for_too() -> None:
    """However the reads and the clock interleave, nobody is buried whose last beat is kept."""
    broker = MemoryBroker()

    class Slow(Plain):
        async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
            hear(heartbeat.incarnation, 4.7)
            return await super().last_beats(nodes)

    transport = Slow(broker)
    heartbeat = Heartbeat("me", transport)
    detector = heartbeat._detector
    start = anyio.current_time() - 5.0
    a, b = Incarnation("a", 1), Incarnation("b", 1)

    def hear(incarnation: Incarnation, at: float) -> None:
        detector.observe(Beat(incarnation=incarnation, sequence=1, sent=at, gap=1), start + at)

    for tenth in range(40):
        hear(heartbeat.incarnation, tenth / 10)
        if tenth == 0:
            hear(a, 0.0)
        if tenth == 5:
            hear(b, 0.5)
        detector.check(start + tenth / 10)
    hear(heartbeat.incarnation, 4.2)
    assert detector.dying() == [a]
    kept = Beat(incarnation=b, sequence=4, sent=4.0, gap=1)
    await MemoryTransport(broker).publish(encode(kept), sender=b, ttl=30)
    observer = heartbeat._new_observer()
    await observer._judge()
    assert (transport.asked, states(heartbeat)["a"]) == ([{"a"}], State.DEAD)
    await observer._judge()
    assert transport.asked == [{"a"}, {"b"}]
    assert states(heartbeat) == {"a": State.DEAD, "b": State.ALIVE, "me": State.ALIVE}


@pytest.mark.anyio
async def test_who_cannot_say_goodbye_leaves_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Leaving while the broker is away takes a line in the log, no time and no error."""
    broker = MemoryBroker()
    with anyio.fail_after(10):
        async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as heartbeat:
            await heartbeat.wait_joined()
            broker.stop()
        async with Heartbeat("b", MemoryTransport(broker), settings=FAST):
            pass
    assert caplog.text.count("could not say goodbye") == 1


@pytest.mark.anyio
async def test_an_obituary_that_cannot_be_posted_is_no_lasting_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If a post fails that nobody repeats, the next loss of the broker is still told."""
    caplog.set_level(logging.INFO, "heartbeat_core")

    class Mute(MemoryTransport):
        async def post(self, data: bytes, to: Incarnation) -> None:
            del data, to
            raise TransportError("no post today")

    broker = MemoryBroker()
    async with Heartbeat("a", Mute(broker), settings=FAST) as a:
        await a.wait_joined()
        a.expect([Incarnation("b", 1)])
        await until(lambda: states(a)["b"] is State.DEAD)
        await until(lambda: "a is back at the broker" in caplog.text)
        broker.stop()
        await until(lambda: caplog.text.count("a lost the broker") == 2)


@pytest.mark.anyio
async def test_an_obituary_of_somebody_else_fences_nobody() -> None:
    """A node minds only its own obituary, and only that of its present life."""
    broker = MemoryBroker()
    async with Heartbeat("a", MemoryTransport(broker), settings=FAST) as heartbeat:
        me = await heartbeat.wait_joined()
        for other in (Incarnation("a", me.number - 1), Incarnation("b", me.number)):
            obituary = Beat(incarnation=other, sequence=0, sent=0, gap=1, kind=Kind.OBITUARY)
            await MemoryTransport(broker).post(encode(obituary), me)
            await MemoryTransport(broker).publish(encode(obituary), sender=me, ttl=0)
        await anyio.sleep(4 * FAST.frequency)
        assert heartbeat.incarnation == me
        assert heartbeat.dropped == {}


@pytest.mark.anyio
async def test_who_hears_nothing_any_more_listens_anew() -> None:
    """A subscription that has silently gone deaf is left for a new one; nobody dies meanwhile."""
    broker = MemoryBroker()
    with anyio.fail_after(20):
        async with (
            Heartbeat("a", MemoryTransport(broker), settings=FAST) as a,
            Heartbeat("b", MemoryTransport(broker), settings=FAST, observe=False) as b,
        ):
            await a.wait_joined()
            await b.wait_joined()
            while states(a) != {"a": State.ALIVE, "b": State.ALIVE}:
                await anyio.sleep(0.01)
            transitions = a.transitions()
            (deaf,) = broker.subscribers
            broker.subscribers.clear()
            while not broker.subscribers:
                await anyio.sleep(0.01)
            echoed = a._echoed
            while a._echoed <= echoed:
                await anyio.sleep(0.01)
            assert deaf not in broker.subscribers
            assert [each.state for each in transitions.rest()] == []


@pytest.mark.anyio
async def test_the_tightest_settings_are_no_reason_to_listen_anew() -> None:
    """Where all gaps are the same, an echo that is due is not missed yet, nor after a pause."""
    broker = MemoryBroker()
    tight = Settings(frequency=0.2, max_freq=0.2, min_freq=0.2, expire=3.0, disconnect_interval=0.1)
    with anyio.fail_after(20):
        async with Heartbeat("a", MemoryTransport(broker), settings=tight) as a:
            await a.wait_joined()
            (first,) = broker.subscribers
            await anyio.sleep(1.5)
            time.sleep(1.0)
            await anyio.sleep(0.5)
            assert broker.subscribers == {first}
