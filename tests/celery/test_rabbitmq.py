"""Workers on RabbitMQ: hung ones, lost tasks, poison, and what is wrong with the broker."""

import gc
import http.server
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import amqp
import celery
import kombu
import pytest
from celery.exceptions import WorkerLostError

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import HERE, Fleet, Worker, stopped, wait_for
from proxy import Proxy
from test_fencing import QUICK
from test_pools import GREENLETS
from test_scheduler import ALONE as SCHEDULER

from heartbeat_celery._management import Management, ManagementError
from heartbeat_core import SettingsError, shard_of

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
    fleet.conf.update(QUICK)
    first, second = fleet.start_all(2)
    for worker, other in ((first, second), (second, first)):
        wait_for(lambda w=worker, o=other: w.lines(f"{o.name}@here beats"), "they know each other")
    fleet.send("sleep", 1, 6.0)
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


def told_in(worker: Worker, *words: str) -> None:
    """Wait until a worker's log has lines with these words."""
    for word in words:
        wait_for(lambda w=word: worker.lines(w), f"{worker.name} says: {word}", 30)


def through(proxy: Proxy, fleet: RabbitFleet, name: str, *options: str, **kwargs: Any) -> Worker:
    """Start a worker that reaches the broker through a proxy."""
    direct, where = fleet.url, fleet.url.rpartition("/")[2]
    fleet.url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/{where}"
    worker = fleet.start(name, *options, **kwargs)
    fleet.wait_ready(worker)
    fleet.url = direct
    return worker


def test_a_connection_that_delivers_nothing_is_made_anew(fleet: RabbitFleet, rabbitmq: Any) -> None:
    """It is found, and what was lost on its way runs; who waits for a rate limit is left alone."""
    fleet.environ.update(CELERY_HEARTBEAT_EXPIRE="5", CELERY_HEARTBEAT_ON_STALL="restart")
    fleet.conf["task_annotations"] = {"where": {"rate_limit": "1/m"}}
    limited = fleet.start("limited", "-Q", "limited", pool="solo")
    with Proxy(rabbitmq.port) as proxy:
        worker = through(proxy, fleet, "worker", pool="solo")
        fleet.wait_ready(limited)
        for number in range(100, 104):
            fleet.app().send_task("where", (number, 0.0), queue="limited")
        names = wait_for(lambda: fleet.management._consumers("celery"), "it consumes")
        (port,) = [int(name.split(" -> ")[0].rpartition(":")[2]) for name in names]
        proxy.swallow(port)
        fleet.send("sleep", 4, 0.1)
        told_in(worker, "its connection to the broker has been silent", "hangs no longer, after")
        wait_for(lambda: fleet.by_number("end").keys() == {0, 1, 2, 3, 100}, "all ran")
        assert fleet.stop(worker) == 0
    assert len(worker.lines("gets nothing")) == 1
    assert not limited.lines("gets nothing")


def test_who_is_cut_off_harms_nobody(fleet: RabbitFleet, rabbitmq: Any) -> None:
    """What it holds runs elsewhere after ``expire``; it stores no result, and begins no more."""
    fleet.conf.update(QUICK, worker_prefetch_multiplier=4)
    with Proxy(rabbitmq.port) as proxy:
        options = ("--without-mingle", "--without-gossip")
        other = fleet.start("other", "-Q", "other", *options, pool="threads", concurrency=1)
        victim = through(proxy, fleet, "victim", *options, pool="threads", concurrency=1)
        app = fleet.app()
        for number in range(4):
            app.send_task("where", (number, 8.0 if number == 0 else 0.1), task_id=f"t{number}")
        fleet.wait_running(0)
        wait_for(lambda: fleet.depth("celery") == 0, "all are taken")
        fleet.wait_ready(other)
        told_in(other, "victim@here beats")
        proxy.cut()
        app.control.add_consumer("celery", destination=["other@here"])
        wait_for(lambda: len(fleet.by_number("start")[0]) == 2, "it runs elsewhere")
        proxy.heal()
        told_in(victim, "the result of task t0 is not stored")
        for number in range(4):
            assert app.AsyncResult(f"t{number}").get(timeout=30) == "other@here"
        starts = fleet.by_number("start")
        assert [len(starts[number]) for number in range(4)] == [2, 1, 1, 1]
        assert fleet.stop(victim) == 0
    app.close()
    gc.collect()


def test_without_the_management_api_rabbitmq_notices_itself(fleet: RabbitFleet) -> None:
    """One line says that it is not set, or what is wrong; the message comes back later."""
    fleet.conf.update(QUICK, broker_heartbeat=2)
    wrong = fleet.management_url.replace("guest:guest", "guest:secret")
    fleet.environ["CELERY_HEARTBEAT_MANAGEMENT_URL"] = wrong
    refused, victim = fleet.start("refused"), fleet.start("victim")
    fleet.wait_ready(victim, refused)
    del fleet.environ["CELERY_HEARTBEAT_MANAGEMENT_URL"]
    silent = fleet.start("silent", pool="solo")
    fleet.wait_ready(silent)
    told_in(silent, "victim@here beats", "heartbeat_management_url is not set")
    fleet.send("sleep", 6, 4.0)
    wait_for(lambda: "victim@here" in fleet.running().values(), "the victim runs a task")
    with stopped(victim):
        told_in(silent, "victim@here#", "but its connection to RabbitMQ is open")
        told_in(refused, "cannot be closed yet: http://127.0.0.1")
        wait_for(lambda: any(len(each) > 1 for each in fleet.by_number("start").values()), "back")
    assert refused.lines("401, the user or the password is wrong")
    assert not fleet.lines("secret")


