"""The two ways to judge silence: failed checks, and phi accrual.

A judge turns what is known of a node's beats into two spans of silence: after the first the node
is suspect, after the second it is dead. It holds nothing of a node itself; what it learns stands in
the node's record, in constant space. It is never asked about connections, and the detector bounds
both spans by ``expire``.
"""

import math
from typing import Protocol

from heartbeat_core._record import Record
from heartbeat_core._settings import Settings
from heartbeat_core._states import Cause

__all__ = ("Checks", "Judge", "Phi", "judge_for", "phi_of", "quantile")


class Judge(Protocol):
    """Judges silence. Every call is O(1); nothing in it reads a clock."""

    learns: bool
    """Whether ``learn`` wants to be called."""
    verdict: Cause
    """Why a node is dead that was silent for ``dead_after``."""

    def meet(self, record: Record) -> None:
        """Begin with what a node promises: it was not heard before."""
        ...

    def learn(self, record: Record, gap: float) -> None:
        """Take in the gap before a beat, in seconds; one of several lost beats counts once."""
        ...

    def suspect_after(self, record: Record) -> float:
        """Give the longest silence that is still normal, in seconds."""
        ...

    def dead_after(self, record: Record) -> float:
        """Give the silence after which a node is dead, in seconds."""
        ...

    def level(self, record: Record, silence: float) -> float:
        """Tell how suspicious a silence is; grows with it."""
        ...


class Checks:
    """Suspect when silent for longer than ``max_freq``, dead when ``checks`` checks have failed.

    The first check fails at suspicion, then one every ``frequency``; and nobody is dead before
    ``min_freq``. The level is the number of failed checks.
    """

    learns = False
    verdict = Cause.CHECKS_FAILED

    def __init__(self, settings: Settings) -> None:
        self._normal = settings.max_freq
        self._step = settings.frequency
        last_check = settings.max_freq + (settings.checks - 1) * settings.frequency
        self._dead = max(last_check, settings.min_freq)

    def meet(self, record: Record) -> None:
        """Learn nothing."""

    def learn(self, record: Record, gap: float) -> None:
        """Learn nothing."""

    def suspect_after(self, record: Record) -> float:
        """Give ``max_freq``."""
        return self._normal * record.slack

    def dead_after(self, record: Record) -> float:
        """Give the time of the last check, but no less than ``min_freq``."""
        return self._dead * record.slack

    def level(self, record: Record, silence: float) -> float:
        """Count the failed checks."""
        late = silence - self.suspect_after(record)
        return float(1 + int(late / (self._step * record.slack))) if late > 0 else 0.0


class Phi:
    """Phi accrual: the spans of silence follow the gaps that were observed.

    After Hayashibara, Defago, Yared and Katayama, "The phi accrual failure detector" (2004):
    ``phi`` is minus the decimal logarithm of the probability that a beat comes even later. The
    gaps are taken for normally distributed; mean and variance are learned with exponentially
    falling weights (Welford), so that a node costs two numbers. The tail of the distribution is the
    logistic approximation that Akka uses, written so that no silence overflows it, and inverted
    once into a deadline.

    ``max_freq - frequency`` is the pause that is always acceptable; a tenth of the promised gap is
    the smallest deviation, so that a regular node is not held to its microseconds.
    """

    learns = True
    verdict = Cause.PHI

    WEIGHT = 0.05
    SMALLEST_DEVIATION = 0.1
    FIRST_DEVIATION = 0.25

    def __init__(self, settings: Settings) -> None:
        self._pause = settings.max_freq - settings.frequency
        self._least = settings.min_freq
        self._suspect = quantile(settings.phi_suspect)
        self._dead = quantile(settings.phi_dead)

    def meet(self, record: Record) -> None:
        """Expect what the node promises, give or take a quarter."""
        record.mean = record.gap
        record.variance = (self.FIRST_DEVIATION * record.gap) ** 2

    def learn(self, record: Record, gap: float) -> None:
        """Move mean and variance towards a gap."""
        delta = gap - record.mean
        record.mean += self.WEIGHT * delta
        record.variance = (1 - self.WEIGHT) * (record.variance + self.WEIGHT * delta * delta)

    def suspect_after(self, record: Record) -> float:
        """Give the silence at which phi is ``phi_suspect``."""
        return self._after(record, self._suspect)

    def dead_after(self, record: Record) -> float:
        """Give the silence at which phi is ``phi_dead``, but no less than ``min_freq``."""
        return max(self._after(record, self._dead), self._least * record.slack)

    def level(self, record: Record, silence: float) -> float:
        """Give phi."""
        expected = record.mean + self._pause * record.slack
        return phi_of((silence - expected) / self._deviation(record))

    def _after(self, record: Record, deviations: float) -> float:
        expected = record.mean + self._pause * record.slack
        return expected + deviations * self._deviation(record)

    def _deviation(self, record: Record) -> float:
        return max(math.sqrt(record.variance), self.SMALLEST_DEVIATION * record.gap)


CUBIC, LINEAR = 0.070566, 1.5976
STEPS = 50
LARGEST_EXPONENT = 36.0
"""From here on log(1 + exp(u)) is u, to the last bit."""


def phi_of(deviations: float) -> float:
    """Give phi of a silence that is so many deviations longer than the mean; 0 at the shortest."""
    exponent = deviations * (LINEAR + CUBIC * deviations * deviations)
    if exponent <= LARGEST_EXPONENT:
        exponent = math.log1p(math.exp(exponent))
    return exponent / math.log(10)


def quantile(phi: float) -> float:
    """Give the number of deviations above the mean at which phi has a value: ``phi_of`` inverted.

    Newton's method; the cubic rises everywhere, so there is one root and no way to miss it.
    """
    exponent = phi * math.log(10) + math.log1p(-(10.0**-phi))
    deviations = exponent / LINEAR
    for _ in range(STEPS):
        error = deviations * (LINEAR + CUBIC * deviations * deviations) - exponent
        deviations -= error / (LINEAR + 3 * CUBIC * deviations * deviations)
    return deviations


def judge_for(settings: Settings) -> Judge:
    """Give the judge that the settings ask for."""
    return Phi(settings) if settings.detector == "phi" else Checks(settings)
