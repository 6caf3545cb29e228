"""Asking a Redis server for the connections of thousands."""

import random
from typing import Any

import anyio
import pytest

from beats import A, B, until
from heartbeat_core import Connections, Incarnation, TransportError
from heartbeat_redis import RedisTransport
from proxy import Proxy

pytestmark = pytest.mark.anyio

ME = Incarnation("me", 1)
KEY = "heartbeat:{default}:watched:me#1"
MANY = frozenset(Incarnation(f"n{number}", 1) for number in range(2500))


def connect(client: Any, incarnations: Any) -> Any:
    """Hold the channels of many at once."""
    held = client.pubsub()
    channels = [f"heartbeat:{{default}}:node:{each}" for each in incarnations]
    held.subscribe(*channels)
    while len(held.channels) < len(channels) or held.get_message(timeout=0.1):
        pass
    return held


async def test_asking_again_sends_next_to_nothing(server: Any) -> None:
    """However many are asked about, only what has changed since goes to the server."""
    few = MANY - frozenset(sorted(MANY)[:5])
    with Proxy(server.port) as proxy, server.client() as client:
        held = connect(client, MANY)
        transport = RedisTransport(f"redis://127.0.0.1:{proxy.port}/0")

        async def ask(asked: frozenset[Incarnation]) -> int:
            before = proxy.up + proxy.down
            seen = await transport.connections(asked)
            assert seen.connected == asked
            return proxy.up + proxy.down - before

        async with transport.attend(ME):
            assert await ask(MANY) > 100_000
            assert await ask(MANY) < 1500
            assert await ask(frozenset(set(MANY))) < 1500
            assert await ask(few) < 2500
            assert await ask(MANY) < 2500
        await transport.aclose()
        held.close()


async def test_a_look_is_a_command_for_each_thousand(server: Any) -> None:
    """The server is asked in pieces, so that it is never busy for long, and for no more."""
    transport = RedisTransport(server.url)
    async with transport.attend(ME):
        await transport.connections(MANY)
        with server.client() as client:
            client.config_resetstat()
            await transport.connections(MANY)
            stats = client.info("commandstats")
            assert stats["cmdstat_evalsha"]["calls"] == 3
            assert "cmdstat_zadd" not in stats
    await transport.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_the_answer_is_exact(server: Any, seed: int) -> None:
    """Whoever is asked about in whatever order, exactly those who are there are connected."""
    chance = random.Random(seed)
    everybody = sorted(MANY)[:60]
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.attend(ME):
            for _ in range(15):
                present = set(chance.sample(everybody, chance.randrange(1, 60)))
                held = connect(client, present)
                for _ in range(3):
                    asked = frozenset(chance.sample(everybody, chance.randrange(60)))
                    seen = await transport.connections(asked)
                    assert seen == Connections(
                        session=1, asked=asked, connected=frozenset(asked & present)
                    )
                held.close()
    await transport.aclose()


async def test_many_may_ask_at_once(server: Any) -> None:
    """Tasks that ask about different ones at the same time get each their own answer."""
    transport = RedisTransport(server.url)

    async def ask(asked: frozenset[Incarnation]) -> None:
        for _ in range(10):
            assert (await transport.connections(asked)).connected == asked & {ME}

    async with transport.attend(ME), anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, frozenset(sorted(MANY)[number : number + 20]) | {ME})
    await transport.aclose()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client: client.flushdb(),
        lambda client: client.delete(KEY),
        lambda client: client.zadd(KEY, {"heartbeat:{default}:node:foreign#1": 0}),
        lambda client: client.zremrangebyrank(KEY, 0, 0),
        lambda client: (
            client.zremrangebyrank(KEY, 0, 0),
            client.zadd(KEY, {"heartbeat:{default}:node:foreign#1": 0}),
        ),
        lambda client: (client.zremrangebyrank(KEY, 0, 0), client.zadd(KEY, {b"\xff": 0})),
    ],
    ids=["flushed", "deleted", "added to", "removed from", "exchanged", "garbled"],
)
async def test_what_stands_on_the_server_is_not_trusted(server: Any, spoil: Any) -> None:
    """Whatever became of what the server was told, the answer is right."""
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.attend(ME):
            await transport.connections([A, B, ME])
            assert client.zcard(KEY) == 3
            spoil(client)
            seen = await transport.connections([A, B, ME])
            assert seen.connected == {ME}
            assert client.zcard(KEY) == 3
    await transport.aclose()


async def test_what_an_observer_watches_goes_with_it(server: Any) -> None:
    """What it has told the server expires within a minute, and lasts while it asks."""
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.attend(ME):
            await transport.connections([A])
            assert 0 < client.pttl(KEY) <= 60_000
            client.pexpire(KEY, 20_000)
            await transport.connections([A])
            assert client.pttl(KEY) > 30_000
    await transport.aclose()


async def test_who_is_not_known_is_told_in_the_inbox(server: Any) -> None:
    """When the server does not know of one's connection, asking raises and the inbox is closed."""
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.attend(ME) as inbox:
            await transport.connections([])
            client.client_kill_filter(_type="pubsub")
            with pytest.raises(TransportError):
                await transport.connections([])
            with pytest.raises(TransportError):
                await anext(inbox)
    await transport.aclose()


async def test_a_server_that_vanished_is_noticed(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who only listens notices, too, that nobody is there any more to end the connection."""
    monkeypatch.setattr("heartbeat_redis._subscription.LONGEST_SILENCE", 0.2)
    with Proxy(server.port) as proxy:
        for protocol in (2, 3):
            url = f"redis://127.0.0.1:{proxy.port}/0?protocol={protocol}"
            transport = RedisTransport(url, timeout=0.5)
            async with transport.attend(A) as inbox:
                # Silence alone is no reason.
                with anyio.move_on_after(1):
                    pytest.fail(f"something came: {await anext(inbox)}")
            async with transport.attend(A) as inbox:
                proxy.cut()
                with anyio.fail_after(10), pytest.raises(TransportError):
                    await anext(inbox)
                proxy.heal()
            await transport.aclose()


async def test_posts_are_read_between_the_signs_of_life(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking the server whether it is there loses and makes up nothing."""
    monkeypatch.setattr("heartbeat_redis._subscription.LONGEST_SILENCE", 0.001)
    for protocol in (2, 3):
        transport = RedisTransport(f"{server.url}?protocol={protocol}")
        got: list[bytes] = []
        async with transport.attend(A) as inbox, anyio.create_task_group() as tasks:

            async def read() -> None:
                async for batch in inbox:
                    got.extend(batch)  # noqa: B023 - the group ends before the next round

            tasks.start_soon(read)
            sent = [b"%d" % number for number in range(50)]
            for data in sent:
                await transport.post(data, A)
                await anyio.sleep(0.003)
            await until(lambda: got == sent)  # noqa: B023
            tasks.cancel_scope.cancel()
        await transport.aclose()
