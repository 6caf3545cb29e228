"""Promises are held by tests that fail without what keeps them; here are those that others lack."""

import ast
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from consumers import A, B, World, connect_again

from heartbeat_celery._dead_letters import DeadLetters
from heartbeat_celery._keys import Keys
from heartbeat_celery._recovery import Recovery
from heartbeat_core import Incarnation

PROMISES = range(1, 9)


@pytest.fixture
def world(valkey: Any) -> Iterator[World]:
    """A world on an empty broker."""
    with World(valkey.url) as world:
        yield world


def test_each_promise_has_its_tests() -> None:
    """No promise is without a test that is marked with its number, and none has a wrong one."""
    marked = {
        node.args[0].value
        for path in pathlib.Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "pytest.mark.promise"
        and isinstance(node.args[0], ast.Constant)
    }
    assert marked == set(PROMISES)


@pytest.mark.promise(1)
def test_a_recovery_that_loses_its_last_look_leaves_the_dead_on_record(world: World) -> None:
    """As long as anything of a dead one stands anywhere, whoever looks next finds it."""
    world.send(1, 2)
    node = world.node(A)
    node.take(2)
    node.die()
    tags = world.held(A)
    stuck = tags.pop().decode()
    record = world.client.hget("unacked", stuck)
    assert record is not None
    world.client.hset("unacked", stuck, "not readable")
    world.recover(A)
    assert world.recovery.holders() == {A: True}
    world.client.hset("unacked", stuck, record)
    assert len(world.recover(A)) == 1
    assert sorted(world.waiting()) == [1, 2]
    assert world.recovery.holders() == {}


