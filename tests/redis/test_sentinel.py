"""The Redis transport on a master that a sentinel names."""

import logging
import pathlib
from collections.abc import Iterator

import anyio
import pytest
from redis.sentinel import Sentinel, SentinelConnectionPool

from beats import A, until
from heartbeat_core import Heartbeat, Settings, State, TransportError
from heartbeat_redis import RedisTransport
from servers import RedisSentinel, RedisServer, said_by, valkey_binary

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: what is different here lies in worker threads."""
    return "asyncio"


SETTINGS = Settings(frequency=0.2, max_freq=0.8, min_freq=1.5, expire=10.0)


@pytest.fixture
def fleet(
    valkey: object, tmp_path: pathlib.Path
) -> Iterator[tuple[RedisServer, RedisServer, RedisSentinel]]:
    """A master, its replica and a sentinel."""
    del valkey  # It fails or skips where there is no server.
    master = RedisServer(valkey_binary(), tmp_path, options=("--repl-diskless-sync-delay", "0"))
    replicaof = ("--replicaof", "127.0.0.1", str(master.port))
    replica = RedisServer(valkey_binary(), tmp_path, options=replicaof)
    sentinel = RedisSentinel(valkey_binary(), tmp_path, master=master)
    try:
        master.start()
        replica.start()
        said_by(master, b"state=online", "INFO", "replication")
        sentinel.start()
        said_by(sentinel, b"slaves=1", "INFO", "sentinel")
        yield master, replica, sentinel
    finally:
        for each in (sentinel, replica, master):
            each.kill()


async def test_a_failover_kills_nobody(
    fleet: tuple[RedisServer, RedisServer, RedisSentinel], caplog: pytest.LogCaptureFixture
) -> None:
    """When the master is killed and its replica takes over, all nodes find it and live."""
    master, replica, sentinel = fleet
    caplog.set_level(logging.INFO, "heartbeat_core")
    url = f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{sentinel.port}/0?master_name=mymaster"
    pool = SentinelConnectionPool("mymaster", Sentinel([("127.0.0.1", sentinel.port)]))
    async with (
        Heartbeat("a", RedisTransport(url, timeout=0.5), settings=SETTINGS) as a,
        Heartbeat("b", RedisTransport(pool=pool, timeout=0.5), settings=SETTINGS) as b,
    ):

        def well() -> bool:
            return all(
                [view.state for view in each.nodes()] == [State.ALIVE] * 2 for each in (a, b)
            )

        await until(well)
        await anyio.to_thread.run_sync(master.kill)
        await until(lambda: caplog.text.count("is back at the broker") == 2)
        await anyio.sleep(2 * SETTINGS.max_freq)
        await until(well)
        assert "-> dead" not in caplog.text
        with replica.client() as client:
            assert client.exists("heartbeat:{default}:beat:a")


async def test_without_a_sentinel_there_is_no_master() -> None:
    """Nobody who knows the master is a transport error, and closing raises nothing."""
    transport = RedisTransport("sentinel://:secret@127.0.0.1:1;sentinel://127.0.0.1:2", timeout=0.5)
    with pytest.raises(TransportError) as caught:
        await transport.publish(b"1", sender=A, ttl=1)
    assert "secret" not in str(caught.value)
    await transport.aclose()
