"""The part of the suite for transports that know who is connected."""

from collections.abc import Collection

import anyio

from heartbeat_core._beat import Incarnation
from heartbeat_core._transport import Presence
from heartbeat_core.testing._abilities import attends
from heartbeat_core.testing._suite import (
    ANY_BYTES,
    ODD_NAMES,
    A,
    B,
    Suite,
    drain,
    refused,
    same,
)

__all__ = ("Attending",)

ABSENT = Incarnation("absent", 1)


class Attending(Suite):
    """What ``Presence`` promises."""

    async def _become_present(
        self, observer: Presence, asked: Collection[Incarnation], present: Collection[Incarnation]
    ) -> None:
        async def ask() -> frozenset[Incarnation]:
            return (await observer.connections(asked)).connected

        await self._becomes(ask, frozenset(present), "who is present")

    async def test_who_attends_is_present(self) -> None:
        """An incarnation is present within the context, and not before or after."""
        async with self._opened() as make:
            one, other = attends(make()), attends(make())
            async with one.attend(A):
                same((await one.connections([B])).connected, frozenset[Incarnation](), "before")
                async with other.attend(B):
                    for each in (one, other):
                        seen = await each.connections([A, B])
                        same(seen.connected, frozenset({A, B}), "within")
                await self._become_present(one, [A, B], [A])

    async def test_an_answer_is_about_who_was_asked_about(self) -> None:
        """``asked`` is what was asked, ``connected`` part of it; any number is answered."""
        async with self._opened() as make:
            transport = attends(make())
            many = [Incarnation("absent", number) for number in range(1500)]
            async with transport.attend(A):
                for asked, present in (([], []), ([B], []), ([A], [A]), ([*many, A], [A])):
                    seen = await transport.connections(asked)
                    same(seen.asked, frozenset(asked), "asked")
                    same(seen.connected, frozenset(present), "connected")

    async def test_another_incarnation_is_somebody_else(self) -> None:
        """That one incarnation of a node is present says nothing of its others."""
        async with self._opened() as make:
            transport = attends(make())
            lives = [Incarnation("a", number) for number in (1, 2, 11, 21)]
            async with transport.attend(lives[0]):
                seen = await transport.connections(lives)
                same(seen.connected, frozenset(lives[:1]), "which life is present")

    async def test_who_does_not_attend_is_told_nothing(self) -> None:
        """Asking raises before a transport attends, and after."""
        async with self._opened() as make:
            transport = attends(make())
            await refused([("asking before attending", transport.connections([A]))])
            async with transport.attend(A):
                await transport.connections([A])
            await refused([("asking after attending", transport.connections([A]))])

    async def test_attending_again_is_another_session(self) -> None:
        """The session stays while the connection does, and is never the same afterwards."""
        async with self._opened() as make:
            transport = attends(make())
            sessions: list[int] = []
            for _ in range(3):
                async with transport.attend(A):
                    before = await transport.connections([A])
                    after = await transport.connections([B])
                    same(after.session, before.session, "the session of one connection")
                    sessions.append(after.session)
            same(len(set(sessions)), 3, "sessions of three connections")

    async def test_what_is_posted_reaches_one_inbox(self) -> None:
        """Its addressee gets it, once, and no subscriber and no other inbox does."""
        async with self._opened() as make:
            one, other, stranger = attends(make()), attends(make()), attends(make())
            async with (
                one.attend(A) as its,
                other.attend(B) as inbox,
                one.subscribe() as beats,
            ):
                await stranger.post(b"from a stranger", B)
                await one.post(b"from a node", B)
                await other.post(b"from itself", B)
                await one.publish(b"a beat", sender=A, ttl=0)
                taken = await self._take(inbox, 3)
                same(taken, [b"from a node", b"from a stranger", b"from itself"], "the inbox")
                same(await self._take(beats, 1), [b"a beat"], "what subscribers get")
                await self._nothing_more(its, inbox, beats)

    async def test_posting_to_the_absent_does_nothing(self) -> None:
        """It raises nothing, and nothing waits for whom it was for."""
        async with self._opened() as make:
            transport = attends(make())
            await transport.post(b"too early", B)
            async with transport.attend(A) as other, transport.subscribe() as beats:
                await transport.post(b"to nobody", ABSENT)
                await self._nothing_more(other, beats)
            async with transport.attend(B) as inbox:
                await self._nothing_more(inbox)

    async def test_presence_of_namespaces_is_apart(self) -> None:
        """Who is present in one namespace is absent in all others, and not posted to."""
        async with self._opened() as make:
            one, other = attends(make()), attends(make("-other"))
            async with one.attend(A) as inbox, other.attend(B):
                same((await one.connections([A, B])).connected, frozenset({A}), "in one")
                same((await other.connections([A, B])).connected, frozenset({B}), "in other")
                await other.post(b"foreign", A)
                await self._nothing_more(inbox)

    async def test_any_name_can_attend(self) -> None:
        """Whatever a node is called, it is present, and the only one that gets its post."""
        async with self._opened() as make:
            observer, transport = attends(make()), attends(make())
            nodes = [Incarnation(name, 1) for name in ODD_NAMES]
            async with observer.attend(Incarnation("observer", 1)):
                for node in nodes:
                    await self._become_present(observer, nodes, [])
                    async with transport.attend(node) as inbox:
                        await self._become_present(observer, nodes, [node])
                        for each in nodes:
                            await observer.post(each.node.encode(), each)
                        taken = await self._take(inbox, 1)
                        same(taken, [node.node.encode()], f"what {node.node!r:.20} gets")

    async def test_post_is_any_bytes(self) -> None:
        """What is read is what was posted."""
        async with self._opened() as make:
            transport = attends(make())
            async with transport.attend(A) as inbox:
                for data in ANY_BYTES:
                    await transport.post(data, A)
                taken = await self._take(inbox, len(ANY_BYTES))
                same(taken, sorted(ANY_BYTES), "the inbox")

    async def test_attending_can_be_cancelled_at_any_time(self) -> None:
        """Wherever it is cancelled, the incarnation is absent then, and can attend again."""
        async with self._opened() as make:
            observer, transport = attends(make()), attends(make())
            async with observer.attend(A):
                for step in range(40):
                    with anyio.move_on_after(step / 8000):
                        async with transport.attend(B) as inbox:
                            await drain(inbox)
                await self._become_present(observer, [B], [])
                async with transport.attend(B):
                    await self._become_present(observer, [B], [B])

    async def test_closing_ends_presence(self) -> None:
        """Who is closed is absent, and its inbox raises, even if it is still waited for."""
        async with self._opened() as make:
            observer, transport = attends(make()), attends(make())
            async with observer.attend(A), transport.attend(B) as inbox:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(refused, [("an inbox that is closed", drain(inbox))])
                    await anyio.sleep(0.01)
                    await transport.aclose()
                await self._become_present(observer, [B], [])
