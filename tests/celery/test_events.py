"""Plain workers, watched by their events: translated, carried, and judged with real ones."""

import base64
import json
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import celery
import kombu
import pytest
import redis
from celery.events.state import State as CeleryState

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]

from fleet import Fleet, Worker as Process
from proxy import Proxy

from heartbeat_celery._event_readers import Silences, matched
from heartbeat_celery._event_workers import EventError, Worker, Workers, read_echo, read_event
from heartbeat_celery._events import EventsTransport
from heartbeat_core import (
    Beat,
    Cause,
    Heartbeat,
    Incarnation,
    Kind,
    NodeView,
    Settings,
    State,
    Transition,
    Transport,
    TransportError,
    decode,
)
from heartbeat_core.testing import TransportConformance

A = Incarnation("a", 1)

EVENT = {
    "type": "worker-heartbeat",
    "hostname": "w@here",
    "utcoffset": 0,
    "pid": 7,
    "clock": 1,
    "freq": 2.0,
    "active": 1,
    "processed": 3,
    "loadavg": [0.5, 1.0, 1.5],
    "sw_ident": "py-celery",
    "sw_ver": "5.7.0",
    "sw_sys": "Linux",
    "timestamp": 1.0,
}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


# -- what events say ------------------------------------------------------------------------------


class Story:
    """Lets workers say things, one second after another."""

    def __init__(self) -> None:
        self.workers = Workers("celery")
        self.now = 100.0
        self.listening_since = 0.0

    def hear(self, kind: str = "heartbeat", *, after: float = 1.0, **fields: Any) -> Beat:
        """Let a worker say something, and give the beat."""
        self.now += after
        event = read_event(
            "application/json", json.dumps({**EVENT, "type": f"worker-{kind}", **fields}).encode()
        )
        return decode(
            self.workers.hear(
                event,
                self.now,
                wall=1_000_000 + self.now,
                listening_since=self.listening_since,
            )
        )

    def refused(self, kind: str = "heartbeat", **fields: Any) -> str:
        """Let a worker say what nobody believes, and give the reason."""
        with pytest.raises(EventError) as caught:
            self.hear(kind, **fields)
        return caught.value.reason


@pytest.fixture
def story() -> Story:
    """Nobody has said anything."""
    return Story()


def test_an_event_is_a_beat(story: Story) -> None:
    """A beat carries what a worker promises and says of itself, and the time of its arrival."""
    beat = story.hear()
    assert beat == Beat(
        incarnation=Incarnation("w@here", 1_000_101_000_000),
        sequence=1,
        sent=101.0,
        gap=2.0,
        namespace="celery",
        status={
            "active": 1,
            "processed": 3,
            "sw_ident": "py-celery",
            "sw_ver": "5.7.0",
            "sw_sys": "Linux",
            "load": 0.5,
            "pid": 7,
        },
    )
    second = story.hear()
    assert (second.incarnation, second.sequence, second.sent) == (beat.incarnation, 2, 102.0)


def test_offline_is_a_goodbye(story: Story) -> None:
    """A worker that goes offline says goodbye, under the incarnation that it had."""
    alive = story.hear("online")
    gone = story.hear("offline")
    assert (gone.kind, gone.incarnation) == (Kind.GOODBYE, alive.incarnation)


@pytest.mark.parametrize(
    ("before", "fields", "born"),
    [
        ([], {"kind": "heartbeat"}, False),
        ([], {"kind": "heartbeat", "pid": 8}, True),
        ([], {"kind": "online", "pid": 8}, True),
        # It has connected again.
        ([], {"kind": "online"}, False),
        # In a container, whose processes all have the same number:
        (["offline"], {"kind": "online"}, True),
        ([], {"kind": "online", "processed": 0}, True),
        ([], {"kind": "online", "after": 3.5}, True),
        ([], {"kind": "heartbeat", "after": 3.5}, False),
        (["offline"], {"kind": "heartbeat", "after": 3.5}, True),
    ],
)
def test_a_life_is_what_one_process_says(
    story: Story, before: list[str], fields: dict[str, Any], born: bool
) -> None:
    """A new life is a larger incarnation, and begins to count anew."""
    first = story.hear("online")
    for kind in before:
        story.hear(kind)
    beat = story.hear(**fields)
    assert (beat.incarnation.number > first.incarnation.number) == born
    assert beat.sequence == (1 if born else 2 + len(before))


