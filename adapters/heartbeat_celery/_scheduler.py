"""``celery beat`` as a node of the fleet, so that a dead scheduler is known.

It only beats: it judges nobody and holds no message. A scheduler that ends says goodbye; one that
crashes does not.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import attrs
from celery import Celery
from celery.utils.nodenames import gethostname, host_format, nodename, nodesplit

from heartbeat_celery._agent import Agent
from heartbeat_celery._replacement import EXIT_CODE
from heartbeat_core import SettingsError, Status

__all__ = ("Scheduler", "start_scheduler", "watch_parent")

logger = logging.getLogger("heartbeat_celery")

LOOK = 1.0
GRACE = 5.0
STOP_TIMEOUT = 2.0


@attrs.define(eq=False)
class Scheduler:
    """The role of a scheduler.

    Attributes:
        node: Its name.
        parent: The process of the worker in which it is embedded; ``None`` if it is not, or is a
            thread there.
        crashed: Whether it ended with an error.
        deserted: Whether its worker is dead.
    """

    node: str
    parent: int | None = None
    crashed: bool = False
    deserted: bool = False
    observes: bool = False

    def attach(self, consumer: Any) -> None:
        """Do nothing: a scheduler takes no messages."""

    def is_stalled(self) -> bool:
        """Tell whether it does not schedule any more, though its process lives."""
        return self.crashed

    def status(self) -> Status:
        """Give what its beats say."""
        return {"role": "beat"}

    async def run(self) -> None:
        """End with the worker, as it would if it were a thread there.

        Celery lets an embedded scheduler survive a worker that is killed. With the scheduler of the
        worker's next life there are two then, and every task is sent twice.
        """
        while not self.deserted:
            await anyio.sleep(LOOK)
            self.deserted = self.parent not in (None, os.getppid())
        logger.error("heartbeat: %s ends, since its worker is dead", self.node)
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(GRACE)
        os._exit(EXIT_CODE)


def start_scheduler(
    app: Celery, service: Any, agent_for: Callable[[Celery, Scheduler], Agent | None]
) -> None:
    """Let a scheduler that starts beat. Never raises.

    Args:
        app: The scheduler's app.
        service: Celery's ``Service``.
        agent_for: Makes its agent; ``None`` if the heartbeat is off.
    """
    try:
        role = Scheduler(_name_of(app, service))
        agent = agent_for(app, role)
        if agent is None:
            return
        service.heartbeat_scheduler = role
        _stop_with(service, role, agent)
        agent.start()
    except SettingsError as exc:
        logger.error("heartbeat: off, since a setting is wrong: %s", exc)
    except Exception:
        logger.exception("heartbeat: off, since it could not be set up")


def watch_parent(service: Any) -> None:
    """Take note that a scheduler that has started is embedded in a worker's child."""
    role: Scheduler | None = getattr(service, "heartbeat_scheduler", None)
    if role is not None:
        role.parent = os.getppid()


def _name_of(app: Celery, service: Any) -> str:
    """Give ``beat@WORKER`` to one that is embedded, and ``beat@HOST`` to others."""
    worker: str | None = getattr(app, "heartbeat_worker", None)
    if worker is not None:
        return f"beat@{worker}"
    # Since Celery 5.7 a scheduler has the option -n.
    name, host = nodesplit(getattr(service, "hostname", None) or "")
    return str(host_format(nodename(name or "beat", host or gethostname())))


def _stop_with(service: Any, role: Scheduler, agent: Agent) -> None:
    """Say goodbye when a scheduler ends; its last act is to write down what it has scheduled."""
    sync = service.sync

    def last_act() -> None:
        # A thread of a worker is waited for until it has synchronized, and no longer.
        is_thread = threading.current_thread() is not threading.main_thread()
        role.crashed = isinstance(sys.exc_info()[1], Exception)
        says_goodbye = not role.crashed and not role.deserted
        try:
            if says_goodbye and is_thread:
                agent.stop(STOP_TIMEOUT)
        finally:
            try:
                sync()
            finally:
                if says_goodbye:
                    agent.stop(STOP_TIMEOUT)

    service.sync = last_act
