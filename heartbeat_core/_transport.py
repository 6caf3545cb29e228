"""What a transport promises, and the three abilities that it may have besides.

``heartbeat_core.testing.TransportConformance`` holds a transport to each sentence of it.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from heartbeat_core._beat import Incarnation
from heartbeat_core._looks import Connections

__all__ = ("LastBeats", "Presence", "Seats", "Transport")


class Transport(Protocol):
    """Carries bytes from every node of a namespace to every observer of it.

    *Delivery* is at most once and in any order; a message may be lost. A message is 1 to 2048
    bytes of any value and arrives as it was sent. Namespaces do not see each other, in nothing.

    *Calls* come from one event loop (asyncio or trio), from several tasks at once, and never
    block it. They do not wait for what the application may have used up, such as anyio's default
    worker threads. Each can be cancelled at any time: whether it had an effect is then open, but
    nothing stays behind in the broker, and the transport works on.

    *Errors*: whatever goes wrong with the broker is raised as
    :class:`~heartbeat_core.TransportError`, soon, even if the broker does not answer at all. The
    next call tries again: a transport keeps no broken state, retries nothing by itself and logs
    nothing. Only a connection that broke unnoticed may cost the first call that meets it.

    Attributes:
        namespace: The fleet whose beats it carries.
    """

    namespace: str

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        """Send to every subscription of the namespace, the sender's own included.

        Args:
            data: An encoded beat.
            sender: Whose beat it is.
            ttl: For how many seconds a transport that keeps the last beat of a node keeps this
                one, in the place of any that it kept before; 0 removes what it keeps.
                Subscribers get it in either case.

        Raises:
            TransportError: It was not handed to the broker, or nobody knows whether it was.
        """
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        """Listen: within the context, iterate what arrives, in batches that are never empty.

        What is sent after the context was entered arrives, unless the transport loses it; what
        was sent before does not. At least 1,000 messages may be unread without a loss; beyond
        some bound the oldest are dropped, so that a slow reader makes nothing grow. Subscriptions
        are independent of each other, also those of one transport.

        The iteration belongs to one task and has no end but an error. Once it has raised or was
        cancelled it is over: leave the context, and enter a new one.

        Raises:
            TransportError: On entering or while iterating: the connection is lost, or was closed.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every connection, also of those that are still iterated: they raise.

        Raises nothing, even if the broker is away, and may be called twice. Nothing else is
        called afterwards.
        """
        ...


@runtime_checkable
class LastBeats(Protocol):
    """The ability to tell the last beat of a node, from which a new observer starts."""

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        """Read the last beats that have not expired, of some nodes or of all.

        There is at most one a node, whichever incarnation sent it: the one published last, even
        if no subscriber got it. Nodes of which nothing is kept are left out.

        Args:
            nodes: Their names; an empty collection gives nothing, ``None`` all of the namespace.

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

        It is present once the context was entered, and no longer once it was left, its connection
        was lost or its process has ended, however that came. A transport attends one incarnation
        at a time, and an incarnation is attended by one transport.

        It is also the incarnation's inbox: iterate what is posted to it, as in ``subscribe``.

        Raises:
            TransportError: On entering or while iterating: the connection is lost, or was closed.
        """
        ...

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        """Ask which of these are present, by the broker's own knowledge, not from memory.

        Any number may be asked about, none included. The answer's ``session`` differs from the
        last answer's if, in between, the connection was lost or given up by which this transport
        attends, and only then.

        Raises:
            TransportError: The broker could not be asked, or this transport does not attend, or
                the connection by which it did is gone.
        """
        ...

    async def post(self, data: bytes, to: Incarnation) -> None:
        """Send to the inbox of one incarnation; nothing happens if it is not present.

        Whoever posts need not attend itself. No subscriber and no other inbox gets it.

        Raises:
            TransportError: It was not handed to the broker.
        """
        ...


@runtime_checkable
class Seats(Protocol):
    """The ability to let so many nodes of a namespace observe, and no more, whoever they are."""

    def contend(
        self, incarnation: Incarnation, seats: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bool]]:
        """Contend for a seat: within the context, iterate whether one is held.

        The first answer comes at once, and a further one whenever it changes. As long as there
        are as many contenders as seats, or more, all seats are taken, each by another one. A seat
        whose holder left the context is given to another contender within 3 seconds; one whose
        holder's connection was lost, or whose process has ended or stands still, within 10
        seconds. Until that holder notices, both may hold it.

        What it costs the broker a second does not grow with the number of contenders. All of a
        namespace name the same number of seats. A transport contends for one incarnation at a
        time. The iteration belongs to one task; once it has raised or was cancelled it is over.

        Args:
            incarnation: Who contends.
            seats: How many seats there are, 1 or more.

        Raises:
            TransportError: On entering or while iterating: the broker could not be asked, or the
                connection is lost. No seat is held any more.
        """
        ...
