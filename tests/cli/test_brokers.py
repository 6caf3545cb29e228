"""Which transport a URL stands for."""

import pytest

from heartbeat_celery._brokers import BrokerError, _as_redis_py, transport_for
from heartbeat_celery._commands.fleet import Fleet
from heartbeat_core import MemoryTransport, Settings, shard_of


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://localhost", "RedisTransport"),
        ("rediss://localhost?ssl_cert_reqs=CERT_NONE", "RedisTransport"),
        ("unix:///run/redis.sock?db=1", "RedisTransport"),
        ("redis+socket:///run/redis.sock?virtual_host=1", "RedisTransport"),
        ("sentinel://localhost;sentinel://127.0.0.1/0?master_name=mine", "RedisTransport"),
        ("redis+cluster://localhost", "RedisTransport"),
        ("amqp://localhost//", "AmqpTransport"),
        ("amqps://localhost//", "AmqpTransport"),
        ("pyamqp://localhost//", "AmqpTransport"),
        ("amqp://localhost//;amqp://127.0.0.1//", "AmqpTransport"),
        ("memory://", "KombuTransport"),
        ("filesystem://", "KombuTransport"),
    ],
)
def test_who_speaks_to_whom(url: str, kind: str) -> None:
    """Each broker gets the transport that can do most with it."""
    transport = transport_for(url, namespace="fleet")
    assert type(transport).__name__ == kind
    assert transport.namespace == "fleet"


@pytest.mark.parametrize(
    "url", ["", "secret", "redis:secret", "://secret", "no scheme://secret", "user:secret@x://y"]
)
def test_what_is_no_url(url: str) -> None:
    """Of what is no URL nothing is said: it may be a password."""
    with pytest.raises(BrokerError) as raised:
        transport_for(url, namespace="fleet")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("kombu", "redis_py"),
    [
        ("redis://h/0", "redis://h/0"),
        ("socket:///s", "unix:///s"),
        ("redis+socket:///s?virtual_host=2&password=p", "unix:///s?db=2&password=p"),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", "rediss://h?ssl_cert_reqs=required"),
        ("rediss://h?a=b&ssl_cert_reqs=CERT_NONE", "rediss://h?a=b&ssl_cert_reqs=none"),
        ("rediss://h?ssl_cert_reqs=optional", "rediss://h?ssl_cert_reqs=optional"),
    ],
)
def test_how_kombu_spells_it(kombu: str, redis_py: str) -> None:
    """What Celery is configured with works here too."""
    assert _as_redis_py(kombu, kombu.partition("://")[0]) == redis_py


def test_every_node_has_a_shard_that_is_watched() -> None:
    """The namespaces that are watched are those in which nodes beat, and no others."""
    fleet = Fleet(
        connect=lambda each: MemoryTransport(namespace=each),
        namespace="fleet",
        shards=5,
        settings=Settings(),
    )
    beaten_in = {shard_of("fleet", f"node-{number}", 5) for number in range(1000)}
    assert beaten_in == set(fleet.namespaces)
    assert "Memory" not in repr(fleet)
