"""What blocks, until the broker answers."""

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio
import redis

from heartbeat_core import in_thread

__all__ = ("RETRY", "until_done")

logger = logging.getLogger("heartbeat_celery")

T = TypeVar("T")

RETRY = 1.0


async def until_done(call: Callable[[], T]) -> T:
    """Run what blocks in a thread, again and again until the broker answers."""
    is_told = False
    while True:
        try:
            return await in_thread(call)
        except (redis.ReadOnlyError, redis.ConnectionError, redis.TimeoutError) as exc:
            # The heartbeat meets it too, and says so.
            logger.debug("heartbeat: the broker did not answer: %r", exc)
        except redis.RedisError as exc:
            if not is_told:
                logger.error(
                    "heartbeat: the broker refuses what it is asked for; it is asked again every "
                    "%g s: %s",
                    RETRY,
                    exc,
                )
            is_told = True
        await anyio.sleep(RETRY)
