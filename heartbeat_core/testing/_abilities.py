"""Skips what a transport cannot do, and says so to the type checker where it can."""

from typing import Protocol, cast
from unittest import SkipTest

from heartbeat_core._transport import LastBeats, Presence, Seats, Transport

__all__ = ("Attends", "Contends", "Remembers", "attends", "contends", "remembers")


class Remembers(Transport, LastBeats, Protocol):
    """A transport that keeps last beats."""


class Attends(Transport, Presence, Protocol):
    """A transport that knows who is connected."""


class Contends(Transport, Seats, Protocol):
    """A transport that gives out seats."""


def remembers(transport: Transport) -> Remembers:
    """Skip the test unless the transport keeps last beats."""
    if not isinstance(transport, LastBeats):
        raise SkipTest("the transport keeps no last beats")
    return cast("Remembers", transport)


def attends(transport: Transport) -> Attends:
    """Skip the test unless the transport knows who is connected."""
    if not isinstance(transport, Presence):
        raise SkipTest("the transport does not know who is connected")
    return cast("Attends", transport)


def contends(transport: Transport) -> Contends:
    """Skip the test unless the transport gives out seats."""
    if not isinstance(transport, Seats):
        raise SkipTest("the transport gives out no seats")
    return cast("Contends", transport)