def test_who_was_not_heard_was_not_silent(story: Story) -> None:
    """A worker that connects again after an outage of the broker lives the same life."""
    first = story.hear("online")
    story.listening_since = story.now + 29.0
    assert story.hear("online", after=30.0).incarnation == first.incarnation


def test_two_under_one_name_do_not_take_turns(story: Story) -> None:
    """Of two workers that share a name, the one that came later is heard, as long as it speaks."""
    story.hear(pid=7)
    second = story.hear(pid=8)
    assert story.refused(pid=7) == "outdated"
    assert story.hear(pid=8).incarnation == second.incarnation
    third = story.hear(pid=7, after=3.5)
    assert third.incarnation.number > second.incarnation.number


def test_a_goodbye_is_final(story: Story) -> None:
    """What was on its way when a worker went offline does not bring it back."""
    story.hear("offline")
    assert story.refused("heartbeat") == "outdated"


def test_incarnations_grow_though_the_wall_clock_goes_back(story: Story) -> None:
    """A new life is larger than the one before, whatever the wall clock shows."""
    first = story.hear()
    story.now -= 50
    assert story.hear(pid=8).incarnation.number == first.incarnation.number + 1


@pytest.mark.parametrize("missing", ["hostname", "pid", "freq", "processed"])
def test_an_event_without_what_a_beat_needs_is_malformed(story: Story, missing: str) -> None:
    """What Celery always says must be there."""
    assert story.refused(**{missing: None}) == "malformed"


@pytest.mark.parametrize(
    "field",
    [
        {"hostname": ""},
        {"hostname": "x" * 256},
        {"hostname": "a\nb"},
        {"hostname": ["w"]},
        {"pid": -1},
        {"pid": 2**63},
        {"pid": True},
        {"pid": 1.5},
        {"freq": 0},
        {"freq": -1.0},
        {"freq": 1e9},
        {"freq": True},
        {"freq": "2"},
        {"processed": "3"},
    ],
    ids=str,
)
def test_a_field_that_makes_no_sense_is_malformed(story: Story, field: dict[str, Any]) -> None:
    """Names and numbers that no worker has are refused, and nobody is met by them."""
    assert story.refused(**field) == "malformed"
    story.now += 10
    assert story.workers.late(story.now) == []


def test_a_status_is_small_and_plain(story: Story) -> None:
    """What a worker says of itself is left out where it is no plain small value."""
    beat = story.hear(active=[1], sw_ident="x" * 51, sw_ver={"a": 1}, sw_sys=None, loadavg="x")
    assert beat.status == {"processed": 3, "pid": 7}
    assert "load" not in story.hear(loadavg=[10**400, 1, 1]).status


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("application/x-python-serialize", b"cos\nsystem\n(S'exit 1'\ntR.", "content type"),
        ("application/x-yaml", b"{}", "content type"),
        (None, b"{}", "content type"),
        (["application/json"], b"{}", "content type"),
        ("application/json", b"{" * 8000, "malformed"),
        ("application/json", b"[" * 8000, "malformed"),
        ("application/json", b"[]", "malformed"),
        ("application/json", b"{}", "malformed"),
        ("application/json", b'{"type": 1}', "malformed"),
        ("application/json", b'{"type": "a", "b": NaN}', "malformed"),
        ("application/json", b'{"type": "a", "b": ' + b"9" * 5000 + b"}", "malformed"),
        ("application/json", b"\xff\xfe\x00", "malformed"),
        ("application/json", b"", "malformed"),
        ("application/json", b'{"type": "a"}' + b" " * 8192, "oversized"),
    ],
)
def test_what_is_no_event_is_refused(content_type: object, body: bytes, reason: str) -> None:
    """Only JSON is decoded, of bounded size, and only an object with a type is an event."""
    with pytest.raises(EventError) as caught:
        read_event(content_type, body)
    assert caught.value.reason == reason


