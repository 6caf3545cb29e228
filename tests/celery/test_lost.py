"""What is not run again: dead letters and lost tasks, with real workers and real kills."""

import gc
import json
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import celery
import pytest
import redis
from celery.exceptions import ChordError, WorkerLostError

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import Fleet, Worker, wait_for

from heartbeat_celery._dead_letters import DeadLetters
from heartbeat_celery._keys import Keys

# An older Celery leaves the sockets of its results to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")

KEYS = Keys("", "fleet", "unacked", "unacked_index")
SOON = 20


class LostFleet(Fleet):
    """Workers that write down whom they tell."""

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

    def left(self) -> set[str]:
        """Give what is left of anything lost in the broker."""
        words = (":running:", ":verdicts", "dead-letters")
        return {key for key in self.client.scan_iter("*") if any(word in key for word in words)}


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[LostFleet]:
    """No worker yet, on an empty broker."""
    with LostFleet(valkey.url, tmp_path, app_name="lost_app") as fleet:
        fleet.client.flushdb()
        yield fleet


@pytest.fixture
def app(fleet: LostFleet) -> Iterator[celery.Celery]:
    """An app that sends tasks and asks for their results."""
    app = fleet.app()
    yield app
    app.close()
    # Results that nobody needs any more unsubscribe, while there still is a server.
    gc.collect()


def sig(app: celery.Celery, name: str, *args: Any, **options: Any) -> Any:
    """Give a signature of one of the workers' tasks."""
    return app.signature(f"lost_app.{name}", args, app=app, **options)


@pytest.mark.promise(5)
def test_a_poisonous_message_ends_in_the_dead_letter_queue(
    fleet: LostFleet, app: celery.Celery
) -> None:
    """What kills every worker that takes it is kept whole, and its result says why."""
    fleet.environ["CELERY_HEARTBEAT_MAX_RECOVERIES"] = "1"
    fleet.start_all(3, concurrency=1)
    result = sig(app, "poison", 7, link_error=sig(app, "on_error")).apply_async()
    with pytest.raises(WorkerLostError, match=r"outlived 1 owner,.*heartbeat\.fleet\.dead-letters"):
        result.get(timeout=60)
    assert [record["recoveries"] for record in fleet.by_number("start")[7]] == [0, 1]
    with redis.Redis.from_url(fleet.url) as client:
        letters = DeadLetters(client, KEYS)
        ((letter,), others) = letters.read()
        assert others == 0
    assert (letter.task_id, letter.task, letter.queue) == (result.id, "lost_app.poison", "celery")
    assert letter.recoveries == 1
    assert abs(letter.at - time.time()) < 60
    assert letter.message["headers"]["argsrepr"] == "(7,)"
    wait_for(lambda: fleet.told("on_error"), "link_error ran")
    (told,) = wait_for(lambda: fleet.told("task_dead_lettered"), "the signal was sent")
    assert told["task_id"] == result.id
    assert told["reason"] == letter.reason
    assert len(fleet.lines("is dead-lettered")) == 1
    (survivor,) = [worker for worker in fleet.workers if worker.process.poll() is None]
    fleet.send("sleep", 1, 0.0)
    fleet.wait_ended(1)
    assert fleet.stop(survivor) == 0
    assert fleet.left() == {"heartbeat.fleet.dead-letters"}


