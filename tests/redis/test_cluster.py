"""The Redis transport on a cluster of three masters and a replica."""

import logging
import os
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from redis.crc import key_slot

from beats import A, B, beat, documented_rights, until, use_all, works
from heartbeat_core import Heartbeat, Settings, State, Transport, TransportError
from heartbeat_core.testing import TransportConformance
from heartbeat_redis import RedisTransport
from servers import RedisCluster, RedisServer, ServerError, valkey_binary

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: what is different here lies in worker threads."""
    return "asyncio"


def new_cluster(folder: pathlib.Path) -> Iterator[RedisCluster]:
    """Start a cluster."""
    try:
        cluster = RedisCluster(valkey_binary(), folder)
        cluster.start()
    except ServerError as exc:
        if "ADDSLOTSRANGE" in str(exc):
            pytest.skip("this server is older than sharded pub/sub")
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster for all tests that leave it whole."""
    yield from new_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def cluster_private(tmp_path: pathlib.Path) -> Iterator[RedisCluster]:
    """A cluster of which a test may kill what it likes."""
    yield from new_cluster(tmp_path)


def slot_of(namespace: str) -> int:
    """Give the hash slot of a namespace."""
    return key_slot(namespace.encode())


def namespace_of(number: int) -> str:
    """Give a namespace whose slot belongs to this master."""
    names = (f"fleet-{each}" for each in range(1000))
    return next(name for name in names if slot_of(name) * 3 // 16384 == number)


def move(cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    """Move a slot to another node, as operators' tools do."""
    giving, taking = cluster.identity(source), cluster.identity(target)
    with source.client() as old, target.client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", giving)
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", taking)
        keys: Any = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        if keys:
            where = ("127.0.0.1", target.port, "", 0, 5000)
            old.execute_command("MIGRATE", *where, "KEYS", *keys)
        for node in (target, *cluster.masters):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", taking)


class TestOnACluster(TransportConformance):
    """It passes the suite on a cluster."""

    grace = 0.05

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: RedisCluster) -> None:
        self.cluster = cluster

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield lambda namespace: RedisTransport(self.cluster.url, namespace=namespace)

    async def cut(self) -> None:
        for node in self.cluster.masters:
            with node.client() as client:
                for kind in ("normal", "pubsub"):
                    client.client_kill_filter(_type=kind, skipme=True)


async def test_each_namespace_is_on_one_node(cluster: RedisCluster) -> None:
    """All keys and channels of a namespace are on one node, and namespaces on several."""
    for number, master in enumerate(cluster.masters):
        namespace = namespace_of(number)
        transport = RedisTransport(cluster.url, namespace=namespace)
        async with transport.subscribe(), transport.attend(A), transport.contend(A, 1):
            await transport.publish(beat(A), sender=A, ttl=30)
            await transport.connections([A])
            with master.client() as client:
                pattern = f"heartbeat:{{{namespace}}}:*"
                keys = {key.decode().rpartition("}:")[2] for key in client.keys(pattern)}
                assert keys == {"beat:a", "nodes", "observers", "watched:a#1"}
                assert len(client.pubsub_shardchannels(pattern)) == 2
        await transport.aclose()


async def test_a_namespace_can_move_to_another_node(cluster: RedisCluster) -> None:
    """Whoever listens or attends is told, one call fails, and all goes on at the new owner."""
    namespace = "fleet-that-moves"
    slot = slot_of(namespace)
    home = cluster.masters[slot * 3 // 16384]
    other = cluster.masters[slot * 3 // 16384 - 1]
    transport = RedisTransport(cluster.url, namespace=namespace)
    for source, target in ((home, other), (other, home)):
        async with transport.subscribe() as batches, transport.attend(A) as inbox:
            await transport.publish(beat(A), sender=A, ttl=60)
            assert (await transport.connections([A, B])).connected == {A}
            await anyio.to_thread.run_sync(move, cluster, slot, source, target)
            for each in (batches, inbox):
                with anyio.fail_after(10), pytest.raises(TransportError):
                    while True:
                        await anext(each)
            failed = await works(transport.last_beats)
            assert failed <= 1
            assert await transport.last_beats() == [beat(A)]
        async with transport.subscribe() as batches, transport.attend(A):
            await transport.publish(beat(A, 2), sender=A, ttl=60)
            with anyio.fail_after(10):
                assert await anext(batches) == [beat(A, 2)]
            assert (await transport.connections([A, B])).connected == {A}
        with target.client() as client:
            assert client.exists(f"heartbeat:{{{namespace}}}:beat:a")
    await transport.aclose()


async def test_who_only_sends_finds_the_new_owner(cluster: RedisCluster) -> None:
    """A call that meets a node which is the owner no more raises, and the next one works."""
    namespace = "fleet-that-is-sent-to"
    slot = slot_of(namespace)
    home = cluster.masters[slot * 3 // 16384]
    other = cluster.masters[slot * 3 // 16384 - 1]
    transport = RedisTransport(cluster.url, namespace=namespace)
    for source, target in ((home, other), (other, home)):
        await transport.publish(beat(A), sender=A, ttl=60)
        await anyio.to_thread.run_sync(move, cluster, slot, source, target)
        first_asked = transport._pool.connection_kwargs["cluster"]._nodes[0]
        with pytest.raises(TransportError, match="another node"):
            await transport.publish(beat(A, 2), sender=A, ttl=60)
        # It may have been misled by whom it asked.
        assert transport._pool.connection_kwargs["cluster"]._nodes[0] != first_asked
        await transport.publish(beat(A, 3), sender=A, ttl=60)
        assert await transport.last_beats() == [beat(A, 3)]
    await transport.aclose()


async def test_a_namespace_that_is_between_two_nodes_is_an_outage(
    cluster: RedisCluster, anyio_backend: str
) -> None:
    """While it is moved key by key calls raise a transport error, and then they work again."""
    namespace = f"fleet-between-{anyio_backend}"
    slot = slot_of(namespace)
    home = cluster.masters[slot * 3 // 16384]
    other = cluster.masters[slot * 3 // 16384 - 1]
    transport = RedisTransport(cluster.url, namespace=namespace)
    await transport.publish(beat(A), sender=A, ttl=60)
    with home.client() as old, other.client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.identity(home))
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.identity(other))
        with pytest.raises(TransportError):
            await transport.publish(beat(B), sender=B, ttl=60)
        for client in (old, new):
            client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
    await transport.publish(beat(B), sender=B, ttl=60)
    assert sorted(await transport.last_beats()) == [beat(A), beat(B)]
    await transport.aclose()


async def test_a_namespace_without_a_hash_tag_is_refused(cluster: RedisCluster) -> None:
    """A name that would spread a namespace over the nodes is refused, and only in a cluster."""
    with pytest.raises(TransportError, match="hash tag"):
        RedisTransport(cluster.url, namespace="}")
    await RedisTransport("redis://127.0.0.1:1", namespace="}").aclose()


async def test_the_documented_rights_are_enough(cluster: RedisCluster) -> None:
    """A user who may just what the documentation says of a cluster may all that is needed."""
    for node in cluster.masters:
        with node.client() as client:
            rights = documented_rights(cluster=True)
            client.execute_command("ACL", "SETUSER", "heartbeat", "reset", *rights)
            client.script_flush()
    url = f"redis+cluster://heartbeat:secret@127.0.0.1:{cluster.masters[0].port}"
    for number in range(3):
        await use_all(RedisTransport(url, namespace=namespace_of(number)))


SETTINGS = Settings(frequency=0.2, max_freq=0.8, min_freq=1.5, expire=10.0)


async def test_a_failover_kills_nobody(
    cluster_private: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """When the owner is killed and its replica takes over, all nodes find the new one and live."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    transports = [
        RedisTransport(cluster_private.url, namespace=namespace_of(0), timeout=0.5) for _ in "ab"
    ]
    async with (
        Heartbeat("a", transports[0], settings=SETTINGS) as a,
        Heartbeat("b", transports[1], settings=SETTINGS) as b,
    ):

        def well() -> bool:
            return all(
                [view.state for view in each.nodes()] == [State.ALIVE] * 2 for each in (a, b)
            )

        await until(well)
        await anyio.to_thread.run_sync(cluster_private.masters[0].kill)
        await until(lambda: caplog.text.count("is back at the broker") == 2)
        await anyio.sleep(2 * SETTINGS.max_freq)
        await until(well)
        assert "-> dead" not in caplog.text
        with cluster_private.replica.client() as client:
            assert client.exists(f"heartbeat:{{{namespace_of(0)}}}:beat:a")
