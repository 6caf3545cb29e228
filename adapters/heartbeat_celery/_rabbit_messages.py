"""Messages of RabbitMQ's, written down as Kombu writes them where it keeps them itself, and back.

So whatever tells of a task reads one form, whichever broker its message came over.
"""

import base64
from typing import Any

import amqp

from heartbeat_celery._dead_letters import DELIVERY

__all__ = ("DELIVERIES", "described", "rebuilt")

DELIVERIES = "x-delivery-count"
"""The header in which a quorum queue says how often a message came back to it."""

LEFT_OUT = ("application_headers", "user_id", "expiration")
"""Properties that are not written down: RabbitMQ would check the one, and act on the other."""


def described(message: Any, queue: str, *, with_body: bool = True) -> dict[str, Any]:
    """Write down a message that a worker received.

    Args:
        message: Kombu's message.
        queue: Where it came from.
        with_body: Whether its body is written down too.
    """
    body = message.body
    if isinstance(body, str):
        body = body.encode(message.content_encoding or "utf-8")
    headers = dict(message.headers)
    for header in ("compression", DELIVERIES, DELIVERY):  # Kombu has unpacked it.
        headers.pop(header, None)
    properties = {name: value for name, value in message.properties.items() if name not in LEFT_OUT}
    properties["body_encoding"] = "base64"
    properties["delivery_info"] = {
        "exchange": message.delivery_info.get("exchange") or "",
        "routing_key": message.delivery_info.get("routing_key") or queue,
    }
    return {
        "body": base64.b64encode(bytes(body)).decode() if with_body else "",
        "content-type": message.content_type,
        "content-encoding": message.content_encoding,
        "headers": headers,
        "properties": properties,
    }


def rebuilt(message: dict[str, Any]) -> amqp.Message:
    """Make a message that can be sent of what was written down."""
    properties = dict(message["properties"])
    for name in ("body_encoding", "delivery_info", "content_type", "content_encoding"):
        properties.pop(name, None)
    given = {
        "content_type": message["content-type"],
        "content_encoding": message["content-encoding"],
        **properties,
        "delivery_mode": 2,
        "application_headers": message["headers"],
    }
    known = {name: value for name, value in given.items() if value is not None}
    return amqp.Message(base64.b64decode(message["body"]), **known)
