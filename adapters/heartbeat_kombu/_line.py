"""Connections that fail soon, say so without credentials, and end with their process.

Of Kombu its transports are used, and not what waits and tries again by itself (``ensure``,
``default_channel``): that takes longer than a heartbeat has, and logs.
"""

import contextlib
import functools
import os
import socket
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import quote

import amqp.exceptions
import amqp.spec
import kombu
import kombu.exceptions
from kombu.transport.virtual import NotEquivalentError

from heartbeat_core import TransportError, no_fork
from heartbeat_kombu._readiness import Readiness

__all__ = ("BACKLOG", "BLOCKED", "BlockedError", "Broker", "Line")

MOMENT = 0.1
"""For so many seconds a broker is waited for that Kombu polls."""

GOODBYE = 0.5
"""For so many seconds the broker may take to agree that a connection ends."""

BACKLOG = 10_000
"""So many messages may be unread; of more the newest stay."""

LIMITS = {"x-max-length": BACKLOG, "x-overflow": "drop-head", "x-message-ttl": 60_000}
"""How the queue of who listens is bounded: a process that stands still makes nothing grow."""

AHEAD = 4096
"""So many bytes are read at once: a frame would take three calls, and a message has three."""

FRAMES = 1000
"""So many frames are read before anything else is looked at."""

BLOCKED = "the broker takes no messages now: it is short of memory or disk"

PLAIN = {"content_type": "application/octet-stream", "content_encoding": "binary"}

# The fork handler closes these, so the process knows them.
_open: "weakref.WeakSet[Line]" = weakref.WeakSet()

# Kombu's memory broker is one a process, and its tables are not made for several threads.
_tables = threading.Lock()


class BlockedError(TransportError):
    """The broker takes no messages for the time being; the connection stays."""


class Broker:
    """Opens connections to a broker.

    Args:
        broker: A URL that Kombu knows, or a connection of Kombu's, which is only read.
        timeout: After so many seconds without an answer the broker counts as away.

    Attributes:
        driver: The kind of broker in Kombu's words: ``amqp``, ``redis``, ``memory`` and so on.

    Raises:
        TransportError: It is no URL that Kombu knows.
    """

    def __init__(self, broker: "str | kombu.Connection", timeout: float) -> None:
        try:
            given: Any = kombu.Connection(broker) if isinstance(broker, str) else broker.clone()
            transport = given.transport
        except (ValueError, TypeError, KeyError, ImportError) as exc:
            raise TransportError(
                "the URL is not one that Kombu knows, or the driver of its broker is not installed"
            ) from exc
        self.driver = str(transport.driver_type)
        self.timeout = timeout
        self._given = given
        self._settings = given.info()
        self._polled = bool(getattr(transport, "polling_interval", None))
        self._errors: tuple[type[Exception], ...] = (
            amqp.exceptions.AMQPError,
            amqp.exceptions.MessageNacked,
            kombu.exceptions.KombuError,
            NotEquivalentError,
            OSError,
            *transport.connection_errors,
            *transport.channel_errors,
        )

    def open(self, name: str, heartbeat: float) -> "Line":
        """Connect. Blocks, for ``timeout`` a step at most.

        Args:
            name: What the connection is called in the broker, where they have names.
            heartbeat: The interval of AMQP's heartbeats, in seconds.

        Raises:
            TransportError: The broker could not be reached, or refused.
        """
        with self.translated():
            settings = {
                **self._settings,
                "connect_timeout": self.timeout,
                "heartbeat": heartbeat,
                "transport_options": self._options(name),
            }
            try:
                return Line(kombu.Connection(**settings), self.timeout, self._errors)
            except BaseException:
                # Of several brokers the next call tries the next.
                if self._given.cycle is not None:
                    self._given.maybe_switch_next()
                    self._settings = self._given.info()
                raise

    @contextlib.contextmanager
    def translated(self) -> Generator[None]:
        """Raise what goes wrong with the broker as a ``TransportError``."""
        try:
            yield
        except TransportError:
            raise
        except self._errors as exc:
            raise TransportError(self._without_secrets(f"{type(exc).__name__}: {exc}")) from exc

    def _options(self, name: str) -> dict[str, Any]:
        options = dict(self._given.transport_options or {})
        if self.driver == "amqp":
            properties = options.get("client_properties") or {}
            options["client_properties"] = {"connection_name": name, **properties}
            options["confirm_publish"] = True
        elif self.driver == "redis":
            options["socket_timeout"] = options["socket_connect_timeout"] = self.timeout
            options["retry_on_timeout"] = False
        elif self._polled:
            options.setdefault("polling_interval", MOMENT / 2)
        return options

    def _without_secrets(self, text: str) -> str:
        password = self._given.password
        if isinstance(password, str) and password:
            for secret in (password, quote(password), quote(password, safe="")):
                text = text.replace(secret, "***")
        return text


