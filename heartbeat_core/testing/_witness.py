"""What truly reached an observer: kept beside its detector, by other and simpler means.

The promises are judged by this, never by what the detector says of itself. Times are the
simulator's own, in microseconds.
"""

import attrs

from heartbeat_core._beat import Beat, Incarnation
from heartbeat_core._looks import Connections
from heartbeat_core._settings import Settings
from heartbeat_core.testing.models import SECOND, microseconds

__all__ = ("Heard", "Witness")

LONG_AGO = -(10**15)
TOLERANCE = SECOND // 500
"""Two gaps that differ by less are not told apart; a beat carries its time in milliseconds."""


@attrs.define(eq=False)
class Heard:
    """What reached one observer of one incarnation.

    Attributes:
        arrived: When its latest beat came.
        sent: When it was sent, if it was not too old on arrival to count.
        sequence: The largest sequence number that came.
        live: Whether a beat came live, so that the age of others can be told.
        lost: So many beats in a row were lost or late between the broker and the observer.
        seen: What the last look said of its connection; ``None`` if that is no evidence.
        misses: So many looks in a row missed it.
        missed_at: When the first of them did.
        counted_at: When the last of them counted.
        forgotten_at: When it became unknown whether it is connected.
    """

    arrived: int = LONG_AGO
    sent: int = LONG_AGO
    sequence: int = 0
    live: bool = False
    lost: int = 0
    seen: bool | None = None
    misses: int = 0
    missed_at: int = LONG_AGO
    counted_at: int = LONG_AGO
    forgotten_at: int = LONG_AGO

    def forget(self, now: int) -> None:
        """Count what is known of the connection as no evidence."""
        if self.seen is not None:
            self.forgotten_at = now
        self.seen, self.misses = None, 0


class Witness:
    """What reached one observer.

    Attributes:
        echo: When it last heard itself.
        hears_since: Since when it heard itself without a gap, at the latest.
        disturbed_at: When it was last cut off, stopped or reconnected.
        echo_lost_at: When one of its own beats was last lost.
    """

    def __init__(self, settings: Settings) -> None:
        self._longest_gap = microseconds(max(settings.max_freq, 1.5 * settings.frequency))
        self._interval = microseconds(settings.disconnect_interval)
        self._recent = microseconds(settings.max_freq)
        self._expire = microseconds(settings.expire)
        self.heard: dict[Incarnation, Heard] = {}
        self.echo = LONG_AGO
        self.hears_since = LONG_AGO
        self.disturbed_at = LONG_AGO
        self.echo_lost_at = LONG_AGO
        self._sleeps: list[tuple[int, int]] = []
        self._floor = LONG_AGO
        self._session: int | None = None
        self._aside: dict[Incarnation, int] = {}

    @property
    def longest_gap(self) -> int:
        """The longest gap between two echoes that is normal."""
        return self._longest_gap

    def of(self, incarnation: Incarnation) -> Heard:
        """Give what is known of an incarnation."""
        heard = self.heard.get(incarnation)
        if heard is None:
            heard = self.heard[incarnation] = Heard()
        return heard

    def hear_self(self, now: int) -> None:
        """Note an echo."""
        if now - self.echo > self._longest_gap - TOLERANCE:
            self.hears_since = now
        if self._awake(now) - self._awake(self.echo) > self._longest_gap + TOLERANCE:
            self._floor = now
        self.echo = now

    def oversleep(self, now: int, length: int) -> None:
        """Note that the driver found itself late: that is time in which nobody grows silent."""
        last = self._sleeps[-1][1] if self._sleeps else LONG_AGO
        fell_asleep = max(now - length, self.echo, last)
        if fell_asleep < now:
            self._sleeps.append((fell_asleep, now))

    def stand(self, since: int, now: int) -> None:
        """Note that its whole machine stood still, and its clock with it."""
        self._sleeps.append((since, now))

    def disturb(self, now: int) -> None:
        """Note that the observer was stopped, cut off or reconnected until now."""
        self.disturbed_at = now

    def hear(self, beat: Beat, sent: int, now: int, *, kept: bool) -> None:
        """Note a beat of another node, or one that was kept of it."""
        heard = self.of(beat.incarnation)
        if beat.sequence <= heard.sequence:
            return
        heard.live = heard.live or not kept
        heard.arrived = now
        if now - sent <= self._expire:
            heard.sent = sent
        heard.sequence = beat.sequence
        heard.lost = 0
        if heard.seen is False and (sent > heard.missed_at or not heard.live):
            self._set_aside(beat.incarnation, now)

    def silence(self, heard: Heard) -> int:
        """Give the longest silence that can be meant, in time in which the observer heard itself.

        It counts from the sending of what came last, and to the last echo.
        """
        return self._awake(self.echo) - max(self._awake(heard.sent), self._awake(self._floor))

    def _awake(self, time: int) -> int:
        """Give a time on a clock that stands while the observer does."""
        return time - sum(
            min(max(time - fell_asleep, 0), woke - fell_asleep)
            for fell_asleep, woke in self._sleeps
        )

    def look(self, seen: Connections, living: int, now: int) -> None:
        """Note a look at the connections."""
        if seen.session != self._session:
            self._session = seen.session
            for incarnation, heard in self.heard.items():
                if heard.seen is not None:
                    self._set_aside(incarnation, now)
        for incarnation in seen.connected:
            heard = self.of(incarnation)
            heard.seen, heard.misses = True, 0
            self._aside.pop(incarnation, None)
        if seen.connected == seen.asked and not self._aside:
            return
        missed = [self.of(each) for each in seen.asked - seen.connected]
        missed = [each for each in missed if each.seen is not None]
        for heard in missed:
            if heard.seen:
                heard.seen, heard.misses = False, 0
                heard.missed_at = now
                heard.counted_at = LONG_AGO
            if now - heard.counted_at >= self._interval // 2 - TOLERANCE:
                heard.misses += 1
                heard.counted_at = now
        self._brake(missed, seen, living, now)

    def _brake(self, missed: list[Heard], seen: Connections, living: int, now: int) -> None:
        """Three or more, and over half of all, that are gone at once are no evidence."""
        self._aside = {
            each: since for each, since in self._aside.items() if since > now - self._recent
        }
        gone = len(missed) + len(self._aside)
        if gone < 3 or 2 * gone <= living:
            return
        for incarnation in seen.asked - seen.connected:
            if self.of(incarnation).seen is False:
                self._set_aside(incarnation, now)

    def _set_aside(self, incarnation: Incarnation, now: int) -> None:
        """Count what is known of a connection as no evidence; it may be part of a mass loss."""
        heard = self.of(incarnation)
        heard.forget(now)
        if heard.missed_at > LONG_AGO:
            self._aside[incarnation] = heard.missed_at
