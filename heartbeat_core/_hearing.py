"""The observer's clock of hearing: time in which it could hear itself, and was awake.

An observer beats too, and hears its own beats come back through the broker. Everybody is judged
as of the last of these echoes, so while none comes back nobody grows more silent. When one comes
after a gap longer than normal (the broker was away, the observer was cut off), everyone's silence
starts from zero: no silence reaches below the *floor*. While the observer itself stood still, the
clock stands too; after a pause longer than that gap silence starts from zero as well.

All of it is O(1), whatever the number of nodes: the clock is one number that lags behind the
driver's, and the floor is another.
"""

import math

import attrs

__all__ = ("Hearing",)


@attrs.define(eq=False, weakref_slot=False)
class Hearing:
    """Turns times of the driver's clock into times of hearing.

    Attributes:
        longest_gap: The longest gap between two echoes that is normal, in seconds.
        lag: By how many seconds this clock is behind the driver's.
        echo: The time of hearing as of which everybody is judged; none before the first echo.
        floor: No silence is counted from before this time of hearing.
        deaf: For how many seconds, in all, the observer could not hear itself.
        late: For how many seconds, in all, it stood still itself.
    """

    longest_gap: float
    lag: float = 0.0
    echo: float | None = None
    floor: float = -math.inf
    deaf: float = 0.0
    late: float = 0.0
    _woke: float = -math.inf
    _slept: float = 0.0

    def hear_self(self, now: float) -> None:
        """Take in an echo."""
        time = now - self.lag
        if self.echo is None:
            self.floor = time
        elif time - self.echo > self.longest_gap:
            self.deaf += time - self.echo
            self.floor = time
        self.echo = time

    def oversleep(self, now: float, seconds: float, awake_at: float) -> None:
        """Take in that the observer stood still until now, for so long.

        Args:
            now: The time on the driver's clock.
            seconds: For how long.
            awake_at: When it did something last, on the driver's clock: what it has read since it
                woke stays as it is.
        """
        time = now - self.lag
        # The clock never goes backwards, nor behind what everybody was judged as of.
        latest = max(self._woke, -math.inf if self.echo is None else self.echo)
        stood = min(seconds, now - awake_at, time - latest)
        if stood > 0:
            self.lag += stood
            self.late += stood
            self._woke, self._slept = now - self.lag, stood
        if seconds > self.longest_gap:
            # As after a deafness: nobody knows what was missed.
            self.floor = now - self.lag

    def when(self, now: float, age: float) -> float:
        """Give the time of hearing so many seconds ago; exact since the last oversleeping."""
        time = now - self.lag - age
        if time < self._woke:
            time = min(self._woke, time + self._slept)
        return time