@pytest.mark.promise(7)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_who_waits_for_a_lost_task_is_told(fleet: LostFleet, app: celery.Celery, pool: str) -> None:
    """A task that was acknowledged early and is gone fails; all that hang on it react, once."""
    first = fleet.start("first", pool=pool)
    fleet.wait_ready(first)
    result = sig(
        app,
        "early",
        1,
        60.0,
        link_error=[sig(app, "on_error"), sig(app, "on_error_here")],
    ).apply_async()
    fleet.wait_running(1)
    second = fleet.start("second", pool=pool)
    fleet.wait_ready(second)
    wait_for(lambda: second.lines("first@here beats"), "they know each other")
    began = time.monotonic()
    fleet.kill(first)
    with pytest.raises(WorkerLostError, match=r"worker first@here .* died while it ran this task"):
        result.get(timeout=SOON)
    assert time.monotonic() - began < 10
    (told,) = wait_for(lambda: fleet.told("task_lost"), "the signal was sent")
    assert told["task_id"] == result.id
    assert (told["task"], told["node"], told["queue"]) == ("lost_app.early", "first@here", "celery")
    wait_for(lambda: fleet.told("on_error"), "the error callback ran as a task")
    (here,) = fleet.told("on_error_here")
    assert (here["task_id"], here["exc"]) == (result.id, "WorkerLostError")
    assert here["args"] == [1, 60.0]
    assert len(fleet.lines(f"task lost_app.early[{result.id}] is lost")) == 1
    assert len(fleet.lines("a receiver that fails")) > 0
    assert fleet.stop(second) == 0
    assert len(fleet.told("task_lost")) == len(fleet.told("on_error")) == 1
    assert [len(each) for each in fleet.by_number("start").values()] == [1]
    assert fleet.left() == set()


@pytest.mark.promise(7)
def test_chords_and_chains_with_a_lost_member_fail(fleet: LostFleet, app: celery.Celery) -> None:
    """A chord one of whose members is lost fails, and so does what is chained to a lost task."""
    first = fleet.start("first", concurrency=4)
    fleet.wait_ready(first)
    body = sig(app, "total").on_error(sig(app, "on_error"))
    chord = celery.chord([sig(app, "early", 1, 60.0), sig(app, "early", 2, 0.1)], app=app)(body)
    chained = (sig(app, "early", 3, 60.0) | sig(app, "plus", 1)).apply_async()
    wait_for(lambda: fleet.by_number("end").get(2), "one member of the chord has ended")
    for number in (1, 3):
        fleet.wait_running(number)
    fleet.start_all(1)
    fleet.kill(first)
    # Without their parents, whose failure would be raised here as well.
    with pytest.raises(ChordError, match="WorkerLostError"):
        app.AsyncResult(chord.id).get(timeout=SOON)
    with pytest.raises(WorkerLostError):
        app.AsyncResult(chained.id).get(timeout=SOON)
    wait_for(lambda: fleet.told("on_error"), "the chord's error callback ran")


def test_a_lost_task_may_be_run_again_or_ignored(fleet: LostFleet, app: celery.Celery) -> None:
    """A task says itself what becomes of it; what makes no sense is named, and means failure."""
    first = fleet.start("first", concurrency=4)
    fleet.wait_ready(first)
    again = sig(app, "again", 1, 8.0).apply_async()
    whatever = sig(app, "whatever", 2, 60.0).apply_async()
    undecided = sig(app, "undecided", 3, 60.0).apply_async()
    for number in (1, 2, 3):
        fleet.wait_running(number)
    fleet.start_all(1)
    fleet.kill(first)
    with pytest.raises(WorkerLostError):
        undecided.get(timeout=SOON)
    assert again.get(timeout=SOON) == 1
    assert [record["recoveries"] for record in fleet.by_number("start")[1]] == [0, 1]
    assert whatever.state == "PENDING"
    assert [told["task_id"] for told in fleet.told("task_lost")] == [undecided.id]
    assert [told["task_id"] for told in fleet.told("task_recovered")] == [again.id]
    assert len(fleet.lines("('perhaps') of task lost_app.undecided must be")) == 1


