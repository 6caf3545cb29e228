"""Heartbeats over Redis or Valkey: :class:`RedisTransport`."""

from heartbeat_redis._transport import RedisTransport

__all__ = ("RedisTransport",)
