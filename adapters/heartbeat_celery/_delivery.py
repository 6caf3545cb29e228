"""The delivery of verdicts, by the agent of a worker.

A verdict is taken, told to the result backend, to the log and to whoever is connected to its
signal, and then removed. Killed in between, another agent tells it again; nothing is left out.
"""

import functools
import logging
from collections.abc import Callable

import anyio
import attrs

from heartbeat_celery._telling import LONGEST_PAUSE, Telling
from heartbeat_celery._threads import RETRY, until_done
from heartbeat_celery._verdicts import Taken, Verdicts
from heartbeat_core import Incarnation

__all__ = ("Delivery",)

logger = logging.getLogger("heartbeat_celery")


@attrs.define(eq=False)
class Delivery:
    """Tells verdicts, one after another.

    Args:
        telling: Tells one.
        verdicts: Where they stand.
        me: Gives the incarnation under which they are taken.
    """

    telling: Telling
    verdicts: Verdicts
    me: Callable[[], Incarnation]
    _wanted: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _one_at_a_time: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)
    _under_way: anyio.CancelScope | None = attrs.field(default=None, init=False)

    def look(self) -> None:
        """Look soon whether there is anything to tell."""
        self._wanted.set()

    async def run(self) -> None:
        """Tell what there is to tell, whenever there may be something."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            pause = RETRY
            while not await self.deliver():
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def deliver(self) -> bool:
        """Tell all that there is to tell; tell whether nothing stood in the way."""
        async with self._one_at_a_time:
            while True:
                taken = await until_done(functools.partial(self.verdicts.take, self.me()))
                if taken is None:
                    return True
                # Once begun it is ended, or another would tell it again.
                with anyio.CancelScope(shield=True) as self._under_way:
                    if not await self._tell(taken):
                        return False

    def abandon(self) -> None:
        """Do not wait for what is being told: this worker goes now."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _tell(self, taken: Taken) -> bool:
        try:
            verdict = taken.verdict()
        except ValueError as exc:
            logger.error("heartbeat: a verdict cannot be read, and is dropped: %s", exc)
            await until_done(lambda: self.verdicts.done(taken))
            return True
        try:
            if await until_done(lambda: self.verdicts.holds(taken)):
                await self.telling.tell(verdict, taken.times)
        except Exception as exc:  # noqa: BLE001 - a result backend may raise anything
            self.telling.say_that_it_waits(verdict, exc)
            counted = await self.telling.is_half_told(verdict)
            await until_done(lambda: self.verdicts.put_back(taken, counted=counted))
            return False
        await until_done(lambda: self.verdicts.done(taken))
        return True
