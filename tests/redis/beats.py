"""Beats for tests, waiting for what they lead to, and what is written about both."""

import pathlib
import re
from collections.abc import Awaitable, Callable

import anyio

from heartbeat_core import Beat, Incarnation, TransportError, encode
from heartbeat_redis import RedisTransport

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "redis.md"

A, B = Incarnation("a", 1), Incarnation("b", 1)


def beat(incarnation: Incarnation, sequence: int = 1) -> bytes:
    """Give the bytes of a beat."""
    return encode(Beat(incarnation=incarnation, sequence=sequence, sent=0, gap=1))


async def until(what: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(20):
        while not what():
            await anyio.sleep(0.01)


async def works(call: Callable[[], Awaitable[object]]) -> int:
    """Call until it works; tell how often it raised a ``TransportError`` before."""
    failed = 0
    with anyio.fail_after(20):
        while True:
            try:
                await call()
            except TransportError:
                failed += 1
                await anyio.sleep(0.02)
            else:
                return failed


async def use_all(transport: RedisTransport) -> None:
    """Use all that a transport can do, and close it."""
    with anyio.fail_after(20):
        try:
            async with (
                transport.subscribe() as batches,
                transport.attend(A) as inbox,
                transport.contend(A, 1) as answers,
                transport.contend(B, 1) as others,
            ):
                await transport.publish(beat(A), sender=A, ttl=30)
                assert await anext(batches) == [beat(A)]
                assert await transport.last_beats() == [beat(A)]
                await transport.publish(beat(A, 2), sender=A, ttl=0)
                assert await transport.last_beats(["a"]) == []
                await transport.post(b"post", A)
                assert await anext(inbox) == [b"post"]
                assert (await transport.connections([A, B])).connected == {A}
                assert (await transport.connections([A])).connected == {A}
                assert await anext(answers)
                assert not await anext(others)
        finally:
            await transport.aclose()


def documented_rights(*, cluster: bool = False) -> list[str]:
    """Give the rights that a user has to have, as the documentation says."""
    text = DOCS.read_text()
    line = text[text.index("ACL SETUSER heartbeat") :].partition("\n```")[0]
    more = re.search(r"On a cluster add `(.*?)`", text, re.DOTALL)
    assert more is not None
    rights = line.replace("\\\n", " ").split()[3:]
    return [*rights, *more[1].split()] if cluster else rights
