"""Every pool: what it may do, and that nobody looks dead for it."""

import importlib.util
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, wait_for

ALARMS = ("-> suspect", "-> dead", "back in their queues", "Traceback")


def _pool(name: str) -> Any:
    away = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(away, reason=f"{name} is not installed"))


GREENLETS = [_pool("gevent"), _pool("eventlet")]


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker."""
    with Fleet(valkey.url, tmp_path) as fleet:
        fleet.client.flushdb()
        yield fleet


def alarms(fleet: Fleet) -> list[str]:
    """Give every line of every worker's log that should not be there in peace."""
    return [
        line
        for path in fleet.folder.glob("*.log")
        for line in path.read_text().splitlines()
        if any(word in line for word in ALARMS)
    ]


def knows(observer: Worker, node: Worker) -> None:
    """Wait until one worker has heard another."""
    wait_for(lambda: observer.lines(f"{node.name}@here beats"), f"{node.name} is known")


@pytest.mark.parametrize("pool", GREENLETS)
def test_what_a_killed_worker_held_runs_elsewhere(fleet: Fleet, pool: str) -> None:
    """Greenlets that are gone with their worker run on another one, once."""
    victim, other = fleet.start_all(2, pool=pool)
    fleet.send("sleep", 6, 1.0)
    name = f"{victim.name}@here"
    wait_for(lambda: name in fleet.running().values(), "the victim runs a task")
    knows(other, victim)
    victim.kill_group()
    fleet.wait_ended(6)
    again = [records for records in fleet.by_number("start").values() if len(records) > 1]
    assert again
    for records in again:
        assert [record["worker"] == name for record in records] == [True, False]
        assert [record["recoveries"] for record in records] == [0, 1]
    wait_for(lambda: "unacked" not in fleet.left_over(), "all is acknowledged")
    assert fleet.stop(other) == 0
    assert fleet.left_over() == {}


@pytest.mark.parametrize("pool", GREENLETS)
@pytest.mark.parametrize("task", ["sleep", "spin"])
def test_a_warm_stop_is_no_death(fleet: Fleet, pool: str, task: str) -> None:
    """A worker that drains its greenlets and stops says goodbye: no alarm, no trace."""
    leaver = fleet.start("leaver", pool=pool)
    other = fleet.start("other", "-Q", "other")
    fleet.wait_ready(leaver, other)
    knows(other, leaver)
    fleet.send(task, 2, 1.5)
    wait_for(fleet.running, "a task runs")
    assert fleet.stop(leaver) == 0
    wait_for(lambda: other.lines("leaver@here said goodbye"), "the goodbye is heard")
    left = 2 - len(fleet.by_number("end"))
    assert fleet.stop(other) == 0
    assert alarms(fleet) == []
    assert fleet.left_over() == {}
    assert fleet.client.llen("celery") == left


@pytest.mark.parametrize("task", ["sleep", "spin"])
def test_a_long_task_makes_nobody_suspect(fleet: Fleet, task: str) -> None:
    """In no pool does a task of six seconds, computing or waiting, keep a worker from beating."""
    pools = ["prefork", "solo", "threads"]
    pools += [pool for pool in ("gevent", "eventlet") if importlib.util.find_spec(pool)]
    busy = [fleet.start(pool, "-Q", pool, pool=pool, concurrency=1) for pool in pools]
    observer = fleet.start("observer", "-Q", "nothing", pool="solo")
    fleet.wait_ready(*busy, observer)
    for worker in busy:
        knows(observer, worker)
    for number, pool in enumerate(pools):
        fleet.app().send_task(task, (number, 6.0), queue=pool)
    fleet.wait_ended(len(pools))
    assert {len(records) for records in fleet.by_number("start").values()} == {1}
    for worker in [*busy, observer]:
        assert fleet.stop(worker) == 0
    assert alarms(fleet) == []


@pytest.mark.parametrize("pool", GREENLETS)
def test_a_worker_recovers_while_its_tasks_compute(fleet: Fleet, pool: str) -> None:
    """Who dies is recovered by the only other one although a task there lets no greenlet run."""
    victim = fleet.start("victim", pool="solo")
    other = fleet.start("other", "-Q", "other", pool=pool)
    fleet.wait_ready(victim, other)
    knows(other, victim)
    fleet.app().send_task("sleep", (0, 60.0))
    wait_for(lambda: fleet.running().get(0), "the victim runs a task")
    fleet.app().send_task("spin", (1, 15.0), queue="other")
    wait_for(lambda: fleet.running().get(1), "the other computes")
    victim.kill_group(signal.SIGKILL)
    wait_for(lambda: fleet.client.llen("celery"), "the task is back in its queue")
    assert 1 in fleet.running()
    fleet.wait_ended(1)
    wait_for(lambda: other.lines("1 messages of victim@here"), "what was logged is written down")
