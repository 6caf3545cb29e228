"""The Redis transport on a real server, on asyncio and on trio."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import redis

from beats import A, B, beat, until
from heartbeat_core import (
    Beat,
    Cause,
    Heartbeat,
    Incarnation,
    Settings,
    State,
    Transport,
    TransportError,
    encode,
)
from heartbeat_core.testing import TransportConformance
from heartbeat_redis import RedisTransport
from proxy import Proxy

pytestmark = pytest.mark.anyio


class TestRedisTransport(TransportConformance):
    """It passes the suite on a real server."""

    grace = 0.05

    @pytest.fixture(autouse=True)
    def _server(self, valkey: Any) -> None:
        self.server = valkey

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield lambda namespace: RedisTransport(self.server.url, namespace=namespace)

    async def cut(self) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self.server.kill)

    async def start(self) -> None:
        await anyio.to_thread.run_sync(self.server.start)


async def test_what_is_kept_goes_with_its_nodes(server: Any) -> None:
    """When no node has a last beat any more, no key is left."""
    transport = RedisTransport(server.url)
    await transport.publish(beat(A, 1), sender=A, ttl=30)
    await transport.publish(beat(B, 1), sender=B, ttl=0.05)
    await anyio.sleep(0.1)
    await transport.publish(beat(A, 2), sender=A, ttl=0)
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []
    await transport.aclose()


async def test_a_beat_is_one_round_trip(server: Any) -> None:
    """One command a beat goes to the server, and what it keeps does not grow."""
    transport = RedisTransport(server.url)
    with redis.Redis.from_url(server.url) as client:
        await transport.publish(beat(A, 1), sender=A, ttl=30)
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        total = client.info("stats")["total_commands_processed"]
        keys = set(client.scan_iter())
        for sequence in range(2, 102):
            await transport.publish(beat(A, sequence), sender=A, ttl=30)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before == 100
        # The commands inside of the script are counted too: none but those and our own.
        assert client.info("stats")["total_commands_processed"] - total <= 100 * 8 + 10
        assert set(client.scan_iter()) == keys
    await transport.aclose()


async def test_a_beat_is_three_hundred_bytes(server: Any) -> None:
    """A beat of a node with a name of usual length costs no more than that, its answer included."""
    me = Incarnation("celery@worker-12.example.internal", 1_700_000_000_000_000)
    data = encode(Beat(incarnation=me, sequence=99_999, sent=99_999.999, gap=1.0, namespace="proj"))
    for protocol in (2, 3):
        with Proxy(server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0?protocol={protocol}"
            transport = RedisTransport(url, namespace="proj")
            await transport.publish(data, sender=me, ttl=30)
            before = proxy.up + proxy.down
            for _ in range(10):
                await transport.publish(data, sender=me, ttl=30)
            assert proxy.up + proxy.down - before <= 10 * 300
            await transport.aclose()


async def test_a_pool_that_waits_will_do(server: Any) -> None:
    """A pool of another kind is used and closed like the usual one."""
    transport = RedisTransport(pool=redis.BlockingConnectionPool.from_url(server.url))
    async with transport.subscribe() as batches:
        await transport.publish(b"1", sender=A, ttl=1)
        with anyio.fail_after(10):
            assert await anext(batches) == [b"1"]
    await transport.aclose()


async def test_a_server_that_forgot_the_script_is_told_it_again(server: Any) -> None:
    """After a restart of the server the next beat goes out as ever."""
    transport = RedisTransport(server.url)
    await transport.publish(beat(A, 1), sender=A, ttl=30)
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()
    await transport.publish(beat(A, 2), sender=A, ttl=30)
    assert await transport.last_beats() == [beat(A, 2)]
    await transport.aclose()


async def test_nobody_there_is_a_transport_error() -> None:
    """Whatever is called without a server raises a transport error, without credentials."""
    transport = RedisTransport("redis://user:secret@127.0.0.1:1/0")
    for call in (
        transport.publish(b"", sender=A, ttl=1),
        transport.last_beats(),
        transport.post(b"", A),
    ):
        with pytest.raises(TransportError) as caught:
            await call
        assert "secret" not in str(caught.value)
    with pytest.raises(TransportError):
        async with transport.subscribe():
            pass
    await transport.aclose()


SETTINGS = Settings(frequency=0.2, max_freq=0.8, min_freq=1.5, expire=6.0)


async def test_a_restart_and_a_freeze_of_the_server_kill_nobody(
    valkey_private: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the server does, healthy nodes live; each outage costs two lines a node."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    transports = [RedisTransport(valkey_private.url, timeout=0.5) for _ in "ab"]
    async with (
        Heartbeat("a", transports[0], settings=SETTINGS) as a,
        Heartbeat("b", transports[1], settings=SETTINGS) as b,
    ):

        def well() -> bool:
            return all(
                [view.state for view in each.nodes()] == [State.ALIVE] * 2 for each in (a, b)
            )

        await until(well)
        for end, begin in (
            (valkey_private.kill, valkey_private.start),
            (valkey_private.freeze, valkey_private.thaw),
        ):
            caplog.clear()
            await anyio.to_thread.run_sync(end)
            await anyio.sleep(2 * SETTINGS.min_freq)
            await anyio.to_thread.run_sync(begin)
            await until(lambda: caplog.text.count("is back at the broker") == 2)
            await anyio.sleep(2 * SETTINGS.max_freq)
            await until(well)
            assert caplog.text.count("lost the broker") == 2
            assert "-> dead" not in caplog.text


CHILD = """
import sys, anyio
from heartbeat_core import Heartbeat
from heartbeat_redis import RedisTransport

async def main():
    async with Heartbeat("child", RedisTransport(sys.argv[1])) as heartbeat:
        await heartbeat.wait_joined()
        print("joined", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_a_killed_process_is_dead_by_its_connection(server: Any) -> None:
    """A process that is killed is dead long before its silence could tell."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    async with Heartbeat("observer", RedisTransport(server.url)) as heartbeat:
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(child.stdout.readline, abandon_on_cancel=True)
        await until(lambda: any(view.connected for view in heartbeat.nodes()))
        with anyio.fail_after(20):
            child.kill()
            async for transition in heartbeat.transitions():
                if transition.state is State.DEAD:
                    break
        assert transition.cause is Cause.CHECKS_FAILED
        assert transition.silence < heartbeat.settings.min_freq
        child.wait()
        child.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_child_does_not_keep_its_parent_present(server: Any) -> None:
    """A connection ends with the process that opened it, whatever children it has forked."""
    transport, observer = RedisTransport(server.url), RedisTransport(server.url)
    context: Any = multiprocessing.get_context("fork")
    with anyio.fail_after(20):
        async with observer.attend(B), transport.attend(A):
            forked, release = context.Event(), context.Event()

            def wait() -> None:
                forked.set()
                release.wait(20)

            child = context.Process(target=wait)
            child.start()
            await anyio.to_thread.run_sync(forked.wait)
            await transport.aclose()
            while (await observer.connections([A])).connected:
                await anyio.sleep(0.01)
            assert child.is_alive()
            release.set()
            child.join()
    await observer.aclose()


async def test_a_pool_that_decodes_is_set_right(server: Any) -> None:
    """Beats are bytes, also over a pool that was made for text."""
    pool = redis.ConnectionPool.from_url(server.url, decode_responses=True)
    transport = RedisTransport(pool=pool)
    async with transport.subscribe() as batches:
        await transport.publish(beat(A), sender=A, ttl=30)
        with anyio.fail_after(10):
            assert await anext(batches) == [beat(A)]
    assert await transport.last_beats() == [beat(A)]
    await transport.aclose()
