"""The main job, with real workers on a real broker: kills, stops, long tasks, bad input."""

import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, wait_for

from heartbeat_core import shard_of

POOLS = ["prefork", "solo", "threads"]
ALARMS = ("-> suspect", "-> dead", "back in their queues", "Traceback")


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


@pytest.mark.promise(2)
@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_workers_tasks_run_elsewhere(fleet: Fleet, pool: str) -> None:
    """What a killed worker ran or held runs on the others, each task once there."""
    fleet.conf["worker_prefetch_multiplier"] = 2
    workers = fleet.start_all(3, pool=pool)
    fleet.send("sleep", 12, 0.5)
    victim = workers[0]
    name = f"{victim.name}@here"
    wait_for(lambda: name in fleet.running().values(), "the victim runs a task")
    victim.kill_group()
    fleet.wait_ended(12)
    starts = fleet.by_number("start")
    again = [records for records in starts.values() if len(records) > 1]
    assert again
    for records in again:
        assert [record["worker"] == name for record in records] == [True, False]
        assert [record["recoveries"] for record in records] == [0, 1]
    survivors = [*workers[1:]]
    wait_for(lambda: "unacked" not in fleet.left_over(), "all is acknowledged")
    for worker in survivors:
        assert fleet.stop(worker) == 0
    assert fleet.left_over() == {}


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_stop_is_no_death(fleet: Fleet, pool: str) -> None:
    """A worker that drains its tasks and stops says goodbye: no alarm, no recovery, no trace."""
    leaver, other = fleet.start_all(2, pool=pool)
    fleet.send("sleep", 2, 1.5)
    wait_for(lambda: len(fleet.running()) == 2, "both run a task")
    assert fleet.stop(leaver) == 0
    wait_for(lambda: other.lines(f"{leaver.name}@here said goodbye"), "the goodbye is heard")
    fleet.wait_ended(2)
    time.sleep(1)
    assert fleet.stop(other) == 0
    assert alarms(fleet) == []
    assert fleet.left_over() == {}
    assert {len(records) for records in fleet.by_number("start").values()} == {1}


@pytest.mark.parametrize("soft", [0, 1.0], ids=["cold", "soft"])
def test_a_cold_or_soft_stop_is_no_death(fleet: Fleet, soft: float) -> None:
    """A worker that gives its running tasks up gives them back itself, and says goodbye."""
    fleet.conf["worker_soft_shutdown_timeout"] = soft
    leaver = fleet.start_all(1)[0]
    fleet.send("sleep", 2, 4.0)
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    (other,) = fleet.start_all(1)
    wait_for(lambda: other.lines(f"{leaver.name}@here beats"), "they know each other")
    fleet.stop(leaver, signal.SIGQUIT)
    wait_for(lambda: other.lines(f"{leaver.name}@here said goodbye"), "the goodbye is heard")
    fleet.wait_ended(2)
    wait_for(lambda: "unacked" not in fleet.left_over(), "all is acknowledged")
    assert fleet.stop(other) == 0
    assert alarms(fleet) == []
    assert fleet.left_over() == {}


@pytest.mark.promise(3)
@pytest.mark.slow
def test_long_tasks_are_left_alone(fleet: Fleet) -> None:
    """In no pool does a minute of sleep or of pure Python make a worker look dead."""
    seconds = 60.0
    for pool in POOLS:
        for task in ("sleep", "spin"):
            fleet.start(f"{pool}-{task}", "-Q", f"{pool}-{task}", pool=pool, concurrency=1)
    fleet.wait_ready(*fleet.workers)
    app = fleet.app()
    number = 0
    for pool in POOLS:
        for task in ("sleep", "spin"):
            app.send_task(task, (number, seconds), queue=f"{pool}-{task}")
            number += 1
    fleet.wait_ended(number, timeout=120)
    assert {len(records) for records in fleet.by_number("start").values()} == {1}
    assert not [line for line in alarms(fleet) if "-> dead" in line or "back in" in line]


