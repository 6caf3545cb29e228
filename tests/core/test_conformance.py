"""The suite for transports finds each promise that is broken, and says which."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar
from unittest import SkipTest

import anyio
import anyio.to_thread
import pytest

from heartbeat_core import (
    Connections,
    Incarnation,
    MemoryBroker,
    MemoryTransport,
    TransportError,
)
from heartbeat_core._memory import _Contender
from heartbeat_core.testing import TransportConformance

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


class Proxy:
    """A memory transport that breaks a promise; those below say which."""

    def __init__(self, broker: MemoryBroker, namespace: str) -> None:
        self.memory = MemoryTransport(broker, namespace=namespace)
        self.namespace = namespace

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        await self.memory.publish(data, sender=sender, ttl=ttl)

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        return self.memory.subscribe()

    async def aclose(self) -> None:
        await self.memory.aclose()


class Changed(Proxy):
    """Changes what is iterated."""

    @staticmethod
    async def change(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[Sequence[bytes]]:
        async for batch in batches:
            yield batch

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:  # type: ignore[override]
        async with self.memory.subscribe() as batches:
            changed = self.change(batches)
            try:
                yield changed
            finally:
                await changed.aclose()  # type: ignore[attr-defined]


class Empty(Changed):
    """Gives empty batches."""

    @staticmethod
    async def change(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[Sequence[bytes]]:
        async for batch in batches:
            yield []
            yield batch


class Twice(Changed):
    """Gives everything twice."""

    @staticmethod
    async def change(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[Sequence[bytes]]:
        async for batch in batches:
            yield batch
            yield batch


class Text(Changed):
    """Gives text."""

    @staticmethod
    async def change(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[Sequence[bytes]]:
        async for batch in batches:
            yield [data.decode() for data in batch]  # type: ignore[misc]


class Ending(Changed):
    """Ends where it should raise."""

    @staticmethod
    async def change(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[Sequence[bytes]]:
        try:
            async for batch in batches:
                yield batch
        except TransportError:
            return


class Stripping(Proxy):
    """Takes zeros for padding."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        await super().publish(data.strip(b"\x00"), sender=sender, ttl=ttl)


class Losing(Proxy):
    """Loses one in ten."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        if not data.endswith(b"7"):
            await super().publish(data, sender=sender, ttl=ttl)


class Foreign(Proxy):
    """Raises what its client raises."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        try:
            await super().publish(data, sender=sender, ttl=ttl)
        except TransportError as exc:
            raise OSError("the client's own error") from exc


class Silent(Proxy):
    """Hides that the broker is away."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        try:
            await super().publish(data, sender=sender, ttl=ttl)
        except TransportError:
            pass


class OneNamespace(Proxy):
    """Mixes the namespaces."""

    everybody = MemoryBroker()

    def __init__(self, broker: MemoryBroker, namespace: str) -> None:
        super().__init__(broker, namespace)
        self.memory = MemoryTransport(self.everybody)


class Nameless(Proxy):
    """Forgets its namespace."""

    def __init__(self, broker: MemoryBroker, namespace: str) -> None:
        super().__init__(broker, namespace)
        self.namespace = "default"


class ThreadUser(Proxy):
    """Needs one of the application's threads."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        await anyio.to_thread.run_sync(bool)
        await super().publish(data, sender=sender, ttl=ttl)


class CloseOnce(Proxy):
    """Raises when it is closed twice."""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise TransportError("closed already")
        self.closed = True
        await super().aclose()


class Unclosed(Proxy):
    """Does not close what is iterated."""

    async def aclose(self) -> None:
        pass


class Stubborn(Proxy):
    """Does not let a reader go when it is cancelled."""

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Sequence[bytes]]]:  # type: ignore[override]
        async with self.memory.subscribe() as batches:
            try:
                yield batches
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2)


class Stale(Proxy):
    """Learns by a call that its connection is gone, as it is allowed to."""

    stale = False

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        if self.stale:
            self.stale = False
            raise TransportError("the connection is gone")
        await super().publish(data, sender=sender, ttl=ttl)