@pytest.mark.parametrize("data", [None, 1, "", "%", "A", base64.b64encode(b"x" * 2049).decode()])
def test_an_echo_that_holds_no_beat_is_malformed(data: object) -> None:
    """An echo holds 1 to 2048 bytes."""
    with pytest.raises(EventError):
        read_echo({"namespace": "n", "data": data}, "n")


def test_the_table_of_workers_is_bounded(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever invents names fills no memory, and those long gone make room."""
    monkeypatch.setattr("heartbeat_celery._event_workers.MOST_WORKERS", 3)
    for number in range(3):
        story.hear(hostname=f"w{number}")
    assert story.refused(hostname="w3") == "crowded"
    story.hear(hostname="w1")
    story.now += 3599.5
    story.hear(hostname="w3", after=0.0)
    assert story.hear(hostname="w1").sequence == 3


def test_who_is_late_is_asked_for_until_it_is_given_up(story: Story) -> None:
    """A worker is late after one and a half of its gaps, and given up after a minute."""

    def late() -> list[str]:
        return [worker.node for worker in story.workers.late(story.now)]

    story.hear()
    story.now += 3.0
    assert late() == []
    story.now += 0.1
    assert late() == ["w@here"]
    story.now += 50
    worker = story.workers.late(story.now)[0]
    beat = decode(story.workers.stall(worker, story.now))
    assert (beat.stalled, beat.sequence, beat.gap) == (True, 2, 2.0)
    story.now += 59
    assert late() == ["w@here"]
    story.now += 1
    assert late() == []
    story.hear()
    story.hear("offline")
    story.now += 10
    assert late() == []


# -- whose connection is whose --------------------------------------------------------------------


def silent(node: str, heard: float, *, since: float = 0.0, freq: float = 2.0) -> Worker:
    """Give a worker that was heard last at a time."""
    return Worker(Incarnation(node, 1), 1, freq, since, heard)


@pytest.mark.parametrize(
    ("workers", "clients", "connected"),
    [
        ([], [(100, 50)], ""),
        ([("a", 50.0)], [], ""),
        ([("a", 50.0)], [(100, 50)], "a"),
        ([("a", 50.0)], [(101, 51)], "a"),
        ([("a", 50.0)], [(100, 49)], "a"),
        # The event of a task came after its last heartbeat.
        ([("a", 50.0)], [(100, 48)], "a"),
        ([("a", 50.0)], [(100, 40)], ""),
        ([("a", 50.0)], [(100, 60)], ""),
        # It has not spoken for as long as the worker: somebody else's.
        ([("a", 50.0)], [(60, 50)], ""),
        ([("a", 50.0)], [(50, 50)], ""),
        # Others that beat are no evidence.
        ([("a", 96.0)], [(100, 0), (100, 1), (100, 2), (100, 3)], ""),
        ([("a", 96.0)], [(100, 4)], "a"),
        ([("a", 50.0), ("b", 90.0)], [(100, 50)], "a"),
        ([("a", 50.0), ("b", 90.0)], [(100, 10), (100, 50)], "ab"),
        # One of the two is gone, and nobody can tell which.
        ([("a", 50.0), ("b", 51.0)], [(100, 50)], ""),
        ([("a", 50.0), ("b", 51.0)], [(100, 50), (100, 49)], "ab"),
    ],
)
def test_a_silent_workers_connection_is_as_silent_as_it_is(
    workers: list[tuple[str, float]], clients: list[tuple[float, float]], connected: str
) -> None:
    """A worker counts as connected if a connection fell silent with it, which is nobody else's."""
    late = [silent(*each) for each in workers]
    silences = Silences(now=100.0, late=late, longest_freq=2.0, listening_since=0.0)
    assert "".join(worker.node for worker in matched(silences, clients)) == connected


def test_what_was_not_heard_may_have_been_said() -> None:
    """A connection may have spoken while nobody listened."""
    late = [silent("a", 50.0)]
    for since, connected in ((0.0, []), (80.0, late)):
        silences = Silences(now=100.0, late=late, longest_freq=2.0, listening_since=since)
        assert matched(silences, [(100, 25)]) == connected


# -- carried --------------------------------------------------------------------------------------


@pytest.mark.anyio
class TestEventsOverRedis(TransportConformance):
    """It passes the suite on Valkey."""

    grace = 0.05

    @pytest.fixture(autouse=True)
    def _server(self, valkey: Any) -> None:
        self.server = valkey

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield lambda namespace: EventsTransport(self.server.url, namespace=namespace)

    async def cut(self) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self.server.kill)

    async def start(self) -> None:
        await anyio.to_thread.run_sync(self.server.start)


