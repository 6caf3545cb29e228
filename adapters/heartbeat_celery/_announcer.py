"""The signals of nodes and of recoveries, sent one after another beside all else."""

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import attrs
from celery import Celery
from celery.utils.dispatch import Signal

from heartbeat_celery import signals
from heartbeat_celery._native import InWorker
from heartbeat_celery._recovery import Recovered
from heartbeat_core import Cause, Incarnation, State, Transition, in_thread

__all__ = ("Announcer",)

logger = logging.getLogger("heartbeat_celery")

MOST_UNSENT = 16_384

_BY_STATE = {
    State.ALIVE: signals.node_alive,
    State.SUSPECT: signals.node_suspect,
    State.DEAD: signals.node_dead,
}
_BY_CAUSE = {
    Cause.OBITUARY: signals.fenced,
    Cause.GOODBYE: signals.node_left,
    Cause.DISCARDED: None,
    Cause.MASS_LOSS: None,
}
"""For these causes the state does not say it."""


def signal_of(transition: Transition) -> Signal | None:
    """Give the signal that tells of a transition, if there is one."""
    if transition.cause in _BY_CAUSE:
        return _BY_CAUSE[transition.cause]
    return _BY_STATE[transition.state] if transition.state else None


@attrs.define(eq=False)
class Announcer:
    """Sends signals; nobody waits for their receivers but the signals that follow.

    Args:
        app: The sender.
        in_worker: Runs the receivers.
    """

    app: Celery
    in_worker: InWorker = in_thread
    _unsent: deque[Callable[[], Any]] = attrs.field(factory=deque, init=False)
    _changed: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    def node(self, transition: Transition) -> None:
        """Tell of a transition."""
        signal = signal_of(transition)
        if signal is not None:
            self._send(
                signal,
                node=transition.node,
                incarnation=transition.incarnation.number,
                cause=transition.cause.value,
                silence=transition.silence,
                reason=transition.reason,
            )

    def recovered(self, owner: Incarnation, recovered: Recovered) -> None:
        """Tell of a message that is back in its queue."""
        self._send(
            signals.task_recovered,
            node=owner.node,
            incarnation=owner.number,
            **attrs.asdict(recovered),
        )

    async def run(self) -> None:
        """Send what there is to send."""
        while True:
            while self._unsent:
                await self.in_worker(self._unsent.popleft())
            self._changed = anyio.Event()
            await self._changed.wait()

    def _send(self, signal: Signal, **arguments: Any) -> None:
        if not signal.receivers:
            return
        if len(self._unsent) < MOST_UNSENT:
            self._unsent.append(functools.partial(signal.send, self.app, **arguments))
            self._changed.set()
        else:
            logger.warning(
                "heartbeat: a signal of %s is not sent: %d others wait for their receivers",
                arguments["node"],
                MOST_UNSENT,
            )
