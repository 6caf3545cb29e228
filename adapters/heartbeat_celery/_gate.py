"""The gate before the result backend: what was taken from this worker does not pass.

A worker that was stopped, declared dead and continued may still run what another runs by now. What
the other stores must stay, so the result of the first is refused. The task runs in a child process
perhaps, and ends before its parent has found out anything; so the gate stands in memory that they
share, and says two things: which runs are refused, and when the heartbeat last made sure that its
worker is not dead. If that is long ago, since all of them were stopped, the result waits for it;
never long, and never while only the broker is away.
"""

import functools
import json
import logging
import math
import mmap
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from celery import Celery
from celery.app.task import Context

from heartbeat_celery._dead_letters import DELIVERY, RECOVERIES

__all__ = ("PATIENCE", "Gate", "run_of", "unguarded")

logger = logging.getLogger("heartbeat_celery")

PATIENCE = 2.0
"""So many seconds at most a result waits."""

SIZE = 65_536
_SEEN, _LENGTH = struct.Struct("d"), struct.Struct("I")
_HEAD = _SEEN.size + _LENGTH.size
_MARKS = ("mark_as_done", "mark_as_failure", "mark_as_retry")


def run_of(task_id: str, headers: dict[str, Any] | None, *, redelivered: bool) -> str:
    """Name one run of a task: when it is delivered again, that is another."""
    given = headers or {}
    return f"{task_id} {given.get(RECOVERIES, 0)} {given.get(DELIVERY, '')} {bool(redelivered):d}"


@attrs.define(eq=False)
class Gate:
    """Tells whose results pass. The heartbeat sets it; tasks ask it, in forked children too.

    Args:
        pause: For so many seconds this process may stand still, and nobody holds it for dead.
    """

    pause: float = 2.0
    _memory: mmap.mmap = attrs.field(factory=lambda: mmap.mmap(-1, SIZE), init=False)

    def __attrs_post_init__(self) -> None:
        """Let everything pass."""
        self.leave_open()

    def leave_open(self) -> None:
        """Make nobody wait, since no heartbeat looks."""
        _SEEN.pack_into(self._memory, 0, math.inf)

    def look(self) -> None:
        """Say that this worker is known now not to be dead, or that it has been refused."""
        # Nothing else is written: another thread may refuse somebody just now.
        _SEEN.pack_into(self._memory, 0, time.monotonic())

    def refuse(self, runs: Iterable[str]) -> None:
        """Refuse the results of these from now on, instead of those that were refused before."""
        refused: list[str] = []
        size = _HEAD + 2
        for run in runs:
            size += len(json.dumps(run)) + 2
            if size < SIZE:
                refused.append(run)
        data = json.dumps(refused).encode() if refused else b""
        self._memory[_HEAD : _HEAD + len(data)] = data
        _LENGTH.pack_into(self._memory, _SEEN.size, len(data))

    def wait_after_pause(self) -> None:
        """Wait until it is known whether this worker is dead, if that is in question at all.

        Blocks for two seconds at most.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() - _SEEN.unpack_from(self._memory)[0] > self.pause:
            if time.monotonic() > until:
                return
            time.sleep(0.01)

    def admits(self, run: Callable[[], str]) -> bool:
        """Tell whether a run's result may be stored. Blocks for two seconds at most."""
        self.wait_after_pause()
        return not self._length() or run() not in self._refused()

    def guard(self, celery_app: Celery) -> None:
        """Stand before an app's result backend, in all threads and children to come."""
        app: Any = celery_app
        make = app._get_backend  # noqa: SLF001 - the one place where all of them are made

        def make_guarded() -> Any:
            return self._guarded(make())

        app._get_backend = make_guarded  # noqa: SLF001
        self._guarded(app.backend)

    def _guarded(self, backend: Any) -> Any:
        for name in _MARKS:
            mark = getattr(backend, name)
            if mark is unguarded(mark):
                setattr(backend, name, self._guard_of(mark))
        return backend

    def _guard_of(self, mark: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(mark)
        def guarded(task_id: str, *args: Any, **kwargs: Any) -> Any:
            if self.admits(lambda: _run_in(task_id, args, kwargs)):
                return mark(task_id, *args, **kwargs)
            logger.warning(
                "heartbeat: the result of task %s is not stored: it was taken over while this "
                "worker was held for dead",
                task_id,
                extra={"heartbeat_task_id": task_id},
            )
            return None

        guarded.behind_the_gate = mark  # type: ignore[attr-defined]
        return guarded

    def _length(self) -> int:
        return int(_LENGTH.unpack_from(self._memory, _SEEN.size)[0])

    def _refused(self) -> list[str]:
        try:
            refused: list[str] = json.loads(self._memory[_HEAD : _HEAD + self._length()] or b"[]")
        except ValueError:  # It is being written.
            return []
        return refused


def unguarded(mark: Callable[..., Any]) -> Callable[..., Any]:
    """Give what stands behind the gate, for who has to tell of others' tasks."""
    behind: Callable[..., Any] = getattr(mark, "behind_the_gate", mark)
    return behind


def _run_in(task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    request = next((each for each in (*args, *kwargs.values()) if isinstance(each, Context)), None)
    if request is None:
        return run_of(task_id, None, redelivered=False)
    info = request.delivery_info or {}
    return run_of(task_id, request.headers, redelivered=bool(info.get("redelivered")))
