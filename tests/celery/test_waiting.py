"""Waiting for several queues and priorities, and claims of several messages at once."""

import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from consumers import A, B, Node, World, connect_again
from kombu import Queue

from heartbeat_celery import _kombu
from heartbeat_celery._claims import CLAIM
from heartbeat_core import Incarnation

QUEUES = tuple(Queue(name, max_priority=9) for name in ("a", "b", "c"))
FIRST, SECOND, THIRD = QUEUES
URGENT = "\x06\x163"
"""A step of priority behind the first, in the name of a list."""


@pytest.fixture
def world(valkey: Any) -> Iterator[World]:
    """A world on an empty broker."""
    with World(valkey.url) as world:
        yield world


def idle(world: World, me: Incarnation, **options: Any) -> Node:
    """Give a consumer of several queues that waits for them."""
    node = world.node(me, **{"queues": QUEUES, **options})
    until = time.monotonic() + 10
    while not node.channel._is_waiting:
        assert time.monotonic() < until
        node.drain()
    return node


def used_to_priorities(world: World, **options: Any) -> Node:
    """Give a consumer that waits, and has met an urgent message before."""
    world.send(0, priority=3)
    node = world.node(A, **options)
    node.take(1)[0].ack()
    drain_until(node, lambda: node.channel._is_waiting)
    return node


def drain_until(node: Node, is_true: Callable[[], object]) -> None:
    """Let a consumer go on until something is true."""
    until = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < until
        node.drain()


def numbers(node: Node) -> list[int]:
    """Give the numbers of what a consumer has got, in order."""
    return [message.payload["n"] for message in node.got]


def waiting(world: World) -> int:
    """Count what stands in the queues."""
    return sum(world.client.llen(queue.name) for queue in QUEUES)


@pytest.mark.promise(1)
def test_nothing_is_lost_between_several_queues_and_who_waits(world: World) -> None:
    """What left any of several queues for one who waits, and dies before it reads, comes back."""
    node = idle(world, A)
    for number, queue in enumerate(QUEUES, 1):
        world.send(number, queue=queue)
        assert world.waiting(queue.name) == []
        assert world.moved(A, queue.name) == [number]
    node.die()
    assert sorted(world.recover(A)) == ["task-1", "task-2", "task-3"]
    assert [world.waiting(queue.name) for queue in QUEUES] == [[1], [2], [3]]
    assert world.recovery.holders() == {}


def test_priorities_in_use_are_waited_for_at_once(world: World) -> None:
    """Once a priority was used, its messages too are moved to one who waits, and come back."""
    node = used_to_priorities(world)
    world.send(2, priority=3)
    assert world.moved(A, f"tasks{URGENT}") == [2]
    node.die()
    assert world.recover(A) == ["task-2"]
    assert world.waiting(f"tasks{URGENT}") == [2]


def test_one_message_wakes_one_of_those_who_wait_for_several(world: World) -> None:
    """Of two who wait for several queues, one gets the message and the other hears nothing."""
    first, second = idle(world, A), idle(world, B)
    world.send(1, queue=SECOND)
    assert (world.moved(A, "b"), world.moved(B, "b")) == ([1], [])
    first.take(1)
    second.drain()
    assert second.got == []


def test_who_is_busy_leaves_it_to_those_who_wait(world: World) -> None:
    """While one works on all it may hold, no message goes to a connection of his that waits."""
    busy, other = idle(world, A, prefetch=1), idle(world, B)
    world.send(1, queue=FIRST)
    busy.take(1)
    assert sum(line.sent is not None for line in busy.channel._lines._lines) == 2
    world.send(2, queue=SECOND)
    world.send(3, queue=THIRD)
    assert (world.moved(A, "b"), world.moved(A, "c")) == ([], [])
    other.take(2)
    busy.drain()
    assert numbers(busy) == [1]


def test_what_is_more_than_may_be_held_goes_back(world: World) -> None:
    """When more comes at once than a consumer may hold, the rest stands in its queues again."""
    node = idle(world, A, prefetch=1)
    for number, queue in enumerate(QUEUES, 1):
        world.send(number, queue=queue)
    assert waiting(world) == 0
    node.take(1)
    node.drain()
    assert waiting(world) == 2
    assert len(world.held(A)) == 1
    while len(node.got) < 3:
        node.got[-1].ack()
        node.take(1)
    assert sorted(numbers(node)) == [1, 2, 3]


