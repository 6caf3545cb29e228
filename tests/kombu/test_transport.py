"""The Kombu transport on real brokers, on asyncio and on trio."""

import logging
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import amqp
import anyio
import kombu
import pytest
import redis
from kombu.transport import memory

import heartbeat_kombu._calls as calls
import heartbeat_kombu._line as lines
import heartbeat_kombu._reader as readers
import heartbeat_kombu._transport as transports
from heartbeat_core import Heartbeat, Incarnation, Settings, State, Transport, TransportError
from heartbeat_core.testing import TransportConformance
from heartbeat_kombu import AmqpTransport, KombuTransport
from proxy import Proxy

pytestmark = pytest.mark.anyio

A, B = Incarnation("a", 1), Incarnation("b", 1)


class Behind(TransportConformance):
    """Brokers behind a proxy that can be cut, which is faster than to start them anew."""

    timeout = 20.0
    grace = 0.2
    proxy: Proxy

    def make(self, namespace: str) -> Transport:
        raise NotImplementedError

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield self.make

    async def cut(self) -> None:
        self.proxy.drop()

    async def stop(self) -> None:
        self.proxy.refuse()

    async def start(self) -> None:
        self.proxy.heal()


class TestAmqp(Behind):
    """RabbitMQ's own transport passes the suite."""

    @pytest.fixture(autouse=True)
    def _server(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def make(self, namespace: str) -> Transport:
        return AmqpTransport(url_of(self.proxy), namespace=namespace)


class TestKombuOnRabbit(TestAmqp):
    """The plain one passes it on RabbitMQ, too."""

    def make(self, namespace: str) -> Transport:
        return KombuTransport(url_of(self.proxy), namespace=namespace)


class TestKombuOnRedis(Behind):
    """It passes the suite on a Redis that Kombu talks to."""

    @pytest.fixture(autouse=True)
    def _server(self, valkey: Any) -> Iterator[None]:
        with Proxy(valkey.port) as self.proxy:
            yield

    def make(self, namespace: str) -> Transport:
        return KombuTransport(f"redis://127.0.0.1:{self.proxy.port}/0", namespace=namespace)


class TestKombuInMemory(TransportConformance):
    """It passes the suite within a process, where the broker cannot go away."""

    grace = 0.2

    @asynccontextmanager
    async def transports(self) -> AsyncIterator[Callable[[str], Transport]]:
        yield lambda namespace: KombuTransport("memory://", namespace=namespace)


def url_of(server: Any, credentials: str = "guest:guest") -> str:
    """Give the URL of a RabbitMQ, or of a proxy before it."""
    return f"amqp://{credentials}@127.0.0.1:{server.port}//"


@asynccontextmanager
async def closing(*all_of_them: Any) -> AsyncIterator[Any]:
    """Close transports in the end."""
    try:
        yield all_of_them
    finally:
        for each in all_of_them:
            await each.aclose()


def fresh() -> str:
    """Give a namespace that nobody has used."""
    return f"test-{secrets.token_hex(4)}"


async def take(batches: Any, count: int) -> list[bytes]:
    """Read so many messages."""
    taken: list[bytes] = []
    with anyio.fail_after(20):
        while len(taken) < count:
            taken += await anext(batches)
    return taken


# -- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "nonsense://user:secret@host//",
        "a.b://user:secret@host//",
        "amqp://user:secret@host:port//",
        "redis://user:secret@host",
    ],
)
async def test_a_url_of_something_else_is_refused(url: str) -> None:
    """A URL that is not RabbitMQ's is refused at once, without showing it."""
    with pytest.raises(TransportError) as caught:
        AmqpTransport(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
async def test_nobody_there_is_a_transport_error(scheme: str) -> None:
    """Whatever is called without a broker raises a transport error, without credentials."""
    transport = KombuTransport(f"{scheme}://user:secret@127.0.0.1:1/0")
    for call in (transport.publish(b"1", sender=A, ttl=1), enter(transport.subscribe())):
        with anyio.fail_after(5), pytest.raises(TransportError) as caught:
            await call
        assert "secret" not in str(caught.value)
    await transport.aclose()


async def enter(context: Any) -> None:
    """Enter a context, and leave it."""
    async with context:
        pass


async def test_a_wrong_password_is_told_without_it(rabbitmq: Any) -> None:
    """Who is refused learns that it is, and reads no password in logs."""
    transport = AmqpTransport(url_of(rabbitmq, "guest:s3cret%2Fpass"))
    for call in (transport.publish(b"1", sender=A, ttl=1), enter(transport.attend(A))):
        with pytest.raises(TransportError, match=r"(?i)login was refused") as caught:
            await call
        assert "s3cret" not in str(caught.value)
    await transport.aclose()


async def test_an_exchange_of_another_kind_is_told(rabbitmq: Any) -> None:
    """If somebody has declared our exchange as something else, the error says so."""
    namespace = fresh()
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}") as connection:
        channel = connection.channel()
        channel.exchange_declare(f"heartbeat.{namespace}", "topic", auto_delete=False)
        async with closing(KombuTransport(rabbitmq.url, namespace=namespace)) as (transport,):
            for call in (transport.publish(b"1", sender=A, ttl=1), enter(transport.subscribe())):
                with pytest.raises(TransportError, match=r"PRECONDITION_FAILED.*inequivalent"):
                    await call
        channel.exchange_delete(f"heartbeat.{namespace}")