class Broken(Stale):
    """Learns it twice."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        if self.stale:
            raise TransportError("the connection is gone")
        await super().publish(data, sender=sender, ttl=ttl)


class Remembering(Proxy):
    """Keeps last beats."""

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        return await self.memory.last_beats(nodes)


class AllOfThem(Remembering):
    """Takes an empty list for no list."""

    async def last_beats(self, nodes: Collection[str] | None = None) -> Sequence[bytes]:
        return await super().last_beats(nodes or None)


class Forgetting(Remembering):
    """Takes seconds for milliseconds."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        await super().publish(data, sender=sender, ttl=ttl / 1000)


class Eternal(Remembering):
    """Keeps everything."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        await super().publish(data, sender=sender, ttl=ttl + 30)


class Quiet(Remembering):
    """Sends no goodbye."""

    async def publish(self, data: bytes, *, sender: Incarnation, ttl: float) -> None:
        if ttl:
            await super().publish(data, sender=sender, ttl=ttl)
        else:
            self.memory.broker.last.pop(sender.node, None)


class Attending(Proxy):
    """Knows who is connected."""

    def attend(
        self, incarnation: Incarnation
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        return self.memory.attend(incarnation)

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        return await self.memory.connections(incarnations)

    async def post(self, data: bytes, to: Incarnation) -> None:
        await self.memory.post(data, to)


class OneSession(Attending):
    """Has one session for ever."""

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        seen = await super().connections(incarnations)
        return Connections(session=1, asked=seen.asked, connected=seen.connected)


class EverybodyPresent(Attending):
    """Holds all for present."""

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        seen = await super().connections(incarnations)
        return Connections(session=seen.session, asked=seen.asked, connected=seen.asked)


class Broadcasting(Attending):
    """Posts to everybody."""

    async def post(self, data: bytes, to: Incarnation) -> None:
        await super().post(data, to)
        await self.publish(data, sender=to, ttl=0)


class Lingering(Attending):
    """Holds whoever has attended for present ever after."""

    ever: ClassVar[set[Incarnation]] = set()

    def attend(
        self, incarnation: Incarnation
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[bytes]]]:
        self.ever.add(incarnation)
        return super().attend(incarnation)

    async def connections(self, incarnations: Collection[Incarnation]) -> Connections:
        seen = await super().connections(incarnations)
        connected = seen.connected | self.ever & seen.asked
        return Connections(session=seen.session, asked=seen.asked, connected=connected)


class Contending(Proxy):
    """Gives out seats."""

    def contend(
        self, incarnation: Incarnation, seats: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bool]]:
        return self.memory.contend(incarnation, seats)


class Generous(Contending):
    """Has a seat for everybody."""

    def contend(
        self, incarnation: Incarnation, seats: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bool]]:
        return super().contend(incarnation, 1000 * seats)


class Clinging(Contending):
    """Keeps the seats of those that have left."""

    @asynccontextmanager
    async def contend(  # type: ignore[override]
        self, incarnation: Incarnation, seats: int
    ) -> AsyncIterator[AsyncIterator[bool]]:
        contender = _Contender(incarnation, seats)
        self.memory.broker.contend(contender)
        yield contender


def suite(kind: Callable[[MemoryBroker, str], Proxy]) -> TransportConformance:
    """Make a suite for a kind of transport."""

    class Suite(TransportConformance):
        timeout = 0.5
        grace = 0.02

        @asynccontextmanager
        async def transports(self) -> AsyncIterator[Callable[[str], Proxy]]:
            self.brokers: dict[str, MemoryBroker] = {}
            self.made: list[Proxy] = []

            def make(name: str) -> Proxy:
                self.made.append(kind(self.brokers.setdefault(name, MemoryBroker()), name))
                return self.made[-1]

            # In a task group, as many a fixture is: what it wraps comes out as itself.
            async with anyio.create_task_group():
                yield make

        async def cut(self) -> None:
            await self.stop()
            await self.start()

        async def stop(self) -> None:
            for broker in self.brokers.values():
                broker.stop()
            for transport in self.made:
                if isinstance(transport, Stale):
                    transport.stale = True

        async def start(self) -> None:
            for broker in self.brokers.values():
                broker.start()

    return Suite()


@pytest.mark.parametrize(
    ("kind", "test", "complaint"),
    [
        (Empty, "everybody_hears_everybody", "empty"),
        (Twice, "everybody_hears_everybody", "not again"),
        (Text, "everybody_hears_everybody", "promised bytes"),
        (Ending, "closing_ends_what_is_iterated", "only an error ends it"),
        (Ending, "an_outage_is_told_to_whoever_iterates", "only an error ends it"),
        (Unclosed, "closing_ends_what_is_iterated", "not done within"),
        (Stripping, "every_byte_survives", "of 261 messages|what arrives"),
        (Losing, "a_thousand_messages_may_be_unread", "of 1000 messages 900 came"),
        (Foreign, "while_the_broker_is_away_everything_raises", "client's own error"),
        (Silent, "while_the_broker_is_away_everything_raises", "publishing raised nothing"),
        (OneNamespace, "namespaces_are_apart", "what is heard|nobody should get"),
        (Nameless, "a_transport_knows_its_namespace", "the namespace of a transport"),
        (ThreadUser, "an_application_may_use_up_its_threads", "not done within"),
        (CloseOnce, "a_transport_can_be_closed_twice", "closed already"),
        (Stubborn, "a_waiting_reader_can_be_cancelled", "took 0.2 s to leave"),
        (Broken, "a_cut_costs_one_call_at_most", "connection is gone"),
        (Broken, "an_outage_that_nobody_noticed_costs_one_call_at_most", "connection is gone"),
        (AllOfThem, "some_can_be_asked_for", "asked for none"),
        (Forgetting, "last_beats_expire", "promised .b'long'"),
        (Eternal, "last_beats_expire", "after the ttl"),
        (Eternal, "a_ttl_of_zero_removes", "after a goodbye"),
        (Quiet, "a_ttl_of_zero_removes", "of 1 messages 0 came"),
        (OneSession, "attending_again_is_another_session", "sessions of three connections"),
        (OneSession, "an_outage_ends_presence", "sessions before and after"),
        (EverybodyPresent, "who_attends_is_present", "before"),
        (Broadcasting, "what_is_posted_reaches_one_inbox", "subscribers|nobody should get"),
        (Generous, "as_many_hold_a_seat_as_there_are", "three seats are held"),
        (Clinging, "who_leaves_gives_its_seat_to_another", "of two seats"),
        (Lingering, "attending_can_be_cancelled_at_any_time", "who is present"),
    ],
)
async def test_a_broken_promise_is_found(kind: Any, test: str, complaint: str) -> None:
    """The suite fails for a transport that breaks a promise, and says which."""
    # What the transport gave or raised is shown as what it is, not in a group.
    with pytest.raises((AssertionError, TransportError), match=complaint):
        await getattr(suite(kind), f"test_{test}")()


@pytest.mark.parametrize(
    ("kind", "test", "reason"),
    [
        (Proxy, "the_last_beat_of_each_node_can_be_read", "keeps no last beats"),
        (Remembering, "who_attends_is_present", "does not know who is connected"),
        (Remembering, "the_only_contender_has_a_seat", "gives out no seats"),
    ],
)
async def test_what_a_transport_cannot_do_is_skipped(kind: Any, test: str, reason: str) -> None:
    """An ability that is not there, or that nobody can try, is no failure, and says so."""
    with pytest.raises(SkipTest, match=reason):
        await getattr(suite(kind), f"test_{test}")()


async def test_who_says_too_little_is_told() -> None:
    """A suite without transports, or with a stop and no start, says what is missing."""
    with pytest.raises(NotImplementedError, match="override transports"):
        await TransportConformance().test_everybody_hears_everybody()
    with pytest.raises(NotImplementedError, match="override start"):
        await TransportConformance().start()
    for hook in ("stop", "cut"):
        with pytest.raises(SkipTest, match=f"how to {hook}"):
            await getattr(TransportConformance(), hook)()


@pytest.mark.parametrize("what", ["a_cut_costs", "an_outage_that_nobody_noticed_costs"])
async def test_what_is_allowed_is_no_fault(what: str) -> None:
    """A transport may need a call to learn that its connection is gone."""
    await getattr(suite(Stale), f"test_{what}_one_call_at_most")()
