"""The app that the workers of the tests and benchmarks run: it writes down what it does."""

import functools
import itertools
import json
import os
import time

import celery
import redis

import heartbeat_celery

BROKER = os.environ["FLEET_BROKER"]
RECORDS = os.environ.get("FLEET_RECORDS") or BROKER

app = celery.Celery(
    "fleet", broker=BROKER, backend=RECORDS if RECORDS.startswith("redis") else None
)
app.conf.update(
    task_acks_late=True, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1
)
app.conf.update(json.loads(os.environ.get("FLEET_CONF", "{}")))
if os.environ.get("FLEET_HEARTBEAT", "1") == "1":
    heartbeat_celery.install(app)


def _note(what: str, task: celery.Task, number: int) -> None:
    line = {
        "what": what,
        "number": number,
        "worker": task.request.hostname,
        "life": os.environ.get("FLEET_LIFE"),
        "at": time.time(),
        "recoveries": (task.request.headers or {}).get("heartbeat_recoveries", 0),
        "redelivered": bool((task.request.delivery_info or {}).get("redelivered")),
    }
    _records().rpush("fleet:records", json.dumps(line))


@functools.cache
def _records() -> "redis.Redis[str]":
    return redis.Redis.from_url(RECORDS, decode_responses=True)


@app.task(bind=True, name="sleep")
def sleep(self: celery.Task, number: int, seconds: float) -> int:
    """Take its time without using the processor."""
    _note("start", self, number)
    time.sleep(seconds)
    _note("end", self, number)
    return number


@app.task(bind=True, name="spin")
def spin(self: celery.Task, number: int, seconds: float) -> int:
    """Take its time in pure Python."""
    _note("start", self, number)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    _note("end", self, number)
    return number


@app.task(bind=True, name="early", acks_late=False)
def early(self: celery.Task, number: int, seconds: float) -> int:
    """Be acknowledged before it runs."""
    _note("start", self, number)
    time.sleep(seconds)
    _note("end", self, number)
    return number


@app.task(bind=True, name="hold")
def hold(self: celery.Task, number: int, seconds: float) -> int:
    """Hold the interpreter's lock in one call of C, for about so long."""
    count = 20_000_000
    began = time.perf_counter()
    sum(itertools.repeat(0, count))
    count = int(count * seconds / (time.perf_counter() - began))
    _note("start", self, number)
    sum(itertools.repeat(0, count))
    _note("end", self, number)
    return number


@app.task(bind=True, name="where")
def where(self: celery.Task, number: int, seconds: float) -> str:
    """Take its time, and tell who did it."""
    _note("start", self, number)
    time.sleep(seconds)
    _note("end", self, number)
    return str(self.request.hostname)


@app.task(name="empty", ignore_result=True)
def empty() -> None:
    """Do nothing, and write nothing down."""