def test_lost_tasks_may_all_be_ignored(fleet: LostFleet, app: celery.Celery) -> None:
    """With ``heartbeat_on_lost = "ignore"`` nothing is kept, and nobody is told."""
    fleet.conf["heartbeat_on_lost"] = "ignore"
    first = fleet.start("first")
    fleet.wait_ready(first)
    result = sig(app, "early", 1, 60.0).apply_async()
    fleet.wait_running(1)
    (second,) = fleet.start_all(1)
    wait_for(lambda: second.lines("first@here beats"), "they know each other")
    assert fleet.left() == set()
    fleet.kill(first)
    wait_for(lambda: second.lines("first@here suspect -> dead"), "it is found dead")
    time.sleep(1)
    assert result.state == "PENDING"
    assert fleet.told("task_lost") == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_of_what_has_ended_nothing_is_kept(fleet: LostFleet, app: celery.Celery, pool: str) -> None:
    """Early tasks that end leave no record, and after a kill nobody reports them."""
    first, second = fleet.start("first", pool=pool), fleet.start("second", pool="solo")
    fleet.wait_ready(first, second)
    results = [sig(app, "early", number, 0.01).apply_async() for number in range(20)]
    assert sorted(result.get(timeout=SOON) for result in results) == list(range(20))
    wait_for(lambda: not fleet.left(), "the record is empty")
    fleet.kill(first)
    wait_for(lambda: second.lines("first@here suspect -> dead"), "it is found dead")
    time.sleep(1)
    assert fleet.told("task_lost") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=["warm", "cold"])
def test_what_a_worker_gives_up_at_its_stop_is_lost(
    fleet: LostFleet, app: celery.Celery, number: int
) -> None:
    """A cold stop loses what was acknowledged early, and says so itself; a warm one waits."""
    (worker,) = fleet.start_all(1)
    result = sig(app, "early", 1, 3.0).apply_async()
    fleet.wait_running(1)
    fleet.stop(worker, number)
    if number == signal.SIGTERM:
        assert result.get(timeout=SOON) == 1
        assert fleet.told("task_lost") == []
    else:
        with pytest.raises(WorkerLostError, match="stopped while it ran this task"):
            result.get(timeout=SOON)
        assert [told["task_id"] for told in fleet.told("task_lost")] == [result.id]
    assert fleet.left() == set()
    assert fleet.left_over() == {}


def test_what_is_recovered_keeps_its_time_and_its_canvas(
    fleet: LostFleet, app: celery.Celery
) -> None:
    """Countdowns, chains, groups and chords survive the worker that held them."""
    fleet.conf["worker_prefetch_multiplier"] = 4
    victim = fleet.start("victim")
    fleet.wait_ready(victim)
    began = time.time()
    later = app.signature("sleep", (0, 0.0)).apply_async(countdown=8)
    late = [app.signature("sleep", (number, 2.0), app=app) for number in range(1, 4)]
    chord = celery.chord(late[:2], app=app)(sig(app, "total"))
    chain = (late[2] | sig(app, "plus", 10)).apply_async()
    group = celery.group([sig(app, "plus", 1, 2), sig(app, "plus", 3, 4)], app=app).apply_async()
    wait_for(lambda: len(fleet.running()) == 2, "it runs two tasks")
    fleet.start_all(1)
    fleet.kill(victim)
    assert app.AsyncResult(chord.id).get(timeout=SOON) == 3
    assert app.AsyncResult(chain.id).get(timeout=SOON) == 13
    assert group.get(timeout=SOON) == [3, 7]
    assert later.get(timeout=SOON) == 0
    (start,) = fleet.by_number("start")[0]
    assert start["recoveries"] == 1
    assert began + 8 <= start["at"] <= began + 8 + SOON


