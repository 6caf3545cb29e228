"""A clock for tests."""

import math

__all__ = ("ManualClock",)


class ManualClock:
    """A clock that moves only when it is told to. Call it for the time, in seconds.

    It counts in whole nanoseconds, so that ten steps of 0.1 s are one second exactly, and a test
    may compare with a deadline.

    Args:
        now: The time at which it begins.

    Raises:
        ValueError: The time is not a finite number.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._nanoseconds = _nanoseconds(now)

    def __call__(self) -> float:
        """Give the time."""
        return self._nanoseconds / 1e9

    def __repr__(self) -> str:
        return f"ManualClock({self()!r})"

    def advance(self, seconds: float) -> float:
        """Let time pass, and give the time that it is then.

        Raises:
            ValueError: The number is negative or not finite: the clock never goes backwards.
        """
        step = _nanoseconds(seconds)
        if step < 0:
            raise ValueError(f"a clock cannot go back ({seconds!r} s): advance by 0 or more")
        self._nanoseconds += step
        return self()


def _nanoseconds(seconds: float) -> int:
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds!r} is not a finite number of seconds")
    return round(seconds * 1e9)
