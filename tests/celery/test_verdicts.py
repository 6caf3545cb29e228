"""What the result backend, the log and the signals are told, without any worker."""

import functools
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import attrs
import celery
import pytest
import redis
from celery.exceptions import WorkerLostError
from kombu import serialization

from heartbeat_celery import signals
from heartbeat_celery._delivery import Delivery
from heartbeat_celery._keys import Keys
from heartbeat_celery._results import Results
from heartbeat_celery._telling import MOST_TRIALS, Telling
from heartbeat_celery._verdicts import Kind, Verdict, Verdicts
from heartbeat_core import Incarnation

pytestmark = [
    # Celery's Redis backend calls it, and an older one leaves its sockets to the collector.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket"),
]

ME = Incarnation("me", 1)


@attrs.define(eq=False)
class Court:
    """An app with its broker and backend, what has to be told, and who was told."""

    app: celery.Celery
    client: "redis.Redis[bytes]"
    keys: Keys = attrs.field(init=False)
    told: list[dict[str, Any]] = attrs.field(factory=list)
    called: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        """Say where everything stands."""
        self.keys = Keys("", "test", "unacked", "unacked_index")

    def message(self, name: str = "work", **options: Any) -> dict[str, Any]:
        """Send a task, and give its message as Kombu wrote it."""
        self.app.send_task(name, (1,), **options)
        return dict(json.loads(self.client.rpop("celery") or b""))

    def post(self, message: dict[str, Any], kind: Kind = Kind.LOST) -> Verdict:
        """Post a verdict."""
        verdict = Verdict(
            kind=kind,
            node="w",
            incarnation=1,
            left=False,
            queue="celery",
            dead_letters="heartbeat.test.dead-letters",
            recoveries=0,
            message=message,
        )
        self.client.rpush(self.keys.verdicts, verdict.dumps())
        return verdict

    def deliver(self) -> bool:
        """Tell what there is to tell; tell whether nothing stood in the way."""
        delivery = Delivery(Telling(self.app), Verdicts(self.client, self.keys), lambda: ME)
        return anyio.run(delivery.deliver)

    def left(self) -> int:
        """Give how many verdicts are not told yet."""
        lists = (self.keys.verdicts, self.keys.taken_verdicts(ME))
        return sum(self.client.llen(key) for key in lists)

    def result(self, message: dict[str, Any]) -> Any:
        """Give the result of a task."""
        return self.app.AsyncResult(message["headers"]["id"])


@pytest.fixture
def court(valkey: Any) -> Iterator[Court]:
    """An empty broker, and nobody told."""
    app = celery.Celery("court", broker=valkey.url, backend=valkey.url)
    with redis.Redis.from_url(valkey.url) as client:
        client.flushdb()
        court = Court(app, client)

        @app.task(name="work", shared=False)
        def work(number: int) -> int:
            return number

        @app.task(name="quiet", ignore_result=True, shared=False)
        def quiet(number: int) -> int:
            return number

        @app.task(name="call", shared=False)
        def call(request: Any, _exc: Exception, _traceback: Any) -> None:
            court.called.append(request.id)

        def receive(signal: Any, **fields: Any) -> None:
            court.told.append({"signal": signal.name, **fields})

        signals.task_lost.connect(receive, sender=app)
        signals.task_dead_lettered.connect(receive, sender=app)
        yield court
    app.close()
    gc.collect()


@pytest.mark.promise(7)
def test_a_verdict_is_told_once(court: Court, caplog: pytest.LogCaptureFixture) -> None:
    """The result is a failure, error callbacks run, and a signal and a line say so."""
    message = court.message(link_error=court.app.signature("call"))
    verdict = court.post(message)
    assert court.deliver()
    assert court.deliver()
    result = court.result(message)
    assert isinstance(result.result, WorkerLostError)
    assert str(result.result) == verdict.reason
    assert court.called == [message["headers"]["id"]]
    (told,) = court.told
    assert told["signal"] == "task_lost"
    assert (told["task"], told["node"], told["reason"]) == ("work", "w", verdict.reason)
    (line,) = [each for each in caplog.records if "is lost" in each.getMessage()]
    assert line.__dict__["heartbeat_task_id"] == message["headers"]["id"]
    assert court.left() == 0


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_what_had_ended_is_not_lost(court: Court, state: str) -> None:
    """A task whose result was known when its worker died keeps it, and nobody is told."""
    message = court.message(link_error=court.app.signature("call"))
    result = ValueError("its own") if state != "SUCCESS" else 1
    court.app.backend.store_result(message["headers"]["id"], result, state)
    court.post(message)
    assert court.deliver()
    assert court.result(message).state == state
    assert court.told == court.called == []
    assert court.left() == 0


def test_a_dead_letter_keeps_a_known_result_but_is_announced(court: Court) -> None:
    """A message that is dead-lettered after its task had ended changes no result."""
    message = court.message()
    court.app.backend.store_result(message["headers"]["id"], 1, "SUCCESS")
    court.post(message, Kind.DEAD_LETTERED)
    assert court.deliver()
    assert court.result(message).result == 1
    assert [told["signal"] for told in court.told] == ["task_dead_lettered"]


def test_what_somebody_told_by_half_is_told_whole(court: Court) -> None:
    """If only the result was stored before its teller died, the next one tells all the rest."""
    message = court.message(link_error=court.app.signature("call"))
    verdict = court.post(message)
    Results(court.app).store(verdict)
    assert court.deliver()
    assert len(court.called) == len(court.told) == 1


