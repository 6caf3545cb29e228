"""The app of the workers that hang: their main loop can be told to."""

import os
import pathlib
import threading
import time
from typing import Any

from celery.worker import WorkController
from celery.worker.control import control_command
from fleet_app import app

__all__ = ("app",)

if os.environ.get("STALL_HUB") == "0":
    # As on Windows, and under greenlets.
    WorkController.should_use_eventloop = lambda _self: False  # type: ignore[method-assign]


@control_command()
def hang(_state: Any, once: str = "") -> None:
    """Keep the main loop from turning, for ever; with a file, only if that is there no more."""
    if once:
        try:
            pathlib.Path(once).unlink()
        except FileNotFoundError:
            return
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@control_command(args=[("seconds", float)])
def dawdle(_state: Any, seconds: float) -> None:
    """Keep the main loop from turning for a while."""
    time.sleep(seconds)