@pytest.mark.promise(1)
def test_a_fleet_that_died_is_recovered_by_the_next_worker(fleet: Fleet) -> None:
    """When everybody died, the first worker that starts gives back what they held."""
    workers = fleet.start_all(2)
    fleet.send("sleep", 4, 2.0)
    wait_for(lambda: len(fleet.running()) == 4, "both run tasks")
    for worker in workers:
        worker.kill_group()
        worker.process.wait()
    fleet.start_all(1)
    fleet.wait_ended(4)


def test_a_worker_that_starts_again_recovers_its_earlier_life(fleet: Fleet) -> None:
    """A lone worker that was killed and restarted under its name takes up what it held."""
    worker = fleet.start("same")
    fleet.wait_ready(worker)
    fleet.send("sleep", 2, 1.0)
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    worker.kill_group()
    worker.process.wait()
    fleet.start("same")
    fleet.wait_ended(2)


def test_a_fleet_in_shards_recovers_its_own_and_the_deserted(fleet: Fleet) -> None:
    """A worker is recovered by its shard at once, and by another where nobody is left in it."""
    fleet.environ.update(CELERY_HEARTBEAT_SHARDS="2", CELERY_HEARTBEAT_EXPIRE="4")
    fleet.conf["worker_prefetch_multiplier"] = 1
    by_shard: dict[str, list[str]] = {"x/0": [], "x/1": []}
    for number in range(100):
        by_shard[shard_of("x", f"w{number}@here", 2)].append(f"w{number}")
    one, other = by_shard["x/0"][:2], by_shard["x/1"][:1]
    workers = [fleet.start(name) for name in [*one, *other]]
    fleet.wait_ready(*workers)
    fleet.send("sleep", 6, 3.0)
    wait_for(lambda: len(fleet.running()) == 6, "all run tasks")
    for victim in (workers[0], workers[2]):
        victim.kill_group()
        victim.process.wait()
    fleet.wait_ended(6)
    first, last = sorted(
        min(record["at"] for record in records if record["recoveries"])
        for records in fleet.by_number("start").values()
        if len(records) > 1
    )[::3]
    assert [len(each) for each in fleet.by_number("start").values()].count(2) == 4
    assert last > first
    wait_for(lambda: "unacked" not in fleet.left_over(), "all is acknowledged")


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CELERY_HEARTBEAT_MAX_FREQ": "9"}, "max_freq (9.0 s) must not exceed min_freq (4.0 s)"),
        ({"CELERY_HEARTBEAT_CHECKS": "many"}, "CELERY_HEARTBEAT_CHECKS ('many') must be a whole"),
        ({"CELERY_HEARTBEAT_FREQUNCY": "1"}, "did you mean 'frequency'?"),
        ({"CELERY_HEARTBEAT_NAMESPACE": "a b"}, "heartbeat_namespace ('a b') must be"),
        ({"CELERY_HEARTBEAT_SHARDS": "0"}, "heartbeat_shards (0) must be a whole number"),
        ({"CELERY_HEARTBEAT_MAX_RECOVERIES": "-1"}, "heartbeat_max_recoveries ('-1') must be"),
        ({"CELERY_HEARTBEAT_ON_LOST": "rerun"}, "heartbeat_on_lost ('rerun') must be 'fail' or"),
    ],
)
def test_a_wrong_setting_costs_no_work(fleet: Fleet, environ: dict[str, str], said: str) -> None:
    """A wrong setting is named in one line, and the worker works without the heartbeat."""
    fleet.environ.update(environ)
    (worker,) = fleet.start_all(1, pool="solo")
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)
    assert len(worker.lines(said)) == 1
    assert not worker.lines("Traceback")


def test_an_option_of_the_worker_overrides_a_setting(fleet: Fleet) -> None:
    """What is said in the shell comes before the environment; a mistake there is told like any."""
    fleet.environ["CELERY_HEARTBEAT_FREQUENCY"] = "0.5"
    quick = fleet.start("quick", "--heartbeat-frequency", "0.25", pool="solo")
    wrong = fleet.start("wrong", "--heartbeat-max-freq", "9", pool="solo")
    off = fleet.start("off", "--heartbeat-enabled", "false", pool="solo")
    fleet.wait_ready(quick, wrong, off)
    beat = json.loads(fleet.client.get("heartbeat:{fleet}:beat:quick@here"))  # type: ignore[arg-type]
    assert beat["g"] == 0.25
    assert wrong.lines("max_freq (9.0 s) must not exceed min_freq (4.0 s)")
    assert not off.lines("heartbeat:")
    assert list(fleet.client.scan_iter("*:beat:*")) == ["heartbeat:{fleet}:beat:quick@here"]