@pytest.mark.parametrize("way", [{"up": False}, {"down": False}, {}], ids=["down", "up", "both"])
async def test_a_network_that_swallows_everything_is_noticed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, way: dict[str, bool]
) -> None:
    """Publishing raises within the timeout, and listening after two of AMQP's heartbeats."""
    monkeypatch.setattr(transports, "HEARTBEAT", 1)
    transport = KombuTransport(url_of(proxy), namespace=fresh(), timeout=0.5)
    async with closing(transport), transport.subscribe() as batches:
        await transport.publish(b"1", sender=A, ttl=1)
        assert await take(batches, 1) == [b"1"]
        proxy.cut(**way)
        for _ in range(3):
            with anyio.fail_after(5), pytest.raises(TransportError):
                await transport.publish(b"2", sender=A, ttl=1)
        with anyio.fail_after(20), pytest.raises(TransportError):
            await take(batches, 2)
        proxy.heal()
        await transport.publish(b"3", sender=A, ttl=1)


async def test_many_calls_wait_for_a_frozen_broker_together(proxy: Proxy) -> None:
    """However many calls there are, none waits for the timeouts of the others."""
    transport = KombuTransport(url_of(proxy), namespace=fresh(), timeout=0.5)
    async with closing(transport):
        await transport.publish(b"1", sender=A, ttl=1)
        proxy.cut()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(refused, transport)


async def refused(transport: Transport) -> None:
    """Publish in vain."""
    with pytest.raises(TransportError):
        await transport.publish(b"2", sender=A, ttl=1)


async def test_closing_ends_a_call_that_waits_for_a_frozen_broker(proxy: Proxy) -> None:
    """Whoever closes does not wait for the broker, and whoever called gets an error."""
    transport = KombuTransport(url_of(proxy), namespace=fresh(), timeout=20)
    await transport.publish(b"1", sender=A, ttl=1)
    proxy.cut()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused, transport)
            await anyio.sleep(0.1)
            await transport.aclose()


