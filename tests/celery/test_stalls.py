"""Workers that live and do no work, real ones: they are found, reported, and begun anew."""

import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, stopped, wait_for
from proxy import Proxy

BEGINS = "hangs: its main loop has not turned for"
SILENT = "gets nothing: its connection to the broker has been silent"
ENDS = "hangs no longer, after"
PATIENCE = 5
LONG = 3 * PATIENCE
"""How long something lasts that would be a stall if it were one."""


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker; nobody has much patience."""
    with Fleet(valkey.url, tmp_path, app_name="stall_app") as fleet:
        fleet.client.flushdb()
        fleet.environ["CELERY_HEARTBEAT_EXPIRE"] = str(PATIENCE)
        yield fleet


def no_stall(*workers: Worker) -> bool:
    """Tell that nobody said that anybody hangs."""
    return not any(
        worker.lines(word) for worker in workers for word in ("hangs", SILENT, "(stalled)")
    )


@pytest.mark.parametrize("hub", ["1", "0"], ids=["hub", "no-hub"])
def test_a_main_loop_that_hangs_is_found_and_reported(fleet: Fleet, hub: str) -> None:
    """One line says where it stands, the others suspect it, and one line says when it is over."""
    fleet.environ["STALL_HUB"] = hub
    victim, other = fleet.start_all(2)
    fleet.wait_listening(victim)
    fleet.app().control.broadcast("dawdle", {"seconds": LONG}, destination=[f"{victim.name}@here"])
    wait_for(lambda: victim.lines(BEGINS), "it is reported", 30)
    assert "time.sleep(seconds)" in victim.log.read_text()
    wait_for(
        lambda: other.lines(f"{victim.name}@here alive -> suspect (stalled)"), "others know", 30
    )
    wait_for(lambda: victim.lines(ENDS), "it is over", 60)
    wait_for(lambda: other.lines(f"{victim.name}@here suspect -> alive"), "others know", 30)
    assert len(victim.lines(BEGINS)) == len(victim.lines(ENDS)) == 1
    fleet.send("sleep", 4, 0.5)
    fleet.wait_ended(4)


@pytest.mark.skipif(os.name != "posix", reason="no process replaces itself elsewhere")
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_whose_main_loop_hangs_begins_anew(fleet: Fleet, pool: str) -> None:
    """It replaces its process, keeps its pidfile, and runs again what it had begun."""
    fleet.environ["CELERY_HEARTBEAT_ON_STALL"] = "restart"
    flag, pidfile = fleet.folder / "once", fleet.folder / "pid"
    flag.touch()
    worker = fleet.start("same", "--pidfile", str(pidfile), pool=pool)
    fleet.wait_ready(worker)
    if pool == "prefork":
        fleet.send("sleep", 2, LONG + 10)
        wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    fleet.wait_listening(worker)
    fleet.app().control.broadcast("hang", {"once": str(flag)})
    wait_for(lambda: worker.lines("is begun anew"), "it is begun anew", 60)
    wait_for(lambda: len(worker.lines(" ready.")) == 2, "it is ready again", 60)
    assert pidfile.read_text().strip() == str(worker.process.pid)
    fleet.send("sleep", 2, 0.1, first=2)
    fleet.wait_ended(4 if pool == "prefork" else 2, timeout=90)
    if pool == "prefork":
        recovered = [each["recoveries"] for each in fleet.by_number("end")[0]]
        assert recovered == [1]
    assert fleet.stop(worker) == 0
    assert fleet.left_over() == {}


@pytest.mark.parametrize(
    ("pool", "hub"), [("solo", "1"), ("threads", "1"), ("solo", "0"), ("prefork", "0")]
)
def test_a_long_task_is_no_stall(fleet: Fleet, pool: str, hub: str) -> None:
    """A solo worker is busy for as long as its task takes; another pool's loop turns meanwhile."""
    fleet.environ["STALL_HUB"] = hub
    worker, other = fleet.start_all(2, pool=pool, concurrency=1)
    fleet.send("sleep", 4, LONG / 2)
    fleet.wait_ended(4)
    time.sleep(2)
    assert no_stall(worker, other)


def test_a_pause_of_the_process_is_no_stall(fleet: Fleet) -> None:
    """A worker that was stopped and goes on was not hung, whatever its clocks say."""
    (worker,) = fleet.start_all(1)
    with stopped(worker):
        time.sleep(2 * PATIENCE)
    fleet.send("sleep", 1, 0.1)
    fleet.wait_ended(1)
    time.sleep(3)
    assert no_stall(worker)


