"""A memory broker behind a network that has faults."""

import math
from collections.abc import Iterable

import attrs

from heartbeat_core._memory import MemoryBroker, MemoryTransport
from heartbeat_core.testing._link import Link, LinkTransport

__all__ = ("MemoryNetwork",)


def _probability(_instance: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} ({value!r}) is a probability: between 0 and 1")


def _in_order(
    _instance: object,
    _attribute: "attrs.Attribute[tuple[float, float]]",
    value: tuple[float, float],
) -> None:
    least, most = value
    if not 0 <= least <= most < math.inf:
        raise ValueError(f"delay ({value!r}) is (least, most) in seconds: 0 <= least <= most")


@attrs.define(kw_only=True)
class MemoryNetwork:
    """Brings transports together through a broker in this process, and loses what it is told to.

    Loss, duplication and delay hit what is on its way from the broker to a reader, each copy for
    itself. What the broker keeps (last beats, who is present) is as it should be.

    The same seed, and the same messages to a reader in the same order, give it the same faults,
    whatever the others get. Delays are waited for on the event loop's clock, so a virtual one
    (trio's ``MockClock``) makes a whole run replayable, and fast. Use it from one event loop.

    Attributes:
        seed: Decides who is hit.
        loss: The probability that a message does not reach a reader.
        duplication: The probability that a message which does, does so twice.
        delay: How long a message takes, in seconds: at least and at most. Each copy takes a time
            of its own, so they overtake each other, unless both numbers are the same.
        backlog: So many messages a reader may leave unread; of more, the newest stay.

    All but ``seed`` and ``backlog`` may be set at any time, for what is sent afterwards.

    Raises:
        ValueError: A probability is not between 0 and 1, or a delay not in order.
    """

    seed: int = 0
    loss: float = attrs.field(default=0.0, validator=_probability)
    duplication: float = attrs.field(default=0.0, validator=_probability)
    delay: tuple[float, float] = attrs.field(default=(0.0, 0.0), validator=_in_order)
    backlog: int = 10_000
    _up: bool = attrs.field(default=True, init=False)
    _brokers: dict[str, MemoryBroker] = attrs.field(factory=dict[str, MemoryBroker], init=False)
    _links: dict[str, Link] = attrs.field(factory=dict[str, Link], init=False)

    def transport(self, node: str, *, namespace: str = "default") -> MemoryTransport:
        """Give a transport, with both abilities, that is a node's end of the network.

        Args:
            node: The name by which the methods below know it. A node may have several.
            namespace: The fleet; namespaces do not see each other.
        """
        broker = self._brokers.get(namespace)
        if broker is None:
            broker = self._brokers[namespace] = MemoryBroker(self._up, backlog=self.backlog)
        return LinkTransport(broker, namespace=namespace, link=self._link(node))

    # -- what can happen to a node ------------------------------------------------------------

    def mute(self, node: str) -> None:
        """Cut the way from a node to the broker: what it sends is lost, without an error.

        It is still connected, so it is present and hears the others; but what needs an answer
        (reading last beats, asking for connections, subscribing, attending) raises.
        """
        self._link(node).mute = True

    def deafen(self, node: str) -> None:
        """Cut the way from the broker to a node: what is sent to it, or on its way, is lost.

        It is still connected, so it is present and the others hear it; but what needs an answer
        raises.
        """
        link = self._link(node)
        link.deaf = True
        link.lose()

    def cut(self, node: str) -> None:
        """Cut both ways, for so long that the connections break: everything raises."""
        link = self._link(node)
        link.cut = True
        link.disconnect()

    def heal(self, node: str | None = None) -> None:
        """Undo the three methods above for a node, or for all; what was lost stays lost."""
        for link in self._chosen(node):
            link.mute = link.deaf = link.cut = False

    def disconnect(self, node: str | None = None) -> None:
        """Break the connections of a node, or of all; it may connect again at once."""
        for link in self._chosen(node):
            link.disconnect()

    # -- what can happen to the broker --------------------------------------------------------

    def stop(self) -> None:
        """Let the broker go away: connections break, and whoever calls gets an error.

        The last beats that have not expired are still there when it is back.
        """
        self._up = False
        for broker in self._brokers.values():
            broker.stop()

    def start(self) -> None:
        """Let the broker come back."""
        self._up = True
        for broker in self._brokers.values():
            broker.start()

    def _link(self, node: str) -> Link:
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = Link(node, self)
        return link

    def _chosen(self, node: str | None) -> Iterable[Link]:
        return self._links.values() if node is None else [self._link(node)]
