"""What the adapter's queues are called in RabbitMQ."""

import attrs

from heartbeat_core import Incarnation, shard_of
from heartbeat_kombu.connections import name_of

__all__ = ("Names",)


@attrs.frozen
class Names:
    """The queues of one fleet.

    Attributes:
        namespace: The fleet.
        shards: Into how many it is split.
    """

    namespace: str
    shards: int

    @property
    def dead_letters(self) -> str:
        """Holds the messages that are not delivered any more, until somebody decides."""
        return f"{name_of(self.namespace)}.dead-letters"

    def shard(self, node: str) -> str:
        """Give the namespace of the shard that a node is in."""
        return shard_of(self.namespace, node, self.shards)

    def verdicts(self, node: str) -> str:
        """Holds what has to be told of the tasks of a node's shard."""
        return name_of(self.shard(node), "verdicts")

    def running(self, owner: Incarnation) -> str:
        """Leads to what an incarnation runs although it has acknowledged it."""
        return name_of(self.shard(owner.node), "running", str(owner))

    def holds(self, owner: Incarnation) -> str:
        """Is always empty; it is consumed by each connection by which an incarnation takes tasks.

        So the broker can be asked which connections those are.
        """
        return name_of(self.shard(owner.node), "holds", str(owner))
