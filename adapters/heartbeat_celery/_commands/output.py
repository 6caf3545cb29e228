"""What commands print: lines and JSON for standard output, the log for standard error."""

import contextlib
import datetime as dt
import errno
import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

import anyio
import attrs
import click

from heartbeat_core import Cause, NodeView, State, Transition

__all__ = ("CONNECTED", "Output", "Seen", "log_to_stderr", "object_of", "utc")

CONNECTED = {None: "?", True: "yes", False: "no"}
"""How people read whether a node is connected."""

PIPE_CLOSED = {errno.EPIPE, errno.EINVAL}
"""The second is how Windows says it."""


@attrs.frozen
class Seen:
    """A transition that a watcher has seen.

    Attributes:
        transition: What changed.
        namespace: Of which shard.
        at: When, in seconds since the epoch.
    """

    transition: Transition
    namespace: str
    at: float

    @classmethod
    def now(cls, transition: Transition, namespace: str) -> "Seen":
        """Take the time of a transition from the clock of the running loop to that on the wall."""
        return cls(transition, namespace, time.time() - (anyio.current_time() - transition.at))

    @property
    def node(self) -> str | None:
        """Of whom; ``None`` for the watcher itself."""
        return None if self.transition.cause is Cause.MASS_LOSS else self.transition.node

    def line(self) -> str:
        """Give it as a line for people."""
        before, after = self.transition.previous, self.transition.state
        change = f"{before.value if before else 'unknown'} -> {after.value if after else 'gone'}"
        return (
            f"{time.strftime('%H:%M:%S', time.localtime(self.at))}.{int(self.at % 1 * 1000):03d}  "
            f"{self.node or 'this watcher'}  {change} ({self.transition.cause.value})"
            f"{': ' if self.transition.reason else ''}{self.transition.reason}"
        )

    def object(self) -> dict[str, Any]:
        """Give it as an object for programs."""
        transition = self.transition
        return {
            "at": utc(self.at),
            "node": self.node,
            "incarnation": transition.incarnation.number,
            "namespace": self.namespace,
            "previous": _word(transition.previous),
            "state": _word(transition.state),
            "cause": transition.cause.name.lower(),
            "silence_s": round(transition.silence, 3),
            "checks_failed": transition.checks_failed,
            "disconnected_for_s": _rounded(transition.disconnected_for),
            "reason": transition.reason,
        }


def object_of(view: NodeView, namespace: str) -> dict[str, Any]:
    """Give a line of the table of nodes as an object for programs."""
    return {
        "node": view.incarnation.node,
        "incarnation": view.incarnation.number,
        "namespace": namespace,
        "state": view.state.value,
        "silence_s": round(view.silence, 3),
        "connected": view.connected,
        "checks_failed": view.checks_failed,
        "stalled": view.stalled,
        "status": dict(view.status),
    }


def utc(at: float) -> str:
    """Give seconds since the epoch in ISO 8601."""
    when = dt.datetime.fromtimestamp(at, dt.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Output:
    """Standard output, a line at a time, for as long as somebody reads it.

    Attributes:
        closed: Whether nobody reads it any more.
    """

    def __init__(self) -> None:
        self.closed = False
        self._error: OSError | None = None
        # A name that a terminal of Windows cannot show is no reason to end.
        for stream in (sys.stdout, sys.stderr):
            if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
                reconfigure(errors="backslashreplace")

    def line(self, text: str) -> None:
        """Print a line, and flush it."""
        if self.closed:
            return
        try:
            click.echo(text)
        except OSError as exc:
            if exc.errno not in PIPE_CLOSED:
                self._error = exc
            self._close()

    def json(self, value: Mapping[str, Any] | list[dict[str, Any]]) -> None:
        """Print a value in a line, and flush it."""
        self.line(json.dumps(value))

    def check(self) -> None:
        """Make sure that it was not closed for a worse reason than that nobody reads.

        Raises:
            OSError: Something could not be written: the disk is full, say.
        """
        if self._error is not None:
            raise self._error

    async def until_closed(self) -> None:
        """Wait until nobody reads any more, even if there is nothing to print.

        Where a platform cannot tell, that shows with the next line.
        """
        while not self.closed:
            await anyio.sleep(0.25)
            if _is_hung_up():
                self._close()

    def _close(self) -> None:
        self.closed = True
        with contextlib.suppress(AttributeError, OSError, ValueError):
            # What is still buffered would be complained of at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_hung_up() -> bool:
    """Tell whether standard output is a pipe without reader."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        return False  # There is none, or it is no file.
    return bool(poll.poll(0))


class _Stderr(logging.Handler):
    """Prints to what is standard error at that time: a live table puts something in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):
            click.echo(self.format(record), err=True)


def log_to_stderr() -> None:
    """Let the log say when the broker is lost and when it is back; transitions are output."""
    handler = _Stderr()
    handler.addFilter(lambda record: not hasattr(record, "heartbeat_state"))
    logger = logging.getLogger("heartbeat_core")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _word(state: State | None) -> str | None:
    return None if state is None else state.value


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