def test_dead_letters_come_back_or_go_all_at_once(fleet: RabbitFleet, app: celery.Celery) -> None:
    """``requeue --all`` puts all back into their queue; ``purge`` deletes them."""
    fleet.environ["CELERY_HEARTBEAT_MAX_RECOVERIES"] = "0"
    victim = fleet.start("victim")
    observer = fleet.start("observer", "-Q", "other", pool="solo")
    fleet.wait_ready(victim, observer)
    results = [sig(app, "again", number, 60.0).apply_async() for number in range(2)]
    assert {fleet.wait_running(number) for number in range(2)} == {victim}
    told_in(observer, "victim@here beats")
    fleet.kill(victim)
    with pytest.raises(WorkerLostError):
        results[0].get(timeout=SOON)
    wait_for(lambda: len(fleet.told("task_dead_lettered")) == 2, "it is told")
    letters = "heartbeat.fleet.dead-letters"
    assert fleet.depth(letters) == 2
    assert command(fleet, "dead-letters", "requeue", "--all")[0] == 0
    assert (fleet.depth(letters), fleet.depth("celery")) == (0, 2)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for _ in range(3):
            channel.basic_publish(amqp.Message("not one"), routing_key=letters)
    wait_for(lambda: fleet.depth(letters) == 3, "others put something there")
    code, out, _ = command(fleet, "dead-letters", "purge", "--yes")
    assert (code, out.strip()) == (0, "3 dead letters are deleted")
    assert fleet.depth(letters) == 0


def test_a_cold_stop_loses_early_tasks_and_says_so(fleet: RabbitFleet, app: celery.Celery) -> None:
    """What a worker gives up that was acknowledged is told by the others, in shards too."""
    fleet.environ["CELERY_HEARTBEAT_SHARDS"] = "2"
    names = [f"w{number}" for number in range(20)]
    near = [
        name
        for name in names
        if shard_of("fleet", f"{name}@here", 2) == shard_of("fleet", "w0@here", 2)
    ]
    far = next(name for name in names if name not in near)
    first = fleet.start(near[0])
    fleet.wait_ready(first)
    result = sig(app, "early", 1, 60.0).apply_async()
    fleet.wait_running(1)
    second, third = fleet.start(near[1]), fleet.start(far, pool="solo")
    fleet.wait_ready(second, third)
    told_in(second, f"{first.name}@here beats")
    fleet.stop(first, signal.SIGQUIT)
    with pytest.raises(WorkerLostError):
        result.get(timeout=SOON)
    (told,) = wait_for(lambda: fleet.told("task_lost"), "the signal was sent")
    assert told["worker"] == f"{second.name}@here"
    assert not fleet.lines("-> dead")


def test_while_memory_is_short_early_tasks_go_on(fleet: RabbitFleet, rabbitmq: Any) -> None:
    """They are not on record then, which is said once."""
    fleet.conf["worker_prefetch_multiplier"] = 30
    worker = fleet.start("worker", concurrency=1)
    fleet.wait_ready(worker)
    fleet.send("early", 30, 0.3)
    fleet.wait_running(0)
    try:
        rabbitmq.control("set_vm_memory_high_watermark", "0.0000001")
        fleet.wait_ended(30)
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    assert len(worker.lines("are not on record now")) == 1

    def again() -> bool:
        fleet.send("early", 1, 0.0)
        return bool(worker.lines("are on record again"))

    wait_for(again, "they are on record again")
    assert fleet.stop(worker) == 0


@pytest.mark.parametrize("pool", GREENLETS)
def test_greenlets_and_schedulers_are_told_of(
    fleet: RabbitFleet, app: celery.Celery, pool: str
) -> None:
    """A worker with greenlets keeps records, and tells of others: of a dead scheduler, too."""
    fleet.app_name = "beat_app"
    victim = fleet.start("victim", pool=pool)
    fleet.wait_ready(victim)
    result = sig(app, "early", 1, 60.0).apply_async()
    fleet.wait_running(1)
    other, beat = fleet.start("other", pool=pool), fleet.start_beat()
    fleet.wait_ready(other)
    told_in(other, "victim@here beats", f"{SCHEDULER} beats")
    fleet.kill(victim)
    fleet.kill(beat)
    with pytest.raises(WorkerLostError):
        result.get(timeout=SOON)
    told_in(other, f"task lost_app.early[{result.id}] is lost", f"{SCHEDULER} suspect -> dead")


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


@pytest.mark.parametrize("channel", ['{"channel_details": []}', "{}"])
def test_a_connection_that_is_not_known_yet_is_no_error(channel: str) -> None:
    """The management API knows of a consumer before it knows of its connection."""

    class Early(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{{"consumer_details": [{channel}]}}'.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Early) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        management = Management.at(url, virtual_host="/", user="", password="")
        assert management.close_consumers("a queue", "a test") == set()


@pytest.mark.parametrize(
    "url", ["rabbit:secret@host", "amqp://u:secret@host", "http://u:secret@:x"]
)
def test_a_wrong_management_url_is_not_repeated(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(SettingsError) as raised:
        Management.at(url, virtual_host="/", user="", password="")
    assert "heartbeat_management_url must be like" in str(raised.value)
    assert "secret" not in str(raised.value)
