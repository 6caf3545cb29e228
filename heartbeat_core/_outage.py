"""Losing the broker is normal: one log line at loss, one at return, and patience in between."""

import logging
import random

import anyio

from heartbeat_core._errors import TransportError

__all__ = ("Outage", "Retry")

logger = logging.getLogger("heartbeat_core")

FIRST_RETRY, LAST_RETRY = 0.02, 1.0


class Outage:
    """Logs one line when the broker is lost and one when all that was broken is back."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._broken: set[str] = set()
        self._since = 0.0

    def begin(self, part: str, exc: TransportError) -> None:
        if not self._broken:
            self._since = anyio.current_time()
            logger.warning("heartbeat: %s lost the broker: %s", self._node, exc)
        self._broken.add(part)

    def end(self, part: str) -> None:
        if part in self._broken:
            self._broken.discard(part)
            if not self._broken:
                away = anyio.current_time() - self._since
                logger.info("heartbeat: %s is back at the broker after %.1f s", self._node, away)

    def holds(self, part: str) -> bool:
        return part in self._broken


class Retry:
    """Waits between two attempts: twice as long each time, up to a second, with jitter."""

    def __init__(self) -> None:
        self._next = FIRST_RETRY

    def reset(self) -> None:
        self._next = FIRST_RETRY

    async def wait(self) -> None:
        await anyio.sleep(self._next * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        self._next = min(2 * self._next, LAST_RETRY)
