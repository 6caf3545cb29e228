"""The children of a prefork pool that hang: they have a task and do nothing about it.

All of it is read from the records of Celery's pool, by the heartbeat's thread; nothing is asked of
a child, and nothing is done to it.
"""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import attrs

from heartbeat_celery._progress import Stopwatch

__all__ = ("Children", "Hung")


@attrs.frozen
class Hung:
    """A child that hangs.

    Attributes:
        pid: Its process.
        task_id: Of the task that it has.
        why: What is known, in words.
    """

    pid: int
    task_id: str
    why: str


@attrs.define(eq=False)
class Children:
    """Looks for the children of one pool that hang.

    Args:
        patience: For so many seconds a child may look as if it did.
    """

    patience: float
    _watches: dict[tuple[int, str], Stopwatch] = attrs.field(factory=dict, init=False)

    def look(self, pool: Any, now: float) -> dict[int, Hung]:
        """Give those that have hung for long enough, by process."""
        before, self._watches = self._watches, {}
        found: dict[int, Hung] = {}
        for hung in _suspects(pool, self.patience):
            key = hung.pid, hung.task_id
            watch = self._watches[key] = before.get(key) or Stopwatch()
            if watch.look(key, now) >= self.patience:
                found[hung.pid] = hung
        return found


def _suspects(pool: Any, patience: float) -> Iterator[Hung]:
    """Give the children that look, at this moment, as if they hung."""
    cache = getattr(getattr(pool, "_pool", None), "_cache", None)
    if not isinstance(cache, dict):
        return  # It has no child processes.
    running: dict[int, Any] = {}
    handed: dict[int, Any] = {}
    # A copy in one step: the pool changes the table meanwhile.
    for job in list(cache.values()):
        if job.ready() or job._worker_lost:
            continue
        if job._accepted:
            running[job._worker_pid] = job
        elif job._write_to is not None:
            handed.setdefault(job._write_to.pid, job)
    for pid, job in handed.items():
        if pid not in running:
            yield Hung(pid, str(job.correlation_id), "it was handed a task and does not begin it")
    for pid, job in running.items():
        why = _why_hung(pid, job, patience)
        if why:
            yield Hung(pid, str(job.correlation_id), why)


def _why_hung(pid: int, job: Any, patience: float) -> str:
    began = job._time_accepted
    if not isinstance(began, float):
        return ""
    lasted = time.monotonic() - began
    limit = job._timeout
    if limit and lasted > limit:
        return f"its task lives on although the hard time limit of {limit:g} s has passed"
    if lasted > patience and _is_stopped(pid):
        return "its process is stopped while it runs a task"
    return ""


def _is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped, where the system says so in ``/proc``."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"