async def test_a_connection_that_was_idle_for_long_is_opened_anew(
    rabbitmq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between calls nobody sends heartbeats, so the broker may have hung up meanwhile."""
    transport = KombuTransport(rabbitmq.url, namespace=fresh())
    async with closing(transport):
        used = set()
        for heartbeat in (60.0, 60.0, 0.0):
            monkeypatch.setattr(calls, "HEARTBEAT", heartbeat)
            await transport.publish(b"1", sender=A, ttl=1)
            used.add(transport._calls._line)
        assert len(used) == 2


async def test_a_broker_that_is_short_of_memory_is_told(private: Any, until: Any) -> None:
    """Publishing raises at once, over one connection, until the broker takes messages again."""
    transport = AmqpTransport(private.url, namespace=fresh())
    async with closing(transport), transport.subscribe() as batches:
        await transport.publish(b"before", sender=A, ttl=1)
        await call(private, "set_vm_memory_high_watermark", "0.00001")
        for _ in range(5):
            with anyio.fail_after(1.5), pytest.raises(TransportError, match="short of memory"):
                await transport.publish(b"meanwhile", sender=A, ttl=1)
        names = await call(private, "list_connections", "client_properties")
        assert names.count(" calls") == 1
        await call(private, "set_vm_memory_high_watermark", "0.9")

        async def publish() -> bool:
            try:
                await transport.publish(b"after", sender=A, ttl=1)
            except TransportError:
                return False
            return True

        await until(publish)
        heard: list[bytes] = []
        while b"after" not in heard:
            heard += await take(batches, 1)
        # What was on its way when the alarm went off may have got through.
        assert heard.count(b"before") == 1
        assert heard.count(b"meanwhile") <= 1


async def call(server: Any, *command: str) -> str:
    """Tell a RabbitMQ something."""
    return str(await anyio.to_thread.run_sync(lambda: server.control(*command)))


SETTINGS = Settings(frequency=0.2, max_freq=0.8, min_freq=1.5, expire=6.0)


async def test_a_restart_and_a_freeze_of_the_broker_kill_nobody(
    private: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the broker does, healthy nodes live; each outage costs two lines a node."""
    caplog.set_level(logging.INFO, "heartbeat_core")
    ours = [AmqpTransport(private.url, timeout=1) for _ in "ab"]
    async with (
        Heartbeat("a", ours[0], settings=SETTINGS) as a,
        Heartbeat("b", ours[1], settings=SETTINGS) as b,
    ):

        def well() -> bool:
            return all(
                [view.state for view in each.nodes()] == [State.ALIVE] * 2 for each in (a, b)
            )

        await until(well)
        for end, begin in ((private.kill, private.start), (private.freeze, private.thaw)):
            caplog.clear()
            await anyio.to_thread.run_sync(end)
            await anyio.sleep(2 * SETTINGS.min_freq)
            await anyio.to_thread.run_sync(begin)
            await until(lambda: caplog.text.count("is back at the broker") >= 2, 60)
            await anyio.sleep(2 * SETTINGS.max_freq)
            await until(well)
            assert "-> dead" not in caplog.text


# -- what is left -----------------------------------------------------------------------------


async def test_nothing_is_left_on_rabbitmq(
    rabbitmq: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all have left there are neither queues nor exchanges of theirs."""
    import heartbeat_kombu._presence as presence
    import heartbeat_kombu._seats as seats

    monkeypatch.setattr(presence, "EXPIRES", 500)
    monkeypatch.setattr(seats, "EXPIRES", 500)
    namespace = fresh()
    one, other = (AmqpTransport(rabbitmq.url, namespace=namespace) for _ in "ab")
    async with closing(one, other):
        await one.publish(b"to nobody", sender=A, ttl=1)
        async with one.attend(A), other.attend(B), one.contend(A, 2), other.subscribe():
            await one.connections([A, B])
            await one.publish(b"1", sender=A, ttl=1)
            assert namespace in await call(rabbitmq, "list_queues", "name")
        # The exchange went with its last listener. That is no error.
        await one.publish(b"to nobody", sender=A, ttl=1)
        async with one.subscribe() as batches:
            await one.publish(b"2", sender=A, ttl=1)
            assert await take(batches, 1) == [b"2"]

    async def left() -> str:
        return await call(rabbitmq, "list_queues", "name") + await call(
            rabbitmq, "list_exchanges", "name"
        )

    async def nothing_left() -> bool:
        return namespace not in await left()

    await until(nothing_left)


async def test_nothing_is_left_on_redis(valkey: Any) -> None:
    """When all have left there is no key; of one that is killed stays at most a constant few."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushdb()
        one, other = (KombuTransport(valkey.url) for _ in "ab")
        async with closing(one, other), one.subscribe() as mine, other.subscribe() as its:
            await one.publish(b"1", sender=A, ttl=1)
            assert await take(mine, 1) == await take(its, 1) == [b"1"]
            keys = client.keys()
            assert [client.scard(key) for key in keys] == [1] * len(keys)
        assert client.keys() == []


async def test_nothing_is_left_in_memory() -> None:
    """Of who has left, Kombu's memory broker keeps no queue, which would fill and fill."""
    namespace = fresh()
    async with closing(KombuTransport("memory://", namespace=namespace)) as (transport,):
        async with transport.subscribe() as batches:
            await transport.publish(b"1", sender=A, ttl=1)
            assert await take(batches, 1) == [b"1"]
        await transport.publish(b"2", sender=A, ttl=1)
    assert not [name for name in memory.Channel.queues if namespace in name]


async def test_a_slow_reader_keeps_the_newest(
    rabbitmq: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """Of what is not read, the oldest is dropped."""
    monkeypatch.setattr(readers, "BACKLOG", 100)
    transport = KombuTransport(rabbitmq.url, namespace=fresh())
    async with closing(transport), transport.subscribe() as batches:
        for number in range(250):
            await transport.publish(b"%d" % number, sender=A, ttl=1)
        # What it gets next comes after all that.
        mailbox: Any = batches
        await until(lambda: mailbox._unread[-1] == b"249")
        assert await take(batches, 100) == [b"%d" % number for number in range(150, 250)]


async def test_a_process_that_stands_still_makes_no_broker_grow(
    rabbitmq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody takes off the network is bounded in the broker, and the newest stays."""
    monkeypatch.setitem(lines.LIMITS, "x-max-length", 10)
    exchange, heard, count = fresh(), [], 400

    def listen_late() -> None:
        broker = lines.Broker(rabbitmq.url, 10)
        listener, speaker = broker.open("listens", 60), broker.open("speaks", 60)
        listener.listen(exchange, "", lambda message: heard.append(bytes(message.body[:3])))
        for number in range(count):
            speaker.send(exchange, "", b"%03d" % number + bytes(100_000))
        while not heard or heard[-1] != b"%03d" % (count - 1):
            listener.take(10)
        speaker.close()
        listener.close()

    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(listen_late, abandon_on_cancel=True)
    assert len(heard) < count
    assert heard[-10:] == [b"%03d" % number for number in range(count - 10, count)]


# -- how it connects --------------------------------------------------------------------------


async def test_a_connection_of_kombu_will_do(rabbitmq: Any) -> None:
    """In the place of a URL there may be a connection, with options, which stays as it was."""
    given = kombu.Connection(
        rabbitmq.url, transport_options={"client_properties": {"product": "ours"}}
    )
    transport = KombuTransport(given, namespace=fresh())
    async with closing(transport), transport.subscribe() as batches:
        await transport.publish(b"1", sender=A, ttl=1)
        assert await take(batches, 1) == [b"1"]
        assert "ours" in await call(rabbitmq, "list_connections", "client_properties")
    assert not given.connected
    assert given.transport_options == {"client_properties": {"product": "ours"}}


async def test_of_several_brokers_one_that_is_there_is_found(rabbitmq: Any) -> None:
    """If one is away, the next call tries the next."""
    transport = KombuTransport(f"amqp://guest:guest@127.0.0.1:1//;{rabbitmq.url}")
    async with closing(transport):
        with pytest.raises(TransportError):
            await transport.publish(b"1", sender=A, ttl=1)
        await transport.publish(b"2", sender=A, ttl=1)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key, and a certificate that it signs itself."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    try:
        subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    return key, cert


async def test_it_speaks_tls(tmp_path: Path) -> None:
    """Everything works over TLS, and a certificate that nobody vouches for is refused."""
    from servers import RabbitServer, ServerError, free_port

    key, cert = certificate(tmp_path)
    port = free_port()
    server = RabbitServer(
        tmp_path,
        [
            f"listeners.ssl.1 = 127.0.0.1:{port}",
            f"ssl_options.certfile = {cert}",
            f"ssl_options.keyfile = {key}",
            f"ssl_options.cacertfile = {cert}",
        ],
    )
    try:
        await anyio.to_thread.run_sync(server.start)
    except ServerError as exc:
        pytest.skip(str(exc))
    try:
        url = f"amqps://guest:guest@127.0.0.1:{port}//"
        ssl = {"ca_certs": str(cert), "server_hostname": "localhost"}
        trusting = kombu.Connection(url, ssl=ssl)
        transport = AmqpTransport(trusting, namespace=fresh())
        async with closing(transport), transport.subscribe() as batches, transport.attend(A):
            for number in range(100):
                await transport.publish(b"%d" % number * 200, sender=A, ttl=1)
            assert len(await take(batches, 100)) == 100
            assert (await transport.connections([A, B])).connected == {A}
        transport = AmqpTransport(url)
        with pytest.raises(TransportError, match=r"(?i)certificate"):
            await transport.publish(b"1", sender=A, ttl=1)
        await transport.aclose()
    finally:
        await anyio.to_thread.run_sync(server.stop)


async def test_something_that_is_no_broker_is_told() -> None:
    """A server that says nothing sensible is a transport error, soon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        transport = KombuTransport(f"amqp://guest:guest@127.0.0.1:{port}//", timeout=0.3)
        with anyio.fail_after(10), pytest.raises(TransportError):
            await transport.publish(b"1", sender=A, ttl=1)
        await transport.aclose()