class Line:
    """An open connection. One thread at a time uses it, but for ``interrupt``.

    Attributes:
        blocked: Whether the broker has said that it takes no messages now.
        bears_blocking: Whether it is read on while the broker takes no messages, without an error.
    """

    def __init__(
        self, connection: Any, timeout: float, errors: tuple[type[Exception], ...]
    ) -> None:
        self.blocked = False
        self.bears_blocking = False
        self._errors = errors
        self._readiness: Readiness | None = None
        self._transport: Any = connection.transport
        self._link: Any = None
        self._wire: Any = None
        is_amqp = self._transport.driver_type == "amqp"
        if is_amqp:
            connection.transport_options.update(on_blocked=self._block, on_unblocked=self._unblock)
        try:
            self._link = self._transport.establish_connection()
            if is_amqp:
                self._wire = self._link.transport
                # From here on no read and no write takes longer.
                self._wire.sock.settimeout(timeout)
                self._readiness = Readiness(self._wire.sock)
                self._read_ahead()
            _open.add(self)
        except BaseException:
            self.drop()
            raise

    @functools.cached_property
    def channel(self) -> Any:
        """The channel on which messages are sent, and whatever else."""
        return self.new_channel()

    @functools.cached_property
    def posting(self) -> Any:
        """The channel on which :meth:`post` sends; open it before others read or write."""
        return self.new_channel()

    def new_channel(self) -> Any:
        """Open a channel. One is closed by the broker, with all that it consumes, at an error."""
        channel = self._transport.create_channel(self._link)
        channel.auto_decode = False
        return channel

    def _read_ahead(self) -> None:
        """Let the driver, where it is the one we know, ask for more bytes than it needs."""
        receive = getattr(self._wire, "_quick_recv", None)
        if receive is not None and hasattr(self._wire, "_read_buffer"):
            self._wire._quick_recv = lambda count: receive(  # noqa: SLF001
                max(count, AHEAD)
            )

    def fanout(self, exchange: str) -> None:
        """Make sure that there is a fanout exchange. It goes with the last queue bound to it."""
        with self._in_tables():
            self.channel.exchange_declare(
                exchange=exchange, type="fanout", durable=False, auto_delete=True
            )

    def listen(self, exchange: str, queue: str, take: Callable[[Any], None]) -> None:
        """Have what a fanout exchange gets handed to ``take``, as long as the line is open.

        Args:
            exchange: The exchange, which is made if need be.
            queue: The name of the queue for that, where the broker cannot think of one itself.
            take: Gets the driver's messages, from within :meth:`take`.
        """
        channel = self.new_channel()
        if self._wire is None:
            self.fanout(exchange)
            with self._in_tables():
                channel.queue_declare(queue=queue, exclusive=True)
                channel.queue_bind(queue=queue, exchange=exchange, routing_key="")
        else:
            queue = channel.queue_declare(
                queue="", durable=False, exclusive=True, auto_delete=True, arguments=LIMITS
            ).queue
            self._bind(channel, queue, exchange)
        channel.basic_consume(queue=queue, no_ack=True, callback=take, consumer_tag=queue)

    def _bind(self, channel: Any, queue: str, exchange: str) -> None:
        for last in (False, False, True):
            self.fanout(exchange)
            try:
                channel.queue_bind(queue=queue, exchange=exchange)
            except amqp.exceptions.NotFound:
                # Just now its last queue went, and took it along.
                if last:
                    raise
            else:
                return

    def unlisten(self, exchange: str, queue: str) -> None:
        """Remove what brokers keep that know no queues which end with their connection."""
        if self._wire is None:
            with self._in_tables(), contextlib.suppress(*self._errors):
                # In this order: what is unbound Kombu would not delete.
                self.channel.queue_delete(queue=queue)
                self.channel.queue_unbind(queue=queue, exchange=exchange, routing_key="")

    def send(
        self,
        exchange: str,
        key: str,
        data: bytes,
        *,
        headers: Mapping[str, Any] | None = None,
        kind: str | None = None,
    ) -> None:
        """Publish a message that no disk needs to see; on AMQP, wait for the broker's word.

        Args:
            exchange: A fanout exchange, or the empty string.
            key: Then the name of a queue.
            data: The message.
            headers: Its headers.
            kind: Its type, on AMQP.

        Raises:
            BlockedError: The broker takes none now. Whether it has taken this one, nobody knows.
        """
        properties: dict[str, Any] = {"delivery_mode": 1, **({"type": kind} if kind else {})}
        message = self.channel.prepare_message(
            data, headers=dict(headers or {}), properties=properties, **PLAIN
        )
        try:
            self.channel.basic_publish(message, exchange=exchange, routing_key=key)
        except amqp.exceptions.NotFound:
            # The exchange went with its last queue, so nobody listens. Without one the broker
            # would complain of each message.
            self.fanout(exchange)

    def takes_more(self) -> bool:
        """Tell whether a message can be written without waiting, on AMQP."""
        return not self.blocked and self._readiness is not None and self._readiness.writable()

    def post(self, queue: str, message: Any) -> None:
        """Send to a queue, on AMQP, without looking what the broker has to say.

        Args:
            queue: The name of the queue.
            message: One of the driver's.
        """
        # Its own basic_publish would read, in this thread, what the thread that reads waits for.
        self.posting.send_method(
            amqp.spec.Basic.Publish, "Bssbb", (0, "", queue, False, False), message
        )

    def take(self, longest: float) -> bool:
        """Hand on what arrives next; wait up to so many seconds. Tell whether something came."""
        if self._wire is None:
            with contextlib.suppress(TimeoutError):
                self._transport.drain_events(self._link, timeout=min(longest, MOMENT))
                return True
            return False
        if not self._readable(longest):
            return False
        with no_fork(), contextlib.suppress(TimeoutError):
            for _ in range(FRAMES):
                self._link.blocking_read()
                if not self._has_read_ahead():
                    break
        return True

    def drain(self) -> None:
        """Hand on what has arrived, on AMQP."""
        while self._wire is not None and self.take(0):
            pass

    def _has_read_ahead(self) -> bool:
        return bool(getattr(self._wire, "_read_buffer", b""))

    def _readable(self, longest: float) -> bool:
        if self._has_read_ahead():
            return True
        # What TLS has decrypted already, no selector sees.
        pending = getattr(self._wire.sock, "pending", None)
        if pending is not None and pending():
            return True
        return self._readiness is not None and self._readiness.readable(longest)

    def wake_by(self, sock: socket.socket) -> None:
        """Let ``take`` end early when something can be read from a socket.

        Without effect where Kombu polls, which never waits long.
        """
        if self._readiness is not None:
            self._readiness.wake_by(sock)

    def beat(self) -> None:
        """Send and check the AMQP heartbeat; to be called some times in each of its intervals."""
        self._transport.heartbeat_check(self._link)

    def interrupt(self) -> None:
        """Let whatever waits for the broker fail, where that is possible. Any thread may call."""
        sock = getattr(self._wire, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take leave of the broker, if it answers within half a second."""
        if self._wire is not None and self._wire.sock is not None:
            self._wire.sock.settimeout(GOODBYE)
            with contextlib.suppress(*self._errors):
                self._transport.close_connection(self._link)
        self.drop()

    def drop(self) -> None:
        """Close the connection without a word."""
        _open.discard(self)
        if self._readiness is not None:
            self._readiness.close()
        if self._wire is not None:
            self.interrupt()
            self._close_copy()
            self._link.collect()
        elif self._link is not None:
            with contextlib.suppress(*self._errors):
                self._transport.close_connection(self._link)

    def _close_copy(self) -> None:
        # Not by the driver: with TLS that would wait for the broker.
        sock, self._wire.sock = self._wire.sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _block(self, _reason: str) -> None:
        self.blocked = True
        if not self.bears_blocking:
            raise BlockedError(BLOCKED)

    def _unblock(self) -> None:
        self.blocked = False

    @contextlib.contextmanager
    def _in_tables(self) -> Generator[None]:
        with _tables if self._transport.driver_type == "memory" else contextlib.nullcontext():
            yield

    def leave_to_parent(self) -> None:
        """Close a forked child's copy of the socket, without a word to the broker.

        Kombu itself sees to the copies of its other transports, in a pool's children.
        """
        if self._wire is not None:
            self._close_copy()


def _leave_to_parent() -> None:
    """The broker takes a node for present as long as its socket is open anywhere."""
    for line in list(_open):
        line.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