@pytest.mark.anyio
class TestEventsOverRabbitMQ(TransportConformance):
    """It passes the suite on RabbitMQ, behind a network that can be cut."""

    timeout = 30.0

    @pytest.fixture(autouse=True)
    def _network(self, rabbitmq: Any) -> Iterator[None]:
        with Proxy(rabbitmq.port) as self.proxy:
            yield

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}//"
        yield lambda namespace: EventsTransport(url, namespace=namespace)

    async def cut(self) -> None:
        self.proxy.drop()

    async def stop(self) -> None:
        self.proxy.refuse()

    async def start(self) -> None:
        self.proxy.heal()


@pytest.fixture(params=["valkey", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """The URL of a broker, of each kind."""
    server = request.getfixturevalue(request.param)
    if request.param == "valkey":
        with redis.Redis.from_url(server.url) as client:
            client.flushdb()
    return str(server.url)


def plain(broker: str) -> celery.Celery:
    """Give an app like that of the workers."""
    return celery.Celery("plain", broker=broker, set_as_current=False)


async def until(what: Callable[[], object], claim: str, seconds: float = 60) -> None:
    """Wait until something is true."""
    with anyio.move_on_after(seconds):
        while not what():
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"not within {seconds} s: {claim}")


@asynccontextmanager
async def captured(app: celery.Celery) -> AsyncIterator[tuple[list[dict[str, Any]], CeleryState]]:
    """Capture all events, as monitors do."""
    events: list[dict[str, Any]] = []
    state = CeleryState()

    def take(event: dict[str, Any]) -> None:
        events.append(event)
        state.event(event)

    def capture() -> None:
        with app.connection_for_read() as connection:
            receivers.append(app.events.Receiver(connection, handlers={"*": take}))
            for _ in receivers[0].consume(wakeup=False):
                pass

    receivers: list[Any] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, capture)
        try:
            yield events, state
        finally:
            receivers[0].should_stop = True


@pytest.mark.anyio
async def test_monitors_ignore_echoes(broker: str) -> None:
    """Celery's own receiver can read an echo, and its state has no worker and no task of it."""
    transport = EventsTransport(broker, namespace="team")
    async with captured(plain(broker)) as (events, state):
        with anyio.fail_after(30):
            while not events:
                await transport.publish(b"\x00\xff", sender=A, ttl=0)
                await anyio.sleep(0.05)
    assert (events[0]["type"], events[0]["hostname"]) == ("heartbeat-echo", "a")
    assert (dict(state.workers), dict(state.tasks)) == ({}, {})
    await transport.aclose()


