"""The one call by which an app gets its heartbeat."""

import gc
import logging
import sys

from celery import Celery

__all__ = ("install",)

logger = logging.getLogger("heartbeat_celery")


def install(app: Celery) -> None:
    """Give every worker of an app a heartbeat.

    Call it where the app is made, before its worker starts. Reads no setting yet, connects to
    nothing and costs a process that is no worker nothing. Whatever is wrong is logged, never
    raised: the worker goes on. Calling it twice changes nothing.

    Args:
        app: The app whose workers beat, judge each other and recover what the dead held.
    """
    try:
        from heartbeat_celery._steps import (  # noqa: PLC0415
            ConsumerStep,
            WorkerStep,
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


def _has_running_worker(app: Celery) -> bool:
    """Tell whether a worker of the app has chosen its boot steps already."""
    module = sys.modules.get("celery.worker.worker")
    if module is None:
        return False
    return any(
        isinstance(each, module.WorkController) and each.app is app and each.blueprint is not None
        for each in gc.get_objects()
    )
