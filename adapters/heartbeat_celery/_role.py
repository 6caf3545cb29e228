"""What a node is besides its heartbeat: a worker, or a scheduler."""

from typing import Any, Protocol

from heartbeat_core import Status

__all__ = ("Role",)


class Role(Protocol):
    """What a node says of itself, and what runs beside its beats.

    Attributes:
        observes: Whether it judges the others, and recovers what the dead held.
    """

    observes: bool

    def attach(self, consumer: Any) -> None:
        """Meet a worker's consumer. Called in its thread, at each connection."""
        ...

    def is_stalled(self) -> bool:
        """Tell, before each beat, whether it lives and does no work."""
        ...

    def status(self) -> Status:
        """Give what each beat says."""
        ...

    async def run(self) -> None:
        """Run as long as the heartbeat, in its event loop."""
        ...
