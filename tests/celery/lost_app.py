"""The app of the workers that lose tasks: it writes down whom it tells, too."""

import json
import os
import signal
import time
from typing import Any

import celery
from fleet_app import _note, _records, app

from heartbeat_celery import signals

__all__ = ("app",)


def _say(what: str, **fields: Any) -> None:
    _records().rpush("fleet:told", json.dumps({"what": what, **fields}))


@app.task(bind=True)
def poison(self: celery.Task, number: int) -> None:
    """Kill its worker."""
    _note("start", self, number)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


@app.task(bind=True, acks_late=False)
def early(self: celery.Task, number: int, seconds: float, _filler: str = "") -> int:
    """Be acknowledged before it runs."""
    _note("start", self, number)
    time.sleep(seconds)
    _note("end", self, number)
    return number


@app.task(bind=True, acks_late=False, heartbeat_on_lost="rerun")
def again(self: celery.Task, number: int, seconds: float) -> int:
    """Be run once more if it is lost."""
    return int(early.run.__func__(self, number, seconds))


@app.task(bind=True, acks_late=False, heartbeat_on_lost="ignore")
def whatever(self: celery.Task, number: int, seconds: float) -> int:
    """Nobody cares for it."""
    return int(early.run.__func__(self, number, seconds))


@app.task(bind=True, acks_late=False, heartbeat_on_lost="perhaps")
def undecided(self: celery.Task, number: int, seconds: float) -> int:
    """Has a wrong attribute."""
    return int(early.run.__func__(self, number, seconds))


@app.task
def on_error(task_id: str) -> None:
    """Be called back as a task."""
    _say("on_error", task_id=task_id)


@app.task
def on_error_here(request: Any, exc: Exception, _traceback: Any) -> None:
    """Be called back where the failure is stored."""
    _say("on_error_here", task_id=request.id, exc=type(exc).__name__, args=list(request.args))


@app.task
def total(numbers: list[int]) -> int:
    """Add up."""
    return sum(numbers)


@app.task
def plus(number: int, other: int) -> int:
    """Add."""
    return number + other


def _receive(sender: Any, signal: Any, **fields: Any) -> None:
    assert sender is app
    assert set(fields) == set(signal.providing_args)
    _say(signal.name, worker=app.current_worker_name, **fields)


def _fail(**_fields: Any) -> None:
    raise RuntimeError("a receiver that fails")


app.current_worker_name = ""


@celery.signals.celeryd_init.connect
def _named(sender: str, **_fields: Any) -> None:
    app.current_worker_name = sender


for _name in signals.__all__:
    getattr(signals, _name).connect(_fail)
    getattr(signals, _name).connect(_receive)