def test_the_revoked_and_the_expired_stay_so(fleet: LostFleet, app: celery.Celery) -> None:
    """What was revoked, or expired while nobody had it, is not run by who recovers it."""
    fleet.conf["worker_prefetch_multiplier"] = 4
    victim = fleet.start("victim", concurrency=1)
    fleet.wait_ready(victim)
    app.send_task("sleep", (0, 60.0))
    fleet.wait_running(0)
    revoked = app.send_task("sleep", (1, 0.0))
    expires = app.send_task("sleep", (2, 0.0), expires=6)
    sound = app.send_task("sleep", (3, 0.0))
    wait_for(lambda: fleet.client.llen("celery") == 0, "it holds them all")
    victim.kill_group(signal.SIGSTOP)
    other = fleet.start("other")
    fleet.wait_ready(other)
    fleet.wait_listening(other)
    app.control.revoke(revoked.id)
    wait_for(lambda: other.lines(revoked.id), "the other knows of the revocation")
    time.sleep(6)
    fleet.kill(victim)
    assert sound.get(timeout=SOON) == 3
    for result in (revoked, expires):
        wait_for(lambda result=result: result.state == "REVOKED", "it is revoked")
    assert not fleet.by_number("start").keys() & {1, 2}


def test_nodes_are_announced_by_who_observes(fleet: LostFleet) -> None:
    """First beats, suspicion, death and goodbye are signals, with what is known of them."""
    victim, other = fleet.start("victim"), fleet.start("other")
    fleet.wait_ready(victim, other)

    def seen(what: str) -> list[dict[str, Any]]:
        return [told for told in fleet.told(what) if told["worker"] == "other@here"]

    (alive,) = wait_for(lambda: seen("node_alive"), "the other beats")
    assert (alive["node"], alive["cause"]) == ("victim@here", "first beat")
    fleet.kill(victim)
    (dead,) = wait_for(lambda: seen("node_dead"), "it is dead")
    (suspect,) = seen("node_suspect")
    assert dead["incarnation"] == suspect["incarnation"] == alive["incarnation"]
    assert dead["silence"] >= suspect["silence"]
    assert dead["reason"]
    third = fleet.start("third")
    fleet.wait_ready(third)
    wait_for(lambda: len(seen("node_alive")) == 2, "a third beats")
    fleet.stop(third)
    (left,) = wait_for(lambda: seen("node_left"), "it left")
    assert left["node"] == "third@here"


@pytest.mark.promise(4)
def test_who_was_taken_for_dead_is_told(fleet: LostFleet) -> None:
    """A worker that wakes after its death sends ``fenced``, as the life that is over."""
    fleet.environ["CELERY_HEARTBEAT_EXPIRE"] = "5"
    zombie, other = fleet.start("zombie"), fleet.start("other")
    fleet.wait_ready(zombie, other)
    zombie.kill_group(signal.SIGSTOP)
    wait_for(lambda: other.lines("zombie@here suspect -> dead"), "it is taken for dead")
    zombie.kill_group(signal.SIGCONT)
    (fenced,) = wait_for(lambda: fleet.told("fenced"), "it says so")
    (dead,) = fleet.told("node_dead")
    assert fenced["worker"] == fenced["node"] == "zombie@here"
    assert fenced["incarnation"] == dead["incarnation"]


def test_a_result_backend_that_is_away_is_waited_for(
    fleet: LostFleet, app: celery.Celery, valkey_private: Any
) -> None:
    """While the backend is away at a recovery, one line says so, and no verdict is lost."""
    fleet.conf["result_backend"] = valkey_private.url
    backend = celery.Celery("fleet", backend=valkey_private.url).backend
    first = fleet.start("first")
    fleet.wait_ready(first)
    sent = [sig(app, "early", number, 60.0).apply_async() for number in (1, 2)]
    for number in (1, 2):
        fleet.wait_running(number)
    (other,) = fleet.start_all(1)
    valkey_private.stop()
    fleet.kill(first)
    wait_for(lambda: other.lines("cannot be stored yet"), "it says so")
    fleet.send("sleep", 1, 0.0, first=5)
    wait_for(lambda: 5 in fleet.by_number("start"), "it goes on with other tasks")
    time.sleep(3)
    assert len(other.lines("cannot be stored yet")) == 1
    assert fleet.told("task_lost") == []
    valkey_private.start()
    wait_for(lambda: len(fleet.told("task_lost")) == 2, "both are announced", 60)
    for task in sent:
        assert isinstance(backend.get_result(task.id), WorkerLostError)
