"""Schedulers are nodes of the fleet: real ones, alone and embedded in workers."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery.utils.nodenames import gethostname

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, wait_for
from test_lost import LostFleet

ALONE = f"beat@{gethostname()}"
posix = pytest.mark.skipif(os.name != "posix", reason="schedulers are no children elsewhere")


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[LostFleet]:
    """No worker yet, on an empty broker."""
    with LostFleet(valkey.url, tmp_path, app_name="beat_app") as fleet:
        fleet.client.flushdb()
        yield fleet


def start_beat(fleet: Fleet, *options: str) -> Worker:
    """Start a scheduler, which schedules."""
    beat = fleet.start_beat(*options)
    wait_for(lambda: beat.lines("Sending due task"), "it schedules", 40)
    return beat


def start_embedded(fleet: Fleet) -> Worker:
    """Start a worker with a scheduler, which beats."""
    worker = fleet.start("main", "-B", "-s", str(fleet.folder / "main.schedule"))
    fleet.wait_ready(worker)
    wait_for(lambda: beat_of(fleet, "beat@main@here"), "its scheduler beats")
    return worker


def beat_of(fleet: Fleet, node: str) -> str:
    """Give the last beat of a node."""
    return str(fleet.client.get(f"heartbeat:{{fleet}}:beat:{node}") or "")


def test_a_killed_scheduler_is_dead(fleet: LostFleet) -> None:
    """The workers log the death of a scheduler, and signal it."""
    (worker,) = fleet.start_all(1, pool="solo")
    beat = start_beat(fleet)
    wait_for(lambda: worker.lines(f"{ALONE} beats"), "it is known")
    assert '"s":{"role":"beat"}' in beat_of(fleet, ALONE)
    beat.kill_group()
    wait_for(lambda: worker.lines(f"{ALONE} suspect -> dead"), "it is found")
    wait_for(lambda: [each for each in fleet.told("node_dead") if each["node"] == ALONE], "told")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_that_is_stopped_says_goodbye(fleet: LostFleet, number: int) -> None:
    """To stop a scheduler is no death, and leaves nothing in the broker."""
    (worker,) = fleet.start_all(1, pool="solo")
    beat = start_beat(fleet)
    wait_for(lambda: worker.lines(f"{ALONE} beats"), "it is known")
    assert fleet.stop(beat, number) == 0
    wait_for(lambda: worker.lines(f"{ALONE} said goodbye"), "the goodbye is heard")
    assert not worker.lines("-> dead")
    assert not beat.lines("Traceback")
    assert not [key for key in fleet.left_over() if ALONE in key]


def test_a_scheduler_that_crashes_says_no_goodbye(fleet: LostFleet) -> None:
    """A scheduler that ends with an error is dead, not gone."""
    (worker,) = fleet.start_all(1, pool="solo")
    start_beat(fleet, "-S", "beat_app:Failing")
    wait_for(lambda: worker.lines(f"{ALONE} suspect -> dead"), "it is found", 30)
    assert not worker.lines(f"{ALONE} said goodbye")


def test_a_name_of_its_own(fleet: LostFleet) -> None:
    """``-n``, where Celery has it, names the node too."""
    if "--hostname" not in _help():
        pytest.skip("this Celery has no beat -n")
    fleet.start_beat("-n", "clock@there")
    wait_for(lambda: beat_of(fleet, "clock@there"), "it beats", 40)


def test_it_is_in_the_status(fleet: LostFleet) -> None:
    """``celery heartbeat status`` shows a scheduler beside the workers."""
    start_beat(fleet)
    wait_for(lambda: beat_of(fleet, ALONE), "it beats")
    done = fleet.run("heartbeat", "status")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(ALONE)]
    assert "alive" in line
    assert "role=beat" in line


@pytest.mark.parametrize("environ", [{"ENABLED": "false"}, {"MAX_FREQ": "9"}])
def test_without_a_heartbeat_it_schedules(fleet: LostFleet, environ: dict[str, str]) -> None:
    """Switched off, or with a wrong setting, the scheduler goes on without."""
    fleet.environ.update({f"CELERY_HEARTBEAT_{name}": value for name, value in environ.items()})
    beat = start_beat(fleet)
    assert fleet.stop(beat) == 0
    assert not beat.lines("Traceback")
    assert not list(fleet.client.scan_iter("heartbeat:*"))


@pytest.mark.parametrize("thread", ["1", pytest.param("0", marks=posix)], ids=["thread", "child"])
def test_an_embedded_scheduler_leaves_with_its_worker(fleet: LostFleet, thread: str) -> None:
    """It has the name of its worker, says goodbye when that stops, and dies when that is killed."""
    fleet.environ["BEAT_THREAD"] = thread
    (other,) = fleet.start_all(1, pool="solo")
    worker = start_embedded(fleet)
    wait_for(lambda: other.lines("beat@main@here beats"), "it is known")
    assert fleet.stop(worker) == 0
    wait_for(lambda: other.lines("beat@main@here said goodbye"), "the goodbye is heard")
    assert not other.lines("-> dead")
    worker = start_embedded(fleet)
    worker.process.kill()
    wait_for(lambda: other.lines("beat@main@here suspect -> dead"), "it is not seen as alive")
    if thread == "0":
        assert worker.lines("beat@main@here ends, since its worker is dead")


def _help() -> str:
    command = [sys.executable, "-m", "celery", "beat", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
