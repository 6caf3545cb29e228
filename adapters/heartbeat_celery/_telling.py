"""The telling of one verdict: to the result backend, to the log and to a signal's receivers.

Whoever tells it has taken it from the broker, and lets it go when all is told.
"""

import logging

import attrs
from celery import Celery

from heartbeat_celery import signals
from heartbeat_celery._native import InWorker
from heartbeat_celery._results import Results
from heartbeat_celery._verdicts import Kind, Verdict
from heartbeat_core import in_thread

__all__ = ("LONGEST_PAUSE", "Telling")

logger = logging.getLogger("heartbeat_celery")

LONGEST_PAUSE = 30.0
"""So rarely it is tried again, at most, what cannot be told now, in seconds."""

MOST_TRIALS = 3
"""So often a verdict is told that defeats who tells it; then its result is stored, and no more."""


@attrs.define(eq=False)
class Telling:
    """Tells verdicts of an app's tasks.

    Args:
        app: Whose tasks they are of.
        in_worker: Runs what reaches the app's result backend and its signals.
    """

    app: Celery
    in_worker: InWorker = in_thread
    _said: bool = attrs.field(default=False, init=False)

    async def tell(self, verdict: Verdict, times: int) -> None:
        """Tell it to all.

        Args:
            verdict: What to tell.
            times: How often it was tried, this time included.

        Raises:
            Exception: Whatever the result backend raises; say so with :meth:`say_that_it_waits`.
        """
        await self.in_worker(lambda: self._tell(verdict, times))
        self._said = False

    async def is_half_told(self, verdict: Verdict) -> bool:
        """Tell, after an error, whether the result was stored all the same."""
        try:
            return bool(await self.in_worker(lambda: Results(self.app).is_stored(verdict)))
        except Exception:  # noqa: BLE001 - the backend is away: that is no trial
            return False

    def say_that_it_waits(self, verdict: Verdict, exc: Exception) -> None:
        """Log, the first time, that something cannot be told yet."""
        if not self._said:
            self._said = True
            logger.error(
                "heartbeat: the result of task %s[%s], which was %s with %s, cannot be stored yet; "
                "it and others are tried again until they can: %r",
                verdict.task,
                verdict.task_id,
                verdict.kind.value,
                verdict.node,
                exc,
                extra=_fields(verdict),
            )

    def _tell(self, verdict: Verdict, times: int) -> None:
        """Tell it to all. Blocks."""
        results = Results(self.app)
        had_ended = results.has_ended(verdict)
        if had_ended and verdict.kind is Kind.LOST:
            return
        if not had_ended:
            if times > MOST_TRIALS:
                results.store(verdict)
                logger.error(
                    "heartbeat: what hangs on the result of task %s[%s] could not be told in %d "
                    "trials, and is not any more",
                    verdict.task,
                    verdict.task_id,
                    MOST_TRIALS,
                    extra=_fields(verdict),
                )
            else:
                results.fail(verdict)
        signal = signals.task_lost
        if verdict.kind is Kind.DEAD_LETTERED:
            signal = signals.task_dead_lettered
        logger.error(
            "heartbeat: task %s[%s] is %s: %s",
            verdict.task,
            verdict.task_id,
            verdict.kind.value,
            verdict.reason.removeprefix("heartbeat: "),
            extra=_fields(verdict),
        )
        signal.send(
            self.app,
            task_id=verdict.task_id,
            task=verdict.task,
            node=verdict.node,
            incarnation=verdict.incarnation,
            queue=verdict.queue,
            recoveries=verdict.recoveries,
            reason=verdict.reason,
        )


def _fields(verdict: Verdict) -> dict[str, object]:
    return {
        "heartbeat_node": verdict.node,
        "heartbeat_incarnation": verdict.incarnation,
        "heartbeat_task": verdict.task,
        "heartbeat_task_id": verdict.task_id,
        "heartbeat_queue": verdict.queue,
        "heartbeat_recoveries": verdict.recoveries,
    }
