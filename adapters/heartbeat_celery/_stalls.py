"""A worker that lives and does no work: its main loop, its connection or a child of it hangs.

Its beats come from a thread of their own, so they say nothing of the rest. This looks at the rest,
in that thread, once a second, and says with each beat what it found. It takes nothing for hung:

* while Celery is not in its main loop: it starts, stops or connects to the broker;
* while a task runs where a task may hold up the loop: under ``-P solo`` and the greenlet pools;
* for the time in which it could not look itself, since the process was paused.
"""

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio
import attrs
from celery.concurrency import prefork, thread
from celery.utils import log as celery_log
from celery.worker import state

from heartbeat_celery._broker import Broker
from heartbeat_celery._children import Children, Hung
from heartbeat_celery._progress import TURN, Progress, Stopwatch
from heartbeat_celery._replacement import EXIT_CODE, replace
from heartbeat_core import Status, in_thread

__all__ = ("Stalls", "patience_for")

logger = logging.getLogger("heartbeat_celery")

LOOK = 1.0

SHORTEST_PATIENCE = 5.0
"""A slow machine is not to be taken for a loop that stands still."""

GRACE = 5.0
"""For so many seconds a loop may stand on after its connection was closed, before its end."""

ANSWER_TIMEOUT = 2.0
FRAMES = 6


def patience_for(expire: float) -> float:
    """Tell how long anything may stand before it is taken for hung.

    As long as a node may be silent before it is dead whatever speaks for it: a loop that does not
    turn is as good as that.
    """
    return max(expire, SHORTEST_PATIENCE)


