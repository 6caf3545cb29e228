"""The two judges of silence, as tables."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_core import Incarnation, Settings, SettingsError, State
from heartbeat_core._judges import Checks, Phi, judge_for, phi_of, quantile
from heartbeat_core._record import Record

PHI = Settings(detector="phi")


def record(judge: Checks | Phi, gap: float = 1.0, slack: float = 1.0) -> Record:
    """Give a node that was met."""
    each = Record(1, State.ALIVE, 0.0, Incarnation("n", 1), gap=gap, slack=slack)
    judge.meet(each)
    return each


@pytest.mark.parametrize(
    ("settings", "suspect", "dead"),
    [
        (Settings(), 2.0, 4.0),
        (Settings(checks=5), 2.0, 6.0),
        (Settings(checks=1), 2.0, 4.0),
        (Settings(checks=1, min_freq=2.0), 2.0, 2.0),
        (Settings(frequency=0.5, checks=4), 2.0, 4.0),
        (Settings(frequency=0.5, checks=4, min_freq=3.0), 2.0, 3.5),
    ],
)
def test_checks(settings: Settings, suspect: float, dead: float) -> None:
    """The first check fails at ``max_freq``, the last no earlier than ``min_freq``."""
    judge = judge_for(settings)
    assert isinstance(judge, Checks)
    for slack in (1.0, 3.0):
        each = record(judge, slack=slack)
        assert judge.suspect_after(each) == pytest.approx(suspect * slack)
        assert judge.dead_after(each) == pytest.approx(dead * slack)


@pytest.mark.parametrize(
    ("silence", "level"), [(0.0, 0), (2.0, 0), (2.01, 1), (2.99, 1), (3.0, 2), (4.5, 3), (9.0, 8)]
)
def test_the_level_of_checks(silence: float, level: int) -> None:
    """The level of ``checks`` is the number of failed checks."""
    judge = Checks(Settings())
    assert judge.level(record(judge), silence) == level


@pytest.mark.parametrize(
    ("phi", "deviations"),
    [(1.0, 1.2822), (3.0, 3.0589), (5.0, 4.1192), (8.0, 5.2260), (12.0, 6.2921)],
)
def test_quantiles(phi: float, deviations: float) -> None:
    """The known values of the inverse."""
    assert quantile(phi) == pytest.approx(deviations, abs=5e-5)


@given(st.floats(0.01, 100.0))
def test_phi_and_its_inverse(phi: float) -> None:
    """A silence as long as the quantile has that phi."""
    assert phi_of(quantile(phi)) == pytest.approx(phi, rel=1e-6)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_phi_is_stable_and_grows(deviations: float, more: float) -> None:
    """At any silence phi is a finite number, and a longer silence has no smaller one."""
    less = phi_of(deviations)
    assert math.isfinite(less)
    assert 0 <= less <= phi_of(deviations + more) * (1 + 1e-12)


def test_phi_at_first_expects_what_is_promised() -> None:
    """Before anything is learned the first estimate is the promised gap, give or take a quarter."""
    judge = Phi(PHI)
    each = record(judge)
    assert (each.mean, each.variance) == (1.0, 0.0625)
    # The mean, the acceptable pause, and three deviations and a bit.
    assert judge.suspect_after(each) == pytest.approx(1.0 + 1.0 + 0.25 * quantile(3.0))
    assert judge.dead_after(each) == 4.0


def test_phi_learns_mean_and_deviation() -> None:
    """After many gaps, mean and variance are those of the gaps."""
    judge, chance = Phi(PHI), random.Random(1)
    each = record(judge)
    for _ in range(3000):
        judge.learn(each, chance.gauss(1.5, 0.4))
    assert each.mean == pytest.approx(1.5, abs=0.25)
    assert math.sqrt(each.variance) == pytest.approx(0.4, abs=0.15)


def test_phi_does_not_hold_a_regular_node_to_its_microseconds() -> None:
    """A node without any jitter is still allowed a tenth of its gap."""
    judge = Phi(PHI)
    each = record(judge)
    for _ in range(3000):
        judge.learn(each, 1.0)
    assert judge.suspect_after(each) == pytest.approx(2.0 + 0.1 * quantile(3.0))


def test_an_irregular_node_is_given_more_time() -> None:
    """The less regular the gaps, the later both verdicts; ``min_freq`` holds all the same."""
    judge = Phi(PHI)
    regular, irregular = record(judge), record(judge)
    for number in range(200):
        judge.learn(regular, 1.0)
        judge.learn(irregular, 0.2 if number % 2 else 1.8)
    assert judge.suspect_after(irregular) > judge.suspect_after(regular) + 1
    assert judge.dead_after(irregular) > judge.dead_after(regular) == 4.0


def test_the_level_of_phi_meets_its_thresholds() -> None:
    """At the silence of the first verdict phi is ``phi_suspect``; it keeps growing."""
    judge = Phi(PHI)
    each = record(judge)
    silence = judge.suspect_after(each)
    assert judge.level(each, silence) == pytest.approx(3.0)
    assert judge.level(each, 1e9) > 1e6
    assert judge.level(each, 0.0) < 1e-3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"detector": "guess"}, r"detector \('guess'\) must be one of checks, phi"),
        ({"detector": None}, r"detector \(None\) must be one of checks, phi"),
        ({"phi_suspect": 0}, r"phi_suspect \(0\) must be a number above 0, at most 100"),
        ({"phi_dead": 101.0}, r"phi_dead \(101.0\) must be a number above 0, at most 100"),
        ({"phi_dead": "8"}, r"phi_dead \('8'\) must be a number above 0, at most 100"),
        ({"phi_suspect": 9.0}, r"phi_suspect \(9.0\) must not exceed phi_dead \(8.0\)"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], said: str) -> None:
    """A wrong setting names itself, its value and what would be right."""
    with pytest.raises(SettingsError, match=said):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_from_the_environment() -> None:
    """The detector is a word in the environment, its thresholds are numbers."""
    environ = {"CELERY_HEARTBEAT_DETECTOR": " Phi ", "CELERY_HEARTBEAT_PHI_DEAD": "9.5"}
    settings = Settings.load(environ=environ)
    assert (settings.detector, settings.phi_dead) == ("phi", 9.5)
