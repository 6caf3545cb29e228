"""The one call by which an app gets its heartbeat."""

import gc
import logging
import sys
from typing import Any

from celery import Celery, signals

__all__ = ("install",)

logger = logging.getLogger("heartbeat_celery")


def install(app: Celery) -> None:
    """Give every worker of an app a heartbeat, and its scheduler.

    Call it where the app is made, before its worker starts. Reads no setting yet, connects to
    nothing and costs a process that is no worker nothing. Whatever is wrong is logged, never
    raised: the worker goes on. Calling it twice changes nothing.

    Args:
        app: The app whose workers beat, judge each other and recover what the dead held.
    """
    try:
        from heartbeat_celery._scheduler import start_scheduler, watch_parent  # noqa: PLC0415
        from heartbeat_celery._steps import (  # noqa: PLC0415
            ConsumerStep,
            WorkerStep,
            agent_for_scheduler,
            worker_options,
        )
    except ImportError as exc:
        # A worker whose broker is not Redis may do without it; none may fail for it.
        logger.warning(
            "heartbeat: off, since %s is not installed: pip install 'heartbeat-core[celery]'",
            (exc.name or str(exc)).partition(".")[0],
        )
        return
    if WorkerStep in app.steps["worker"]:
        logger.warning("heartbeat: install() was called for %r already", app.main)
        return
    if _has_running_worker(app):
        logger.warning(
            "heartbeat: the worker of %r runs already and stays without: call "
            "heartbeat_celery.install(app) where the app is made",
            app.main,
        )
    app.steps["worker"].add(WorkerStep)
    app.steps["consumer"].add(ConsumerStep)
    for option in worker_options():
        app.user_options["worker"].add(option)

    def started(sender: Any, **_: Any) -> None:
        if sender.app == app:
            start_scheduler(app, sender, agent_for_scheduler)

    def started_in_child(sender: Any, **_: Any) -> None:
        if sender.app == app:
            watch_parent(sender)

    signals.beat_init.connect(started, weak=False)
    signals.beat_embedded_init.connect(started_in_child, weak=False)


def _has_running_worker(app: Celery) -> bool:
    """Tell whether a worker of the app has chosen its boot steps already."""
    module = sys.modules.get("celery.worker.worker")
    if module is None:
        return False
    return any(
        isinstance(each, module.WorkController) and each.app is app and each.blueprint is not None
        for each in gc.get_objects()
    )
