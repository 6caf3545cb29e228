"""Which tasks of this worker run although their messages are acknowledged already.

Celery counts a task as active from the moment that its pool accepts it until it is ready. An early
acknowledgement comes after the first, and a late one after the second; that is how they are told
apart. Under ``-P solo`` an early one reaches the broker when the task has ended, so that the
message is still claimed while it runs.
"""

import logging
from collections import defaultdict
from typing import Any

import attrs
from celery import Celery
from celery.worker import state

from heartbeat_celery._settings import ON_LOST_OF_TASKS
from heartbeat_core import Incarnation

__all__ = ("Early", "Running")

logger = logging.getLogger("heartbeat_celery")


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
