"""Whether a socket can be read or written, soon or at this moment.

gevent's selectors tell what was true a while ago: that there was something to read which has been
read since, and not what has come without their loop having turned. So there the system is asked as
well, which takes no time.
"""

import contextlib
import selectors
import socket
import sys
from typing import Any

__all__ = ("Readiness",)


class Readiness:
    """Looks after one socket.

    Args:
        sock: The socket; it must be open until this is closed.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(sock, selectors.EVENT_READ)
        original = _original_selector()
        self._is_late = original is not None
        self._now = (original or selectors.DefaultSelector)()
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._now.register(sock, both if self._is_late else selectors.EVENT_WRITE)

    def wake_by(self, sock: socket.socket) -> None:
        """Let :meth:`readable` end early when something can be read from another socket."""
        self._waiting.register(sock, selectors.EVENT_READ)

    def readable(self, longest: float) -> bool:
        """Tell whether it can be read; wait up to so many seconds until it can."""
        if self._is_late:
            if self._is_now(selectors.EVENT_READ):
                return True
            if longest > 0:
                self._waiting.select(longest)
            return self._is_now(selectors.EVENT_READ)
        return any(key.fileobj is self._sock for key, _ in self._waiting.select(longest))

    def writable(self) -> bool:
        """Tell whether it can be written without waiting."""
        return self._is_now(selectors.EVENT_WRITE)

    def close(self) -> None:
        """Look no more. May be called twice."""
        with contextlib.suppress(TypeError, AttributeError):  # gevent's is closed once.
            self._waiting.close()
        self._now.close()

    def _is_now(self, event: int) -> bool:
        return any(events & event for _, events in self._now.select(0))


def _original_selector() -> Any:
    """Give a selector that gevent has not replaced; ``None`` if it has replaced none."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("select"):
        return None
    poll = getattr(selectors, "PollSelector", None)
    name, kind = ("poll", poll) if poll is not None else ("select", selectors.SelectSelector)
    original = monkey.get_original("select", name)
    where = "_selector_cls" if poll is not None else "_select"
    return type("Original", (kind,), {where: staticmethod(original)})