def send_event(
    app: celery.Celery, body: bytes, key: str = "worker.heartbeat", kind: str = "application/json"
) -> None:
    """Put something onto the event exchange, as whoever reaches the broker can."""
    with app.connection_for_write() as connection:
        exchange = celery.events.get_exchange(connection)
        kombu.Producer(connection.channel(), exchange).publish(
            body, routing_key=key, content_type=kind, content_encoding="utf-8"
        )


@pytest.mark.anyio
async def test_nothing_hostile_comes_through(broker: str) -> None:
    """Whatever is on the exchange is counted and dropped; the subscription goes on."""
    app = plain(broker)
    transport = EventsTransport(app)
    good = json.dumps({**EVENT, "type": "worker-online"}).encode()

    def send() -> None:
        send_event(app, b"cos\nsystem\n(S'exit 1'\ntR.", kind="application/x-python-serialize")
        send_event(app, b"x" * 20_000)
        send_event(app, b"[]")
        send_event(app, b'{"type": "worker-elected"}')
        send_event(app, b'{"type": "task-sent"}', key="task.sent")
        if broker.startswith("redis"):
            with redis.Redis.from_url(broker) as client:
                for data in (b"", b"5", b"{}", b"\xff", b"[" * 10_000, b'{"properties": 1}'):
                    assert client.publish("/0.celeryev/worker.heartbeat", data) == 1
        send_event(app, good)

    async with transport.subscribe() as batches:
        await anyio.to_thread.run_sync(send)
        with anyio.fail_after(20):
            batch = await anext(batches)
    assert [decode(data).incarnation.node for data in batch] == ["w@here"]
    others = 7 if broker.startswith("redis") else 1
    oversized = {} if broker.startswith("redis") else {"oversized": 1}
    expected = {"content type": others, "malformed": 1, "unknown": 1, **oversized}
    if broker.startswith("redis"):
        expected["content type"] += 1  # Its envelope was too large to be opened.
    assert transport.dropped == expected
    await transport.aclose()


@pytest.mark.anyio
async def test_events_of_tasks_are_not_sent_to_it(broker: str) -> None:
    """The broker hands out the events of workers, and not those of tasks."""
    app = plain(broker)
    transport = EventsTransport(app)
    async with transport.subscribe() as batches:
        if broker.startswith("redis"):
            with redis.Redis.from_url(broker) as client:
                assert client.publish("/0.celeryev/task.received", b"x") == 0
                assert client.publish("/0.celeryev/worker.online", b"x") == 1
        else:
            send_event(app, b"x", key="task.received")
            send_event(app, b"x", key="worker.online")
        await transport.publish(b"1", sender=A, ttl=0)
        with anyio.fail_after(20):
            assert await anext(batches) == [b"1"]
    assert sum(transport.dropped.values()) == 1
    await transport.aclose()


