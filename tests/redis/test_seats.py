"""Seats on a Redis server: what is not in the conformance suite."""

from typing import Any

import anyio
import pytest
import redis

from beats import A, B
from heartbeat_core import Incarnation, TransportError
from heartbeat_redis import RedisTransport
from heartbeat_redis._scripts import SEAT
from heartbeat_redis._seats import Contender
from proxy import Proxy

pytestmark = pytest.mark.anyio

OBSERVERS = "heartbeat:{default}:observers"
CONTENDERS = "heartbeat:{default}:contenders"


async def test_a_thousand_wait_longer_than_two(server: Any) -> None:
    """All who have no seat together ask a hundred times a second, and expire by themselves."""
    with server.client() as client:
        seat = client.register_script(SEAT)
        assert seat(keys=[OBSERVERS, CONTENDERS], args=["holder", 1]) == [1, 1500]
        waits = [
            seat(keys=[OBSERVERS, CONTENDERS], args=[f"n{number}", 1])[1] for number in range(1000)
        ]
        assert waits[:2] == [1000, 1000]
        assert waits[-1] == 9990
        assert seat(keys=[OBSERVERS, CONTENDERS], args=["n0", 1]) == [0, 10_000]
        assert 0 < client.pttl(OBSERVERS) <= 5000
        assert 0 < client.pttl(CONTENDERS) <= 20_000


async def test_a_lease_that_ended_is_somebody_elses(server: Any) -> None:
    """A holder that stood still is told that it has no seat, if another took it meanwhile."""
    one, other = RedisTransport(server.url), RedisTransport(server.url)
    with anyio.fail_after(20), server.client() as client:
        async with one.contend(A, 1) as answers:
            assert await anext(answers)
            client.zadd(OBSERVERS, {str(A): 1})
            async with other.contend(B, 1) as others:
                assert await anext(others)
                assert not await anext(answers)
            assert await anext(answers)
    await one.aclose()
    await other.aclose()


async def test_a_lease_that_ended_unnoticed_is_taken_up_again(server: Any) -> None:
    """A holder that stood still keeps its seat, if nobody took it."""
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.contend(A, 1) as answers:
            assert await anext(answers)
            client.delete(OBSERVERS)
            with anyio.move_on_after(3):
                pytest.fail(f"something changed: {await anext(answers)}")
            assert client.zscore(OBSERVERS, str(A))
    await transport.aclose()


async def test_an_answer_that_nobody_took_in_time_is_asked_for_again(server: Any) -> None:
    """Whoever iterates late is told what is true then, not what was true on entering."""
    transport = RedisTransport(server.url)
    with server.client() as client, anyio.fail_after(20):
        async with transport.contend(A, 1) as answers:
            client.zadd(OBSERVERS, {str(A): 1, str(B): 2_000_000_000_000_000})
            await anyio.sleep(1.6)
            assert not await anext(answers)
    await transport.aclose()


async def test_whoever_leaves_leaves_nothing(server: Any) -> None:
    """No key is left when the last one has left."""
    transports = [RedisTransport(server.url) for _ in range(3)]
    async with (
        transports[0].contend(A, 1),
        transports[1].contend(B, 1),
        transports[2].contend(Incarnation("c", 1), 1),
    ):
        with server.client() as client:
            assert client.zcard(OBSERVERS) == 1
            assert client.zcard(CONTENDERS) == 2
    with server.client() as client:
        assert client.keys() == []
    for transport in transports:
        await transport.aclose()


async def test_contending_can_be_cancelled_at_any_time(server: Any) -> None:
    """Wherever it is cancelled the seat is free then, and what was underway takes none."""
    transport, other = RedisTransport(server.url), RedisTransport(server.url)
    for step in range(40):
        with anyio.move_on_after(step / 8000):
            async with transport.contend(A, 1) as answers:
                await anext(answers)
                await anext(answers)
        async with other.contend(B, 1) as answers:
            with anyio.fail_after(10):
                assert await anext(answers)
    await transport.aclose()
    await other.aclose()


async def test_what_comes_after_leaving_takes_no_seat(server: Any) -> None:
    """A call that was cancelled before its thread began does nothing when it begins at last."""
    transport = RedisTransport(server.url)
    with server.client() as client:
        async with transport.contend(A, 1) as answers:
            assert isinstance(answers, Contender)
            await answers.leave()
            assert client.zcard(OBSERVERS) == 0
            with pytest.raises(redis.ConnectionError):
                answers._ask()
            assert client.zcard(OBSERVERS) == 0
    await transport.aclose()


async def test_who_is_cut_off_has_no_seat(server: Any) -> None:
    """A holder that cannot renew its lease is told soon, and leaves without waiting for long."""
    with Proxy(server.port) as proxy:
        transport = RedisTransport(f"redis://127.0.0.1:{proxy.port}/0", timeout=0.5)
        with anyio.fail_after(10):
            async with transport.contend(A, 1) as answers:
                assert await anext(answers)
                proxy.cut()
                with pytest.raises(TransportError):
                    await anext(answers)
                with pytest.raises(TransportError):
                    async with transport.contend(A, 1):
                        pass
                proxy.heal()
                # What has raised is over, even if the server is back.
                with pytest.raises(TransportError):
                    await anext(answers)
            async with transport.contend(A, 1) as answers:
                assert await anext(answers)
        await transport.aclose()
