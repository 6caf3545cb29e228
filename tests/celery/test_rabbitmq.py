"""Workers on RabbitMQ: hung ones, lost tasks, poison, and what is wrong with the broker."""

import gc
import json
import os
import pathlib
import secrets
import signal
import subprocess
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

from fleet import HERE, Fleet, Worker, wait_for

from heartbeat_celery._management import Management, ManagementError
from heartbeat_core import SettingsError

# An older Celery leaves the sockets of its results to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")

SOON = 20


class RabbitFleet(Fleet):
    """Workers on RabbitMQ that write down whom they tell."""

    management_url = ""

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

    @property
    def management(self) -> Management:
        """Give the management API, for the test's own use."""
        return Management.at(
            self.management_url, virtual_host=self.url.rpartition("/")[2], user="", password=""
        )

    def held(self, queue: str) -> tuple[int, int]:
        """Tell how much lies in a queue, and how many consume it."""
        with kombu.Connection(self.url) as connection:
            declared = connection.default_channel.queue_declare(queue=queue, passive=True)
            return int(declared.message_count), int(declared.consumer_count)

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
        fleet.management_url = rabbitmq.management_url
        fleet.environ["CELERY_HEARTBEAT_MANAGEMENT_URL"] = rabbitmq.management_url
        yield fleet


@pytest.fixture
def app(fleet: RabbitFleet) -> Iterator[celery.Celery]:
    """An app that sends tasks and asks for their results."""
    app = fleet.app()
    yield app
    app.close()
    gc.collect()


def command(fleet: RabbitFleet, *words: str) -> tuple[int, str, str]:
    """Run ``celery heartbeat``; give its exit code, its output and its errors."""
    environ = {
        **os.environ,
        "FLEET_BROKER": fleet.url,
        "FLEET_RECORDS": fleet.records_url,
        "FLEET_CONF": json.dumps(fleet.conf),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
    }
    result = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "fleet_app", "heartbeat", *words],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.returncode, result.stdout, result.stderr


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
    wait_for(lambda: len(fleet.by_number("start")[0]) == 2, "it runs elsewhere")
    wait_for(lambda: other.lines("2 connections of"), "it says so")
    stopped.kill_group(signal.SIGCONT)
    wait_for(lambda: fleet.told("fenced"), "it knows")
    fleet.send("sleep", 4, 0.5, first=1)
    wait_for(lambda: fleet.by_number("end").keys() == set(range(5)), "all ran")
    (alive,) = [
        each["incarnation"]
        for each in fleet.told("node_alive")
        if each["node"] == f"{stopped.name}@here" and each["cause"] == "larger incarnation"
    ]
    holds = f"heartbeat.fleet:holds:{stopped.name}@here#{alive}"
    wait_for(lambda: fleet.held(holds) == (0, 1), "its new life can be robbed, too")
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


def test_a_lost_task_may_be_run_again_or_ignored(fleet: RabbitFleet, app: celery.Celery) -> None:
    """A task says itself what becomes of it."""
    first = fleet.start("first", concurrency=4)
    fleet.wait_ready(first)
    again = sig(app, "again", 1, 8.0).apply_async()
    whatever = sig(app, "whatever", 2, 60.0).apply_async()
    large = sig(app, "early", 3, 60.0, "x" * 300_000).apply_async()
    for number in (1, 2, 3):
        fleet.wait_running(number)
    fleet.start_all(1)
    fleet.kill(first)
    with pytest.raises(WorkerLostError):
        large.get(timeout=SOON)
    assert again.get(timeout=SOON) == 1
    assert [record["recoveries"] for record in fleet.by_number("start")[1]] == [0, 1]
    assert whatever.state == "PENDING"
    assert [told["task_id"] for told in fleet.told("task_lost")] == [large.id]
    assert [told["task_id"] for told in fleet.told("task_recovered")] == [again.id]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_of_what_has_ended_nothing_is_kept(
    fleet: RabbitFleet, app: celery.Celery, pool: str
) -> None:
    """Early tasks that end leave no record, and after a kill nobody reports them."""
    first, second = fleet.start("first", pool=pool), fleet.start("second", pool="solo")
    fleet.wait_ready(first, second)
    wait_for(lambda: second.lines("first@here beats"), "they know each other")
    results = [sig(app, "early", number, 0.01).apply_async() for number in range(50)]
    assert sorted(result.get(timeout=SOON) for result in results) == list(range(50))
    time.sleep(2.5)  # Two beats.
    fleet.kill(first)
    wait_for(lambda: second.lines("first@here suspect -> dead"), "it is found dead")
    time.sleep(1)
    assert fleet.told("task_lost") == []


