"""Which transport speaks to a broker: its URL tells."""

import re

from heartbeat_core import HeartbeatError, Transport, TransportError

__all__ = ("BrokerError", "transport_for")

REDIS = frozenset({"redis", "rediss", "unix", "sentinel", "redis+cluster", "rediss+cluster"})
RABBITMQ = frozenset({"amqp", "amqps", "pyamqp"})
KOMBU_SOCKETS = frozenset({"socket", "redis+socket"})
"""What Kombu calls ``unix``."""


class BrokerError(HeartbeatError, ValueError):
    """A URL of which no transport can be made here; the message has nothing of it but its kind."""


def transport_for(url: str, *, namespace: str, key_prefix: str = "") -> Transport:
    """Make the transport for a broker. Connects to nothing.

    Args:
        url: Whatever Celery takes for a broker. One of Redis or RabbitMQ gets the transport that
            can do most; any other that Kombu knows, the one that can do least.
        namespace: The fleet.
        key_prefix: Kombu's ``global_keyprefix``, if the broker is Redis and it is set.

    Raises:
        BrokerError: There is no such broker, or its package is not installed.
    """
    scheme = url.partition("://")[0].lower()
    if "://" not in url or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise BrokerError("a broker's URL begins like redis:// or amqp://")
    if scheme in REDIS | KOMBU_SOCKETS:
        return _redis(url, scheme, namespace, key_prefix)
    if key_prefix:
        raise BrokerError(f"a key prefix is for Redis, and {scheme}:// is not")
    return _kombu(url, scheme, namespace)


def _redis(url: str, scheme: str, namespace: str, key_prefix: str) -> Transport:
    try:
        from heartbeat_redis import RedisTransport  # noqa: PLC0415 - heavy, and may be missing
    except ImportError as exc:
        raise _missing(exc, scheme, "redis") from exc
    try:
        return RedisTransport(_as_redis_py(url, scheme), namespace=namespace, key_prefix=key_prefix)
    except TransportError as exc:
        raise BrokerError(str(exc)) from None


def _as_redis_py(url: str, scheme: str) -> str:
    """Write what Kombu spells in its own way as redis-py does."""
    if scheme in KOMBU_SOCKETS:
        url = "unix" + url.removeprefix(scheme).replace("virtual_host=", "db=")
    return re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)", lambda m: m[1].lower(), url
    )


def _kombu(url: str, scheme: str, namespace: str) -> Transport:
    try:
        from heartbeat_kombu import AmqpTransport, KombuTransport  # noqa: PLC0415 - as above
    except ImportError as exc:
        raise _missing(exc, scheme, "kombu") from exc
    try:
        if scheme in RABBITMQ:
            return AmqpTransport(url, namespace=namespace)
        return KombuTransport(url, namespace=namespace)
    except TransportError:
        raise BrokerError(
            f"{scheme}:// is no broker that Kombu knows, or the driver that it needs is missing"
        ) from None


def _missing(exc: ImportError, scheme: str, extra: str) -> BrokerError:
    package = (exc.name or extra).partition(".")[0]
    return BrokerError(
        f"{scheme}:// needs {package}, which is missing: pip install 'heartbeat-core[{extra}]'"
    )