@pytest.mark.promise(2)
def test_many_observers_at_once_give_each_message_back_once(world: World, valkey: Any) -> None:
    """However many recover the same death at the same time, nothing is in its queue twice."""
    count = 300
    world.send(*range(count))
    node = world.node(A, prefetch=count)
    node.take(count)
    node.die()
    together = threading.Barrier(4)
    recovered: list[str] = []

    def recover() -> None:
        with redis.Redis.from_url(valkey.url) as client:
            together.wait()
            recovered.extend(each.task_id for each in Recovery(client, world.keys).recover(A))

    threads = [threading.Thread(target=recover) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(world.waiting()) == list(range(count))
    assert sorted(recovered) == sorted(f"task-{number}" for number in range(count))


@pytest.mark.promise(2)
@pytest.mark.promise(3)
def test_a_slow_observer_takes_nothing_from_the_next_owner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who has read what the dead held, and acts when another owner has it, changes nothing."""
    world.send(1, 2)
    node = world.node(A)
    node.take(2)
    node.die()
    slow = Recovery(world.client, world.keys)
    move = Recovery._move

    def be_slow(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Recovery, "_move", move)
        world.recover(A)
        world.node(B).take(2)
        return move(*args, **kwargs)

    monkeypatch.setattr(Recovery, "_move", be_slow)
    assert slow.recover(A) == []
    assert world.waiting() == []
    assert len(world.held(B)) == world.client.hlen("unacked") == 2


@pytest.mark.promise(3)
def test_a_recovery_of_one_touches_nobody_else(world: World) -> None:
    """What others hold, a larger incarnation of the same node too, stays theirs."""
    again = Incarnation(A.node, A.number + 1)
    for number, owner in enumerate((A, B, again)):
        world.send(number)
        node = world.node(owner)
        node.take(1)
        if owner == A:
            node.die()
    assert world.recover(A) == ["task-0"]
    assert len(world.held(B)) == len(world.held(again)) == 1
    assert world.client.hlen("unacked") == 2
    assert not world.client.exists(world.keys.fence(B), world.keys.fence(again))


@pytest.mark.promise(4)
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("answer", ["ack", "reject", "requeue", "restore"])
def test_the_old_owner_is_told_that_its_answer_does_not_count(
    world: World, caplog: pytest.LogCaptureFixture, answer: str, dropped: bool
) -> None:
    """Each answer of the old owner, aware or not, changes nothing for the new one, and says so."""
    world.send(1)
    zombie = world.node(A)
    (message,) = zombie.take(1)
    world.recover(A)
    world.node(B).take(1)
    before = world.client.hgetall("unacked"), world.client.zrange("unacked_index", 0, -1)
    if dropped:
        zombie.channel.claims.held.clear()
    if answer == "restore":
        zombie.channel.qos.restore_by_tag(message.delivery_tag)
    else:
        getattr(message, answer)()
    assert world.waiting() == []
    after = world.client.hgetall("unacked"), world.client.zrange("unacked_index", 0, -1)
    assert after == before
    assert len(world.held(B)) == 1
    if answer != "restore" or not dropped:
        assert "is not this worker's any more" in caplog.text
    if answer in {"ack", "reject"} and not dropped:
        assert zombie.fenced == [A]


@pytest.mark.promise(4)
def test_an_old_owner_keeps_nothing_alive(world: World) -> None:
    """A renewal, or a new connection, of the old owner changes nothing for the new one."""
    world.send(1)
    zombie = world.node(A)
    zombie.take(1)
    claims = zombie.channel.claims
    world.recover(A)
    world.node(B).take(1)
    score = world.client.zrange("unacked_index", 0, -1, withscores=True)
    claims.renew(world.client, A)
    claims.held.clear()
    connect_again(zombie)
    assert world.client.zrange("unacked_index", 0, -1, withscores=True) == score
    assert world.waiting() == []


@pytest.mark.promise(5)
def test_a_message_ends_after_just_so_many_owners(world: World) -> None:
    """With ``max_recoveries`` of three the fourth owner is the last; each stop of one is free."""
    world.send(1)
    counts = []
    for number in range(1, 5):
        leaver, owner = Incarnation("leaver", number), Incarnation("w", number)
        node = world.node(leaver)
        node.take(1)
        node.die()
        world.recovery.recover(leaver, left=True)
        node = world.node(owner)
        (message,) = node.take(1)
        counts.append(message.headers.get("heartbeat_recoveries", 0))
        node.die()
        world.recover(owner)
    assert counts == [0, 1, 2, 3]
    assert world.waiting() == []
    ((letter,), _) = DeadLetters(world.client, world.keys).read()
    assert letter.recoveries == 3
    assert len(world.verdicts()) == 1


@pytest.mark.promise(6)
def test_nothing_of_a_message_changes_but_what_tells_of_the_recovery(world: World) -> None:
    """Body, properties and headers come back as they were, with two marks and a count."""
    world.send(1, priority=3)
    list_ = "tasks\x06\x163"
    (item,) = world.client.lrange(list_, 0, -1)
    before = json.loads(item)
    node = world.node(A)
    node.take(1)
    node.die()
    world.recover(A)
    (item,) = world.client.lrange(list_, 0, -1)
    after = json.loads(item)
    assert after["headers"].pop("redelivered")
    assert after["headers"].pop("heartbeat_recoveries") == 1
    assert after["properties"]["delivery_info"].pop("redelivered")
    assert after == before


@pytest.mark.promise(6)
def test_what_never_arrived_goes_back_ahead_in_order(world: World) -> None:
    """What was claimed over a connection that broke stands ahead of what came later, in order."""
    world.send(1, 2, 3)
    node = world.node(A)
    node.take(3)
    world.send(4)
    node.channel.claims.held.clear()
    connect_again(node)
    assert world.waiting() == [1, 2, 3, 4]


@pytest.mark.promise(7)
def test_a_verdict_is_posted_with_the_message_or_not_at_all(world: World) -> None:
    """If what is to be told cannot be written down, the message stays, and both come later."""
    world.send(1)
    node = world.node(A)
    node.take(1)
    node.die()
    world.client.set(world.keys.verdicts, "taken")
    recovery = world.recovery_of(0)
    assert recovery.recover(A) == []
    assert world.client.hlen("unacked") == 1
    assert not world.client.exists(world.keys.dead_letters)
    world.client.delete(world.keys.verdicts)
    recovery.recover(A)
    assert len(world.verdicts()) == len(DeadLetters(world.client, world.keys)) == 1


@pytest.mark.promise(3)
def test_a_namespace_of_others_is_left_alone(world: World) -> None:
    """Two fleets on one broker know nothing of each other's claims."""
    world.send(1)
    world.node(A).take(1)
    others = Recovery(world.client, Keys("", "others", "unacked", "unacked_index"))
    assert others.recover(A) == []
    assert others.holders() == {}
    assert len(world.held(A)) == 1