def test_who_lives_takes_its_records_back(fleet: RabbitFleet, app: celery.Celery) -> None:
    """When only a connection broke, the record comes back, and the task is told only if lost."""
    first = fleet.start("first", concurrency=1)
    fleet.wait_ready(first)
    result = sig(app, "early", 1, 60.0).apply_async()
    fleet.wait_running(1)
    (second,) = fleet.start_all(1)
    wait_for(lambda: second.lines("first@here beats"), "they know each other")
    (alive,) = [each for each in fleet.told("node_alive") if each["node"] == "first@here"]
    queue = f"heartbeat.fleet:running:first@here#{alive['incarnation']}"
    assert fleet.held(queue) == (0, 1)
    wait_for(lambda: fleet.management.close_consumers(queue, "a test"), "it is closed")
    wait_for(lambda: fleet.held(queue) == (0, 0) or fleet.told("task_lost"), "it is gone")
    wait_for(lambda: fleet.held(queue) == (0, 1), "it is back")
    time.sleep(2)
    assert fleet.held("heartbeat.fleet:verdicts")[0] == 0
    assert fleet.told("task_lost") == []
    fleet.kill(first)
    with pytest.raises(WorkerLostError):
        result.get(timeout=SOON)
    wait_for(lambda: fleet.told("task_lost"), "the signal was sent")


def test_a_poisonous_message_ends_in_the_dead_letter_queue(
    fleet: RabbitFleet, app: celery.Celery
) -> None:
    """What a quorum queue has delivered too often is kept whole, and its result says why."""
    fleet.environ["CELERY_HEARTBEAT_MAX_RECOVERIES"] = "1"
    fleet.conf["task_default_queue_type"] = app.conf.task_default_queue_type = "quorum"
    fleet.start_all(3, concurrency=1)
    result = sig(app, "poison", 7, link_error=sig(app, "on_error")).apply_async()
    with pytest.raises(WorkerLostError, match=r"came back 2 times.*heartbeat\.fleet\.dead-letters"):
        result.get(timeout=60)
    assert len(fleet.by_number("start")[7]) == 2
    wait_for(lambda: fleet.told("on_error"), "link_error ran")
    (told,) = wait_for(lambda: fleet.told("task_dead_lettered"), "the signal was sent")
    assert (told["task_id"], told["queue"], told["recoveries"]) == (result.id, "celery", 2)
    assert len(fleet.lines("is dead-lettered")) == 1
    assert fleet.depth("heartbeat.fleet.dead-letters") == 1
    code, out, _ = command(fleet, "dead-letters", "list", "--json")
    (letter,) = json.loads(out)
    assert code == 0
    assert (letter["task_id"], letter["queue"], letter["recoveries"]) == (result.id, "celery", 2)
    code, out, _ = command(fleet, "dead-letters", "show", result.id)
    assert json.loads(out)["message"]["headers"]["argsrepr"] == "(7,)"
    assert command(fleet, "dead-letters", "requeue", "nobody")[0] == 1
    (survivor,) = [worker for worker in fleet.workers if worker.process.poll() is None]
    fleet.stop(survivor)
    assert command(fleet, "dead-letters", "requeue", result.id)[0] == 0
    assert fleet.depth("heartbeat.fleet.dead-letters") == 0
    assert fleet.depth("celery") == 1


def test_what_rabbitmq_refuses_is_one_line(fleet: RabbitFleet, rabbitmq: Any) -> None:
    """Without a permission, or the management API, the worker says what it cannot do, and works."""
    host = fleet.url.rpartition("/")[2]
    rabbitmq.user("narrow", host, "^(?!heartbeat).*")
    fleet.url = f"amqp://narrow:narrow@127.0.0.1:{rabbitmq.port}/{host}"
    del fleet.environ["CELERY_HEARTBEAT_MANAGEMENT_URL"]
    worker = fleet.start("narrow", pool="solo")
    fleet.wait_ready(worker)
    assert len(worker.lines("heartbeat_management_url is not set")) == 1
    for task, number in (("sleep", 0), ("early", 1)):
        fleet.send(task, 1, 0.0, first=number)
    fleet.wait_ended(2)
    assert worker.lines("narrow@here lost the broker: AccessRefused")
    assert not worker.lines("Traceback")
    assert fleet.stop(worker) == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://guest:secret@127.0.0.1:{port}", "401, the user or the password is wrong"),
        ("http://guest:secret@127.0.0.1:1", "does not answer: [Errno"),
        ("https://guest:secret@127.0.0.1:{port}", "does not answer: [SSL"),
        ("http://guest:secret@127.0.0.1:{port}/nowhere", "does not tell of a queue: 400"),
    ],
)
def test_a_management_api_that_does_not_work_is_named(rabbitmq: Any, url: str, said: str) -> None:
    """What is wrong is said in a sentence, without the password."""
    management = Management.at(
        url.format(port=rabbitmq.management_port), virtual_host="/", user="", password=""
    )
    assert "secret" not in repr(management)
    with pytest.raises(ManagementError) as raised:
        management.close_consumers("no such queue", "a test")
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["rabbit:secret@host", "amqp://u:secret@host", "http://u:secret@:x"]
)
def test_a_wrong_management_url_is_not_repeated(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(SettingsError) as raised:
        Management.at(url, virtual_host="/", user="", password="")
    assert "heartbeat_management_url must be like" in str(raised.value)
    assert "secret" not in str(raised.value)
