"""Silence: how long it is, what it means, and when it will mean more.

Everything here is a pure function of a record and of the observer's clock of hearing, so there is
nothing to count up, and nothing to set back when the observer was deaf. All times are times of
hearing.
"""

import math

from heartbeat_core._hearing import Hearing
from heartbeat_core._judges import Judge
from heartbeat_core._record import Record
from heartbeat_core._settings import Settings
from heartbeat_core._states import Cause, State

__all__ = ("Silence",)


class Silence:
    """Measures and judges the silence of nodes, as of the last echo."""

    def __init__(self, settings: Settings, judge: Judge, hearing: Hearing) -> None:
        self._settings = settings
        self._judge = judge
        self._hearing = hearing

    def base(self, record: Record) -> float:
        """Tell from when on a silence counts."""
        return max(record.heard, self._hearing.floor)

    def length(self, record: Record) -> float:
        """Give a node's silence, in seconds."""
        echo = self._hearing.echo
        return 0.0 if echo is None else max(0.0, echo - self.base(record))

    def deadline(self, record: Record) -> float:
        """Tell when silence changes the state of a node next; ``inf`` for never."""
        if record.state is State.ALIVE:
            limit = min(self._judge.suspect_after(record), self._settings.expire)
            # A silence just as long as the limit is normal still.
            return math.nextafter(self.base(record) + limit, math.inf)
        return self.dead_at(record) if record.state is State.SUSPECT else math.inf

    def dead_at(self, record: Record) -> float:
        """Tell when a node that is, or will be, suspected is dead by its silence."""
        base = self.base(record)
        expired = base + self._settings.expire
        if record.connected:
            # It is mute, not gone.
            return expired
        dead = base + self._judge.dead_after(record)
        if record.checks_from >= base:
            step = self._settings.frequency * record.slack
            dead = max(
                base + self._settings.min_freq * record.slack,
                record.checks_from + (self._settings.checks - 1) * step,
            )
        return min(dead, expired)

    def verdict(self, record: Record) -> Cause:
        """Tell for what a node is dead whose time has come."""
        expired = self.length(record) >= self._settings.expire
        return Cause.EXPIRED if expired else self._judge.verdict

    def checks_failed(self, record: Record) -> int:
        """Count the checks of a node that have failed: silent ones, or looks if those are more."""
        if record.state is not State.SUSPECT:
            return record.checks_failed
        base, echo = self.base(record), self._hearing.echo
        first = base + self._judge.suspect_after(record)
        if record.checks_from >= base:
            first = record.checks_from
        late = -1.0 if echo is None else echo - first
        silent = 1 + int(late / (self._settings.frequency * record.slack)) if late > 0 else 1
        return max(silent, record.checks_failed)

    def level(self, record: Record, time: float) -> float:
        """Tell how suspicious a node's silence is at a time."""
        silence = time - self.base(record)
        return self._judge.level(record, silence) if silence > 0 else 0.0

    def explain(self, record: Record, cause: Cause, now: float) -> str:
        """Say in a sentence what speaks against a node."""
        connection = "nothing known of its connections"
        if record.connected:
            connection = "connection open"
        elif record.connected is False:
            connection = f"connection closed {now - record.disconnected_at:.2f} s ago"
        silence = self.length(record)
        judged = f"{self.checks_failed(record)} of {self._settings.checks} checks failed"
        if self._judge.learns and cause in {Cause.SILENCE, Cause.MUTE, Cause.PHI}:
            judged = f"phi {self._judge.level(record, silence):.1f}"
        return f"no beat for {silence:.2f} s, {connection}, {judged}"
