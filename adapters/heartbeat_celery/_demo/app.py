"""The app of the demo's workers. Its tasks write down when and where they run."""

import functools
import json
import os
import time
from typing import Any

import redis
from celery import Celery, Task

import heartbeat_celery

BROKER = os.environ["HEARTBEAT_DEMO_BROKER"]
PREFIX = os.environ["HEARTBEAT_DEMO_PREFIX"]
SECONDS = 1.0

app = Celery("heartbeat-demo", broker=BROKER, backend=BROKER)
app.conf.update(
    broker_transport_options={"global_keyprefix": PREFIX},
    result_backend_transport_options={"global_keyprefix": PREFIX},
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    heartbeat_namespace="demo",
)
heartbeat_celery.install(app)


@app.task(bind=True, name="demo.work")
def work(self: "Task[Any, Any]", number: int) -> int:
    """Use the processor a little, and wait a little, as most tasks do."""
    _note(self, number, "start")
    until = time.monotonic() + SECONDS / 20
    while time.monotonic() < until:
        sum(range(1000))
    time.sleep(SECONDS * 19 / 20)
    _note(self, number, "end")
    return number


def _note(task: "Task[Any, Any]", number: int, what: str) -> None:
    worker = str(task.request.hostname).partition("@")[0]
    note = {"what": what, "number": number, "worker": worker, "at": time.time()}
    _records().rpush(f"{PREFIX}records", json.dumps(note))


@functools.cache
def _records() -> Any:
    return redis.Redis.from_url(BROKER)
