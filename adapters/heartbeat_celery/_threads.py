"""What blocks, run in worker threads of the agent's event loop."""

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
import redis

from heartbeat_core import no_fork

__all__ = ("RETRY", "in_thread", "until_done")

logger = logging.getLogger("heartbeat_celery")

T = TypeVar("T")

RETRY = 1.0


async def in_thread(call: Callable[[], T]) -> T:
    """Run what blocks for a round trip or a few."""

    def run() -> T:
        with no_fork():
            return call()

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)


async def until_done(call: Callable[[], T]) -> T:
    """Run what blocks in a thread, again and again until the broker answers."""
    while True:
        try:
            return await in_thread(call)
        except redis.RedisError as exc:
            logger.debug("heartbeat: the broker did not answer: %r", exc)
        await anyio.sleep(RETRY)