@pytest.mark.anyio
async def test_nothing_stays_in_redis(valkey: Any) -> None:
    """Watching writes no key."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushdb()
        transport = EventsTransport(valkey.url)
        async with transport.subscribe():
            await transport.publish(b"1", sender=A, ttl=30)
            assert client.keys() == []
        await transport.aclose()
        assert client.keys() == []


@pytest.mark.anyio
async def test_a_key_prefix_is_heeded(valkey: Any) -> None:
    """With ``global_keyprefix`` it hears the workers of that prefix, and itself."""
    app = plain(valkey.url)
    app.conf.broker_transport_options = {"global_keyprefix": "mine:"}
    transport = EventsTransport(app)
    async with transport.subscribe() as batches:
        with redis.Redis.from_url(valkey.url) as client:
            assert client.publish("mine:/0.celeryev/worker.online", b"x") == 1
        await transport.publish(b"1", sender=A, ttl=0)
        with anyio.fail_after(20):
            assert await anext(batches) == [b"1"]
    await transport.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url", ["redis://user:secret@127.0.0.1:1/0", "amqp://user:secret@127.0.0.1:1//"]
)
async def test_nobody_there_is_a_transport_error(url: str) -> None:
    """Without a broker each call raises a transport error, without credentials."""
    transport = EventsTransport(url)
    with anyio.fail_after(20):
        with pytest.raises(TransportError) as caught:
            await transport.publish(b"1", sender=A, ttl=1)
        assert "secret" not in str(caught.value)
        with pytest.raises(TransportError) as caught:
            async with transport.subscribe():
                pass
        assert "secret" not in str(caught.value)
    await transport.aclose()


@pytest.mark.anyio
async def test_a_wrong_password_is_not_shown(broker: str) -> None:
    """What a broker says of a wrong password is raised without it."""
    url = broker.replace("guest:guest@", "").replace("://", "://guest:s3cret@")
    transport = EventsTransport(url)
    with pytest.raises(TransportError) as caught:
        await transport.publish(b"1", sender=A, ttl=1)
    assert "s3cret" not in str(caught.value)
    await transport.aclose()


@pytest.mark.parametrize("url", ["memory://", "nonsense://user:secret@host"])
def test_another_broker_is_refused(url: str) -> None:
    """Brokers on which plain workers send no events are refused at once."""
    with pytest.raises(TransportError) as caught:
        EventsTransport(url)
    assert "secret" not in str(caught.value)


# -- judged ---------------------------------------------------------------------------------------


class Watch:
    """What somebody who only watches makes of the workers."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat
        self.transitions: list[Transition] = []

    async def keep_noting(self) -> None:
        """Note what changes."""
        async for transition in self.heartbeat.transitions():
            self.transitions.append(transition)

    def of(self, worker: Process) -> list[Transition]:
        """Give what became of a worker."""
        return [each for each in self.transitions if each.node == f"{worker.name}@here"]

    def view(self, worker: Process) -> NodeView | None:
        """Give what is held of a worker now."""
        for view in self.heartbeat.nodes():
            if view.incarnation.node == f"{worker.name}@here":
                return view
        return None

    def state(self, worker: Process) -> State | None:
        """Give the state of a worker now."""
        view = self.view(worker)
        return None if view is None else view.state


@asynccontextmanager
async def watched(broker: str) -> AsyncIterator[Watch]:
    """Watch the workers of a broker at the default settings."""
    transport = EventsTransport(broker)
    async with (
        Heartbeat(None, transport, settings=Settings()) as heartbeat,
        anyio.create_task_group() as tasks,
    ):
        watch = Watch(heartbeat)
        tasks.start_soon(watch.keep_noting)
        await heartbeat.wait_joined()
        yield watch
        tasks.cancel_scope.cancel()


