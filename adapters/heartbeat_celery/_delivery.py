"""The delivery of verdicts, by the agent of a worker.

A verdict is taken, told to the result backend, to the log and to whoever is connected to its
signal, and then removed. Killed in between, another agent tells it again; nothing is left out.
"""

import functools
import logging
from collections.abc import Callable

import anyio
import attrs
from celery import Celery

from heartbeat_celery import signals
from heartbeat_celery._native import InWorker
from heartbeat_celery._results import Results
from heartbeat_celery._threads import RETRY, until_done
from heartbeat_celery._verdicts import Kind, Taken, Verdict, Verdicts
from heartbeat_core import Incarnation, in_thread

__all__ = ("Delivery",)

logger = logging.getLogger("heartbeat_celery")

LONGEST_PAUSE = 30.0

MOST_TRIALS = 3
"""So often a verdict is told that defeats who tells it; then its result is stored, and no more."""


@attrs.define(eq=False)
class Delivery:
    """Tells verdicts, one after another.

    Args:
        app: Whose tasks they are of.
        verdicts: Where they stand.
        me: Gives the incarnation under which they are taken.
        in_worker: Runs what reaches the app's result backend and its signals.
    """

    app: Celery
    verdicts: Verdicts
    me: Callable[[], Incarnation]
    in_worker: InWorker = in_thread
    _wanted: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _one_at_a_time: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)
    _telling: anyio.CancelScope | None = attrs.field(default=None, init=False)
    _said: bool = attrs.field(default=False, init=False)

    def look(self) -> None:
        """Look soon whether there is anything to tell."""
        self._wanted.set()

    async def run(self) -> None:
        """Tell what there is to tell, whenever there may be something."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            pause = RETRY
            while not await self.deliver():
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def deliver(self) -> bool:
        """Tell all that there is to tell; tell whether nothing stood in the way."""
        async with self._one_at_a_time:
            while True:
                taken = await until_done(functools.partial(self.verdicts.take, self.me()))
                if taken is None:
                    return True
                # Once begun it is ended, or another would tell it again.
                with anyio.CancelScope(shield=True) as self._telling:
                    if not await self._tell(taken):
                        return False

    def abandon(self) -> None:
        """Do not wait for what is being told: this worker goes now."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self, taken: Taken) -> bool:
        try:
            verdict = taken.verdict()
        except ValueError as exc:
            logger.error("heartbeat: a verdict cannot be read, and is dropped: %s", exc)
            await until_done(lambda: self.verdicts.done(taken))
            return True
        results = Results(self.app)
        try:
            if await until_done(lambda: self.verdicts.holds(taken)):
                await self.in_worker(lambda: _tell(self.app, results, verdict, taken.times))
        except Exception as exc:  # noqa: BLE001 - a result backend may raise anything
            self._say_that_it_waits(verdict, exc)
            counted = await self._is_half_told(results, verdict)
            await until_done(lambda: self.verdicts.put_back(taken, counted=counted))
            return False
        self._said = False
        await until_done(lambda: self.verdicts.done(taken))
        return True

    async def _is_half_told(self, results: Results, verdict: Verdict) -> bool:
        try:
            return bool(await self.in_worker(lambda: results.is_stored(verdict)))
        except Exception:  # noqa: BLE001 - the backend is away: that is no trial
            return False

    def _say_that_it_waits(self, verdict: Verdict, exc: Exception) -> None:
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


def _tell(app: Celery, results: Results, verdict: Verdict, times: int) -> None:
    """Tell it to all. Blocks."""
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
        app,
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
