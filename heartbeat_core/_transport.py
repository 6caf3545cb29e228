"""What a transport promises, and the two abilities that it may have besides."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from heartbeat_core._beat import Incarnation
from heartbeat_core._detector import Connections

__all__ = ("LastBeats", "Presence", "Transport")


class Transport(Protocol):
    """Carries bytes from every node of a namespace to every observer of it.

    Delivery is at most once and in any order; a message may be lost. Methods are called from
    one event loop (asyncio or trio) and never block it. Whatever goes wrong with the broker is
    raised as :class:`~heartbeat_core.TransportError`, and the next call tries again: a
    transport keeps no broken state, retries nothing by itself and logs nothing.
    """

    namespace: str

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send to every subscriber, the sender included.

        Args:
            data: An encoded beat.
            sender: Whose beat it is.
            ttl: For how many seconds a transport that keeps the last beat of a node keeps this
                one; 0 removes what it keeps.

        Raises:
            TransportError: It was not handed to the broker, or nobody knows whether it was.
        """
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        """Listen: within the context, iterate what arrives, in batches that are never empty.

        What is sent after the context was entered arrives, unless the transport loses it.

        Raises:
            TransportError: On entering or while iterating: the connection is lost.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every connection. Raises nothing and may be called twice."""
        ...


@runtime_checkable
class LastBeats(Protocol):
    """The ability to tell the last beat of a node, from which a new observer starts."""

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read the last beats that have not expired, of some nodes or of all.

        Raises:
            TransportError: The broker could not be asked.
        """
        ...


@runtime_checkable
class Presence(Protocol):
    """The ability to tell which incarnations still have a connection to the broker."""

    def attend(
        self, incarnation: Incarnation
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        """Be present: within the context the broker holds a connection of this incarnation.

        It is also the incarnation's inbox: iterate what is posted to it, in batches that are
        never empty.

        Raises:
            TransportError: On entering or while iterating: the connection is lost.
        """
        ...

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask which of these are present.

        The answer's ``session`` differs from the last answer's if, in between, the connection
        was lost by which this transport attends.

        Raises:
            TransportError: The broker could not be asked, or this transport's own connection
                is not there.
        """
        ...

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to the inbox of one incarnation; nothing happens if it is not present.

        Raises:
            TransportError: It was not handed to the broker.
        """
        ...
