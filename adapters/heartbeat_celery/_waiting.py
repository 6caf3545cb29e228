"""Waiting for several lists at once: one connection a list.

Redis moves from one list only, and a connection that waits can do nothing else. The connections are
opened when a worker first waits for so many lists, and kept.
"""

import contextlib
from collections.abc import Callable, Collection
from queue import Empty
from time import monotonic
from typing import Any

import attrs
from kombu.asynchronous import get_event_loop
from redis.exceptions import RedisError, ResponseError

__all__ = ("Line", "Lines", "is_shut")

KIND = "BLMOVE"

Command = tuple[Any, ...]


def is_shut(exc: Exception) -> bool:
    """Tell whether one who waits was refused what came, since he is shut."""
    return str(exc).startswith("WRONGTYPE")


@attrs.define(eq=False)
class Line:
    """One connection, which waits for one list at a time.

    Kombu's poller takes it for a channel, and for that channel's client. Unlike a channel's it is
    read also while the consumer may not take messages: it tells only that one came.

    Args:
        connection: A connection of redis-py's, connected or not.
        cycle: Kombu's poller.
        ended: Called with what had been sent and the answer, an error perhaps; ``None`` if the time
            is over or the connection broke.
    """

    connection: Any
    cycle: Any
    ended: Callable[[Command, Any], None]
    sent: Command | None = attrs.field(default=None, init=False)
    sent_at: float = attrs.field(default=0.0, init=False)
    handlers: dict[str, Callable[[], None]] = attrs.field(init=False)
    _sock: Any = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Tell the poller whom to call."""
        self.handlers = {KIND: self._read}

    @property
    def qos(self) -> "Line":
        """Stand for the channel's limits too."""
        return self

    def can_consume(self) -> bool:
        """Tell the poller that there are none."""
        return True

    def wait(self, command: Command) -> None:
        """Send a command that waits for a list. Blocks only to connect.

        Raises:
            redis.RedisError: The broker cannot be reached.
        """
        try:
            self.connection.send_command(*command)
            self.sent, self.sent_at = command, monotonic()
            # redis-py may have connected anew.
            if self.connection._sock is not self._sock:  # noqa: SLF001 - as Kombu's poller does
                self._unregister()
                self.cycle._register(self, self, KIND)  # noqa: SLF001 - the poller's way in
                self._sock = self.connection._sock  # noqa: SLF001
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection, and with it the wait."""
        self.sent = None
        self._unregister()
        self.connection.disconnect()

    def _unregister(self) -> None:
        self._sock = None
        cycle, loop = self.cycle, get_event_loop()
        cycle._chan_to_sock.pop((self, self, KIND), None)  # noqa: SLF001
        known = list(cycle._fd_to_chan.items())  # noqa: SLF001
        for number in [number for number, (channel, _) in known if channel is self]:
            del cycle._fd_to_chan[number]  # noqa: SLF001
            if loop is not None:
                loop.remove_reader(number)
            # It may be closed already, or not be known any more.
            with contextlib.suppress(KeyError, ValueError, OSError):
                cycle.poller.unregister(number)

    def _read(self) -> None:
        sent, reply = self.sent, None
        self.sent = None
        try:
            reply = self.connection.read_response()
        except ResponseError as exc:
            reply = exc
            if not is_shut(exc):
                self.close()  # It may be another server's turn to be the master.
        except (RedisError, OSError):
            # Anybody may close it while it is idle; if it is the broker, the main one says so.
            self.close()
        if sent is not None:
            self.ended(sent, reply)
        raise Empty

    def _poll_error(self, _kind: str) -> None:
        self._read()


@attrs.define(eq=False)
class Lines:
    """As many connections as there are lists to wait for.

    Args:
        open: Makes one.
    """

    open: Callable[[], Line]
    _lines: list[Line] = attrs.field(factory=list, init=False)

    def wait(self, commands: Collection[Command], patience: float) -> None:
        """See that each of these commands is waiting for its answer.

        Args:
            commands: What to send, if it does not stand already.
            patience: A connection that owes an answer for so many seconds is given up.

        Raises:
            redis.RedisError: The broker cannot be reached.
        """
        now = monotonic()
        for line in self._lines:
            if line.sent is not None and now - line.sent_at > patience:
                line.close()
        stand = {line.sent for line in self._lines}
        for command in commands:
            if command not in stand:
                self._idle().wait(command)

    def close(self) -> None:
        """End all connections."""
        for line in self._lines:
            line.close()
        self._lines.clear()

    def forget(self) -> None:
        """Close the sockets in a forked child; the parent, who shares the poller, keeps its own."""
        for line in self._lines:
            line.connection.disconnect()
        self._lines.clear()

    def _idle(self) -> Line:
        for line in self._lines:
            if line.sent is None:
                return line
        line = self.open()
        self._lines.append(line)
        return line
