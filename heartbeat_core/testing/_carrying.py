"""The part of the suite that every transport has to pass."""

from contextlib import AsyncExitStack

import anyio
import anyio.to_thread

from heartbeat_core._beat import Incarnation
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

__all__ = ("Carrying",)


class Carrying(Suite):
    """What ``Transport`` promises of publishing, subscribing and closing."""

    async def test_a_transport_knows_its_namespace(self) -> None:
        """``namespace`` is what the transport was made for."""
        async with self._opened() as make:
            same(make().namespace, make().namespace, "the namespace of two transports")
            same(len({make("-a").namespace, make("-b").namespace}), 2, "namespaces of two fleets")

    async def test_everybody_hears_everybody(self) -> None:
        """Each subscriber gets what anybody publishes, its own too, and each message once."""
        async with self._opened() as make:
            one, other = make(), make()
            async with one.subscribe() as mine, other.subscribe() as its:
                await one.publish(b"1", sender=A, ttl=0)
                await other.publish(b"2", sender=B, ttl=0)
                for batches in (mine, its):
                    same(await self._take(batches, 2), [b"1", b"2"], "what a subscriber gets")
                await self._nothing_more(mine, its)

    async def test_two_subscriptions_of_one_transport_are_independent(self) -> None:
        """Each gets everything, and one that is left does not end the other."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as first:
                async with transport.subscribe() as second:
                    await transport.publish(b"1", sender=A, ttl=0)
                    same(await self._take(second, 1), [b"1"], "what the second gets")
                await transport.publish(b"2", sender=A, ttl=0)
                same(await self._take(first, 2), [b"1", b"2"], "what the first gets")

    async def test_namespaces_are_apart(self) -> None:
        """What is published in one namespace is heard in no other, however alike their names."""
        async with self._opened() as make, AsyncExitStack() as stack:
            names = ["-a", "-A", "-a:b", "-a*", "-*", "-a b", "-\u00e4"]
            heard = [await stack.enter_async_context(make(name).subscribe()) for name in names]
            for name in names:
                await make(name).publish(name.encode(), sender=A, ttl=30)
            for name, batches in zip(names, heard, strict=True):
                same(await self._take(batches, 1), [name.encode()], "what is heard")
            await self._nothing_more(*heard)

    async def test_what_was_sent_before_does_not_arrive(self) -> None:
        """A subscriber gets what is sent from its entering on, and nothing older."""
        async with self._opened() as make:
            transport = make()
            await transport.publish(b"before", sender=A, ttl=30)
            async with transport.subscribe() as batches:
                await transport.publish(b"after", sender=A, ttl=30)
                same(await self._take(batches, 1), [b"after"], "what is new")
                await self._nothing_more(batches)

    async def test_what_is_sent_right_after_entering_arrives(self) -> None:
        """Whenever a subscription was entered, the next message is its."""
        async with self._opened() as make:
            sender, observer = make(), make()
            for number in range(20):
                async with observer.subscribe() as batches:
                    await sender.publish(b"%d" % number, sender=A, ttl=0)
                    same(await self._take(batches, 1), [b"%d" % number], "the first message")

    async def test_every_byte_survives(self) -> None:
        """What arrives is what was sent, whatever its bytes, up to 2048 of them."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as batches:
                for data in ANY_BYTES:
                    await transport.publish(data, sender=A, ttl=30)
                taken = await self._take(batches, len(ANY_BYTES))
                same(taken, sorted(ANY_BYTES), "what arrives")

    async def test_every_name_can_send(self) -> None:
        """A sender may have any name that a node may have, and any time to live."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as batches:
                for number, name in enumerate(ODD_NAMES):
                    sender = Incarnation(name, 2**63 - 1 - number)
                    await transport.publish(
                        b"%d" % number, sender=sender, ttl=(0, 0.25, 86_400.0)[number % 3]
                    )
                sent = sorted(b"%d" % number for number in range(len(ODD_NAMES)))
                same(await self._take(batches, len(ODD_NAMES)), sent, "what arrives")

    async def test_a_thousand_messages_may_be_unread(self) -> None:
        """A subscriber that reads late still gets the last 1,000 messages, each once."""
        async with self._opened() as make:
            transport = make()
            async with transport.subscribe() as batches:
                sent = [b"%03d" % number for number in range(1000)]
                for data in sent:
                    await transport.publish(data, sender=A, ttl=30)
                same(await self._take(batches, 1000), sent, "what was unread")
                await self._nothing_more(batches)

    async def test_many_tasks_may_call_at_once(self) -> None:
        """Publishing from 50 tasks at once loses nothing and mixes nothing up."""
        async with self._opened() as make:
            transport = make()

            async def publish(data: bytes) -> None:
                await transport.publish(data, sender=A, ttl=30)

            sent = [bytes([number]) * 500 for number in range(50)]
            async with transport.subscribe() as batches:
                async with anyio.create_task_group() as tasks:
                    for data in sent:
                        tasks.start_soon(publish, data)
                same(await self._take(batches, 50), sent, "what arrives")

    async def test_a_reader_that_waits_holds_up_nobody(self) -> None:
        """While one task waits for what arrives, others publish and subscribe."""
        async with self._opened() as make, anyio.create_task_group() as tasks:
            transport = make()
            async with transport.subscribe() as batches:
                waiting = anyio.Event()

                async def wait() -> None:
                    waiting.set()
                    same(await self._take(batches, 1), [b"1"], "what was waited for")
                    tasks.cancel_scope.cancel()

                tasks.start_soon(wait)
                await waiting.wait()
                await anyio.sleep(self.grace)
                async with transport.subscribe():
                    await transport.publish(b"1", sender=A, ttl=0)
                    await anyio.sleep_forever()

    async def test_subscriptions_come_and_go(self) -> None:
        """However often one subscribes and leaves, read or not, the next time works."""
        async with self._opened() as make:
            transport = make()
            for _ in range(100):
                async with transport.subscribe():
                    await transport.publish(b"unread", sender=A, ttl=0)
            async with transport.subscribe() as batches:
                await transport.publish(b"read", sender=A, ttl=0)
                same(await self._take(batches, 1), [b"read"], "the last subscription")

    async def test_a_waiting_reader_can_be_cancelled(self) -> None:
        """A cancelled reader is gone at once, and the transport works on."""
        async with self._opened() as make:
            transport = make()
            for _ in range(5):
                async with transport.subscribe() as batches:
                    began = anyio.current_time()
                    with anyio.move_on_after(0.02):
                        await drain(batches)
                late = anyio.current_time() - began
                if late > self.timeout / 5:
                    raise AssertionError(f"a cancelled reader took {late:.1f} s to leave")
            async with transport.subscribe() as batches:
                await transport.publish(b"1", sender=A, ttl=0)
                same(await self._take(batches, 1), [b"1"], "after it was cancelled")

    async def test_calls_can_be_cancelled_at_any_time(self) -> None:
        """Wherever a publish or a subscription is cancelled, the next one works."""
        async with self._opened() as make:
            transport = make()
            for step in range(20):
                with anyio.move_on_after(step / 4000):
                    while True:
                        await transport.publish(b"cancelled", sender=A, ttl=0)
                with anyio.move_on_after(step / 4000):
                    async with transport.subscribe() as batches:
                        await drain(batches)
            async with transport.subscribe() as batches:
                await transport.publish(b"whole", sender=A, ttl=0)
                taken: list[bytes] = []
                # One that was cancelled may have been sent all the same, and come late.
                while b"whole" not in taken:
                    taken = await self._take(batches, 1)

    async def test_an_application_may_use_up_its_threads(self) -> None:
        """While anyio's default worker threads are all busy, the transport works."""
        async with self._opened() as make:
            transport = make()
            limiter = anyio.to_thread.current_default_thread_limiter()
            busy = [object() for _ in range(int(limiter.available_tokens))]
            for each in busy:
                limiter.acquire_on_behalf_of_nowait(each)
            try:
                async with transport.subscribe() as batches:
                    await transport.publish(b"1", sender=A, ttl=30)
                    same(await self._take(batches, 1), [b"1"], "without a free thread")
            finally:
                for each in busy:
                    limiter.release_on_behalf_of(each)

    async def test_a_transport_can_be_closed_twice(self) -> None:
        """Closing raises nothing, whether it was used or not, and may be repeated."""
        async with self._opened() as make:
            unused, used = make(), make()
            await used.publish(b"1", sender=A, ttl=0)
            async with used.subscribe():
                pass
            for transport in (unused, used, unused, used):
                await transport.aclose()

    async def test_closing_ends_what_is_iterated(self) -> None:
        """Whoever waits for messages of a transport that is closed gets a ``TransportError``."""
        async with self._opened() as make:
            for _ in range(5):
                transport = make()
                async with transport.subscribe() as batches, anyio.create_task_group() as tasks:
                    tasks.start_soon(refused, [("iterating what is closed", drain(batches))])
                    await anyio.sleep(0.01)
                    await transport.aclose()
