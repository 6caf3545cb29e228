"""Where a worker writes its sign of life, once a beat, for probes of its machine."""

import hashlib
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable

import anyio
import attrs

from heartbeat_celery._native import native_lock
from heartbeat_celery._processes import began
from heartbeat_celery._signs import Sign, directory_in, is_over, must_be_private, patiently
from heartbeat_core import Heartbeat, Settings, in_thread

__all__ = ("SignWriter",)

logger = logging.getLogger("heartbeat_celery")


def never() -> bool:
    """Say that the work moves."""
    return False


@attrs.define(eq=False, kw_only=True)
class SignWriter:
    """Writes one worker's file.

    A file that cannot be written costs one line in the log, and nothing else.

    Args:
        node: The worker's name.
        namespace: Its fleet.
        settings: How it beats.
        parent: In which folder the directory of the files is; that for temporary files if none
            is given.
        stalled: Asked before each writing whether the worker's work stands still. It must not
            block; if it raises, the work counts as moving.
    """

    node: str
    namespace: str
    settings: Settings
    parent: str | None = None
    stalled: Callable[[], bool] = never
    _began: str | None = attrs.field(factory=lambda: began(os.getpid()), init=False)
    _lock: threading.Lock = attrs.field(factory=native_lock, init=False)
    _removed: bool = attrs.field(default=False, init=False)
    _swept: bool = attrs.field(default=False, init=False)
    _fails: bool = attrs.field(default=False, init=False)
    _cannot_ask: bool = attrs.field(default=False, init=False)

    async def keep_writing(self, heartbeat: Callable[[], Heartbeat | None]) -> None:
        """Write once a beat, whether or not the broker is there.

        Args:
            heartbeat: Gives what beats, as soon as there is one.
        """
        while True:
            try:
                sign = self._sign(heartbeat())
                await in_thread(lambda: self._write(sign))  # noqa: B023 - it is waited for
            except Exception as exc:  # noqa: BLE001 - whatever it is, the worker goes on
                if not self._fails:
                    logger.warning(
                        "heartbeat: %s cannot write its file, so heartbeat-probe does not find it: "
                        "%s",
                        self.node,
                        exc,
                    )
                self._fails = True
            else:
                if self._fails:
                    logger.info("heartbeat: %s writes its file for heartbeat-probe", self.node)
                self._fails = False
            await anyio.sleep(self.settings.frequency)

    def remove(self) -> None:
        """Write no more, and leave nothing. Blocks for a moment."""
        with self._lock:
            self._removed = True
            try:
                path = self._path()
                for each in (path, path.with_suffix(".part")):
                    patiently(lambda each=each: each.unlink(missing_ok=True))  # type: ignore[misc]
            except OSError as exc:
                logger.debug("heartbeat: the file for heartbeat-probe stays: %s", exc)

    def _sign(self, heartbeat: Heartbeat | None) -> Sign:
        return Sign(
            node=self.node,
            namespace=self.namespace,
            pid=os.getpid(),
            began=self._began,
            incarnation=heartbeat.incarnation.number if heartbeat else None,
            monotonic=time.monotonic(),
            wall=time.time(),
            frequency=self.settings.frequency,
            expire=self.settings.expire,
            joined=heartbeat is not None and heartbeat.joined,
            stalled=self._is_stalled(),
        )

    def _is_stalled(self) -> bool:
        try:
            return bool(self.stalled())
        except Exception:
            if not self._cannot_ask:
                logger.exception("heartbeat: %s cannot tell whether it is stalled", self.node)
            self._cannot_ask = True
            return False

    def _path(self) -> pathlib.Path:
        # A name may hold what no file's name can, and differ from another one in its case alone.
        digest = hashlib.sha256(f"{self.namespace}\0{self.node}".encode()).hexdigest()[:16]
        return pathlib.Path(directory_in(self.parent), f"{os.getpid()}-{digest}.json")

    def _write(self, sign: Sign) -> None:
        with self._lock:
            if self._removed:
                return
            path = self._path()
            try:
                must_be_private(str(path.parent))
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                must_be_private(str(path.parent))
            if not self._swept:
                self._sweep(path.parent)
            part = path.with_suffix(".part")
            _write_anew(part, json.dumps(sign._asdict()).encode())
            patiently(lambda: part.replace(path))

    def _sweep(self, directory: pathlib.Path) -> None:
        """Remove what those have left that were killed."""
        self._swept = True
        for path in directory.iterdir():
            if is_over(str(directory), path.name):
                path.unlink(missing_ok=True)


def _write_anew(path: pathlib.Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(data)
