"""The part of the suite for transports that give out seats."""

from collections.abc import AsyncIterator, Callable

import anyio
import anyio.abc

from heartbeat_core._beat import Incarnation
from heartbeat_core._errors import TransportError
from heartbeat_core.testing._abilities import Contends, contends
from heartbeat_core.testing._suite import A, B, Make, Suite, refused, same

__all__ = ("Contending",)

LEFT, ENDED = 3.0, 10.0
"""Within so many seconds a seat is given on that was left, or whose holder has ended."""

SOON = 5.0


class _Contender:
    """One that contends in a task of its own, until it is told to leave."""

    def __init__(self, transport: Contends, incarnation: Incarnation, seats: int) -> None:
        self.transport = transport
        self.incarnation = incarnation
        self.seated: bool | None = None
        self.raised = False
        self.left = False
        self._seats = seats
        self._scope = anyio.CancelScope()

    def leave(self) -> None:
        """Contend no more."""
        self.left = True
        self._scope.cancel()

    async def run(self) -> None:
        """Contend."""
        with self._scope:
            try:
                async with self.transport.contend(self.incarnation, self._seats) as answers:
                    await self._follow(answers)
            except TransportError:
                self.raised = True
        self.seated = False

    async def _follow(self, answers: AsyncIterator[bool]) -> None:
        async for seated in answers:
            if seated is self.seated:
                raise AssertionError(f"told {seated!r} twice, promised only what changes")
            if type(seated) is not bool:
                raise AssertionError(f"told {seated!r}, promised true or false")
            self.seated = seated
        raise AssertionError("the iteration ended, promised that only an error ends it")


class Contending(Suite):
    """What ``Seats`` promises."""

    async def test_the_only_contender_has_a_seat(self) -> None:
        """The first answer comes at once."""
        async with self._opened() as make:
            transport = contends(make())
            for seats in (3, 3, 3):
                async with transport.contend(A, seats) as answers:
                    same(await self._answer(answers), True, "the seat of the only contender")

    async def test_as_many_hold_a_seat_as_there_are(self) -> None:
        """Of five contenders three hold one; who comes later gets none, and is told so."""
        async with self._opened() as make, anyio.create_task_group() as tasks:
            many = [self._begin(tasks, make, f"n{number}", 3) for number in range(5)]
            await self._reached(lambda: None not in [each.seated for each in many], SOON, "told")
            await self._reached(lambda: _held(many) == 3, LEFT, "three seats are held")
            await anyio.sleep(self.grace)
            same(_held(many), 3, "seats held after a while")
            for each in many:
                each.leave()

    async def test_who_leaves_gives_its_seat_to_another(self) -> None:
        """Whoever holds them leaves, and others step in, until nobody else is there."""
        async with self._opened() as make, anyio.create_task_group() as tasks:
            many = [self._begin(tasks, make, f"n{number}", 2) for number in range(5)]
            for left in (5, 4, 3, 2, 1):
                expected = min(left, 2)
                await self._reached(
                    lambda expected=expected: _held(many) == expected,  # type: ignore[misc]
                    LEFT + self.grace,
                    f"{expected} of two seats are held with {left} contenders",
                )
                next(each for each in many if each.seated and not each.left).leave()
            await self._reached(lambda: not _held(many), LEFT, "no seat is held")

    async def test_a_transport_that_is_closed_holds_no_seat(self) -> None:
        """Its iteration raises, and another steps in."""
        async with self._opened() as make, anyio.create_task_group() as tasks:
            first = self._begin(tasks, make, "first", 1)
            await self._reached(lambda: bool(first.seated), SOON, "the first has the seat")
            second = self._begin(tasks, make, "second", 1)
            await self._reached(lambda: second.seated is False, SOON, "the second is told")
            await first.transport.aclose()
            await self._reached(lambda: first.raised, SOON, "what was closed raises")
            await self._reached(lambda: bool(second.seated), ENDED, "the second has the seat")
            second.leave()

    async def test_seats_of_namespaces_are_apart(self) -> None:
        """In each there are as many as are asked for."""
        async with self._opened() as make:
            one, other = contends(make()), contends(make("-other"))
            async with one.contend(A, 1) as first, other.contend(B, 1) as second:
                same(await self._answer(first), True, "the seat of one namespace")
                same(await self._answer(second), True, "the seat of the other")

    async def test_without_a_broker_there_is_no_seat(self) -> None:
        """While it is away contending raises, and when it is back there are seats again."""
        async with self._opened() as make, anyio.create_task_group() as tasks:
            holder = self._begin(tasks, make, "a", 1)
            await self._reached(lambda: bool(holder.seated), SOON, "it has the seat")
            async with self._stopped():
                await self._reached(lambda: holder.raised, self.timeout, "what is held raises")
                transport = contends(make())

                async def contend() -> None:
                    async with transport.contend(B, 1) as answers:
                        await anext(answers)

                await refused([("contending", contend())])
            again = self._begin(tasks, make, "c", 1)
            await self._reached(lambda: bool(again.seated or again.raised), ENDED, "there again")
            same(again.raised, False, "contending after the outage raised")
            again.leave()

    # -- for these tests ----------------------------------------------------------------------

    def _begin(self, tasks: anyio.abc.TaskGroup, make: Make, name: str, seats: int) -> _Contender:
        contender = _Contender(contends(make()), Incarnation(name, 1), seats)
        tasks.start_soon(contender.run)
        return contender

    async def _answer(self, answers: AsyncIterator[bool]) -> bool:
        with anyio.move_on_after(self.timeout / 2):
            return await anext(answers)
        raise AssertionError("no answer came, promised that the first one comes at once")

    async def _reached(self, what: Callable[[], bool], seconds: float, promised: str) -> None:
        with anyio.move_on_after(min(seconds, self.timeout * 0.8)):
            while not what():  # noqa: ASYNC110 - what is waited for is the broker's
                await anyio.sleep(0.01)
            return
        raise AssertionError(f"promised within {seconds:g} s: {promised}")


def _held(contenders: list[_Contender]) -> int:
    return sum(bool(each.seated) and not each.left for each in contenders)
