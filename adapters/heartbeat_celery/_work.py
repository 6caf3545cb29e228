"""What the agent of a worker does besides beating, on every broker."""

import threading

import anyio
import attrs

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Broker, Custody
from heartbeat_core import Cause, Heartbeat, Incarnation, State

__all__ = ("Work",)


@attrs.define(eq=False)
class Work:
    """Follows what becomes of the nodes, and acts on it."""

    heartbeat: Heartbeat
    broker: Broker
    custody: Custody
    announcer: Announcer
    joined: threading.Event

    async def follow(self) -> None:
        """Recover whoever dies or leaves; become somebody new when declared dead oneself."""
        transitions = self.heartbeat.transitions()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._join)
            async for transition in transitions:
                self.announcer.node(transition)
                if transition.cause is Cause.OBITUARY:
                    self.broker.claim_as(None)
                    tasks.start_soon(self._join)
                elif transition.state is State.DEAD:
                    tasks.start_soon(self._recover, transition.incarnation, False)
                elif transition.cause is Cause.GOODBYE:
                    tasks.start_soon(self._recover, transition.incarnation, True)

    async def _join(self) -> None:
        self.broker.claim_as(await self.heartbeat.wait_joined())
        self.joined.set()

    async def _recover(self, gone: Incarnation, left: bool) -> None:
        await self.custody.recover(gone, left=left)