def test_the_more_urgent_goes_first_to_one_who_waits(world: World) -> None:
    """Of what comes at the same time, a consumer who may hold one takes the most urgent."""
    node = used_to_priorities(world, prefetch=1)
    world.send(2, priority=3)
    world.send(1)
    assert node.take(1)[0].payload["n"] == 1
    assert world.waiting(f"tasks{URGENT}") == [2]


def test_who_may_not_take_what_came_gives_it_back(world: World) -> None:
    """A message that comes to one who has been told to hold fewer meanwhile goes to another."""
    world.send(0, queue=FIRST)
    node = idle(world, A, prefetch=2)
    assert numbers(node) == [0]
    node.channel.basic_qos(0, 1, False)
    world.send(1, queue=SECOND)
    assert world.moved(A, "b") == [1]
    drain_until(node, lambda: world.waiting("b") == [1])
    world.send(2, queue=THIRD)
    assert world.moved(A, "c") == []


@pytest.mark.promise(4)
def test_the_fenced_get_nothing_that_they_waited_for(world: World) -> None:
    """Nothing leaves its queue for one who was declared dead while it waited."""
    node = idle(world, A)
    world.recovery.recover(A)
    for number, queue in enumerate(QUEUES, 1):
        world.send(number, queue=queue)
    assert waiting(world) == 3
    drain_until(node, lambda: node.fenced)
    assert (node.got, waiting(world)) == ([], 3)


def test_a_queue_that_is_added_is_waited_for(world: World) -> None:
    """A consumer that waits, and is told to consume another queue, gets its messages."""
    node = idle(world, A, queues=[FIRST, SECOND])
    node.consumer.add_queue(THIRD)
    node.consumer.consume()
    world.send(1, queue=THIRD)
    node.take(1)[0].ack()
    drain_until(node, lambda: node.channel._is_waiting)
    world.send(2, queue=THIRD)
    assert world.moved(A, "c") == [2]


def test_a_queue_that_is_cancelled_gives_nothing_more(world: World) -> None:
    """What came for a consumer that does not want it any more is back in its queue at once."""
    node = idle(world, A)
    world.send(1, queue=SECOND)
    assert world.waiting("b") == []
    node.consumer.cancel_by_queue("b")
    world.send(2, queue=SECOND)
    assert world.waiting("b") == [1, 2]
    world.send(3, queue=THIRD)
    node.take(1)
    assert numbers(node) == [3]


@pytest.mark.parametrize("queues", [[FIRST], QUEUES], ids=["one queue", "several"])
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_who_stops_leaves_nothing_behind(world: World, how: str, queues: list[Queue]) -> None:
    """Who stops consuming gives back what came at last, and nothing comes afterwards."""
    node = idle(world, A, queues=queues)
    world.send(1, queue=FIRST)
    assert world.waiting("a") == []
    node.consumer.cancel() if how == "cancel" else node.channel.close()
    world.send(2, queue=FIRST)
    assert world.waiting("a") == [1, 2]
    assert not world.client.exists(world.keys.waits(A), world.keys.claims(A))
    world.recovery.recover(A, left=True)
    assert not world.client.exists(world.keys.fence(A), world.keys.holders)


def test_what_was_claimed_at_last_goes_back_too(world: World) -> None:
    """Who stops while a claim is on its way gives back what it brings."""
    world.send(1, 2)
    CLAIM.load(world.client)  # Nobody may have claimed on this server yet.
    node = world.node(A)
    node.connection.transport.cycle.on_poll_start()
    until = time.monotonic() + 10
    while not world.held(A):
        assert time.monotonic() < until
    node.consumer.cancel()
    assert world.waiting() == [1, 2]
    assert (node.got, world.held(A)) == ([], set())


def test_a_line_that_breaks_is_replaced(world: World) -> None:
    """What came over a connection that broke while it waited is claimed, and it waits again."""
    node = idle(world, A)
    world.send(1, queue=SECOND)
    ids = {each["id"] for each in world.client.client_list() if each["cmd"] == "blmove"}
    for each in ids:
        world.client.client_kill_filter(_id=each)
    node.take(1)[0].ack()
    drain_until(node, lambda: node.channel._is_waiting)
    for number, queue in enumerate(QUEUES, 2):
        world.send(number, queue=queue)
    assert waiting(world) == 0
    node.take(3)


