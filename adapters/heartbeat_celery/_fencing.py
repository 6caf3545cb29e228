"""What a worker does that was declared dead, and lives.

What it held was handed over. So it drops what it has not begun, as when it loses its connection,
and connects again as somebody new. What it runs is named or stopped, and stores no result.
"""

import logging
import signal
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from celery.exceptions import TaskRevokedError
from celery.worker import state

from heartbeat_celery._gate import Gate, run_of
from heartbeat_core import Incarnation

__all__ = ("Fencing", "active_requests", "ask_before_each")

logger = logging.getLogger("heartbeat_celery")

MOST_NAMED = 20


@attrs.define(eq=False)
class Fencing:
    """Deals with what a worker runs that others run too.

    Args:
        on_fenced: What becomes of it: ``"report"`` or ``"terminate"``.
        gate: Stands before the result backend.
    """

    on_fenced: str = "report"
    gate: Gate = attrs.field(factory=Gate)

    def refuse_results(self, requests: Iterable[Any]) -> None:
        """Let none of these store a result. From any thread."""
        self.gate.refuse(
            run_of(
                request.id,
                request.message.headers,
                redelivered=bool((request.message.delivery_info or {}).get("redelivered")),
            )
            for request in requests
        )

    def let_go(self, fenced: Incarnation, running: list[Any], pool: Any) -> None:
        """Say what was handed over, and stop what runs if that is asked for.

        Called in the consumer's thread.
        """
        what = "none of it runs"
        if running:
            stopped = self.on_fenced == "terminate" and _terminate(running, pool)
            names = [f"{request.name}[{request.id}]" for request in running]
            what = "of it are stopped: " if stopped else "of it run on, and store no result: "
            what += ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
        logger.warning(
            "heartbeat: what this worker held was handed over, since %s was declared dead; %s",
            fenced,
            what,
            extra={
                "heartbeat_node": fenced.node,
                "heartbeat_incarnation": fenced.number,
                "heartbeat_tasks": [request.id for request in running],
            },
        )


def ask_before_each(consumer: Any, may_begin: Callable[[Any], bool]) -> None:
    """Ask before each task whether it may begin, right before it does.

    What a worker has fetched it begins one day, whatever others have been given meanwhile. A pool
    of processes is given no more than it runs, so it is asked before that; others are given all
    at once, and ask in the thread that runs a task.
    """
    if getattr(consumer.pool, "uses_semaphore", False):
        _ask_before_given(consumer.controller, may_begin)
    else:
        _ask_before_run(consumer, may_begin)


def _ask_before_given(worker: Any, may_begin: Callable[[Any], bool]) -> None:
    give, done = worker._process_task, getattr(worker, "_quick_release", None)  # noqa: SLF001
    if done is None:
        return  # Without an event loop nothing waits: the pool is given all at once.

    def process_task(request: Any) -> Any:
        return give(request) if may_begin(request) else done()

    worker._process_task = process_task  # noqa: SLF001


def _ask_before_run(consumer: Any, may_begin: Callable[[Any], bool]) -> None:
    handle = consumer.on_task_request

    def on_task_request(request: Any) -> Any:
        accept = request.on_accepted

        def on_accepted(pid: int, at: float) -> None:
            if not may_begin(request):
                # By this a pool that runs it at once knows that it did not.
                raise TaskRevokedError(f"{request.id} was handed over to another worker")
            accept(pid, at)

        request.on_accepted = on_accepted
        return handle(request)

    consumer.on_task_request = on_task_request


def active_requests() -> list[Any]:
    """Give the tasks that run now. From any thread."""
    while True:
        try:
            return list(state.active_requests)
        except RuntimeError:  # It changed meanwhile.
            continue


def _terminate(requests: list[Any], pool: Any) -> bool:
    try:
        for request in requests:
            pool.terminate_job(request.worker_pid, signal.SIGTERM)
            # As Celery does with what it cancels, but without a word to the result backend.
            request._already_cancelled = True  # noqa: SLF001
            state.task_ready(request)
    except NotImplementedError:
        return False
    return True
