"""Claims and recovery, at the level of one broker and no worker."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from consumers import PRIORITIES, A, B, Node, World, connect_again
from kombu import Connection, Producer

from heartbeat_celery import _claims
from heartbeat_celery._claims import Claims
from heartbeat_celery._dead_letters import DEAD_LETTER, RECOVERIES, DeadLetters
from heartbeat_celery._keys import Keys
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._running import Early
from heartbeat_celery._verdicts import Kind, Verdicts
from heartbeat_core import Incarnation


@pytest.fixture
def world(valkey: Any) -> Iterator[World]:
    """A world on an empty broker."""
    with World(valkey.url) as world:
        yield world


@pytest.mark.promise(1)
def test_what_is_taken_is_on_record_at_once(world: World) -> None:
    """A message that a claiming consumer has got is claimed, and in Kombu's own records."""
    world.send(1)
    (message,) = world.node(A).take(1)
    assert list(world.client.hgetall("heartbeat:{test}:claims:a#1")) == [
        message.delivery_tag.encode()
    ]
    assert world.client.hexists("unacked", message.delivery_tag)
    assert world.client.zscore("unacked_index", message.delivery_tag) == pytest.approx(
        time.time(), abs=5
    )
    assert world.client.smembers("heartbeat:{test}:holders") == {b"a#1"}


def test_kombu_finds_its_own_records_as_it_writes_them(world: World) -> None:
    """The record of a message claimed from the queue is what stock would have written."""
    world.send(1)
    stock = world.node(None)
    (message,) = stock.take(1)
    expected = json.loads(world.client.hget("unacked", message.delivery_tag) or "")
    stock.channel.basic_reject(message.delivery_tag, requeue=True)
    stock.die()
    (again,) = world.node(A).take(1)
    found = json.loads(world.client.hget("unacked", again.delivery_tag) or "")
    for record in (expected, found):
        record[0]["headers"].pop("redelivered", None)
        record[0]["properties"]["delivery_info"].pop("redelivered", None)
    assert found == expected


@pytest.mark.parametrize("idle", [False, True], ids=["by claim", "after waiting"])
def test_an_ack_leaves_nothing(world: World, idle: bool) -> None:
    """After an ack nothing of the message is left, however it was taken."""
    node = world.node(A)
    if idle:
        node.drain()
    world.send(1)
    (message,) = node.take(1)
    message.ack()
    assert world.held(A) == set()
    assert not world.client.exists("unacked", "unacked_index")
    assert world.moved(A) == []
    assert world.waiting() == []


@pytest.mark.promise(2)
@pytest.mark.parametrize("idle", [False, True], ids=["by claim", "after waiting"])
def test_the_dead_lose_what_they_held_to_the_queue(world: World, idle: bool) -> None:
    """Recovery puts back all that an incarnation held, once, with a count, and no more."""
    node = world.node(A)
    if idle:
        node.drain()
    world.send(1, 2, 3)
    node.take(3)
    node.die()
    assert world.recover(A) == ["task-1", "task-2", "task-3"]
    assert world.recover(A) == []
    assert world.waiting() == [1, 2, 3]
    assert not world.client.exists("unacked", "unacked_index", "heartbeat:{test}:claims:a#1")
    assert not world.client.exists("heartbeat:{test}:holders")
    messages = world.node(B).take(3)
    assert [message.headers[RECOVERIES] for message in messages] == [1, 1, 1]
    assert all(message.headers["redelivered"] for message in messages)


@pytest.mark.promise(6)
def test_what_comes_back_stands_where_it_was(world: World) -> None:
    """Recovered messages keep their priority, and stand ahead of what came later."""
    node = world.node(A, prefetch=4)
    world.send(1, 2)
    node.take(2)
    world.send(6, 7, priority=6)
    node.take(2)
    world.send(3, 4)
    world.send(8, priority=6)
    node.die()
    world.recovery.recover(A)
    assert world.waiting() == [1, 2, 3, 4]
    assert world.waiting("tasks\x06\x166") == [6, 7, 8]