def test_a_soft_shutdown_is_no_stall(fleet: Fleet) -> None:
    """A worker that waits for its tasks before it stops is not begun anew instead."""
    fleet.environ["CELERY_HEARTBEAT_ON_STALL"] = "restart"
    fleet.conf["worker_soft_shutdown_timeout"] = 2.5 * PATIENCE
    (worker,) = fleet.start_all(1)
    fleet.send("sleep", 2, 60.0)
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    fleet.stop(worker, signal.SIGQUIT, timeout=60)
    assert no_stall(worker)


@pytest.mark.parametrize("on_stall", ["report", "restart"])
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_connection_that_delivers_nothing_is_found(
    fleet: Fleet, on_stall: str, pool: str
) -> None:
    """A connection that is silent though the broker answers others is named, or made anew."""
    fleet.environ["CELERY_HEARTBEAT_ON_STALL"] = on_stall
    with Proxy(int(fleet.url.rsplit(":", 1)[1].split("/")[0])) as proxy:
        direct, fleet.url = fleet.url, f"redis://127.0.0.1:{proxy.port}/0"
        (worker,) = fleet.start_all(1, pool=pool)
        fleet.url = direct
        waiting = wait_for(lambda: _waiting(fleet, proxy), "it waits for tasks")
        proxy.swallow(waiting)
        wait_for(lambda: worker.lines(SILENT), "it is found", 40)
        if on_stall == "restart":
            fleet.send("sleep", 2, 0.1)
            fleet.wait_ended(2)
            wait_for(lambda: worker.lines(ENDS), "it is over")
            assert fleet.stop(worker) == 0
        assert len(worker.lines(SILENT)) == 1
        if on_stall == "report":
            # Celery has one for each connection that it loses.
            assert not worker.lines("Traceback")


def _waiting(fleet: Fleet, proxy: Proxy) -> int:
    """Give the port from which a worker behind a proxy waits for tasks."""
    ports = [
        int(client["addr"].rsplit(":", 1)[1])
        for client in fleet.client.client_list()
        if client["cmd"] in {"blmove", "brpop"}
    ]
    return next((port for port in ports if port in proxy.ports()), 0)


def test_a_broker_that_is_away_is_no_stall(valkey_private: Any, tmp_path: pathlib.Path) -> None:
    """A worker without a broker has nothing to do; that is not its fault."""
    with Fleet(valkey_private.url, tmp_path) as fleet:
        fleet.environ.update(CELERY_HEARTBEAT_EXPIRE="5", CELERY_HEARTBEAT_ON_STALL="restart")
        (worker,) = fleet.start_all(1)
        valkey_private.stop()
        time.sleep(LONG)
        valkey_private.start()
        fleet.send("sleep", 1, 0.1)
        fleet.wait_ended(1)
        assert no_stall(worker)


@pytest.mark.skipif(os.name != "posix", reason="no process is stopped elsewhere")
def test_a_child_that_hangs_is_reported(fleet: Fleet) -> None:
    """A stopped child is named with the task that it was handed, and said to be free again."""
    (worker,) = fleet.start_all(1, concurrency=1)
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)
    (child,) = _children(worker)
    os.kill(child, signal.SIGSTOP)
    fleet.send("sleep", 1, 0.0, first=1)
    line = f"child {child} of {worker.name}@here hangs, with task sleep["
    wait_for(lambda: worker.lines(line), "it is reported", 40)
    key = f"heartbeat:{{fleet}}:beat:{worker.name}@here"
    wait_for(lambda: '"s":{"hung":1}' in str(fleet.client.get(key)), "its beats say so")
    os.kill(child, signal.SIGCONT)
    fleet.wait_ended(2)
    wait_for(lambda: worker.lines("hangs no longer"), "it is free")
    assert len(worker.lines(line)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_a_child_that_is_stopped_in_its_task_is_reported(fleet: Fleet) -> None:
    """A child that is stopped while it runs a task is told from one whose task is long."""
    (worker,) = fleet.start_all(1, concurrency=2)
    fleet.send("sleep", 2, LONG + 5)
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    child, _ = _children(worker)
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: worker.lines(f"child {child} of"), "it is reported", 40)
    assert worker.lines("its process is stopped while it runs a task")
    os.kill(child, signal.SIGCONT)
    fleet.wait_ended(2)
    assert len(worker.lines("hangs, with task")) == 1


def _children(worker: Worker) -> list[int]:
    """Give the processes of a worker's pool."""
    parent = worker.process.pid
    tasks = pathlib.Path(f"/proc/{parent}/task")
    return [int(pid) for each in tasks.iterdir() for pid in (each / "children").read_text().split()]


def test_a_wrong_setting_is_named(fleet: Fleet) -> None:
    """What is neither of the two words is refused in one line, and the worker works."""
    fleet.environ["CELERY_HEARTBEAT_ON_STALL"] = "panic"
    (worker,) = fleet.start_all(1, pool="solo")
    said = "heartbeat_on_stall ('panic') must be 'report' or 'restart'"
    assert len(worker.lines(said)) == 1
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)
