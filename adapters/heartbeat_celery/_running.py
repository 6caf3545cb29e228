"""Which tasks of this worker run although their messages are acknowledged already.

Celery counts a task as active from the moment that its pool accepts it until it is ready. An early
acknowledgement comes after the first, and a late one after the second; that is how they are told
apart. Under ``-P solo`` an early one reaches the broker when the task has ended, so that the
message is still claimed while it runs.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import attrs
from celery import Celery
from celery.worker import state

from heartbeat_celery._settings import ON_LOST_OF_TASKS
from heartbeat_core import Incarnation

__all__ = ("Early", "Running", "keep_what_runs", "runs_on")

logger = logging.getLogger("heartbeat_celery")


def runs_on(message: Any, pool: Any) -> bool:
    """Tell whether a message's task goes on to its end although its connection is lost.

    Celery then forgets what its pool has not begun, if the pool can give that back; of other pools
    all goes on that they were given. What Celery cancels does not.

    Args:
        message: The message of a task.
        pool: The worker's pool.
    """
    request = state.requests.get(message.headers.get("id"))
    if request is None or request.message is not message:
        return False  # It waits for its time, or for its turn; Celery forgets it.
    if getattr(request, "_already_cancelled", False):
        return False
    if request in state.active_requests:
        return True
    return _flush_of(pool) is None and request in state.reserved_requests


def keep_what_runs(pool: Any) -> None:
    """Keep a pool from forgetting what runs when it forgets what it has not begun.

    Celery 5.5 forgets all of it when a connection is lost, so that a task which ends later is
    acknowledged by nobody.
    """
    jobs, flush = getattr(getattr(pool, "_pool", None), "_cache", None), _flush_of(pool)
    if jobs is None or flush is None or isinstance(flush, _Flush):
        return
    pool.flush = _Flush(flush, jobs)


def _flush_of(pool: Any) -> Any:
    """Give what makes a pool forget what it has not begun; those that cannot have a dummy."""
    return getattr(pool, "__dict__", {}).get("flush")


@attrs.frozen
class _Flush:
    """Forgets what is not begun, and nothing else."""

    flush: Callable[[], None]
    jobs: dict[int, Any]

    def __call__(self) -> None:
        running = {number: job for number, job in self.jobs.items() if job._accepted}  # noqa: SLF001
        self.flush()
        self.jobs.update(running)


@attrs.frozen(eq=False)
class Early:
    """A task that runs, and whose message is being acknowledged.

    Attributes:
        tag: Its message's delivery tag.
        request: Celery's record of it.
        on_lost: What becomes of it if its worker dies now.
    """

    tag: str
    request: Any
    on_lost: str

    def runs(self) -> bool:
        """Tell whether it still runs, as far as Celery knows."""
        return self.request in state.active_requests


@attrs.define(eq=False)
class Running:
    """The tasks that are known to the broker as acknowledged and running.

    The worker's consumer adds them; the heartbeat's thread takes out those that have ended.

    Args:
        app: The worker's app.
        on_lost: What becomes of tasks that do not say it themselves.
    """

    app: Celery
    on_lost: str
    _tasks: dict[str, tuple[Incarnation, Any]] = attrs.field(factory=dict, init=False)
    _over: set[str] = attrs.field(factory=set, init=False)
    _wrong: set[str] = attrs.field(factory=set, init=False)

    def early(self, message: Any) -> Early | None:
        """Tell whether the message that is being acknowledged now is of a task that runs.

        Returns:
            What to keep of it; ``None`` too if it is to be ignored when it is lost.
        """
        request = state.requests.get(message.headers.get("id"))
        if request is None or request not in state.active_requests:
            return None
        if request.message is not message:
            return None  # Another message of the same task.
        on_lost = self._on_lost(message.headers.get("task"))
        return None if on_lost == "ignore" else Early(message.delivery_tag, request, on_lost)

    def add(self, me: Incarnation, early: Early) -> None:
        """Take note of a task that the broker knows to run."""
        self._tasks[early.tag] = me, early.request

    def requests(self, me: Incarnation) -> list[Any]:
        """Give Celery's record of what still runs of one life."""
        return [
            request
            for incarnation, request in list(self._tasks.values())
            if incarnation == me and request in state.active_requests
        ]

    def has(self, tag: str) -> bool:
        """Tell whether a task is known to run, or was so a moment ago."""
        return tag in self._tasks

    def ended(self, *, stopping: bool = False) -> dict[Incarnation, list[str]]:
        """Give the tags of those that have ended, for :meth:`forget`.

        A cold shutdown cancels what runs; such a task has not ended, but is lost. It is known for
        cancelled a moment after it has become inactive, so who is neither active nor known for a
        success has ended when it is met the second time.

        Args:
            stopping: Whether this worker has nothing to do any more, so that this is the last look.
        """
        ended: dict[Incarnation, list[str]] = defaultdict(list)
        for tag in list(self._tasks):
            me, request = self._tasks[tag]
            if request in state.active_requests or getattr(request, "_already_cancelled", False):
                continue
            if stopping or request.id in state.successful_requests or tag in self._over:
                ended[me].append(tag)
            else:
                self._over.add(tag)
        return ended

    def forget(self, ended: dict[Incarnation, list[str]]) -> None:
        """Take out what has ended."""
        for tags in ended.values():
            for tag in tags:
                self._tasks.pop(tag, None)
                self._over.discard(tag)

    def incarnations(self) -> set[Incarnation]:
        """Give the lives of this worker under which it took what still runs."""
        return {me for me, _ in list(self._tasks.values())}

    def _on_lost(self, name: Any) -> str:
        task = self.app.tasks.get(name)
        on_lost = getattr(task, "heartbeat_on_lost", None)
        if on_lost is None:
            return self.on_lost
        if on_lost in ON_LOST_OF_TASKS:
            return str(on_lost)
        if name not in self._wrong:
            self._wrong.add(name)
            logger.error(
                "heartbeat: heartbeat_on_lost (%r) of task %s must be 'fail', 'ignore' or 'rerun'; "
                "taken for 'fail'",
                on_lost,
                name,
                extra={"heartbeat_task": name},
            )
        return "fail"