@pytest.mark.promise(8)
def test_without_connections_to_wait_over_it_looks(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the broker takes no more connections, messages come all the same, and one line says so."""

    def refuse(*_args: Any) -> None:
        raise redis.ConnectionError("max number of clients reached")

    monkeypatch.setattr(_kombu._Claiming, "_open_line", refuse)
    node = idle(world, A)
    for number in (1, 2):
        world.send(number, queue=SECOND)
        node.take(1)[0].ack()
    line = "it looks every 1 s: max number of clients reached"
    drain_until(node, lambda: line in caplog.text)
    world.send(3, queue=THIRD)
    node.take(1)
    assert caplog.text.count(line) == 1


def test_more_lists_than_it_waits_for_are_looked_at(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Of very many queues some are only looked at; none is left out, and one line says so."""
    many = [Queue(f"many-{number:02}") for number in range(20)]
    node = idle(world, A, queues=many)
    for number, queue in enumerate(many):
        world.send(number, queue=queue)
    assert sum(world.client.llen(queue.name) for queue in many) == 4
    drain_until(node, lambda: _ack_all(node) and len(node.got) == 20)
    assert caplog.text.count("for 16 of the 20 lists of its queues this worker waits") == 1


def _ack_all(node: Node) -> bool:
    for message in node.got:
        if not message.acknowledged:
            message.ack()
    return True


def test_of_many_several_are_claimed_at_once_in_order(world: World) -> None:
    """From a long queue several messages are taken in one round trip, the oldest first."""
    world.send(*range(600))
    node = world.node(A, prefetch=100)
    world.client.config_resetstat()
    drain_until(node, lambda: node.got)
    assert numbers(node) == list(range(16))
    assert world.client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert len(world.held(A)) == 16
    node.die()
    world.recovery.recover(A)
    assert world.waiting() == list(range(600))


def test_no_more_are_claimed_than_may_be_held(world: World) -> None:
    """A claim takes no more messages than the consumer may hold."""
    world.send(*range(600))
    node = world.node(A, prefetch=3)
    node.take(3)
    node.drain()
    assert numbers(node) == [0, 1, 2]
    assert len(world.held(A)) == 3


def test_of_few_others_have_their_part(world: World) -> None:
    """From a short queue one message is taken at a time, so that others can take the next."""
    world.send(*range(8))
    nodes = world.node(A), world.node(B)
    for _ in range(20):
        for node in nodes:
            node.drain()
    assert Counter(len(node.got) for node in nodes) == {4: 2}


def test_several_are_claimed_by_priority_and_then_in_turn(world: World) -> None:
    """Several at once come in the order in which one after another would have come."""
    world.send(*range(400), queue=FIRST)
    world.send(*range(1000, 1004), queue=SECOND, priority=3)
    world.send(*range(2000, 2400), queue=THIRD)
    node = world.node(A, queues=QUEUES, prefetch=100)
    drain_until(node, lambda: node.got)
    got = numbers(node)
    assert len(got) > 8
    # Which of the queues is the first, Kombu does not say.
    for half in (got[::2], got[1::2]):
        assert half[0] in (0, 2000)
        assert half == list(range(half[0], half[0] + len(half)))


def test_one_queue_may_go_before_the_other(world: World) -> None:
    """With Kombu's strategy ``priority`` several at once come from one queue first."""
    world.send(*range(600), queue=FIRST)
    world.send(*range(1000, 1600), queue=SECOND)
    options = {"queue_order_strategy": "priority"}
    node = world.node(A, queues=[FIRST, SECOND], prefetch=100, **options)
    drain_until(node, lambda: node.got)
    assert numbers(node) in (list(range(16)), list(range(1000, 1016)))


def test_a_callback_that_raises_costs_no_message(world: World) -> None:
    """If the delivery of one of several raises, the others are delivered next, in order."""
    world.send(*range(600))
    node = world.node(A, prefetch=16)

    def raising(message: Any) -> None:
        node.got.append(message)
        if len(node.got) == 3:
            raise ZeroDivisionError

    node.consumer.on_message = raising
    with pytest.raises(ZeroDivisionError):
        node.take(16)
    assert numbers(node) == [0, 1, 2]
    node.take(13)
    assert numbers(node) == list(range(16))
    assert len(world.held(A)) == 16


def test_a_callback_that_stops_the_consumer_gets_nothing_more(world: World) -> None:
    """What was claimed together with a message that ends the consumer goes back, in order."""
    world.send(*range(600))
    node = world.node(A, prefetch=16)

    def last(message: Any) -> None:
        node.got.append(message)
        # As in Celery's event loop, where Kombu does not put it off.
        node.connection.transport.cycle._in_protected_read = False
        node.consumer.cancel()

    node.consumer.on_message = last
    drain_until(node, lambda: node.got)
    node.drain()
    assert numbers(node) == [0]
    assert world.waiting() == list(range(1, 600))
    assert len(world.held(A)) == 1


def test_an_answer_that_is_lost_costs_no_message(world: World) -> None:
    """What was claimed over a connection that broke in between is claimed again by a living one."""
    world.send(*range(600))
    node = world.node(A, prefetch=16)
    node.connection.transport.cycle.on_poll_start()
    until = time.monotonic() + 10
    while not world.held(A):
        assert time.monotonic() < until
    node.channel.client.connection.disconnect()
    node.take(16)
    assert numbers(node) == list(range(16))
    assert len(world.held(A)) == 16
    assert world.waiting() == list(range(16, 600))


def test_a_new_connection_begins_anew(world: World) -> None:
    """What came and what was claimed over a connection that broke goes back at the next one."""
    node = idle(world, A)
    world.send(1, queue=SECOND)
    connect_again(node, world.node(A, queues=QUEUES).channel)
    assert world.waiting("b") == [1]


CHILD = """
import json, os, sys
sys.path[:0] = [sys.argv[4]]
from consumers import Node
from test_waiting import QUEUES
from heartbeat_core import Incarnation
node = Node(sys.argv[1], Incarnation("n", int(sys.argv[2])), int(sys.argv[3]), QUEUES)
def on_message(message):
    os.write(1, b"%d\\n" % message.payload["n"])
    message.ack()
node.consumer.on_message = on_message
while not node.channel._is_waiting:
    node.drain()
os.write(1, b"ready\\n")
while True:
    node.drain()
"""


class Mortal:
    """A consumer in a process of its own, which writes what it takes."""

    def __init__(self, url: str, number: int, prefetch: int, log: pathlib.Path) -> None:
        self.me = Incarnation("n", number)
        self.log = log
        here = str(pathlib.Path(__file__).parent)
        arguments = [url, str(number), str(prefetch), here]
        with log.open("wb") as out:
            command = [sys.executable, "-c", CHILD, *arguments]
            self.process = subprocess.Popen(command, stdout=out)
        until = time.monotonic() + 30
        while "ready" not in self.log.read_text():
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)

    def taken(self) -> list[int]:
        """Give the numbers of what it took."""
        return [int(line) for line in self.log.read_text().split() if line != "ready"]

    def die(self) -> None:
        """Go without a word."""
        self.process.kill()
        self.process.wait()


