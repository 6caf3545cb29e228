"""The part of the suite for transports that keep last beats."""

import anyio

from heartbeat_core._beat import Incarnation
from heartbeat_core.testing._abilities import remembers
from heartbeat_core.testing._suite import ANY_BYTES, ODD_NAMES, A, B, Suite, same

__all__ = ("Remembering",)


class Remembering(Suite):
    """What ``LastBeats`` promises."""

    async def test_the_last_beat_of_each_node_can_be_read(self) -> None:
        """There is one a node, the last of its last incarnation, for whoever asks."""
        async with self._opened() as make:
            transport, observer = remembers(make()), remembers(make())
            for data in (b"a1", b"a2"):
                await transport.publish(data, sender=A, ttl=30)
            await transport.publish(b"a3", sender=Incarnation("a", 2), ttl=30)
            await transport.publish(b"b1", sender=B, ttl=30)
            for each in (transport, observer):
                same(sorted(await each.last_beats()), [b"a3", b"b1"], "the last beats of all")

    async def test_some_can_be_asked_for(self) -> None:
        """Only what was asked for is given; of whom nothing is known, nothing."""
        async with self._opened() as make:
            transport = remembers(make())
            same(list(await transport.last_beats()), [], "the last beats of nobody")
            await transport.publish(b"a", sender=A, ttl=30)
            await transport.publish(b"b", sender=B, ttl=30)
            same(list(await transport.last_beats(["b"])), [b"b"], "asked for b")
            same(list(await transport.last_beats({"a", "nobody"})), [b"a"], "asked for a")
            same(list(await transport.last_beats(["nobody"])), [], "asked for nobody")
            same(list(await transport.last_beats([])), [], "asked for none")

    async def test_last_beats_expire(self) -> None:
        """A last beat is kept for its ttl in seconds, no more and no less."""
        async with self._opened() as make:
            transport = remembers(make())
            await transport.publish(b"short", sender=A, ttl=0.1)
            await transport.publish(b"long", sender=B, ttl=self.timeout + 1)

            async def ask() -> list[bytes]:
                return list(await transport.last_beats())

            await self._becomes(ask, [b"long"], "after the ttl of the other")
            await anyio.sleep(self.grace)
            same(list(await transport.last_beats(["a"])), [], "what has expired")
            same(list(await transport.last_beats(["b"])), [b"long"], "what has not")

    async def test_a_beat_begins_its_time_anew(self) -> None:
        """How long a beat is kept is said by itself, not by the ones before it."""
        async with self._opened() as make:
            transport = remembers(make())
            await transport.publish(b"a1", sender=A, ttl=0.1)
            await transport.publish(b"a2", sender=A, ttl=30)
            await transport.publish(b"b1", sender=B, ttl=30)
            await transport.publish(b"b2", sender=B, ttl=0.1)

            async def ask() -> list[bytes]:
                return list(await transport.last_beats())

            await self._becomes(ask, [b"a2"], "after the shorter ttl")

    async def test_a_ttl_of_zero_removes(self) -> None:
        """A goodbye reaches the subscribers, and leaves nothing of its node, and the others."""
        async with self._opened() as make:
            transport = remembers(make())
            await transport.publish(b"a", sender=A, ttl=30)
            await transport.publish(b"b", sender=B, ttl=30)
            async with transport.subscribe() as batches:
                await transport.publish(b"goodbye", sender=A, ttl=0)
                same(await self._take(batches, 1), [b"goodbye"], "what subscribers get")
            same(list(await transport.last_beats()), [b"b"], "after a goodbye")
            same(list(await transport.last_beats(["a"])), [], "after a goodbye")
            await transport.publish(b"a again", sender=A, ttl=30)
            same(list(await transport.last_beats(["a"])), [b"a again"], "after a return")

    async def test_last_beats_outlive_their_sender(self) -> None:
        """What is kept does not go with the transport that sent it."""
        async with self._opened() as make:
            sender, observer = remembers(make()), remembers(make())
            await sender.publish(b"a", sender=A, ttl=30)
            await sender.aclose()
            same(list(await observer.last_beats()), [b"a"], "after its sender was closed")

    async def test_last_beats_of_namespaces_are_apart(self) -> None:
        """Nodes of one name in two namespaces have each their own last beat."""
        async with self._opened() as make:
            one, other = remembers(make()), remembers(make("-other"))
            await one.publish(b"one", sender=A, ttl=30)
            same(list(await other.last_beats()), [], "in the other namespace")
            await other.publish(b"other", sender=A, ttl=30)
            same(list(await one.last_beats()), [b"one"], "in the first namespace")
            await other.publish(b"goodbye", sender=A, ttl=0)
            same(list(await one.last_beats(["a"])), [b"one"], "in the first namespace")

    async def test_last_beats_hold_any_bytes_of_any_name(self) -> None:
        """What is read is what was sent, and names that look alike are not mixed up."""
        async with self._opened() as make:
            transport = remembers(make())
            sent = dict(zip(ODD_NAMES, reversed(ANY_BYTES), strict=False))
            for name, data in sent.items():
                await transport.publish(data, sender=Incarnation(name, 1), ttl=30)
            for name, data in sent.items():
                same(list(await transport.last_beats([name])), [data], f"of {name!r:.20}")
            same(sorted(await transport.last_beats()), sorted(sent.values()), "of all")

    async def test_a_thousand_nodes_have_last_beats(self) -> None:
        """However many nodes there are, none is left out, and many may be asked for."""
        async with self._opened() as make:
            transport = remembers(make())
            names = [f"n{number:04}" for number in range(1100)]
            for name in names:
                await transport.publish(name.encode(), sender=Incarnation(name, 1), ttl=60)
            sent = [name.encode() for name in names]
            same(sorted(await transport.last_beats()), sent, "of all")
            same(sorted(await transport.last_beats(names[5:])), sent[5:], "of some")
