"""A worker that was declared dead and lives: it drops what it held, and harms nobody."""

import pathlib
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from fleet import Fleet, Worker, stopped, wait_for

from heartbeat_celery._gate import Gate, run_of

QUICK = {
    "heartbeat_frequency": 0.25,
    "heartbeat_max_freq": 0.5,
    "heartbeat_min_freq": 1,
    "heartbeat_expire": 2,
}


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker, and soon impatient."""
    with Fleet(valkey.url, tmp_path, conf=dict(QUICK)) as fleet:
        fleet.client.flushdb()
        yield fleet


def robbed(fleet: Fleet, task: str, count: int, seconds: float, **kwargs: Any) -> Worker:
    """Let a worker take all of some tasks, stop it until they run elsewhere, and continue it."""
    (victim,) = fleet.start_all(1, **kwargs)
    app = fleet.app()
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for number in range(count):
            app.send_task(task, (number, seconds), task_id=f"t{number}", producer=producer)
    wait_for(fleet.running, "a task runs")
    wait_for(lambda: fleet.client.llen("celery") == 0, "all are taken")
    with stopped(victim):
        (survivor,) = fleet.start_all(1, **kwargs)
        name = f"{survivor.name}@here"
        wait_for(lambda: name in fleet.running().values(), "a task runs elsewhere")
    return victim


def starts(fleet: Fleet, worker: Worker, recoveries: int) -> list[int]:
    """Tell which tasks a worker began that had been recovered so often."""
    return [
        record["number"]
        for record in fleet.records()
        if record["what"] == "start"
        and record["worker"] == f"{worker.name}@here"
        and record["recoveries"] == recoveries
    ]


@pytest.mark.promise(4)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_was_taken_is_dropped(fleet: Fleet, pool: str) -> None:
    """Who wakes up robbed begins nothing of what it had fetched, and works on as somebody new."""
    fleet.conf["worker_prefetch_multiplier"] = 6
    victim = robbed(fleet, "sleep", 6, 1.0, pool=pool, concurrency=1)
    begun = starts(fleet, victim, 0)
    fleet.wait_ended(6)
    fleet.send("sleep", 20, 0.1, first=6)
    fleet.wait_ended(26)
    assert [each for each in starts(fleet, victim, 0) if each < 6] == begun, victim.log.read_text()
    assert any(each >= 6 for each in starts(fleet, victim, 0)), victim.log.read_text()
    again = [*starts(fleet, victim, 1), *starts(fleet, fleet.workers[1], 1)]
    assert sorted(again) == sorted(set(again))
    assert victim.lines("what this worker held was handed over")


def test_what_was_taken_is_stopped_if_that_is_asked_for(fleet: Fleet) -> None:
    """With ``terminate``, a task that runs elsewhere does not come to its end here."""
    fleet.conf["heartbeat_on_fenced"] = "terminate"
    victim = robbed(fleet, "sleep", 1, 8.0, concurrency=1)
    wait_for(lambda: victim.lines("of it are stopped: sleep[t0]"), "it is stopped")
    fleet.wait_ended(1)
    fleet.send("sleep", 6, 0.3, first=1)
    fleet.wait_ended(7)
    ends = [record["worker"] for record in fleet.by_number("end")[0]]
    assert f"{victim.name}@here" not in ends
    assert any(each >= 1 for each in starts(fleet, victim, 0)), victim.log.read_text()


@pytest.mark.promise(4)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_result_is_the_new_owners(fleet: Fleet, pool: str) -> None:
    """What a robbed worker brings to its end stores no result, though it is the first."""
    victim = robbed(fleet, "where", 1, 3.0, pool=pool, concurrency=1)
    app: celery.Celery = fleet.app()
    (survivor,) = [worker for worker in fleet.workers if worker is not victim]
    assert app.AsyncResult("t0").get(timeout=30) == f"{survivor.name}@here"
    wait_for(lambda: len(fleet.by_number("end")[0]) == 2, "both have ended")
    assert app.AsyncResult("t0").get(timeout=1) == f"{survivor.name}@here"
    assert victim.lines("the result of task t0 is not stored")


def test_the_gate_knows_one_run_from_another() -> None:
    """A task that was refused may come back to the same worker, and then its result passes."""
    gate = Gate()
    first = run_of("t", {}, redelivered=False)
    again = run_of("t", {"heartbeat_recoveries": 1}, redelivered=True)
    gate.refuse([first])
    assert not gate.admits(lambda: first)
    assert gate.admits(lambda: again)
    gate.refuse([])
    assert gate.admits(lambda: first)


def test_a_look_lets_nobody_pass_who_was_refused() -> None:
    """The heartbeat says again and again that it looks; that changes nothing of who is refused."""
    gate = Gate()
    gate.refuse(["t 0 0"])
    gate.look()
    gate.leave_open()
    assert not gate.admits(lambda: "t 0 0")


def test_the_gate_has_room_for_many() -> None:
    """Of more runs than there is room for the first are refused."""
    gate = Gate()
    gate.refuse(f"{number:040}" for number in range(10_000))
    assert not gate.admits(lambda: f"{0:040}")
    assert gate.admits(lambda: f"{9_999:040}")
