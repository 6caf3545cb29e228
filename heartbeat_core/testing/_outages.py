"""The part of the suite in which connections break and the broker goes away."""

from collections.abc import Awaitable, Callable

import anyio

from heartbeat_core._beat import Incarnation
from heartbeat_core._errors import TransportError
from heartbeat_core._transport import LastBeats, Presence, Transport
from heartbeat_core.testing._abilities import attends, remembers
from heartbeat_core.testing._suite import A, B, Suite, drain, enter, refused, same

__all__ = ("Outages",)


class Outages(Suite):
    """What is promised of errors, and of what comes after them."""

    async def test_a_cut_is_told_to_whoever_iterates(self) -> None:
        """An iteration raises when its connection is cut, whether it waits then or not."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as batches:
                await self.cut()
                await refused([("iterating what was cut", drain(batches))])
            async with transport.subscribe() as batches, anyio.create_task_group() as tasks:
                tasks.start_soon(refused, [("iterating what is cut", drain(batches))])
                await anyio.sleep(self.grace)
                await self.cut()

    async def test_a_cut_costs_one_call_at_most(self) -> None:
        """The first call that meets a broken connection may raise, the next one works."""
        async with self._opened() as make:
            transport = make()
            for _ in range(3):
                await self._works(transport)
                await self.cut()
                await _call_again(transport)
            await self._works(transport)

    async def test_a_cut_ends_presence(self) -> None:
        """Who is cut off is absent for the others, and told nothing until it attends again."""
        async with self._opened() as make:
            observer, transport = attends(make()), attends(make())
            async with transport.attend(B) as inbox:
                before = await transport.connections([B])
                await self.cut()
                await refused(
                    [
                        ("an inbox that was cut", drain(inbox)),
                        ("asking who is present, cut off", transport.connections([B])),
                    ]
                )
                async with observer.attend(A):

                    async def ask() -> frozenset[Incarnation]:
                        return (await observer.connections([B])).connected

                    await self._becomes(ask, frozenset[Incarnation](), "present after a cut")
            async with transport.attend(B):
                after = await transport.connections([B])
                same(after.connected, frozenset({B}), "present after attending again")
            same({after.session} & {before.session}, set[int](), "the old session after a cut")

    async def test_while_the_broker_is_away_everything_raises(self) -> None:
        """Each call raises a ``TransportError`` and nothing else; closing raises nothing."""
        async with self._opened() as make:
            transport, unused = make(), make()
            await transport.publish(b"1", sender=A, ttl=0)
            async with self._stopped():
                for each in (transport, unused, transport):
                    for what, call in _calls(each).items():
                        await refused([(what, call())])
                await transport.aclose()
                await transport.aclose()

    async def test_an_outage_is_told_to_whoever_iterates(self) -> None:
        """Whoever waits for messages when the broker goes away gets a ``TransportError``."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as batches, anyio.create_task_group() as tasks:
                tasks.start_soon(refused, [("iterating when the broker goes", drain(batches))])
                await anyio.sleep(self.grace)
                async with self._stopped():
                    pass

    async def test_after_an_outage_it_goes_on(self) -> None:
        """When the broker is back the next call works, for whoever has noticed that it was not."""
        async with self._opened() as make:
            transport = make()
            for _ in range(2):
                await self._works(transport)
                async with self._stopped():
                    for what, call in _calls(transport).items():
                        await refused([(what, call())])
                for call in _calls(transport).values():
                    await call()
            await self._works(transport)

    async def test_an_outage_that_nobody_noticed_costs_one_call_at_most(self) -> None:
        """If nothing was called meanwhile, the first call may raise, the next one works."""
        async with self._opened() as make:
            transport = make()
            for _ in range(2):
                await self._works(transport)
                async with self._stopped():
                    pass
                await _call_again(transport)
            await self._works(transport)

    async def test_after_an_outage_last_beats_are_kept_again(self) -> None:
        """What is published after an outage can be read."""
        async with self._opened() as make:
            transport = remembers(make())
            async with self._stopped():
                await refused([("reading last beats", transport.last_beats())])
            await transport.publish(b"new", sender=A, ttl=30)
            same(list(await transport.last_beats(["a"])), [b"new"], "after an outage")

    async def test_an_outage_ends_presence(self) -> None:
        """Who attended when the broker went away does not any more, and may again."""
        async with self._opened() as make:
            transport = attends(make())
            sessions: list[int] = []
            for _ in range(2):
                async with transport.attend(A) as inbox:
                    sessions.append((await transport.connections([A])).session)
                    async with self._stopped():
                        await refused([("an inbox without a broker", drain(inbox))])
                    await refused([("asking after an outage", transport.connections([A]))])
            same(len(set(sessions)), 2, "sessions before and after an outage")

    async def _works(self, transport: Transport) -> None:
        """Send something, and hear it."""
        async with transport.subscribe() as batches:
            await transport.publish(b"works", sender=A, ttl=0)
            same(await self._take(batches, 1), [b"works"], "what is heard")


async def _call_again(transport: Transport) -> None:
    """Call everything where connections may be broken, and once more what has found one."""
    for call in _calls(transport).values():
        try:
            await call()
        except TransportError:
            await call()


def _calls(transport: Transport) -> dict[str, Callable[[], Awaitable[object]]]:
    """Give all that a transport can be asked for without attending."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "publishing": lambda: transport.publish(b"1", sender=A, ttl=0),
        "subscribing": lambda: enter(transport.subscribe()),
    }
    if isinstance(transport, LastBeats):
        calls["reading last beats"] = transport.last_beats
    if isinstance(transport, Presence):
        calls["posting"] = lambda: transport.post(b"1", B)
        calls["attending"] = lambda: enter(transport.attend(A))
    return calls
