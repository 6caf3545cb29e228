"""Looks at the connections of the nodes: when an absence is evidence, and when it is not.

An absence counts only of an incarnation that was seen connected before, while the observer's own
connection stood all the time; and not when most of the nodes vanished in one moment, since then it
was more likely a proxy that restarted. A look costs as much as has changed since the last one.
"""

from collections.abc import Mapping

import attrs

from heartbeat_core._beat import Incarnation
from heartbeat_core._record import Record
from heartbeat_core._settings import Settings
from heartbeat_core._states import State

__all__ = ("Connections", "Looks")

MASS = 3
"""So many connections that go in one moment, and over half of all, are no evidence."""


@attrs.frozen(kw_only=True)
class Connections:
    """What the broker says of the connections of some incarnations.

    Attributes:
        session: Changes whenever the observer's own connection was lost: what was known
            before is worth nothing then.
        asked: The incarnations that the broker was asked about.
        connected: Those of them that still have a connection.
    """

    session: int
    asked: frozenset[Incarnation]
    connected: frozenset[Incarnation]


class Looks:
    """What is known of connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: int | None = None
        self._present: dict[Incarnation, Record] = {}
        self._absent: dict[Incarnation, Record] = {}
        self._aside: dict[Incarnation, Record] = {}
        self._braking = False

    def take(self, seen: Connections, records: Mapping[str, Record], now: float) -> list[Record]:
        """Take in a look; give those, by name, of whose absence this is the first look."""
        for incarnation in sorted(seen.connected - self._present.keys()):
            record = records.get(incarnation.node)
            if record is not None and record.number == incarnation.number:
                self._see(record)
        missed: list[Record] = []
        for incarnation in sorted((seen.asked - seen.connected) & self._known()):
            record = self._present.get(incarnation) or self._absent[incarnation]
            if self._miss(record, now):
                missed.append(record)
        return missed

    def begin_session(self, session: int) -> list[Record]:
        """Give those of whom what is known is worth nothing, if this is another session."""
        if session == self._session:
            return []
        self._session = session
        return [*self._present.values(), *self._absent.values()]

    def condemned(self) -> list[Record]:
        """Give the suspects that were missed often enough."""
        return [
            record
            for record in self._absent.values()
            if record.state is State.SUSPECT and record.checks_failed >= self._settings.checks
        ]

    def brake(self, living: int, now: float) -> tuple[list[Record], bool]:
        """Give those to be set aside, since most went at once; and whether that begins now.

        Who was set aside and did not connect again still counts for ``max_freq``, so that
        stragglers are set aside like the rest.
        """
        recent = now - self._settings.max_freq
        for incarnation, record in list(self._aside.items()):
            if record.disconnected_at <= recent:
                del self._aside[incarnation]
        gone = len(self._absent) + len(self._aside)
        braking = gone >= MASS and 2 * gone > living
        begins = braking and not self._braking
        self._braking = braking
        return (list(self._absent.values()) if braking else []), begins

    def set_aside(self, record: Record, checks_from: float) -> None:
        """Forget what is known of a node, and what was concluded from that.

        Args:
            record: The node.
            checks_from: When its first check counts as failed, if it is suspected.
        """
        if record.connected is not None and record.state is State.SUSPECT:
            record.checks_from = checks_from
        record.checks_failed = 0
        record.connected = None
        self.forget(record)
        if record.disconnected_at > -float("inf"):
            self._aside[record.incarnation] = record

    def forget(self, record: Record) -> None:
        """Let go of an incarnation that died or left."""
        for table in (self._present, self._absent, self._aside):
            table.pop(record.incarnation, None)

    def _known(self) -> set[Incarnation]:
        return self._present.keys() | self._absent.keys()

    def _see(self, record: Record) -> None:
        if record.state is State.DEAD:
            return
        self.forget(record)
        self._present[record.incarnation] = record
        record.checks_failed = 0
        record.connected = True

    def _miss(self, record: Record, now: float) -> bool:
        """Count a look in vain; tell whether it is the first."""
        interval = self._settings.disconnect_interval
        first = bool(record.connected) or record.state is State.ALIVE
        if record.connected:
            del self._present[record.incarnation]
            self._absent[record.incarnation] = record
            record.connected = False
            record.disconnected_at = now
        if first:
            record.checks_failed = 1
            record.next_look = now + interval
        elif now >= record.next_look - interval / 2:
            # A look that comes a little early is a look all the same.
            record.checks_failed += 1
            record.next_look = now + interval
        return first
