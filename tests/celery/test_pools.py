"""Every pool: what it may do, and that nobody looks dead for it."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, stopped, wait_for

ALARMS = ("-> suspect", "-> dead", "back in their queues", "Traceback")


def _pool(name: str) -> Any:
    away = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(away, reason=f"{name} is not installed"))


GREENLETS = [_pool("gevent"), _pool("eventlet")]
POOLS = ["prefork", "solo", "threads", *GREENLETS]
CAN_GROW = ("prefork", "gevent", "eventlet")


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
    observer = fleet.start("observer", "-Q", "nothing", pool="solo")
    fleet.wait_ready(observer)  # first: so many workers have more observers than seats
    busy = [fleet.start(pool, "-Q", pool, pool=pool, concurrency=1) for pool in pools]
    fleet.wait_ready(*busy)
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


@pytest.mark.parametrize("pool", GREENLETS)
def test_who_waits_for_a_lost_task_is_told(fleet: Fleet, pool: str) -> None:
    """What a worker with greenlets finds out it tells: by a result, signals and its log."""
    fleet.app_name = "lost_app"
    victim, other = fleet.start("victim", pool=pool), fleet.start("other", "-Q", "other", pool=pool)
    fleet.wait_ready(victim, other)
    knows(other, victim)
    result = fleet.app().send_task("lost_app.early", (0, 60.0))
    wait_for(lambda: fleet.running().get(0), "the victim runs a task")
    wait_for(lambda: "unacked" not in fleet.left_over(), "it is acknowledged")
    victim.kill_group()
    wait_for(lambda: fleet.client.exists(f"celery-task-meta-{result.id}"), "its result is known")
    assert "WorkerLostError" in str(fleet.client.get(f"celery-task-meta-{result.id}"))
    wait_for(lambda: other.lines(f"task lost_app.early[{result.id}] is lost"), "it is told")

    def told() -> set[str]:
        lines = map(json.loads, fleet.client.lrange("fleet:told", 0, -1))
        return {line["what"] for line in lines if line.get("worker") == "other@here"}

    wait_for(lambda: told() >= {"node_suspect", "node_dead", "task_lost"}, "signals are sent")
    assert fleet.stop(other) == 0


@pytest.mark.parametrize("pool", POOLS)
def test_remote_control_changes_no_life(fleet: Fleet, pool: str) -> None:
    """A pool that is restarted, grown, shrunk, moved to other queues and shut down is no death."""
    fleet.conf["worker_pool_restarts"] = True
    steered = fleet.start("steered", pool=pool)
    other = fleet.start("other", "-Q", "nothing", pool="solo")
    fleet.wait_ready(steered, other)
    knows(other, steered)
    app = fleet.app()

    def order(command: Callable[..., Any], *args: Any) -> None:
        (reply,) = command(*args, destination=["steered@here"], reply=True, timeout=20, limit=1)
        assert "ok" in reply["steered@here"], reply

    fleet.wait_listening(steered)
    order(app.control.add_consumer, "second")
    for number in range(4):
        app.send_task("sleep", (number, 0.2), queue=["celery", "second"][number % 2])
    order(app.control.pool_restart)
    fleet.wait_ended(4)
    if pool in CAN_GROW:
        order(app.control.pool_grow, 2)
        # A process that only just ended its task is busy still.
        wait_for(lambda: not any(app.control.inspect(["steered@here"]).active().values()), "idle")
        order(app.control.pool_shrink, 1)
    order(app.control.cancel_consumer, "second")
    app.send_task("sleep", (4, 0.2))
    fleet.wait_ended(5)
    if pool in CAN_GROW:
        endless = app.send_task("sleep", (5, 60.0))
        wait_for(lambda: 5 in fleet.running(), "an endless task runs")
        app.control.revoke(endless.id, terminate=True)
        wait_for(lambda: "unacked" not in fleet.left_over(), "it is over")
    app.control.shutdown(destination=["steered@here"])
    assert steered.process.wait(30) == 0
    wait_for(lambda: other.lines("steered@here said goodbye"), "the goodbye is heard")
    assert fleet.stop(other) == 0
    assert {len(records) for records in fleet.by_number("start").values()} == {1}
    assert alarms(fleet) == []
    assert fleet.left_over() == {}
    assert fleet.client.llen("celery") == 0


def test_a_pool_whose_children_come_and_go_lives(fleet: Fleet) -> None:
    """Children that are added, taken away and replaced are no death; the death of all is one."""
    fleet.conf.update(worker_max_tasks_per_child=2, worker_max_memory_per_child=1)
    victim, other = (fleet.start(name, "--autoscale", "4,1") for name in ("victim", "other"))
    fleet.wait_ready(victim, other)
    fleet.send("sleep", 20, 0.2)
    fleet.wait_ended(20)
    assert alarms(fleet) == []
    fleet.send("sleep", 12, 1.0, first=20)
    wait_for(lambda: "victim@here" in fleet.running().values(), "the victim runs a task")
    victim.kill_group()
    fleet.wait_ended(32)
    starts = fleet.by_number("start")
    assert {len(starts[number]) for number in range(20)} == {1}
    assert {len(starts[number]) for number in range(20, 32)} == {1, 2}
    wait_for(lambda: "unacked" not in fleet.left_over(), "all is acknowledged")
    assert fleet.stop(other) == 0
    assert fleet.left_over() == {}


def test_what_a_worker_held_of_several_queues_goes_back_to_each(fleet: Fleet) -> None:
    """A message is back in the queue that it came from."""
    queues = ("one", "two", "three")
    victim = fleet.start("victim", "-Q", ",".join(queues), concurrency=3)
    other = fleet.start("other", "-Q", "nothing", pool="solo")
    fleet.wait_ready(victim, other)
    knows(other, victim)
    for number, queue in enumerate(queues):
        fleet.app().send_task("sleep", (number, 60.0), queue=queue)
    wait_for(lambda: len(fleet.running()) == 3, "the victim runs one of each")
    victim.kill_group()
    wait_for(lambda: all(fleet.client.llen(queue) == 1 for queue in queues), "each is back")


@pytest.mark.parametrize("namespace", ["fleet", "another"])
def test_apps_on_one_broker(fleet: Fleet, namespace: str) -> None:
    """Two apps recover each other if they share a namespace, and else leave each other alone."""
    (fleet.folder / "another_app.py").write_text(
        "import celery, heartbeat_celery\n"
        "from fleet_app import BROKER\n"
        "app = celery.Celery('another', broker=BROKER)\n"
        f"app.conf.update(heartbeat_namespace={namespace!r}, task_default_queue='another')\n"
        "heartbeat_celery.install(app)\n"
    )
    victim = fleet.start("victim")
    fleet.app_name = "another_app"
    other = fleet.start("other", pool="solo")
    fleet.wait_ready(victim, other)
    fleet.send("sleep", 1, 3.0)
    wait_for(fleet.running, "the victim runs a task")
    if namespace == "fleet":
        knows(other, victim)
    victim.kill_group()
    if namespace == "fleet":
        wait_for(lambda: fleet.client.llen("celery") == 1, "the task is back in its queue")
        return
    fleet.app_name = "fleet_app"
    heir = fleet.start("heir")
    fleet.wait_ended(1)
    wait_for(lambda: heir.lines("back in their queues"), "its own app has recovered it")
    assert not other.lines("heartbeat: victim@here")


def test_the_settings_of_an_app_with_a_prefix(fleet: Fleet) -> None:
    """Where settings begin with ``CELERY_``, as with Django, those of the heartbeat do as well."""
    (fleet.folder / "prefixed_settings.py").write_text(
        "from fleet_app import BROKER\n"
        "CELERY_BROKER_URL = BROKER\n"
        "CELERY_HEARTBEAT_FREQUENCY = 0.25\n"
        "CELERY_HEARTBEAT_NAMESPACE = 'django'\n"
    )
    (fleet.folder / "prefixed_app.py").write_text(
        "import celery, heartbeat_celery\n"
        "app = celery.Celery('prefixed')\n"
        "app.config_from_object('prefixed_settings', namespace='CELERY')\n"
        "heartbeat_celery.install(app)\n"
    )
    fleet.app_name = "prefixed_app"
    (worker,) = fleet.start_all(1, pool="solo")
    key = f"heartbeat:{{django}}:beat:{worker.name}@here"
    wait_for(lambda: fleet.client.exists(key), "it beats")
    assert '"g":0.25' in str(fleet.client.get(key))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal here")
@pytest.mark.parametrize("pool", ["prefork", "threads", GREENLETS[0]])
def test_a_reload_is_a_goodbye_and_a_new_life(fleet: Fleet, pool: str) -> None:
    """A worker that is reloaded leaves, and comes back under its name in the same process."""
    script = fleet.folder / "celery_script.py"  # "-m celery" cannot be reloaded
    script.write_text("from celery.__main__ import main\nmain()\n")
    fleet.celery = (sys.executable, str(script))
    reloaded = fleet.start("reloaded", pool=pool)
    other = fleet.start("other", "-Q", "nothing", pool="solo")
    fleet.wait_ready(reloaded, other)
    knows(other, reloaded)
    fleet.send("sleep", 2, 1.0)
    wait_for(fleet.running, "it runs a task")
    reloaded.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(other.lines("reloaded@here beats")) == 2, "it is back")
    fleet.send("sleep", 2, 0.1, first=2)
    fleet.wait_ended(4)
    assert other.lines("reloaded@here said goodbye")
    for worker in (reloaded, other):
        assert fleet.stop(worker) == 0
    assert alarms(fleet) == []
    assert {len(records) for records in fleet.by_number("start").values()} == {1}


@contextlib.contextmanager
def detached(fleet: Fleet, *names: str) -> Iterator[Callable[[str], int | None]]:
    """Give what tells the process of a worker without a terminal; end those that are left."""

    def pid_of(name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((fleet.folder / f"{name}.pid").read_text())
        return None

    try:
        yield pid_of
    finally:
        for name in names:
            if pid := pid_of(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def celery(fleet: Fleet, *arguments: str) -> None:
    """Run a command of Celery's to its end."""
    folder = fleet.folder
    files = (f"--pidfile={folder}/%n.pid", f"--logfile={folder}/%n.log")
    command = [*fleet.celery, "-A", fleet.app_name, *arguments, *files, "-l", "INFO", "-c", "1"]
    subprocess.run(
        command, env=fleet.environment(), cwd=folder, check=True, timeout=60, capture_output=True
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers cannot detach themselves here")
def test_workers_that_celery_multi_starts(fleet: Fleet) -> None:
    """What ``celery multi`` starts, restarts and stops beats, comes back and says goodbye."""
    watcher = fleet.start("watcher", "-Q", "nothing", pool="solo")
    fleet.wait_ready(watcher)
    names = ("one@here", "two@here")
    with detached(fleet, "one", "two") as pid_of:
        celery(fleet, "multi", "start", *names)
        for name in names:
            wait_for(lambda name=name: watcher.lines(f"{name} beats"), f"{name} is known")
        first = pid_of("one")
        celery(fleet, "multi", "restart", "one@here")
        wait_for(lambda: len(watcher.lines("one@here beats")) == 2, "it is back")
        assert pid_of("one") != first
        fleet.send("sleep", 2, 0.1)
        fleet.wait_ended(2)
        celery(fleet, "multi", "stopwait", *names)
        wait_for(lambda: len(watcher.lines("said goodbye")) == 3, "the goodbyes are heard")
    assert fleet.stop(watcher) == 0
    assert alarms(fleet) == []
    assert fleet.left_over() == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers cannot detach themselves here")
def test_a_detached_worker(fleet: Fleet) -> None:
    """A worker that detached itself beats, and its death is found like any."""
    watcher = fleet.start("watcher", "-Q", "nothing", pool="solo")
    fleet.wait_ready(watcher)
    with detached(fleet, "loose") as pid_of:
        celery(fleet, "worker", "--detach", "-n", "loose@here")
        wait_for(lambda: watcher.lines("loose@here beats"), "it is known")
        fleet.send("sleep", 1, 60.0)
        wait_for(fleet.running, "it runs a task")
        pid = pid_of("loose")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: fleet.client.llen("celery") == 1, "the task is back in its queue")
    assert watcher.lines("loose@here suspect -> dead")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("pool", ["threads", *GREENLETS])
