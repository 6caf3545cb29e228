"""How long a message takes, and whether it arrives: small models to plug into the simulator.

Times are whole microseconds and chances whole millionths, and the only source of chance is the
generator that is passed in: the same seed gives the same fates on every platform. A model is
copied for every link that it is used on, so it may keep a state.
"""

import random
from typing import Protocol

import attrs

__all__ = (
    "SECOND",
    "Bursts",
    "Constant",
    "Delay",
    "DelayRegimes",
    "Independent",
    "Loss",
    "LossRegimes",
    "Never",
    "Tail",
    "Uniform",
    "microseconds",
)

SECOND = 1_000_000
"""One second, in the microseconds that the simulator counts in."""

MILLION = 1_000_000


def microseconds(seconds: float) -> int:
    """Give a time in whole microseconds."""
    return round(seconds * SECOND)


class Delay(Protocol):
    """How long a message takes."""

    def draw(self, chance: random.Random, now: int) -> int:
        """Give the time of one message, in microseconds."""
        ...

    @property
    def usual(self) -> int:
        """The longest time that is nothing unusual, in microseconds."""
        ...

    @property
    def longest(self) -> int:
        """The longest time there is, in microseconds."""
        ...


class Loss(Protocol):
    """Which messages do not arrive."""

    def loses(self, chance: random.Random, now: int) -> bool:
        """Tell whether one message is lost."""
        ...


@attrs.frozen
class Constant:
    """Every message takes as long."""

    delay: int = 0

    def draw(self, chance: random.Random, now: int) -> int:  # noqa: ARG002 - it has no need
        """Give the time of one message, in microseconds."""
        return self.delay

    @property
    def usual(self) -> int:
        """The longest time that is nothing unusual, in microseconds."""
        return self.delay

    @property
    def longest(self) -> int:
        """The longest time there is, in microseconds."""
        return self.delay


@attrs.frozen
class Uniform:
    """A message takes anything from ``low`` to ``high``, both included."""

    low: int
    high: int

    def draw(self, chance: random.Random, now: int) -> int:  # noqa: ARG002 - it has no need
        """Give the time of one message, in microseconds."""
        return self.low + chance.randrange(self.high - self.low + 1)

    @property
    def usual(self) -> int:
        """The longest time that is nothing unusual, in microseconds."""
        return self.high

    @property
    def longest(self) -> int:
        """The longest time there is, in microseconds."""
        return self.high


@attrs.frozen
class Tail:
    """A heavy tail, as a table: so many out of all messages take up to so long.

    Attributes:
        rows: Pairs of a weight and the longest delay of that row, in microseconds, rising. Within
            a row the delay is anything above the row before.
    """

    rows: tuple[tuple[int, int], ...] = (
        (900, 2_000),
        (90, 20_000),
        (9, 200_000),
        (1, 2_000_000),
    )

    def draw(self, chance: random.Random, now: int) -> int:  # noqa: ARG002 - it has no need
        """Give the time of one message, in microseconds."""
        pick = chance.randrange(sum(weight for weight, _ in self.rows))
        shortest = 0
        for weight, longest in self.rows:
            if pick < weight:
                return shortest + chance.randrange(longest - shortest + 1)
            pick -= weight
            shortest = longest
        return shortest

    @property
    def usual(self) -> int:
        """The longest time that is nothing unusual, in microseconds."""
        return self.rows[min(1, len(self.rows) - 1)][1]

    @property
    def longest(self) -> int:
        """The longest time there is, in microseconds."""
        return self.rows[-1][1]


@attrs.frozen
class DelayRegimes:
    """One model after another: each from its time on, in microseconds; the first from the start."""

    regimes: tuple[tuple[int, Delay], ...]

    def draw(self, chance: random.Random, now: int) -> int:
        """Give the time of one message, in microseconds."""
        model = self.regimes[0][1]
        for since, each in self.regimes:
            if now >= since:
                model = each
        return model.draw(chance, now)

    @property
    def usual(self) -> int:
        """The longest time that is nothing unusual, in microseconds."""
        return max(each.usual for _, each in self.regimes)

    @property
    def longest(self) -> int:
        """The longest time there is, in microseconds."""
        return max(each.longest for _, each in self.regimes)


@attrs.frozen
class Never:
    """Nothing is lost."""

    def loses(self, chance: random.Random, now: int) -> bool:  # noqa: ARG002 - it has no need
        """Tell whether one message is lost."""
        return False


@attrs.frozen
class Independent:
    """Each message is lost with the same chance, in millionths, whatever became of the others."""

    chance: int = 10_000

    def loses(self, chance: random.Random, now: int) -> bool:  # noqa: ARG002 - it has no need
        """Tell whether one message is lost."""
        return chance.randrange(MILLION) < self.chance


@attrs.define
class Bursts:
    """Losses that come in bursts, after Gilbert (1960) and Elliott (1963): two states of a link.

    Attributes:
        begins: The chance that a message finds a good link turned bad, in millionths.
        ends: The chance that a message finds a bad link turned good.
        good: The chance that a message is lost on a good link.
        bad: The chance that it is lost on a bad one.
    """

    begins: int
    ends: int
    good: int = 0
    bad: int = MILLION
    _is_bad: bool = attrs.field(default=False, init=False)

    def loses(self, chance: random.Random, now: int) -> bool:  # noqa: ARG002 - it has no need
        """Tell whether one message is lost."""
        turns = chance.randrange(MILLION) < (self.ends if self._is_bad else self.begins)
        self._is_bad ^= turns
        return chance.randrange(MILLION) < (self.bad if self._is_bad else self.good)


@attrs.frozen
class LossRegimes:
    """One model after another: each from its time on, in microseconds; the first from the start."""

    regimes: tuple[tuple[int, Loss], ...]

    def loses(self, chance: random.Random, now: int) -> bool:
        """Tell whether one message is lost."""
        model = self.regimes[0][1]
        for since, each in self.regimes:
            if now >= since:
                model = each
        return model.loses(chance, now)