@pytest.fixture
def fleet(broker: str, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet."""
    with Fleet(broker, tmp_path, app_name="plain_app") as fleet:
        yield fleet


def unharmed(worker: Process) -> bool:
    """Tell whether a worker has nothing to complain of."""
    return not [line for word in ("Traceback", "ERROR", "CRITICAL") for line in worker.lines(word)]


asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
@asyncio_only
async def test_plain_workers_come_die_leave_and_return(broker: str, fleet: Fleet) -> None:
    """A worker is met, dead when it was killed, gone when it left, and new when it is back."""
    victim, leaver = fleet.start("victim"), fleet.start("leaver")
    async with watched(broker) as watch:
        await until(
            lambda: [watch.state(each) for each in (victim, leaver)] == [State.ALIVE] * 2,
            "both are alive",
        )
        await anyio.to_thread.run_sync(fleet.wait_ready, victim, leaver)
        view = watch.view(victim)
        assert view is not None
        assert view.status["pid"] == victim.process.pid
        # On Redis nobody can tell connections on which little has been said yet.
        await anyio.sleep(5)
        victim.kill_group()
        killed = anyio.current_time()
        await until(lambda: watch.state(victim) is State.DEAD, "the victim is dead", 20)
        took = anyio.current_time() - killed
        dead = watch.of(victim)[-1]
        assert (dead.cause, dead.incarnation) == (Cause.CHECKS_FAILED, view.incarnation)
        assert 5 < took < 15
        await anyio.to_thread.run_sync(fleet.stop, leaver)
        await until(lambda: watch.view(leaver) is None, "the leaver is gone")
        assert watch.of(leaver)[-1].cause is Cause.GOODBYE
        back = fleet.start("victim")
        await until(lambda: watch.state(victim) is State.ALIVE, "the victim is back")
        assert watch.of(victim)[-1].incarnation.number > dead.incarnation.number
        await anyio.to_thread.run_sync(fleet.wait_ready, back)
        assert unharmed(leaver)
        assert unharmed(back)
    print(f"dead after {took:.1f} s")


@pytest.mark.anyio
@asyncio_only
async def test_a_busy_solo_worker_is_told_from_a_dead_one(broker: str, fleet: Fleet) -> None:
    """One that says nothing since it works is suspect and stalled; killed in that state, dead."""
    solo = fleet.start("solo", "-Q", "solo", pool="solo")
    other = fleet.start("other", "-Q", "other")
    app = plain(broker)

    def send(seconds: float) -> None:
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            app.send_task("sleep", (0, seconds), queue="solo", producer=producer)

    async with watched(broker) as watch:
        await anyio.to_thread.run_sync(fleet.wait_ready, solo, other)
        await until(lambda: watch.state(solo) is State.ALIVE, "it is alive")
        await anyio.to_thread.run_sync(send, 20)
        await until(lambda: watch.state(solo) is State.SUSPECT, "it is suspect")
        # That somebody else dies meanwhile changes nothing.
        other.kill_group()
        await until(lambda: watch.state(other) is State.DEAD, "the other is dead", 20)
        await until(lambda: watch.state(solo) is State.ALIVE, "it beats again")
        transitions = watch.of(solo)
        assert State.DEAD not in [each.state for each in transitions]
        assert Cause.STALLED in [each.cause for each in transitions]
        assert {each.incarnation.number for each in transitions} == {
            transitions[0].incarnation.number
        }
        assert unharmed(solo)
        await anyio.to_thread.run_sync(send, 300)
        await until(lambda: watch.state(solo) is State.SUSPECT, "it is suspect again")
        with anyio.move_on_after(12):
            await until(lambda: watch.state(solo) is not State.SUSPECT, "nothing changes")
        view = watch.view(solo)
        assert view is not None
        assert view.stalled
        solo.kill_group(signal.SIGKILL)
        killed = anyio.current_time()
        await until(lambda: watch.state(solo) is State.DEAD, "it is dead", 20)
    print(f"dead after {anyio.current_time() - killed:.1f} s")


@pytest.mark.anyio
@asyncio_only
async def test_a_worker_is_who_it_was_after_an_outage(valkey_private: Any, tmp_path: Any) -> None:
    """When the broker is back, its workers are the same, and nobody has died of it."""
    with Fleet(valkey_private.url, tmp_path, app_name="plain_app") as fleet:
        worker = fleet.start("worker")
        async with watched(valkey_private.url) as watch:
            await anyio.to_thread.run_sync(fleet.wait_ready, worker)
            await until(lambda: watch.state(worker) is State.ALIVE, "it is alive")
            await anyio.to_thread.run_sync(valkey_private.kill)
            await anyio.sleep(8)
            await anyio.to_thread.run_sync(valkey_private.start)
            await until(lambda: watch.heartbeat.observing, "it watches again")
            await until(lambda: len(worker.lines("Connected to")) > 1, "it has connected again")
            await anyio.sleep(10)
            assert watch.state(worker) is State.ALIVE
            assert State.DEAD not in [each.state for each in watch.of(worker)]
