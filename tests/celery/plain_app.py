"""An app that knows nothing of heartbeats; its workers are watched from outside."""

import json
import os
import time

import celery

app = celery.Celery("plain", broker=os.environ["FLEET_BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.update(json.loads(os.environ.get("FLEET_CONF", "{}")))


@app.task(name="sleep")
def sleep(_number: int, seconds: float) -> None:
    """Keep a solo worker from saying anything."""
    time.sleep(seconds)
