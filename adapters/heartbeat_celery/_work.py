"""What the agent of a worker does besides beating, on every broker."""

import logging
import threading

import anyio
import attrs

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Broker, Custody
from heartbeat_celery._gate import PATIENCE, Gate
from heartbeat_core import Cause, Heartbeat, Incarnation, State, in_thread

__all__ = ("Work",)

logger = logging.getLogger("heartbeat_celery")

RECOVERIES_AT_ONCE = 4


@attrs.define(eq=False)
class Work:
    """Follows what becomes of the nodes, and acts on it."""

    heartbeat: Heartbeat
    broker: Broker
    custody: Custody
    announcer: Announcer
    gate: Gate
    joined: threading.Event
    # When many die at once, each recovery would want connections of its own.
    _at_once: anyio.CapacityLimiter = attrs.field(
        factory=lambda: anyio.CapacityLimiter(RECOVERIES_AT_ONCE), init=False
    )

    async def follow(self) -> None:
        """Recover whoever dies or leaves; become somebody new when declared dead oneself."""
        transitions = self.heartbeat.transitions()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._join)
            async for transition in transitions:
                self.announcer.node(transition)
                if transition.cause is Cause.OBITUARY:
                    self.broker.fence(transition.incarnation)
                    tasks.start_soon(self._join)
                elif transition.state is State.DEAD:
                    tasks.start_soon(self._recover, transition.incarnation, False)
                elif transition.cause is Cause.GOODBYE:
                    tasks.start_soon(self._recover, transition.incarnation, True)

    async def notice_pauses(self) -> None:
        """After a pause of this process, find out first whether it was declared dead meanwhile."""
        looked = anyio.current_time()
        while True:
            if anyio.current_time() - looked > self.gate.pause:
                await self._ask_after_pause()
            self.gate.look()
            looked = anyio.current_time()
            await anyio.sleep(self.gate.pause / 4)

    async def _ask_after_pause(self) -> None:
        me = self.heartbeat.incarnation
        with anyio.move_on_after(PATIENCE):
            try:
                if await in_thread(lambda: self.broker.is_fenced(me)):
                    self.broker.fence(me)
                    self.heartbeat.rejoin(me)
            except Exception as exc:  # noqa: BLE001 - whatever the broker's driver raises
                logger.debug("heartbeat: the broker did not answer: %r", exc)

    async def _join(self) -> None:
        self.broker.claim_as(await self.heartbeat.wait_joined())
        self.joined.set()

    async def _recover(self, gone: Incarnation, left: bool) -> None:
        async with self._at_once:
            await self.custody.recover(gone, left=left)
