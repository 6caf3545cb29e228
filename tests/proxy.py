"""A network between a test and its broker that can be cut, both ways and one way."""

import contextlib
import select
import socket
import threading
from typing import Self


class Proxy:
    """Forwards loopback connections to a port, in a thread, and counts their bytes.

    Attributes:
        port: Where it listens.
        up: How many bytes went to the server.
        down: How many came back.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.up = self.down = 0
        self._cut_up = self._cut_down = False
        self._refuse = False
        self._unsettled: list[threading.Event] = []
        self._other: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._swallowed: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._poke()
        self._thread.join()

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Let nothing through any more, without a word to anybody: what is sent waits."""
        self._cut_up, self._cut_down = up, down
        self._settle()

    def ports(self) -> set[int]:
        """Give the ports at which the server sees its connections."""
        with self._lock:
            return {each.getsockname()[1] for each in self._other if each not in self._clients}

    def swallow(self, port: int) -> None:
        """Let nothing through any more on one connection: that which the server sees at a port."""
        with self._lock:
            sock = next(each for each in self._other if each.getsockname()[1] == port)
            self._swallowed |= {sock, self._other[sock]}
        self._settle()

    def heal(self) -> None:
        """Let everything through again, what has waited first."""
        self._cut_up = self._cut_down = self._refuse = False
        self._swallowed.clear()
        self._poke()

    def refuse(self) -> None:
        """Close what is open, and whatever connects from now on."""
        self._refuse = True
        self.drop()

    def drop(self) -> None:
        """Close every connection; new ones are welcome."""
        with self._lock:
            for sock in list(self._other):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._poke()

    def _settle(self) -> None:
        """Wait until the thread does what was said: nothing of before is still on its way."""
        settled = threading.Event()
        self._unsettled.append(settled)
        self._poke()
        assert settled.wait(5)

    # -- in the thread ------------------------------------------------------------------------

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def _run(self) -> None:
        while not self._closed:
            while self._unsettled:
                self._unsettled.pop().set()
            listening = [self._listener, self._woken]
            readable, _, _ = select.select([*listening, *self._readers()], [], [], 1.0)
            for sock in readable:
                if sock is self._woken:
                    self._woken.recv(1000)
                elif sock is self._listener:
                    self._accept()
                elif sock in self._other:
                    self._forward(sock)
        for sock in [*self._other, self._listener, self._wake, self._woken]:
            sock.close()

    def _readers(self) -> list[socket.socket]:
        with self._lock:
            return [
                sock
                for sock in self._other
                if sock not in self._swallowed
                and not (self._cut_up if sock in self._clients else self._cut_down)
            ]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            if self._refuse:
                raise OSError
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._clients.add(client)
            self._other[client], self._other[server] = server, client

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
            if data:
                self._other[sock].sendall(data)
        except OSError:
            data = b""
        if sock in self._clients:
            self.up += len(data)
        else:
            self.down += len(data)
        if not data:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            other = self._other.pop(sock)
            del self._other[other]
            self._clients -= {sock, other}
        sock.close()
        other.close()