def test_a_child_of_a_task_does_not_make_its_dead_worker_look_connected(
    fleet: Fleet, pool: str
) -> None:
    """A killed worker whose task had forked is found by its connection, not by silence."""
    (fleet.folder / "forking_app.py").write_text(
        "import os, time\n"
        "from fleet_app import app, _note\n"
        "@app.task(bind=True, name='fork')\n"
        "def fork(self, number, seconds):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(seconds)\n"
        "        os._exit(0)\n"
        "    _note('start', self, number)\n"
        "    time.sleep(seconds)\n"
    )
    fleet.app_name = "forking_app"
    victim = fleet.start("victim", pool=pool)
    other = fleet.start("other", "-Q", "nothing", pool="solo")
    fleet.wait_ready(victim, other)
    knows(other, victim)
    fleet.send("fork", 1, 8.0)
    wait_for(fleet.running, "the victim's task has forked")
    victim.process.kill()
    wait_for(lambda: other.lines("victim@here suspect -> dead (checks failed)"), "it is found")
    assert other.lines("victim@here alive -> suspect (connection closed)")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="nobody can be paused here")
@pytest.mark.parametrize("pool", GREENLETS)
def test_who_was_paused_for_too_long_begins_a_new_life(fleet: Fleet, pool: str) -> None:
    """A worker that wakes up when others have taken over its task is told, and works on."""
    fleet.environ["CELERY_HEARTBEAT_EXPIRE"] = "4"
    paused = fleet.start("paused", pool=pool)
    other = fleet.start("other", "-Q", "other", pool=pool)
    fleet.wait_ready(paused, other)
    knows(other, paused)
    fleet.send("sleep", 1, 2.0)
    wait_for(fleet.running, "it runs a task")
    with stopped(paused):
        wait_for(lambda: fleet.client.llen("celery") == 1, "the task is back in its queue")
    wait_for(lambda: paused.lines("paused@here was declared dead"), "it is told")
    wait_for(lambda: other.lines("paused@here came back as a larger"), "it is back")
    fleet.wait_ended(1)
    fleet.send("sleep", 2, 0.1, first=1)
    fleet.wait_ended(3)
    for worker in (paused, other):
        assert fleet.stop(worker) == 0
        assert not worker.lines("Traceback")
    assert fleet.left_over() == {}