@attrs.define(eq=False)
class Stalls:
    """Watches over one worker.

    Args:
        worker: Celery's worker.
        broker: Over which its tasks come.
        node: Its name.
        patience: How long, in seconds, anything may stand still.
        restarts: Whether to mend it; else it is only reported.

    Attributes:
        observes: A worker judges the others.
    """

    worker: Any
    broker: Broker
    node: str
    patience: float
    restarts: bool
    observes: bool = attrs.field(default=True, init=False)
    _consumer: Any = attrs.field(default=None, init=False)
    _progress: Progress = attrs.field(factory=Progress, init=False)
    _loop: Stopwatch = attrs.field(factory=Stopwatch, init=False)
    _silence: Stopwatch = attrs.field(factory=Stopwatch, init=False)
    _children: Children = attrs.field(init=False)
    _began: float | None = attrs.field(default=None, init=False)
    _hung: dict[int, Hung] = attrs.field(factory=dict, init=False)
    _is_broken: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin to watch over its children."""
        self._children = Children(self.patience)

    def attach(self, consumer: Any) -> None:
        """Watch a worker's consumer. Called in its thread, at each connection."""
        self._consumer = consumer
        self._progress.follow(consumer)

    # -- in the heartbeat's thread -------------------------------------------------------------

    def is_stalled(self) -> bool:
        """Tell whether the worker does no work."""
        return self._began is not None

    def status(self) -> Status:
        """Give what its beats say."""
        return {"hung": len(self._hung)} if self._hung else {}

    async def run(self) -> None:
        """Look, once a second."""
        while True:
            await anyio.sleep(LOOK)
            try:
                await self._look(anyio.current_time())
            except Exception:
                if not self._is_broken:
                    self._is_broken = True
                    logger.exception("heartbeat: it is not known whether %s stalls", self.node)

    async def _look(self, now: float) -> None:
        stood = self._loop.look(self._turns(), now)
        # A loop that does not turn reads no answer either.
        turns = stood <= 3 * TURN and self._progress.turns is not None
        waits = self._silence.look(self.broker.waits(self._consumer) if turns else None, now)
        if stood >= self.patience:
            await self._note_loop(stood, now)
        elif waits >= self.patience:
            await self._note_silence(waits, now)
        elif self._began is not None and not _is_stopping():
            lasted, self._began = now - self._began, None
            await _say(logging.INFO, "%s hangs no longer, after %.0f s", self.node, lasted)
        if turns:
            await self._look_at_children(now)

    def _turns(self) -> int | None:
        """Give the turns of the loop, if it has to turn."""
        turns = self._progress.turns
        if turns is None or _is_stopping() or (state.active_requests and self._may_block()):
            return None
        return turns

    def _may_block(self) -> bool:
        """Tell whether a task may keep the loop from turning."""
        pool = self.worker.pool
        if isinstance(pool, thread.TaskPool):
            return False
        return not (isinstance(pool, prefork.TaskPool) and self._consumer.hub is not None)

    async def _note_loop(self, stood: float, now: float) -> None:
        if self._began is None:
            self._began = now - stood
            await _say(
                logging.ERROR,
                "%s hangs: its main loop has not turned for %.0f s%s",
                self.node,
                stood,
                _where(self._progress.thread),
            )
            if self.restarts:
                # It may hang at its connection: then it sees an error now, and connects again.
                self.broker.hang_up(self._consumer)
        elif self.restarts and stood >= self.patience + GRACE:
            await _say(
                logging.CRITICAL,
                "%s is begun anew, or ends with exit code %d, since its main loop still stands "
                "after %.0f s",
                self.node,
                EXIT_CODE,
                stood,
            )
            replace(self.worker)

    async def _note_silence(self, waits: float, now: float) -> None:
        if self._began is not None:
            return
        if not await self._owes():
            self._silence.stood = 0.0
            return
        self._began = now - waits
        await _say(
            logging.ERROR,
            "%s gets nothing: its connection to the broker has been silent for %.0f s, although "
            "the broker answers others%s",
            self.node,
            waits,
            ". It is closed now, and the worker connects again" if self.restarts else "",
        )
        if self.restarts:
            self.broker.hang_up(self._consumer)

    async def _owes(self) -> bool:
        """Ask the broker whether the silence is wrong; a broker that is away is no stall."""
        try:
            with anyio.fail_after(ANSWER_TIMEOUT):
                return await in_thread(functools.partial(self.broker.owes, self._consumer))
        except Exception as exc:  # noqa: BLE001 - whatever Kombu and its drivers raise
            logger.debug("heartbeat: the broker did not answer: %r", exc)
            return False

    async def _look_at_children(self, now: float) -> None:
        hung = self._children.look(self.worker.pool, now)
        before, self._hung = self._hung, hung
        for pid, child in hung.items():
            if pid not in before:
                request = state.requests.get(child.task_id)
                await _say(
                    logging.ERROR,
                    "child %d of %s hangs, with task %s[%s]: %s, and that for %.0f s",
                    pid,
                    self.node,
                    getattr(request, "name", ""),
                    child.task_id,
                    child.why,
                    self.patience,
                )
        for pid in before.keys() - hung.keys():
            await _say(logging.INFO, "child %d of %s hangs no longer", pid, self.node)


def _is_stopping() -> bool:
    """Tell whether Celery was told to stop; a soft shutdown waits inside of a signal handler."""
    if getattr(celery_log, "_in_sighandler", False):
        return True
    # The exit code 0 is told by them too.
    told: tuple[Any, Any] = (state.should_stop, state.should_terminate)
    return any(each is not None and each is not False for each in told)


async def _say(level: int, text: str, *arguments: object) -> None:
    """Log a line; not for long if the main thread hangs with the lock of a handler."""
    say: Callable[[], None] = functools.partial(logger.log, level, f"heartbeat: {text}", *arguments)
    with anyio.move_on_after(ANSWER_TIMEOUT):
        await in_thread(say)


def _where(ident: int) -> str:
    """Tell where a thread is, by its last frames; a greenlet that waits is nowhere."""
    frame: FrameType | None = sys._current_frames().get(ident)  # noqa: SLF001 - documented
    if frame is None:
        return ""
    return ". It stands at\n" + "".join(traceback.format_stack(frame)[-FRAMES:]).rstrip()
