"""Signs of life: the small files that workers write once a beat, for probes of their machine.

They are written by :class:`~heartbeat_celery._sign_writer.SignWriter` and read by
:mod:`heartbeat_celery._probe`. A container is probed every few seconds, so this imports little:
the standard library only, and no attrs.

What a file says counts while the process that wrote it runs, and for some seconds. Both are judged
by what does not jump: the monotonic clock, which all processes share from boot to boot, and, where
the platform tells it, the time at which the process began.
"""

import json
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from heartbeat_celery._processes import runs

__all__ = (
    "Sign",
    "directory_in",
    "is_over",
    "must_be_private",
    "patiently",
    "read_sign",
    "signs_in",
)

T = TypeVar("T")

MOST_BYTES = 65_536

AN_HOUR, A_DAY = 3600.0, 86_400.0


class Sign(NamedTuple):
    """A sign of life: what stands in a worker's file.

    Attributes:
        node: The worker's name, as it was started.
        namespace: Its fleet.
        pid: Its process.
        began: Since when that runs, where the platform tells.
        incarnation: The number of its incarnation; ``None`` until it has reached its broker.
        monotonic: When this was written, by the monotonic clock.
        wall: The same, by the clock on the wall.
        frequency: The gap between two beats, in seconds.
        expire: After how many seconds of silence the others hold it for dead.
        joined: Whether the broker knows it.
        stalled: Whether its work stands still.
    """

    node: str
    namespace: str
    pid: int
    began: str | None
    incarnation: int | None
    monotonic: float
    wall: float
    frequency: float
    expire: float
    joined: bool
    stalled: bool

    @property
    def age(self) -> float:
        """How many seconds ago it was written; below zero if that was before this boot."""
        return time.monotonic() - self.monotonic

    @property
    def runs(self) -> bool:
        """Whether the process that wrote it is there."""
        if not runs(self.pid, self.began) or self.age < 0:
            return False
        # Where nothing tells a process from one that had its number before, even before this
        # boot, who was silent for so long is not it.
        return self.began is not None or time.time() - self.wall < AN_HOUR

    def why_not_alive(self, max_age: float) -> str | None:
        """Say why the worker does not count as alive; ``None`` if it does."""
        if not self.runs:
            return f"its process {self.pid} is gone"
        if self.age > max_age:
            return f"it has been silent for {self.age:.1f} s, which is more than {max_age:g} s"
        if self.stalled:
            return "its work stands still"
        return None


def directory_in(parent: str | None) -> str:
    """Give the directory in which the workers of this user have their files.

    Args:
        parent: In which folder it is; that for temporary files if none is given.

    Raises:
        OSError: There is no folder for temporary files.
    """
    if parent is None:
        import tempfile  # noqa: PLC0415 - heavy

        parent = tempfile.gettempdir()
    user = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""  # Windows has a folder a user.
    return os.path.join(parent, f"heartbeat-core{user}")


def must_be_private(directory: str) -> None:
    """Make sure that nobody else writes in there.

    Raises:
        OSError: It is not there, or somebody else's.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or getattr(found, "st_reparse_tag", False):
        raise PermissionError(f"{directory} is a link or a file, and must be a directory")
    if hasattr(os, "geteuid"):
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{directory} belongs to another user")
        if found.st_mode & 0o077:
            raise PermissionError(f"others may use {directory}: remove it, or set its mode to 0700")


def is_over(directory: str, name: str) -> bool:
    """Tell whether nobody writes a file any more. What is not one of ours, is not over."""
    pid, dash, rest = name.partition("-")
    if not dash or not pid.isdecimal() or not rest.endswith((".json", ".part")):
        return False
    if rest.endswith(".part"):
        return not runs(int(pid), None)
    sign = read_sign(directory, name)
    return not runs(int(pid), None) if sign is None else not sign.runs or sign.age > A_DAY


def signs_in(directory: str) -> list[Sign]:
    """Read all files; none, if there is no directory yet.

    Raises:
        OSError: It cannot be read, or is not this user's alone.
    """
    try:
        must_be_private(directory)
    except FileNotFoundError:
        return []
    names = [name for name in os.listdir(directory) if name.endswith(".json")]
    signs = [read_sign(directory, name) for name in names]
    return [sign for sign in signs if sign is not None]


def read_sign(directory: str, name: str) -> Sign | None:
    """Read a file; ``None`` if it is gone, or holds no sign of life."""
    path = os.path.join(directory, name)
    try:
        found = json.loads(patiently(lambda: _read(path)))
        incarnation = found["incarnation"]
        return Sign(
            node=str(found["node"]),
            namespace=str(found["namespace"]),
            pid=int(found["pid"]),
            began=found["began"],
            incarnation=None if incarnation is None else int(incarnation),
            monotonic=float(found["monotonic"]),
            wall=float(found["wall"]),
            frequency=float(found["frequency"]),
            expire=float(found["expire"]),
            joined=bool(found["joined"]),
            stalled=bool(found["stalled"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(file, MOST_BYTES)
    finally:
        os.close(file)


def patiently(call: Callable[[], T]) -> T:
    """Do something with a file that, on Windows, somebody may have open for a moment."""
    for _ in range(20 if os.name == "nt" else 0):
        try:
            return call()
        except PermissionError:
            time.sleep(0.01)
    return call()
