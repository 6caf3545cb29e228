"""Heartbeats over any broker that Kombu gives a fanout exchange, and more on RabbitMQ."""

from heartbeat_kombu._amqp import AmqpTransport
from heartbeat_kombu._transport import KombuTransport

__all__ = ("AmqpTransport", "KombuTransport")
