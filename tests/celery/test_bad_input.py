"""Bad input and bad times: nothing is lost, and one line of the log says what is wrong."""

import base64
import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from consumers import A, B, Node, World
from fleet import Fleet, Worker, wait_for

from heartbeat_celery._dead_letters import DEAD_LETTER, DeadLetters
from heartbeat_celery._keys import Keys
from servers import free_port

Trouble = Callable[[Any], contextlib.AbstractContextManager[None]]


@pytest.fixture
def fleet(valkey: Any, valkey_private: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on a broker of its own; the tasks' records stand elsewhere."""
    with Fleet(valkey_private.url, tmp_path, records_url=valkey.url) as fleet:
        fleet.client.flushdb()
        yield fleet


@pytest.fixture
def world(valkey: Any) -> Iterator[World]:
    """A world on an empty broker."""
    with World(valkey.url) as world:
        yield world


def said_once(worker: Worker, word: str) -> bool:
    """Tell that a worker has said something, and has not said it again."""
    lines = worker.lines(word)
    assert len(lines) <= 1, lines
    return len(lines) == 1


def starts(fleet: Fleet) -> dict[int, int]:
    """Tell how often each task was begun."""
    return {number: len(records) for number, records in fleet.by_number("start").items()}


def held(server: Any) -> int:
    """Count what is not acknowledged."""
    with server.client() as client:
        return int(client.hlen("unacked"))


# -- what is no message -----------------------------------------------------------------------


GARBAGE = [
    b"\xff\xfe no JSON at all",
    b"",
    b"[1, 2]",
    b'"text"',
    b"{}",
    b'{"properties": {"delivery_info": {}}}',
]


@pytest.mark.promise(8)
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_what_is_no_message_costs_nothing(fleet: Fleet, valkey_private: Any, pool: str) -> None:
    """Garbage in a queue is set aside, with one line each; the worker does the tasks around it."""
    worker = fleet.start("worker", pool=pool)
    fleet.wait_ready(worker)
    with valkey_private.client() as client:
        for number, item in enumerate(GARBAGE):
            client.lpush("celery", item)
            fleet.send("sleep", 1, 0.0, first=number)
        fleet.wait_ended(len(GARBAGE))
        letters = DeadLetters(client, Keys("", "fleet", "unacked", "unacked_index"))
        wait_for(lambda: len(letters) == len(GARBAGE), "all of it is set aside")
        assert sorted(client.lrange(letters.keys.dead_letters, 0, -1)) == sorted(GARBAGE)
        assert letters.read() == ([], len(GARBAGE))
    assert len(worker.lines("what came from celery is no message")) == len(GARBAGE)
    assert not worker.lines("Traceback")
    assert set(starts(fleet).values()) == {1}
    wait_for(lambda: held(valkey_private) == 0, "all is acknowledged")


@pytest.mark.promise(8)
def test_a_task_that_cannot_be_decoded_costs_nothing(fleet: Fleet, valkey_private: Any) -> None:
    """What Celery refuses it drops; what would end its worker is set aside; others are done."""
    worker = fleet.start("worker")
    fleet.wait_ready(worker)
    with valkey_private.client() as client:
        fleet.send("sleep", 1, 3.0)
        wait_for(fleet.running, "it runs a task")
        fleet.send("sleep", 2, 0.0, first=1)
        model = json.loads(wait_for(lambda: client.lindex("celery", 0), "a task waits"))
        for number, changes in enumerate(
            [
                {"body": base64.b64encode(b"\xff garbage").decode()},
                {"body": "not base64 at all"},
                {"content-type": "application/x-unknown"},
                {"headers": {}},
                {"headers": None},
            ]
        ):
            message = {**model, **changes}
            message["properties"] = {**model["properties"], "delivery_tag": f"bad-{number}"}
            client.lpush("celery", json.dumps(message))
    fleet.send("sleep", 2, 0.0, first=3)
    fleet.wait_ended(5)
    wait_for(lambda: held(valkey_private) == 0, "nothing is held")
    assert set(starts(fleet).values()) == {1}
    assert fleet.stop(worker) == 0
    with valkey_private.client() as client:
        assert not client.exists("celery", "heartbeat:{fleet}:holders")
        (aside,) = client.lrange("heartbeat.fleet.dead-letters", 0, -1)
        assert json.loads(aside)["properties"]["delivery_tag"] == "bad-1"
    assert len(worker.lines("is no message (Error('Incorrect padding')), and stands in")) == 1


def test_a_record_that_the_script_reads_and_python_does_not_stays(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A message with a number that is none in JSON stays on record; the next one is delivered."""
    world.send(1)
    item = world.client.rpop("tasks")
    assert item is not None
    tag = json.loads(item)["properties"]["delivery_tag"]
    world.client.lpush("tasks", item.replace(b'"task-1"', b"0x1F"))
    world.send(2)
    (message,) = world.node(A).take(1)
    assert message.headers["id"] == "task-2"
    assert world.client.hexists("unacked", tag)
    assert caplog.text.count("is no message") == 1


# -- what is gone, or is not what it was ------------------------------------------------------


@pytest.mark.promise(1)
def test_a_queue_that_was_deleted_meanwhile_gets_its_messages_back(world: World) -> None:
    """What a dead worker held of a queue that is gone is there when somebody consumes it again."""
    node = world.node(A)
    world.send(1, 2)
    world.send(3, priority=6)
    node.take(3)
    node.channel.queue_delete("tasks")
    node.die()
    assert sorted(world.recover(A)) == ["task-1", "task-2", "task-3"]
    messages = world.node(B).take(3)
    assert {message.headers["id"] for message in messages} == {"task-1", "task-2", "task-3"}


@pytest.mark.promise(1)
def test_one_that_cannot_be_moved_does_not_keep_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """If the dead letters cannot take one message, the others are back, and it stays on record."""
    world.send(1, 2)
    first = world.node(A)
    first.take(1)
    first.die()
    world.recover(A)
    second = world.node(B)
    second.take(2)
    second.die()
    world.client.set(world.keys.dead_letters, "taken")
    for _ in range(3):
        world.recovery_of(1).recover(B)
    assert world.waiting() == [2]
    assert world.client.hlen("unacked") == 1
    world.client.delete(world.keys.dead_letters)
    world.recovery_of(1).recover(B)
    (letter,), _ = DeadLetters(world.client, world.keys).read()
    assert letter.message["headers"][DEAD_LETTER]["owner"] == "b#1"
    assert "heartbeat.test.dead-letters is a string instead of a list" in caplog.text


# -- a broker in trouble ----------------------------------------------------------------------


@contextlib.contextmanager
def full(server: Any) -> Iterator[None]:
    """The broker has no room for anything more."""
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


@contextlib.contextmanager
def demoted(server: Any) -> Iterator[None]:
    """The broker is the replica of one that does not answer, and takes no orders."""
    with server.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))
        yield
        client.replicaof("NO", "ONE")


@pytest.mark.promise(8)
@pytest.mark.parametrize(("trouble", "pool"), [(full, "threads"), (demoted, "prefork")])
def test_a_broker_that_refuses_loses_nothing(
    fleet: Fleet, valkey_private: Any, trouble: Trouble, pool: str
) -> None:
    """While the broker refuses to write, tasks run on, nothing runs twice, and nobody dies."""
    workers = fleet.start_all(2, pool=pool)
    fleet.send("sleep", 12, 1.0)
    wait_for(lambda: len(fleet.running()) == 4, "all work")
    with trouble(valkey_private):
        wait_for(lambda: len(fleet.by_number("end")) >= 4, "some come to their end")
        time.sleep(3)
    fleet.wait_ended(12)
    fleet.send("sleep", 4, 0.0, first=12)
    fleet.wait_ended(16)
    assert starts(fleet) == dict.fromkeys(range(16), 1)
    wait_for(lambda: held(valkey_private) == 0, "all is acknowledged")
    for worker in workers:
        for word in ("refuse", "lost the broker", "can only be acknowledged"):
            assert len(worker.lines(word)) <= 1, worker.lines(word)
        for word in ("Traceback", "-> dead"):
            assert not worker.lines(word), worker.log.read_text()
    if trouble is full:
        assert any(worker.lines("the broker refuses to hand out") for worker in workers)
    else:
        assert all(worker.lines("read only replica") for worker in workers)


@pytest.mark.promise(1)
@pytest.mark.parametrize("trouble", [full, demoted])
def test_a_death_while_the_broker_refuses_is_recovered(
    fleet: Fleet, valkey_private: Any, trouble: Trouble
) -> None:
    """Who dies while the broker has no room or takes no orders is recovered, whole and once."""
    victim, other = fleet.start_all(2)
    fleet.send("sleep", 4, 4.0)
    wait_for(lambda: len(fleet.running()) == 4, "both work")
    with trouble(valkey_private):
        victim.kill_group()
        if trouble is full:
            wait_for(lambda: other.lines("back in their queues"), "it is recovered now")
        else:
            time.sleep(3)
    fleet.wait_ended(4)
    again = [count for count in starts(fleet).values() if count > 1]
    assert again == [2, 2]
    wait_for(lambda: held(valkey_private) == 0, "all is acknowledged")
    for word in ("back in their queues", "refuses to hand out", "lost the broker"):
        assert len(other.lines(word)) <= 1
    assert len(other.lines("back in their queues")) == 1
    assert not other.lines("Traceback")


# -- settings that contradict each other ------------------------------------------------------


@pytest.mark.promise(3)
def test_a_visibility_timeout_that_is_far_too_short_is_named(
    fleet: Fleet, valkey_private: Any
) -> None:
    """What a worker renews is its own though the timeout is a second; one line says what is wrong.

    Stock workers beside it sweep all the time.
    """
    options = {"visibility_timeout": 1}
    fleet.conf["broker_transport_options"] = options
    ours = fleet.start("ours")
    fleet.wait_ready(ours)
    wait_for(lambda: said_once(ours, "visibility_timeout (1 s) must be longer"), "it says so")
    fleet.send("sleep", 2, 5.0)
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    fleet.environ["FLEET_HEARTBEAT"] = "0"
    stock = fleet.start("stock")
    sweeper = Node(valkey_private.url, None, **options)
    try:
        while not stock.is_ready() or len(fleet.by_number("end")) < 2:
            sweeper.channel.qos.restore_visible(interval=1)
            time.sleep(0.1)
        fleet.send("sleep", 6, 0.0, first=2)
        fleet.wait_ended(8)
    finally:
        sweeper.die()
    assert [len(fleet.by_number("start")[number]) for number in (0, 1)] == [1, 1]
    assert said_once(ours, "visibility_timeout")
    assert not ours.lines("Traceback")
