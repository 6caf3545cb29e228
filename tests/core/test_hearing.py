"""The clock of hearing, as tables."""

import pytest

from heartbeat_core._hearing import Hearing


def test_the_first_echo_is_the_floor() -> None:
    """Nothing counts from before the observer heard itself first."""
    hearing = Hearing(2.0)
    hearing.hear_self(5.0)
    assert (hearing.echo, hearing.floor, hearing.deaf) == (5.0, 5.0, 0.0)


@pytest.mark.parametrize(("gap", "floor", "deaf"), [(2.0, 5.0, 0.0), (2.001, 7.001, 2.001)])
def test_a_gap_longer_than_normal_is_deafness(gap: float, floor: float, deaf: float) -> None:
    """After the longest normal gap silence goes on; after a longer one it starts from zero."""
    hearing = Hearing(2.0)
    hearing.hear_self(5.0)
    hearing.hear_self(5.0 + gap)
    assert hearing.floor == pytest.approx(floor)
    assert hearing.deaf == pytest.approx(deaf)
    assert hearing.echo == 5.0 + gap


def test_while_it_sleeps_the_clock_stands() -> None:
    """The time of hearing before and after a pause of its own differ by what it was awake."""
    hearing = Hearing(2.0)
    hearing.hear_self(10.0)
    hearing.oversleep(21.0, 10.0, 11.0)
    assert hearing.when(21.0, 0.0) == 11.0
    hearing.hear_self(21.5)
    assert (hearing.echo, hearing.deaf, hearing.late) == (11.5, 0.0, 10.0)


@pytest.mark.parametrize(
    ("age", "when"), [(0.0, 12.0), (1.0, 11.0), (1.5, 11.0), (11.0, 11.0), (11.5, 10.5)]
)
def test_ages_reach_back_over_a_pause(age: float, when: float) -> None:
    """What was sent during a pause of ten seconds was sent at its end; before it, before it."""
    hearing = Hearing(2.0)
    hearing.hear_self(10.0)
    hearing.oversleep(21.0, 10.0, 11.0)
    assert hearing.when(22.0, age) == when


@pytest.mark.parametrize("seconds", [5.0, 1e9])
def test_it_never_sleeps_longer_than_since_it_was_heard(seconds: float) -> None:
    """However long it says it slept, the clock does not fall behind the last echo."""
    hearing = Hearing(2.0)
    hearing.hear_self(10.0)
    hearing.oversleep(13.0, seconds, 0.0)
    assert hearing.when(13.0, 0.0) == 10.0
    hearing.oversleep(13.0, seconds, 0.0)
    assert hearing.when(13.0, 0.0) == 10.0
    assert hearing.late == 3.0


@pytest.mark.parametrize(("seconds", "lag", "floor"), [(1.9, 1.9, 10.0), (2.1, 2.1, 10.4)])
def test_after_a_long_pause_silence_starts_from_zero(
    seconds: float, lag: float, floor: float
) -> None:
    """A pause up to the longest normal gap stops the clock; a longer one is like a deafness."""
    hearing = Hearing(2.0)
    hearing.hear_self(10.0)
    hearing.oversleep(12.5, seconds, 10.2)
    assert hearing.lag == pytest.approx(lag)
    assert hearing.floor == pytest.approx(floor)


def test_what_it_read_before_it_noticed_its_pause_is_not_in_the_future() -> None:
    """If it did something since it woke, its clock does not go back; silence starts from zero."""
    hearing = Hearing(2.0)
    hearing.hear_self(10.0)
    heard = hearing.when(40.0, 0.0)
    hearing.oversleep(40.0, 29.5, 40.0)
    assert hearing.when(40.0, 0.0) == heard
    assert hearing.floor == heard