@pytest.mark.promise(8)
def test_switched_off_it_does_nothing(fleet: Fleet) -> None:
    """With ``enabled`` off there is no beat, no claim and no word."""
    fleet.environ["CELERY_HEARTBEAT_ENABLED"] = "false"
    (worker,) = fleet.start_all(1, pool="solo")
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)
    assert not list(fleet.client.scan_iter("heartbeat:*"))
    assert not worker.lines("heartbeat:")


def test_installed_twice_or_too_late_it_says_so(fleet: Fleet) -> None:
    """A second ``install`` changes nothing and says so; one after the start says what it needs."""
    app = fleet.folder / "late_app.py"
    app.write_text(
        "import heartbeat_celery\n"
        "from celery import Celery, signals\n"
        "from fleet_app import app, sleep\n"
        "heartbeat_celery.install(app)\n"
        "late = Celery('late', broker=app.conf.broker_url)\n"
        "@signals.worker_ready.connect\n"
        "def ready(sender, **kwargs):\n"
        "    app.steps['worker'].clear()\n"
        "    heartbeat_celery.install(app)\n"
    )
    fleet.app_name = "late_app:app"
    (worker,) = fleet.start_all(1, pool="solo")
    wait_for(lambda: worker.lines("runs already and stays without"), "the late call is named")
    assert len(worker.lines("was called for 'fleet' already")) == 1
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)


@pytest.mark.parametrize("missing", ["redis", "packaging"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """Where a package is missing that the extra brings, one line says so, and nothing fails."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import celery, heartbeat_celery\n"
        "app = celery.Celery('app', broker='memory://')\n"
        "heartbeat_celery.install(app)\n"
        "assert not app.steps['worker'] and not app.steps['consumer']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == (
        f"heartbeat: off, since {missing} is not installed: pip install 'heartbeat-core[celery]'\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the children outlive the parent")
def test_a_killed_parent_is_dead_whatever_its_children_do(fleet: Fleet) -> None:
    """A prefork worker whose parent alone is killed is found by its connection, not by silence."""
    victim, other = fleet.start_all(2)
    fleet.send("sleep", 4, 3.0)
    name = f"{victim.name}@here"
    wait_for(lambda: name in fleet.running().values(), "the victim runs a task")
    victim.process.kill()
    wait_for(lambda: other.lines(f"{name} suspect -> dead (checks failed)"), "it is found")
    assert other.lines(f"{name} alive -> suspect (connection closed)")
    fleet.wait_ended(4)


def test_on_another_kind_of_broker_the_worker_goes_on(tmp_path: pathlib.Path) -> None:
    """A broker that the adapter does not know is named in one line; the worker works."""
    with Fleet("memory://", tmp_path) as fleet:
        worker = fleet.start("alone", pool="solo")
        fleet.wait_ready(worker)
        assert len(worker.lines("does not support the broker transport")) == 1
        assert not worker.lines("Traceback")


@pytest.mark.promise(8)
def test_a_broker_that_is_away_at_first_is_waited_for(
    valkey_private: Any, tmp_path: pathlib.Path
) -> None:
    """Without a broker the worker waits as ever, with one line of ours; then all goes on."""
    valkey_private.stop()
    with Fleet(valkey_private.url, tmp_path) as fleet:
        worker = fleet.start("early", pool="solo")
        wait_for(lambda: worker.lines("does not reach the broker yet"), "it says so")
        time.sleep(2.5)
        assert len(worker.lines("does not reach the broker yet")) == 1
        valkey_private.start()
        fleet.wait_ready(worker)
        wait_for(lambda: fleet.client.exists("heartbeat:{fleet}:beat:early@here"), "it beats")
        fleet.send("sleep", 1, 0.0)
        fleet.wait_ended(1)