@pytest.mark.promise(6)
def test_who_is_idle_takes_the_oldest_first(world: World) -> None:
    """What comes back while others wait for it is taken in the order in which it was before."""
    node = world.node(A)
    world.send(1, 2, 3)
    node.take(3)
    node.die()
    idle = world.node(B, prefetch=1)
    idle.drain()
    assert world.recover(A) == ["task-1", "task-2", "task-3"]
    assert world.moved(B) == [1]
    taken = []
    for _ in range(3):
        (message,) = idle.take(1)
        taken.append(message.headers["id"])
        message.ack()
    assert taken == ["task-1", "task-2", "task-3"]


@pytest.mark.promise(6)
@pytest.mark.parametrize("limit", ["MOST_BACK", "MUCH"])
def test_more_than_moves_at_once_comes_back_in_order(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """However little is given back at once, the oldest stands ahead in the end."""
    monkeypatch.setattr(_claims, limit, 2)
    node = world.node(A)
    world.send(1, 2, 3, 4, 5)
    node.take(5)
    node.die()
    assert world.recover(A) == [f"task-{number}" for number in range(1, 6)]
    assert world.waiting() == [1, 2, 3, 4, 5]


@pytest.mark.promise(6)
def test_a_renewal_keeps_the_order(world: World) -> None:
    """What was renewed together comes back as it was taken, and ahead of what was taken later."""
    node = world.node(A, prefetch=20)
    world.send(*range(8))
    node.take(8)
    for _ in range(2):
        node.channel.claims.renew(world.client, A)
    scores = [score for _, score in world.client.zrange("unacked_index", 0, -1, withscores=True)]
    assert len(set(scores)) == 8
    world.send(8, 9)
    node.take(2)
    node.die()
    world.recover(A)
    assert world.waiting() == list(range(10))


@pytest.mark.promise(4)
def test_a_zombie_changes_nothing_for_the_new_owner(world: World) -> None:
    """After the hand-over, ack, reject, requeue and restore by the old owner have no effect."""
    zombie = world.node(A)
    world.send(1, 2, 3, 4)
    old = zombie.take(4)
    world.recovery.recover(A)
    owner = world.node(B)
    owner.take(4)
    before = world.client.hgetall("unacked"), world.client.hgetall("heartbeat:{test}:claims:b#1")
    old[0].ack()
    old[1].reject()
    old[2].requeue()
    zombie.channel.qos.restore_unacked_once()
    assert world.waiting() == []
    after = world.client.hgetall("unacked"), world.client.hgetall("heartbeat:{test}:claims:b#1")
    assert after == before
    owner.die()
    assert len(world.recovery.recover(B)) == 4


@pytest.mark.promise(3)
def test_the_visibility_timeout_of_others_ends_a_claim(world: World) -> None:
    """When a stock consumer took a message over, neither ack nor recovery of the claim acts."""
    node = world.node(A)
    world.send(1, 2)
    first, second = node.take(2)
    stock = world.node(None)
    for message in (first, second):
        stock.channel.qos.restore_by_tag(message.delivery_tag)
    stock.take(2)
    first.ack()
    world.recovery.recover(A)
    assert world.client.hlen("unacked") == 2
    assert world.waiting() == []


@pytest.mark.promise(3)
def test_stock_consumers_are_never_touched(world: World) -> None:
    """What a consumer without claims holds is no affair of recovery."""
    world.send(1)
    world.node(None).take(1)
    world.send(2)
    world.node(A).take(1)
    assert world.recover(A) == ["task-2"]
    assert world.client.hlen("unacked") == 1


@pytest.mark.promise(4)
def test_the_fenced_take_nothing_by_claim(world: World) -> None:
    """An incarnation that was declared dead gets no message, and is told so."""
    node = world.node(A)
    world.recovery.recover(A)
    world.send(1)
    node.drain()
    assert node.got == []
    assert A in node.fenced
    assert world.waiting() == [1]


@pytest.mark.promise(4)
def test_the_fenced_keep_nothing_that_they_waited_for(world: World) -> None:
    """A message that comes to one who was fenced while it waited goes back to the queue."""
    node = world.node(A)
    node.drain()
    world.recovery.recover(A)
    world.send(1)
    until = time.monotonic() + 10
    while not node.fenced and time.monotonic() < until:
        node.drain()
    assert node.got == []
    node.die()
    assert world.waiting() == [1]
    assert not world.client.exists("unacked", "heartbeat:{test}:claims:a#1")


@pytest.mark.promise(1)
def test_nothing_is_lost_while_nobody_has_it(world: World) -> None:
    """A message that left its queue for one who waits, and dies before it reads, comes back."""
    node = world.node(A)
    node.drain()
    world.send(1)
    assert world.waiting() == []
    assert world.moved(A) == [1]
    node.die()
    assert world.recover(A) == ["task-1"]
    assert world.waiting() == [1]
    assert world.recovery.holders() == {}


def test_one_message_wakes_one(world: World) -> None:
    """Of two who wait, one gets the message and the other hears nothing."""
    first, second = world.node(A), world.node(B)
    for node in (first, second):
        node.drain()
    world.send(1)
    assert world.moved(A) == [1]
    assert world.moved(B) == []
    first.take(1)
    second.drain()
    assert second.got == []


def test_what_came_for_a_connection_that_broke_is_taken_first(world: World) -> None:
    """What was moved to a living incarnation and never arrived is the next that it claims."""
    node = world.node(A)
    node.drain()
    world.send(1)
    node.channel.client.connection.disconnect()
    world.send(2)
    messages = node.take(2)
    assert [message.headers["id"] for message in messages] == ["task-1", "task-2"]
    assert len(world.held(A)) == 2


def test_priorities_are_waited_for_too(world: World) -> None:
    """One who waits gets a message of a higher priority as well, at the latest after a second."""
    node = world.node(A)
    node.drain()
    world.send(1, priority=6)
    node.take(1)
    node.drain()
    world.send(2, priority=6)
    node.take(1)
    assert len(world.held(A)) == 2
    node.die()
    assert world.recover(A) == ["task-1", "task-2"]
    assert world.waiting("tasks\x06\x166") == [1, 2]


@pytest.mark.promise(8)
@pytest.mark.parametrize("broken", ["claim_command", "wait_command"])
def test_a_bug_of_ours_costs_no_message(
    world: World,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If claiming is broken, messages are taken the stock way, with one traceback."""
    node = world.node(A)
    world.send(1)
    (claimed,) = node.take(1)

    def fail(*_args: Any) -> None:
        raise AttributeError(broken)

    monkeypatch.setattr(Claims, broken, fail)
    node.drain()
    world.send(2, 3)
    _, message = node.take(2)
    assert caplog.text.count("taken the stock way") == 1
    claimed.ack()
    message.ack()
    assert world.client.hlen("unacked") == 1


class _Killed(BaseException):
    """The recoverer is gone."""


class _Mortal:
    """A client of the real broker that dies at its n-th command."""

    def __init__(self, client: Any, commands: int) -> None:
        self._client = client
        self._left = commands

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._client, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise _Killed
            self._left -= 1
            return command(*args, **kwargs)

        return counted if callable(command) else command


@pytest.mark.promise(1)
@pytest.mark.parametrize("at_once", [1, 100])
def test_a_recovery_that_is_cut_off_anywhere_is_finished_by_another(
    world: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Whichever command a recoverer dies at, the next one gives each message back once."""
    monkeypatch.setattr(_claims, "MOST_BACK", at_once)
    execute = redis.Redis.execute_command

    def mortal_execute(client: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(client, _Mortal):
            return client.execute_command(*args, **kwargs)
        return execute(client, *args, **kwargs)

    monkeypatch.setattr(redis.Redis, "execute_command", mortal_execute)
    died = 0
    for commands in range(30):
        world.client.flushdb()
        world.send(1, 2, 3, 4, 5)
        node = world.node(A)
        _run_early(node, 2, on_lost="fail")
        _run_early(node, 1, on_lost="rerun")
        node.take(2)
        node.die()
        world.send(6)
        try:
            Recovery(_Mortal(world.client, commands), world.keys).recover(A)
        except _Killed:
            died += 1
        world.recovery.recover(A)
        assert sorted(world.waiting()) == [3, 4, 5, 6], f"cut off after {commands} commands"
        assert sorted(each.task_id for each in world.verdicts()) == ["task-1", "task-2"]
        assert not world.client.exists("unacked", "unacked_index", world.keys.running(A))
        assert world.recovery.holders() == {}
    assert died > 10


def test_what_cannot_be_read_stays_and_is_reported(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that is not Kombu's stays where it is; the rest is recovered."""
    node = world.node(A)
    world.send(1, 2)
    broken, _ = node.take(2)
    node.die()
    world.client.hset("unacked", broken.delivery_tag, b"\xff not JSON")
    assert world.recover(A) == ["task-2"]
    assert world.client.hexists("unacked", broken.delivery_tag)
    assert broken.delivery_tag in caplog.text
    assert world.recovery.holders() == {A: True}


@pytest.mark.promise(3)
def test_renewal_keeps_what_is_held(world: World) -> None:
    """What a living incarnation holds and renews, no visibility timeout gives to others."""
    node = world.node(A)
    world.send(1)
    (message,) = node.take(1)
    time.sleep(0.6)
    node.channel.claims.renew(world.client, A)
    stock = world.node(None, visibility_timeout=0.5)
    stock.channel.qos.restore_visible(interval=1)
    assert world.waiting() == []
    message.ack()
    assert not world.client.exists("unacked", "heartbeat:{test}:claims:a#1")


@pytest.mark.promise(4)
def test_renewal_does_nothing_for_the_fenced(world: World) -> None:
    """What a fenced incarnation holds keeps its age, until it is recovered."""
    world.send(1)
    node = world.node(A)
    (message,) = node.take(1)
    before = world.client.zscore("unacked_index", message.delivery_tag)
    world.client.set(world.keys.fence(A), 1)
    node.channel.claims.renew(world.client, A)
    assert world.client.zscore("unacked_index", message.delivery_tag) == before


def test_renewal_stands_what_the_consumer_does_meanwhile(world: World) -> None:
    """Messages may come and go in the consumer's thread while the heartbeat's renews."""
    claims = world.node(A).channel.claims

    class Meanwhile(Incarnation):
        def __hash__(self) -> int:
            # Where hashing runs Python, another thread may run.
            claims.held[f"tag-{len(claims.held)}"] = A
            return 1

    claims.held["tag-0"] = Meanwhile("b", 1)
    claims.renew(world.client, A)
    assert len(claims.held) > 1


@pytest.mark.promise(1)
def test_what_was_claimed_and_never_arrived_goes_back(world: World) -> None:
    """A reply that was lost with its connection costs no message."""
    node = world.node(A)
    world.send(1)
    node.take(1)
    tag = next(iter(node.channel.claims.held))
    node.channel.claims.held.clear()
    connect_again(node)
    assert world.waiting() == [1]
    assert not world.client.hexists("unacked", tag)


def test_a_key_prefix_is_kept(world: World) -> None:
    """With Kombu's ``global_keyprefix`` everything stands under the prefix, and comes back."""
    options = {"global_keyprefix": "them:"}
    with Connection(world.url, transport_options=options) as connection:
        Producer(connection).publish({"n": 1}, routing_key="tasks", declare=[PRIORITIES])
    node = world.node(A, **options)
    node.take(1)
    assert {key.partition(b":")[0] for key in world.client.scan_iter()} == {b"them"}
    node.die()
    keys = Keys("them:", "test", "them:unacked", "them:unacked_index")
    Recovery(world.client, keys).recover(A)
    assert world.waiting("them:tasks") == [1]
    (message,) = world.node(B, **options).take(1)
    message.ack()
    assert not world.client.exists("them:unacked")


def test_a_channels_prefix_is_put_before_keys_once(world: World) -> None:
    """With a ``global_keyprefix`` too, what was claimed and never arrived goes back whole."""
    options = {"global_keyprefix": "them:"}
    with Connection(world.url, transport_options=options) as connection:
        producer = Producer(connection)
        producer.publish({"n": 1}, routing_key="tasks", declare=[PRIORITIES], headers={"id": "1"})
    node = world.node(A, **options)
    node.take(1)
    node.channel.claims.held.clear()
    connect_again(node)
    assert world.waiting("them:tasks") == [1]


class _Started:
    """All that is acknowledged runs on."""

    def __init__(self, on_lost: str) -> None:
        self._on_lost = on_lost
        self.added: list[str] = []

    def early(self, message: Any) -> Early:
        return Early(message.delivery_tag, None, self._on_lost)

    def add(self, _me: Incarnation, early: Early) -> None:
        self.added.append(early.tag)


def _run_early(node: Node, count: int, *, on_lost: str) -> list[str]:
    """Take messages, acknowledge them, and go on with them; give their tags."""
    started = node.channel.running = _Started(on_lost)
    for message in node.take(count):
        message.ack()
    node.channel.running = None
    return started.added


@pytest.mark.promise(5)
def test_what_outlived_its_owners_is_dead_lettered(world: World) -> None:
    """After so many recoveries a message leaves its queue, whole, with the reason, once."""
    world.send(1, priority=6)
    (before,) = (json.loads(item) for item in world.client.lrange("tasks\x06\x166", 0, -1))
    recovery = world.recovery_of(1)
    for owner, expected in ((A, ["task-1"]), (B, [])):
        node = world.node(owner)
        node.take(1)
        node.die()
        assert [each.task_id for each in recovery.recover(owner)] == expected
        assert recovery.recover(owner) == []
    assert world.waiting("tasks\x06\x166") == []
    assert not world.client.exists("unacked", "unacked_index")
    letters = DeadLetters(world.client, world.keys)
    ((letter,), others) = letters.read()
    assert (letter.task_id, letter.recoveries, letter.owner, others) == ("task-1", 1, "b#1", 0)
    assert letter.queue == "tasks\x06\x166"
    assert "outlived 1 owner," in letter.reason
    assert "heartbeat.test.dead-letters" in letter.reason
    assert letter.message["body"] == before["body"]
    assert letter.message["properties"]["delivery_tag"] == before["properties"]["delivery_tag"]
    (verdict,) = world.verdicts()
    assert (verdict.kind, verdict.node, verdict.queue) == (Kind.DEAD_LETTERED, "b", "tasks")
    assert verdict.reason == letter.reason


def test_kombu_can_consume_the_dead_letters(world: World) -> None:
    """The dead letters are a queue as others are."""
    _bury(world, 1, 2)
    with Connection(world.url) as connection:
        queue = connection.SimpleQueue("heartbeat.test.dead-letters")
        messages = [queue.get(timeout=5), queue.get(timeout=5)]
        assert {message.payload["n"] for message in messages} == {1, 2}
        assert messages[0].headers[DEAD_LETTER]["queue"] == "tasks"
        for message in messages:
            message.ack()
        queue.close()


def _bury(world: World, *numbers: int) -> DeadLetters:
    """Let messages die with their first owner."""
    world.send(*numbers)
    node = world.node(A)
    node.take(len(numbers))
    node.die()
    world.recovery_of(0).recover(A)
    world.client.delete(world.keys.fence(A))
    return DeadLetters(world.client, world.keys)


def test_dead_letters_go_back_as_if_they_had_had_no_owner(world: World) -> None:
    """A dead letter that is queued again stands behind all others, and its count begins anew."""
    letters = _bury(world, 1, 2, 3)
    assert len(letters) == 3
    world.send(4)
    found, _ = letters.read()
    second = next(letter for letter in found if letter.task_id == "task-2")
    assert letters.requeue(second)
    assert not letters.requeue(second)
    assert world.waiting() == [4, 2]
    assert letters.requeue_all() == 2
    assert len(letters) == 0
    assert sorted(world.waiting()) == [1, 2, 3, 4]
    messages = world.node(B).take(4)
    assert not any({RECOVERIES, DEAD_LETTER} & set(message.headers) for message in messages)


def test_dead_letters_can_be_deleted(world: World) -> None:
    """One or all of them go for ever; what else stands there is counted, and left alone."""
    letters = _bury(world, 1, 2, 3)
    world.client.rpush(world.keys.dead_letters, b"{}")
    found, others = letters.read()
    assert others == 1
    assert letters.remove(found[0])
    assert not letters.remove(found[0])
    assert letters.purge() == 3
    assert letters.purge() == 0


@pytest.mark.promise(1)
def test_what_cannot_be_dead_lettered_stays(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """If the dead letters' name is taken by something else, one line says so; nothing is lost."""
    world.send(1)
    node = world.node(A)
    node.take(1)
    node.die()
    world.client.set(world.keys.dead_letters, "not a list")
    recovery = world.recovery_of(0)
    for _ in range(2):
        assert recovery.recover(A) == []
        assert world.recovery.holders() == {A: True}
    assert caplog.text.count("cannot be moved, and stays where it is: ") == 1
    assert world.client.hlen("unacked") == 1
    assert world.verdicts() == []
    world.client.delete(world.keys.dead_letters)
    recovery.recover(A)
    assert len(DeadLetters(world.client, world.keys)) == len(world.verdicts()) == 1
    assert recovery.holders() == {}


@pytest.mark.promise(7)
def test_what_is_acknowledged_early_is_kept_until_it_ends(world: World) -> None:
    """The ack of a task that runs on keeps its message; its end deletes it."""
    node = world.node(A)
    world.send(1)
    tags = _run_early(node, 1, on_lost="fail")
    assert [key.decode() for key in world.client.hkeys(world.keys.running(A))] == tags
    assert not world.client.exists("unacked", "unacked_index")
    node.channel.claims.forget(world.client, {A: tags})
    assert not world.client.exists(world.keys.running(A))


@pytest.mark.promise(7)
@pytest.mark.parametrize("left", [False, True])
def test_what_ran_on_is_told_or_queued_again(world: World, left: bool) -> None:
    """Of what ran on, one kind is posted as lost, and the other is back in its queue, counted."""
    node = world.node(A)
    world.send(1, 2)
    _run_early(node, 1, on_lost="fail")
    _run_early(node, 1, on_lost="rerun")
    node.die()
    (recovered,) = world.recovery.recover(A, left=left)
    assert world.recovery.recover(A, left=left) == []
    assert (recovered.task_id, recovered.recoveries) == ("task-2", 0 if left else 1)
    (verdict,) = world.verdicts()
    assert (verdict.kind, verdict.task_id, verdict.left) == (Kind.LOST, "task-1", left)
    assert world.waiting() == [2]
    assert world.recovery.holders() == {}


@pytest.mark.promise(2)
def test_what_ran_on_is_told_or_queued_again_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two observers who have read what ran on, one gives it back and tells of it."""
    node = world.node(A)
    world.send(1, 2)
    _run_early(node, 1, on_lost="fail")
    _run_early(node, 1, on_lost="rerun")
    node.die()
    end = Recovery._end

    def be_slow(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Recovery, "_end", end)
        assert world.recover(A) == ["task-2"]
        return end(*args, **kwargs)

    monkeypatch.setattr(Recovery, "_end", be_slow)
    assert world.recover(A) == []
    assert world.waiting() == [2]
    assert [verdict.task_id for verdict in world.verdicts()] == ["task-1"]


@pytest.mark.promise(5)
def test_what_is_run_again_comes_to_an_end_too(world: World) -> None:
    """A task that asks to be run again when it is lost is dead-lettered as others are."""
    world.send(1)
    for owner in (A, B):
        node = world.node(owner)
        _run_early(node, 1, on_lost="rerun")
        node.die()
        world.recovery_of(1).recover(owner)
    assert len(DeadLetters(world.client, world.keys)) == 1
    assert [verdict.kind for verdict in world.verdicts()] == [Kind.DEAD_LETTERED]


@pytest.mark.promise(4)
def test_a_zombie_that_acknowledges_early_keeps_nothing(world: World) -> None:
    """What was taken over from a worker is not on record as running there."""
    zombie = world.node(A)
    world.send(1)
    (message,) = zombie.take(1)
    world.recovery.recover(A)
    zombie.channel.running = started = _Started("fail")
    message.ack()
    assert started.added == []
    assert not world.client.exists(world.keys.running(A))
    assert world.waiting() == [1]


@pytest.mark.promise(8)
def test_a_bug_in_the_account_of_what_runs_costs_no_ack(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """If it cannot be told whether a task runs, its message is acknowledged all the same."""
    node = world.node(A)
    world.send(1, 2)
    node.channel.running = object()
    for message in node.take(2):
        message.ack()
    assert caplog.text.count("are not kept any more") == 1
    assert not world.client.exists("unacked", world.keys.running(A))


def test_what_a_dead_one_was_about_to_tell_another_tells(world: World) -> None:
    """A verdict that was taken and not told is there again when its taker is recovered."""
    _bury(world, 1)
    verdicts = Verdicts(world.client, world.keys)
    taken = verdicts.take(A)
    assert taken is not None
    assert verdicts.take(B) is None
    assert verdicts.holds(taken)
    assert world.recovery.holders() == {A: False}
    world.recovery.recover(A)
    assert not verdicts.holds(taken)
    again = verdicts.take(B)
    assert again is not None
    assert (again.times, again.verdict()) == (2, taken.verdict())
    verdicts.put_back(again, counted=False)
    again = verdicts.take(B)
    assert again is not None
    assert again.times == 2
    verdicts.done(again)
    assert verdicts.take(B) is None
