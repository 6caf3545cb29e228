"""Heartbeats over any broker that Kombu gives a fanout exchange. Nothing is here yet."""

__all__ = ()
