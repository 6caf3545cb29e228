"""The end of a worker's process whose main loop stands still, and what comes after it.

Nothing here waits for the main thread, or takes a lock that it may hold.
"""

import contextlib
import os
import signal
import sys
import time
from typing import Any, NoReturn

from celery import platforms

__all__ = ("EXIT_CODE", "replace")

EXIT_CODE = 70
"""How the process ends where it cannot replace itself: ``EX_SOFTWARE``, for its supervisor."""

CHILDREN_TIMEOUT = 2.0


def replace(worker: Any) -> NoReturn:
    """Begin this process anew with the command that began it, or end it.

    Its children are killed first. The process keeps its id, its session and its pidfile, which
    Celery takes over when the id in it is its own; so it does not matter whether it is detached.
    """
    _kill(_children_of(worker))
    if os.name == "posix":
        # Celery's own reload does the same, but for sys.argv, which does not know of python -m.
        with contextlib.suppress(Exception):
            platforms.close_open_fds({0, 1, 2})
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is needed
    os._exit(EXIT_CODE)


def _children_of(worker: Any) -> list[int]:
    """Give the processes that belong to a worker: of its pool, and of its scheduler."""
    pool = getattr(getattr(worker, "pool", None), "_pool", None)
    processes = getattr(pool, "_pool", None)
    children = [*processes] if isinstance(processes, list) else []
    children.append(getattr(worker, "beat", None))
    pids = [getattr(child, "pid", None) for child in children]
    return [pid for pid in pids if isinstance(pid, int)]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    if os.name != "posix":
        return
    # The new process does not know them, and would keep them as zombies.
    until = time.monotonic() + CHILDREN_TIMEOUT
    for pid in pids:
        with contextlib.suppress(OSError):
            while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < until:
                time.sleep(0.01)