@pytest.mark.promise(1)
@pytest.mark.parametrize("seed", range(2))
def test_who_is_killed_when_messages_come_loses_none(
    world: World, tmp_path: pathlib.Path, seed: int
) -> None:
    """However one who waits for several queues is killed, each message is taken, by some."""
    chance = random.Random(seed)
    everybody: list[Mortal] = []

    def start() -> Mortal:
        number = len(everybody) + 1
        each = Mortal(world.url, number, chance.choice([1, 4]), tmp_path / f"{number}.log")
        everybody.append(each)
        return each

    sent = 0
    living = [start(), start()]
    try:
        for _ in range(5):
            dying = living.pop(0)
            if chance.random() < 0.5:
                dying.process.send_signal(signal.SIGSTOP)
            for _ in range(chance.randint(1, 6)):
                sent += 1
                world.send(sent, queue=chance.choice(QUEUES), priority=chance.choice([0, 0, 3]))
            dying.die()
            world.recovery.recover(dying.me)
            living.append(start())
        until = time.monotonic() + 20
        expected = set(range(1, sent + 1))
        while not expected <= {number for each in everybody for number in each.taken()}:
            assert time.monotonic() < until
            time.sleep(0.05)
        while world.client.exists("unacked"):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        for each in everybody:
            each.die()
    for each in living:
        world.recovery.recover(each.me)
    assert waiting(world) == 0
    assert world.recovery.holders() == {}
