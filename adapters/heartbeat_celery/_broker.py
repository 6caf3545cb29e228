"""What a worker's agent asks of the broker over which its tasks come.

The parts that differ from broker to broker stand behind two protocols: a :class:`Broker` lives as
long as its worker, a :class:`Custody` as long as one heartbeat.
"""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Protocol

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._native import InWorker
from heartbeat_core import Heartbeat, Incarnation, Transport

__all__ = ("Broker", "Custody", "Loop")

Loop = Callable[[], Coroutine[None, None, None]]
"""What runs as long as the heartbeat."""


class Custody(Protocol):
    """What becomes of what the dead held. Everything is called in the heartbeat's event loop."""

    def loops(self) -> list[Loop]:
        """Give all that runs as long as the heartbeat."""
        ...

    async def recover(self, dead: Incarnation, *, left: bool = False) -> None:
        """See to it that others get what an incarnation held; returns when that is done.

        Args:
            dead: Who was declared dead.
            left: It said goodbye instead.
        """
        ...

    async def leave(self) -> None:
        """Take this worker off the record; waits for a few seconds at most."""
        ...


class Broker(Protocol):
    """The broker of one worker.

    Attributes:
        on_fenced: Called, from any thread, when the broker says that an incarnation of this worker
            is dead.
    """

    on_fenced: Callable[[Incarnation], None]

    def connect(self) -> None:
        """Get ready for the rest. Blocks; called in a thread of the heartbeat's.

        Raises:
            Exception: Whatever Kombu and its drivers raise while the broker is away.
        """
        ...

    def transport_for(self, node: str) -> Transport:
        """Make the transport of the shard that a node is in. Connects to nothing."""
        ...

    def claim_as(self, incarnation: Incarnation) -> None:
        """Take messages as this incarnation from now on."""
        ...

    def is_fenced(self, incarnation: Incarnation) -> bool:
        """Ask whether an incarnation is known to be dead. Blocks for a round trip.

        Raises:
            Exception: The broker could not be asked.
        """
        ...

    def fence(self, incarnation: Incarnation) -> None:
        """Let go of what this worker held as an incarnation that was declared dead.

        Does not block, may be called twice, and from any thread.
        """
        ...

    def custody(self, heartbeat: Heartbeat, announcer: Announcer, in_worker: InWorker) -> Custody:
        """Begin to answer, in this heartbeat's name, for what the dead held.

        Args:
            heartbeat: Who answers.
            announcer: Sends the signals.
            in_worker: Runs what belongs to the worker's own threads or greenlets.
        """
        ...

    def may_begin(self, request: Any) -> bool:
        """Tell, right before a task runs, whether it still is this worker's.

        Called in the thread that runs it; blocks, and not for long, only after a pause of this
        process.
        """
        ...

    def waits(self, consumer: Any) -> Hashable | None:
        """Tell for what a consumer waits that should have come by now.

        Called again and again, from the heartbeat's thread, while the consumer's loop turns; must
        not block. As long as it gives the same, nothing has come.

        Args:
            consumer: Celery's consumer, which may be without a connection.

        Returns:
            Something that is another when anything has come; ``None`` if nothing has to come.
        """
        ...

    def owes(self, consumer: Any) -> bool:
        """Ask the broker whether what :meth:`waits` told of should have come.

        Called rarely, when it has been the same for long. Blocks, in a thread of the heartbeat's,
        and must not use the consumer's connection.

        Raises:
            Exception: The broker is away, which is no silence of that connection.
        """
        ...

    def hang_up(self, consumer: Any) -> None:
        """End a consumer's connection, so that it sees an error and connects again.

        Called in the heartbeat's thread; must neither block nor wait for the consumer.
        """
        ...

    def attach(self, consumer: Any) -> None:
        """Make a worker's consumer claim what it takes. Called in its thread at each connection.

        Raises:
            Exception: It works on without claims; or one of the connection's own errors, at which
                it connects again.
        """
        ...