def test_an_unstored_result_is_told_all_the_same(court: Court) -> None:
    """A task whose results are ignored stores none, but its callbacks and signals are told."""
    link_error = court.app.signature("call")
    message = court.message("quiet", link_error=link_error, ignore_result=True)
    court.post(message)
    assert court.deliver()
    assert court.result(message).state == "PENDING"
    assert len(court.called) == len(court.told) == 1


def test_an_app_without_a_backend_is_told_by_signal(court: Court, valkey: Any) -> None:
    """Where there is no result backend at all there is still a signal."""
    message = court.message()
    told: list[str] = []

    def receive(task_id: str, **_fields: Any) -> None:
        told.append(task_id)

    court.app = celery.Celery("without", broker=valkey.url, backend=None)
    signals.task_lost.connect(receive, sender=court.app)
    court.post(message)
    assert court.deliver()
    assert told == [message["headers"]["id"]]
    court.app.close()


def test_a_body_that_may_not_be_read_is_not(court: Court, caplog: pytest.LogCaptureFixture) -> None:
    """A body that the workers would refuse is not decoded: the result fails, and no more."""
    content_type = "application/x-court"
    serialization.register("court", json.dumps, json.loads, content_type)
    message = court.message(link_error=court.app.signature("call"), serializer="court")
    assert message["content-type"] == content_type
    court.post(message)
    assert court.deliver()
    assert court.result(message).state == "FAILURE"
    assert court.called == []
    assert "the body of task work" in caplog.text


@pytest.mark.parametrize(
    "headers", [{}, {"id": None}, {"id": "x", "task": "unknown"}], ids=["none", "no id", "unknown"]
)
def test_a_message_of_no_known_task_comes_to_its_end(court: Court, headers: dict[str, Any]) -> None:
    """What is no task of the app is announced as far as it can be, and is done."""
    court.post({"body": "", "headers": headers, "properties": {}})
    assert court.deliver()
    (told,) = court.told
    assert told["task_id"] == (headers.get("id") or "")
    assert court.left() == 0


def test_what_is_no_verdict_is_dropped(court: Court, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read does not stand in the way of others."""
    for entry in ("", "0 {}", "x", "0 []", '0 {"kind": "lost"}'):
        court.client.rpush(court.keys.verdicts, entry)
    message = court.message()
    court.post(message)
    assert court.deliver()
    assert court.result(message).state == "FAILURE"
    assert caplog.text.count("a verdict cannot be read") == 5
    assert court.left() == 0


def test_a_backend_that_fails_is_no_trial(
    court: Court, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While nothing can be stored a verdict waits, as often as need be, and then is told whole."""
    message = court.message(link_error=court.app.signature("call"))
    court.post(message)
    delivery = Delivery(Telling(court.app), Verdicts(court.client, court.keys), lambda: ME)
    backend = type(court.app.backend)
    store = backend.store_result

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("the backend is away")

    async def try_often() -> None:
        monkeypatch.setattr(backend, "store_result", fail)
        for _ in range(2 * MOST_TRIALS):
            assert not await delivery.deliver()
        monkeypatch.setattr(backend, "store_result", store)
        assert await delivery.deliver()

    anyio.run(try_often)
    assert caplog.text.count("cannot be stored yet") == 1
    assert len(court.called) == len(court.told) == 1


def test_a_verdict_that_defeats_its_tellers_comes_to_an_end(
    court: Court, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If what hangs on a result fails again and again, that result is stored, and no more told."""
    message = court.message(link_error=court.app.signature("call"))
    court.post(message)
    backend = type(court.app.backend)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        court.called.append("x")
        raise RuntimeError("cannot be told")

    monkeypatch.setattr(backend, "_call_task_errbacks", fail)
    for _ in range(MOST_TRIALS):
        assert not court.deliver()
    assert court.told == []
    assert court.deliver()
    assert court.called == ["x"] * MOST_TRIALS
    assert len(court.told) == 1
    assert court.result(message).state == "FAILURE"
    assert "could not be told in 3 trials" in caplog.text
    assert court.left() == 0


def _at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> None:
    """Do something whenever a method is called, and then call it."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def first(*args: Any, **kwargs: Any) -> Any:
        act()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, first)


class _Killed(BaseException):
    """The teller is gone."""


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Verdicts, "holds"),
        (Results, "has_ended"),
        (Results, "fail"),
        (type(signals.task_lost), "send"),
        (Verdicts, "done"),
    ],
)
def test_a_teller_that_is_killed_anywhere_is_followed_by_another(
    court: Court, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Wherever a teller is killed, the next one sees to it that all is told."""
    message = court.message(link_error=court.app.signature("call"))
    court.post(message)

    def kill() -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        _at(patch, owner, name, kill)
        with pytest.raises(_Killed):
            court.deliver()
    assert court.left() == 1
    Verdicts(court.client, court.keys).recover(ME)
    assert court.deliver()
    assert court.result(message).state == "FAILURE"
    assert court.called
    assert court.told
    assert court.left() == 0


def test_who_was_robbed_of_a_verdict_tells_nothing(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teller that slept until another took its verdict over leaves it to that one."""
    message = court.message(link_error=court.app.signature("call"))
    court.post(message)
    verdicts = Verdicts(court.client, court.keys)
    _at(monkeypatch, Verdicts, "holds", lambda: verdicts.recover(ME))
    delivery = Delivery(Telling(court.app), verdicts, lambda: ME)

    async def once() -> None:
        taken = verdicts.take(ME)
        assert taken is not None
        await delivery._tell(taken)

    anyio.run(once)
    assert court.told == court.called == []
    assert court.left() == 1
