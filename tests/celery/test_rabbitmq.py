"""Workers on RabbitMQ: hung ones, lost tasks, poison, and what is wrong with the broker."""

import gc
import json
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import amqp
import celery
import kombu
import pytest
from celery.exceptions import WorkerLostError

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, wait_for

# An older Celery leaves the sockets of its results to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")

SOON = 20


class RabbitFleet(Fleet):
    """Workers on RabbitMQ that write down whom they tell."""

    def told(self, what: str) -> list[dict[str, Any]]:
        """Give what was told under a name."""
        lines = [json.loads(line) for line in self.client.lrange("fleet:told", 0, -1)]
        return [line for line in lines if line["what"] == what]

    def wait_running(self, number: int) -> Worker:
        """Wait until a task runs, and give its worker."""
        where = wait_for(lambda: self.running().get(number), f"task {number} runs")
        return next(worker for worker in self.workers if f"{worker.name}@here" == where)

    def kill(self, worker: Worker) -> None:
        """Kill a worker."""
        worker.kill_group()
        worker.process.wait()
        self.workers.remove(worker)

    def lines(self, word: str) -> list[str]:
        """Give the lines of all logs that have a word in them."""
        logs = self.folder.glob("*.log")
        return [line for log in logs for line in log.read_text().splitlines() if word in line]

    def depth(self, queue: str) -> int:
        """Tell how much lies in a queue."""
        with kombu.Connection(self.url) as connection:
            try:
                declared = connection.default_channel.queue_declare(queue=queue, passive=True)
            except amqp.NotFound:
                return 0
            return int(declared.message_count)


@pytest.fixture
def fleet(rabbitmq: Any, valkey: Any, tmp_path: pathlib.Path) -> Iterator[RabbitFleet]:
    """No worker yet, on an empty broker."""
    url = rabbitmq.virtual_host(secrets.token_hex(4))
    with RabbitFleet(url, tmp_path, app_name="lost_app", records_url=valkey.url) as fleet:
        fleet.client.flushdb()
        fleet.environ["CELERY_HEARTBEAT_MANAGEMENT_URL"] = rabbitmq.management_url
        yield fleet


@pytest.fixture
def app(fleet: RabbitFleet) -> Iterator[celery.Celery]:
    """An app that sends tasks and asks for their results."""
    app = fleet.app()
    yield app
    app.close()
    gc.collect()


def sig(app: celery.Celery, name: str, *args: Any, **options: Any) -> Any:
    """Give a signature of one of the workers' tasks."""
    return app.signature(f"lost_app.{name}", args, app=app, **options)


def test_what_a_stopped_worker_holds_runs_elsewhere(fleet: RabbitFleet) -> None:
    """A worker that stands still is dead after ``expire``, and its connection is closed."""
    fleet.environ["CELERY_HEARTBEAT_EXPIRE"] = "4"
    first, second = fleet.start_all(2)
    for worker, other in ((first, second), (second, first)):
        wait_for(lambda w=worker, o=other: w.lines(f"{o.name}@here beats"), "they know each other")
    fleet.send("sleep", 1, 8.0)
    stopped = fleet.wait_running(0)
    other = second if stopped is first else first
    stopped.kill_group(signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: len(fleet.by_number("start")[0]) == 2, "it runs elsewhere")
    print(f"elsewhere after {time.monotonic() - began:.2f} s")
    wait_for(lambda: other.lines("2 connections of"), "it says so")
    stopped.kill_group(signal.SIGCONT)
    wait_for(lambda: fleet.told("fenced"), "it knows")
    fleet.send("sleep", 4, 0.5, first=1)
    wait_for(lambda: fleet.by_number("end").keys() == set(range(5)), "all ran")
    assert fleet.stop(other) == 0
    assert fleet.stop(stopped) == 0


def test_who_waits_for_a_lost_task_is_told(fleet: RabbitFleet, app: celery.Celery) -> None:
    """A task that was acknowledged early and is gone fails; all that hang on it react, once."""
    first = fleet.start("first")
    fleet.wait_ready(first)
    result = sig(
        app, "early", 1, 60.0, link_error=[sig(app, "on_error"), sig(app, "on_error_here")]
    ).apply_async()
    fleet.wait_running(1)
    second = fleet.start("second")
    fleet.wait_ready(second)
    wait_for(lambda: second.lines("first@here beats"), "they know each other")
    fleet.kill(first)
    with pytest.raises(WorkerLostError, match=r"worker first@here .* died while it ran this task"):
        result.get(timeout=SOON)
    (told,) = wait_for(lambda: fleet.told("task_lost"), "the signal was sent")
    assert (told["task_id"], told["task"]) == (result.id, "lost_app.early")
    assert (told["node"], told["queue"]) == ("first@here", "celery")
    wait_for(lambda: fleet.told("on_error"), "the error callback ran as a task")
    (here,) = fleet.told("on_error_here")
    assert (here["task_id"], here["args"]) == (result.id, [1, 60.0])
    assert fleet.stop(second) == 0
    assert len(fleet.told("task_lost")) == len(fleet.told("on_error")) == 1
    assert fleet.depth("heartbeat.fleet:verdicts") == 0
