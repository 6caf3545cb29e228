"""Shards: a fleet too large for one observer is many small ones.

Each shard has a namespace of its own, and so its own beats, last beats and observers; which one a
node belongs to follows from its name alone. So what an observer has to do is bounded, and nodes
that do not agree on the number of shards, while it is being changed, do each other no harm.
"""

import zlib

__all__ = ("all_shards", "shard_of")


def shard_of(namespace: str, node: str, shards: int) -> str:
    """Give the namespace of the shard that a node belongs to.

    Args:
        namespace: The fleet.
        node: The node's name.
        shards: Into how many the fleet is split. With 1 its shard is the fleet itself.
    """
    return all_shards(namespace, shards)[zlib.crc32(node.encode()) % shards]


def all_shards(namespace: str, shards: int) -> list[str]:
    """Give the namespaces of all shards of a fleet.

    Args:
        namespace: The fleet.
        shards: Into how many it is split.
    """
    return [namespace] if shards == 1 else [f"{namespace}/{number}" for number in range(shards)]
