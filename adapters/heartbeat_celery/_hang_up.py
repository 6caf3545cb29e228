"""Ends a connection under the hands of the thread that uses it, which then sees an error."""

import _socket
import contextlib
from typing import Any

__all__ = ("hang_up",)


def hang_up(sock: Any) -> None:
    """Shut a socket down, from any thread; its owner reads its end, and closes it itself.

    The socket may be one of TLS's or of a greenlet library's: theirs belong to the thread that
    uses them, so the system is asked directly.
    """
    with contextlib.suppress(OSError, ValueError):  # Its owner may have closed it.
        raw = _socket.socket(fileno=sock.fileno())
        try:
            raw.shutdown(_socket.SHUT_RDWR)
        finally:
            raw.detach()
