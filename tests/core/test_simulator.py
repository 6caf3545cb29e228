"""Whole fleets, simulated: what the detector promises holds after every step, whatever happens.

A seed that fails is replayed with ``python -m heartbeat_core.testing --first SEED
--seeds 1``.
"""

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from heartbeat_core import Cause, Detector, Incarnation, Settings, State
from heartbeat_core.testing import faults
from heartbeat_core.testing import models
from heartbeat_core.testing.models import SECOND
from heartbeat_core.testing._scenario import Scenario, draw
from heartbeat_core.testing._simulator import BrokenPromise, Report, simulate
from heartbeat_core.testing._command import main, run_seed, summary

CHUNK = 50
HOUR = 3600 * SECOND
BOTH = pytest.mark.parametrize("presence", [False, True])


def causes(report: Report, node: str, observer: str = "n0") -> list[str]:
    """Give why an observer changed its mind about a node, in order."""
    return [
        each.cause.name for _, by, each in report.transitions if (by, each.node) == (observer, node)
    ]


def deaths(report: Report) -> list[str]:
    """Give who died, each time."""
    return [each.node for _, _, each in report.transitions if each.state is State.DEAD]


def died_at(report: Report, node: str, observer: str = "n0") -> float:
    """Give when an observer first held a node for dead, in seconds."""
    return next(
        at / SECOND
        for at, by, each in report.transitions
        if (by, each.node, each.state) == (observer, node, State.DEAD)
    )


# -- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(8))
def test_what_is_promised_holds_whatever_happens(chunk: int) -> None:
    """No seed breaks a promise; the message of one that does tells how to replay it."""
    outcomes = [run_seed(seed) for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK)]
    assert [each.broken for each in outcomes if each.broken] == []


def test_detection_is_fast_enough() -> None:
    """At gaps of 1 s, without presence: suspect p99 within 3 s, dead p99 within 6 s."""
    told = summary(run_seed(seed) for seed in range(300))
    assert isinstance(suspect := told["suspect_s"], dict)
    assert isinstance(dead := told["dead_s"], dict)
    assert suspect["crashes"] > 50 < dead["crashes"]
    assert suspect["p99"] <= 3.0
    assert dead["p99"] <= 6.0


@pytest.mark.parametrize("seed", [7, 30, 206])
def test_a_seed_replays(seed: int) -> None:
    """The same seed gives the same transitions."""
    assert simulate(draw(seed)).transitions == simulate(draw(seed)).transitions


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (1, "da6a1d8c0ca45118"),
        (2, "051946765a75e441"),
        (3, "947ea7015c2e78c1"),
        (5, "8c7afd13b216bd6d"),
    ],
)
def test_a_seed_replays_everywhere(seed: int, digest: str) -> None:
    """A seed gives what it gave elsewhere: a change of the detector's judgement shows here.

    If it is meant, write the new digests down. They are of the detector ``checks``, since the
    logarithms of ``phi`` are the platform's.
    """
    scenario = draw(seed)
    settings = attrs.evolve(scenario.settings, detector="checks")
    assert simulate(attrs.evolve(scenario, settings=settings)).digest() == digest


# -- scenes: nobody dies -------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("detector", ["checks", "phi"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_pause_of_the_observer_kills_nobody(presence: bool, detector: str, keeps: bool) -> None:
    """An observer that is stopped for 30 s buries nobody, also if what came is lost."""
    report = simulate(
        Scenario(
            settings=Settings(detector=detector, expire=60.0),
            nodes=5,
            presence=presence,
            down_loss=models.Independent(10_000),
            faults=(faults.Pause(10 * SECOND, "n0", 30 * SECOND, keeps=keeps),),
            seconds=60.0,
        )
    )
    assert deaths(report) == []


@BOTH
@pytest.mark.parametrize("seconds", [1, 2, 3, 60, 600])
@pytest.mark.parametrize("stalls", [True, False])
def test_an_outage_of_the_broker_kills_nobody(presence: bool, seconds: int, stalls: bool) -> None:
    """However long the broker is away, and whether it hands on a backlog or not, all live."""
    report = simulate(
        Scenario(
            nodes=6,
            observers=2,
            presence=presence,
            faults=(faults.Outage(10 * SECOND, seconds * SECOND, stalls=stalls),),
            seconds=seconds + 30.0,
        )
    )
    assert deaths(report) == []


@BOTH
@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_a_step_of_a_wall_clock_changes_nothing(presence: bool, by: int) -> None:
    """An hour forward or back: no node that lives is suspected; it only numbers incarnations."""
    report = simulate(
        Scenario(
            nodes=3,
            presence=presence,
            faults=(faults.WallClock(10 * SECOND, "n1", by),),
            seconds=60.0,
        )
    )
    assert {each.cause for _, _, each in report.transitions} == {Cause.FIRST_BEAT}


@pytest.mark.parametrize("last_beats", [False, True])
def test_who_restarts_with_its_wall_clock_an_hour_back_is_met(last_beats: bool) -> None:
    """Its number has become smaller: it asks, or is told, what it has to be larger than."""
    report = simulate(
        Scenario(
            presence=True,
            last_beats=last_beats,
            faults=(
                faults.WallClock(9 * SECOND, "n1", -HOUR),
                faults.Crash(10 * SECOND, "n1"),
                faults.Start(11 * SECOND, "n1"),
            ),
        )
    )
    assert causes(report, "n1")[-1] == "LARGER_INCARNATION"


@pytest.mark.parametrize("detector", ["checks", "phi"])
def test_a_burst_of_two_lost_beats_kills_nobody(detector: str) -> None:
    """Two beats in a row are lost: suspected perhaps, buried never."""
    happens = tuple(faults.Burst(at * SECOND, "n1", 2) for at in range(10, 60, 10))
    settings = Settings(detector=detector)
    assert deaths(simulate(Scenario(settings=settings, faults=happens, seconds=80.0))) == []


@pytest.mark.parametrize("beats", [3, 10, 28])
def test_a_longer_burst_kills_nobody_whose_connection_is_known(beats: int) -> None:
    """Up to ``expire``, who is connected is mute, not gone."""
    happens = (faults.Burst(10 * SECOND, "n1", beats),)
    report = simulate(Scenario(presence=True, faults=happens, seconds=50.0))
    assert deaths(report) == []
    assert "MUTE" in causes(report, "n1")


def test_a_longer_burst_kills_nobody_whose_last_beat_is_kept() -> None:
    """What got lost on the way to the observer alone is read back before it buries."""
    loss = models.LossRegimes(
        (
            (0, models.Never()),
            (10 * SECOND, models.Bursts(300_000, 100_000)),
            (40 * SECOND, models.Never()),
        )
    )
    report = simulate(Scenario(seed=3, last_beats=True, nodes=8, down_loss=loss, seconds=60.0))
    assert "SILENCE" in causes(report, "n1")
    assert deaths(report) == []


@pytest.mark.parametrize("last_beats", [False, True])
def test_when_all_connections_break_at_once_nobody_dies(last_beats: bool) -> None:
    """A proxy restarts: the brake is on, and silence, of which there is none, decides."""
    names = tuple(f"n{number}" for number in range(1, 8))
    report = simulate(
        Scenario(
            nodes=8,
            presence=True,
            last_beats=last_beats,
            up_loss=models.Independent(10_000),
            faults=(faults.Disconnect(10 * SECOND + 1, names),),
            seconds=30.0,
        )
    )
    assert deaths(report) == []


def test_phi_lives_through_a_change_of_regime() -> None:
    """From a quiet network to one with a heavy tail and back: nobody who beats dies."""
    delay = models.DelayRegimes(
        (
            (0, models.Constant(1_000)),
            (60 * SECOND, models.Tail(((700, 50_000), (250, 300_000), (50, 1_500_000)))),
            (180 * SECOND, models.Constant(1_000)),
        )
    )
    for seed in range(5):
        report = simulate(
            Scenario(
                seed=seed, settings=Settings(detector="phi"), nodes=6, delay=delay, seconds=240.0
            )
        )
        assert deaths(report) == []


def test_independent_loss_kills_nobody() -> None:
    """At 1 % each way nobody dies in ten minutes of 30 nodes: the chance was 1 in 200."""
    lossy = models.Independent(10_000)
    report = simulate(
        Scenario(seed=5, nodes=30, last_beats=True, up_loss=lossy, down_loss=lossy, seconds=600.0)
    )
    assert deaths(report) == []


# -- scenes: who is gone is found ----------------------------------------------------------------


@pytest.mark.parametrize(("presence", "bound"), [(False, 5.1), (True, 0.5)])
@pytest.mark.parametrize("nodes", [2, 3, 300])
def test_a_crash_is_found_in_time(presence: bool, bound: float, nodes: int) -> None:
    """By silence within 5 s, by its connection within half a second, in any fleet."""
    crash = faults.Crash(10 * SECOND, f"n{nodes - 1}")
    report = simulate(Scenario(nodes=nodes, presence=presence, faults=(crash,)))
    assert deaths(report) == [f"n{nodes - 1}"]
    assert 10.0 < died_at(report, f"n{nodes - 1}") <= 10.0 + bound


def test_a_one_way_partition_buries_and_heals() -> None:
    """Who is heard no more is buried; it hears so, and comes back as a larger incarnation."""
    cut = faults.Cut(10 * SECOND, "n1", 40 * SECOND, down=False)
    report = simulate(Scenario(nodes=4, observers=2, presence=True, faults=(cut,)))
    assert causes(report, "n1")[:4] == ["FIRST_BEAT", "MUTE", "EXPIRED", "LARGER_INCARNATION"]


def test_an_observer_that_cannot_hear_buries_nobody() -> None:
    """A partition of the way to the observer makes it deaf: all live, also when one is dead."""
    report = simulate(
        Scenario(
            nodes=4,
            faults=(
                faults.Cut(10 * SECOND, "n0", 60 * SECOND, up=False),
                faults.Crash(20 * SECOND, "n1"),
            ),
        )
    )
    assert deaths(report) == ["n1"]
    assert 70.0 < died_at(report, "n1") < 76.0


def flushed(detector: Callable[[Settings, Incarnation], Detector] = Detector) -> float:
    """Give how long a node outlived itself whose last beats were held up, and came in a heap."""
    report = simulate(
        Scenario(
            faults=(
                faults.Cut(10 * SECOND, "n1", 3_500_000, down=False, holds=True),
                faults.Crash(12_300_000, "n1"),
            ),
            detector=detector,
        )
    )
    return died_at(report, "n1") - 12.3


def test_a_flushed_backlog_extends_nobodys_life() -> None:
    """Beats that come in a heap count from their sending, not from their arrival."""
    assert flushed() <= 4.05


def test_a_storm_of_restarts_settles() -> None:
    """All of 100 nodes restart within two seconds: each old life dies, each new one is met."""
    chance = random.Random(1)
    happens: list[faults.Fault] = []
    for number in range(1, 100):
        at = 10 * SECOND + chance.randrange(2 * SECOND)
        happens += [faults.Crash(at, f"n{number}"), faults.Start(at + SECOND // 2, f"n{number}")]
    report = simulate(Scenario(nodes=100, presence=True, faults=tuple(happens)))
    assert sorted(deaths(report)) == sorted(f"n{number}" for number in range(1, 100))


# -- teeth: what is broken on purpose is noticed --------------------------------------------------


def never_deaf(settings: Settings, me: Incarnation) -> Detector:
    """A detector that takes no gap between its echoes for deafness."""
    detector = Detector(settings, me)
    detector._hearing.longest_gap = float("inf")
    return detector


def without_brake(settings: Settings, me: Incarnation) -> Detector:
    """A detector that believes every closed connection."""
    detector = Detector(settings, me)
    detector._looks.brake = lambda *_: ([], False)  # type: ignore[method-assign]
    return detector


def one_check_more(settings: Settings, me: Incarnation) -> Detector:
    """A detector that asks once too often."""
    return Detector(attrs.evolve(settings, checks=settings.checks + 1), me)


def one_check_less(settings: Settings, me: Incarnation) -> Detector:
    """A detector that buries one check too early."""
    return Detector(attrs.evolve(settings, checks=settings.checks - 1, min_freq=3.0), me)


def forgetful(settings: Settings, me: Incarnation) -> Detector:
    """A detector that keeps no tombstones."""
    return Detector(attrs.evolve(settings, discard_delay=0.001), me)


class Sleepless(Detector):
    """A detector that does not believe that it overslept, nor that it was deaf."""

    def oversleep(self, now: float, seconds: float) -> None:  # noqa: ARG002 - it does not listen
        self._hearing.longest_gap = float("inf")


def ageless(settings: Settings, me: Incarnation) -> Detector:
    """A detector to which every beat is new."""
    detector = Detector(settings, me)
    detector._punctual = float("inf")
    return detector


CRASH = faults.Crash(10 * SECOND, "n1")
PROXY = tuple(faults.Cut(10 * SECOND, f"n{each}", 2 * SECOND, noticed=0) for each in range(1, 5))
SLOW_LOOKS = {"presence": True, "settings": Settings(disconnect_interval=1.0)}
DEFECTS: dict[str, tuple[Any, dict[str, Any], tuple[faults.Fault, ...], str]] = {
    "deafness": (never_deaf, {}, (faults.Outage(10 * SECOND, 20 * SECOND),), "which lives"),
    "pause": (
        Sleepless,
        {},
        (faults.Pause(10 * SECOND, "n0", 30 * SECOND, keeps=False),),
        "which lives",
    ),
    "brake": (without_brake, {"presence": True, "nodes": 5}, PROXY, "which lives"),
    "too late": (one_check_more, {"settings": Settings(checks=4)}, (CRASH,), "should be dead"),
    "too late, connected": (one_check_more, SLOW_LOOKS, (CRASH,), "should be dead"),
    "too early": (
        one_check_less,
        {},
        (faults.Cut(10 * SECOND, "n1", 5 * SECOND),),
        "which lives, after a silence of 3",
    ),
    "tombstones": (forgetful, {}, (CRASH,), "forgot"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_noticed(defect: str) -> None:
    """A detector that is broken on purpose breaks a promise; the same scene is kept without."""
    broken, scene, happens, told = DEFECTS[defect]
    scenario = Scenario(**scene, faults=happens, seconds=100.0)
    simulate(scenario)
    with pytest.raises(BrokenPromise, match=told) as caught:
        simulate(attrs.evolve(scenario, detector=broken))
    assert "seed 0" in str(caught.value)


def test_a_detector_without_ages_is_noticed() -> None:
    """If flushed beats counted from their arrival, the dead would live longer."""
    assert flushed(ageless) > 4.05


# -- what it has found -----------------------------------------------------------------------------

OBSERVER_STANDS = faults.Pause(10 * SECOND, "n0", 30 * SECOND)


def test_a_long_suspension_while_nobody_hears_kills_nobody() -> None:
    """A machine and its clock stood for 40 s while the broker was away: it beats again, and lives.

    At first its beats look older than ``expire``.
    """
    happens = (
        faults.Outage(10 * SECOND, 45 * SECOND),
        faults.Pause(11 * SECOND, "n1", 40 * SECOND, suspended=True),
    )
    assert deaths(simulate(Scenario(faults=happens, seconds=90.0))) == []


def test_a_suspension_while_nobody_hears_kills_nobody() -> None:
    """The same for 8 s: getting used to the other clock is not taken for a backlog."""
    happens = (
        faults.Outage(10 * SECOND, 12 * SECOND),
        faults.Pause(11 * SECOND, "n1", 8 * SECOND, suspended=True),
    )
    assert deaths(simulate(Scenario(faults=happens, seconds=60.0))) == []


def test_who_was_suspended_is_not_suspected_for_ever() -> None:
    """A machine that stood for 3 s is suspected once, and not again while it beats in time."""
    happens = (faults.Pause(10 * SECOND, "n1", 3 * SECOND, suspended=True),)
    report = simulate(Scenario(presence=True, faults=happens, seconds=60.0))
    assert causes(report, "n1") == ["FIRST_BEAT", "MUTE", "BEAT"]


def test_a_crash_is_found_in_time_after_a_pause_of_the_observer() -> None:
    """An observer that reads what came while it stood, and then notices that it is late."""
    for seed in range(8):
        crash = faults.Crash(38 * SECOND, "n1")
        simulate(Scenario(seed=seed, nodes=4, faults=(OBSERVER_STANDS, crash)))


def test_no_storm_of_beats_when_a_mute_node_loses_its_connection() -> None:
    """A deadline that has come nearer is looked at in time, so that one extra beat is enough."""
    happens = (
        faults.Pause(10 * SECOND, "n1", 20 * SECOND),
        faults.Crash(18 * SECOND, "n1"),
    )
    settings = Settings(disconnect_interval=0.5)
    simulate(Scenario(settings=settings, presence=True, faults=happens))


def test_a_pause_of_the_observer_kills_nobody_with_tight_settings() -> None:
    """Nor does the time count that an observer stood before the timer was due that woke late."""
    pause = faults.Pause(10 * SECOND, "n0", 30 * SECOND, keeps=False)
    settings = Settings(max_freq=3.0, min_freq=3.5, checks=1)
    for seed in range(8):
        simulate(Scenario(seed=seed, nodes=6, settings=settings, faults=(pause,), seconds=60.0))


def test_a_last_beat_that_is_read_back_extends_nobodys_life() -> None:
    """Its last beat was lost on the way and is read back: it counts from its sending."""
    loss = models.LossRegimes(
        (
            (0, models.Never()),
            (9 * SECOND, models.Independent(1_000_000)),
            (10 * SECOND, models.Never()),
        )
    )
    crash = faults.Crash(10 * SECOND, "n1")
    report = simulate(Scenario(last_beats=True, down_loss=loss, faults=(crash,)))
    assert died_at(report, "n1") <= 15.1


# -- the command -----------------------------------------------------------------------------------


def test_the_command_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds that keep every promise give a summary, and 0."""
    assert main(["--seeds", "3"]) == 0
    assert '"seeds": 3' in capsys.readouterr().out


def test_the_command_tells_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that does not gives its story, how to replay it, and 1."""

    def scene(seed: int) -> Scenario:
        faulty = (faults.Outage(10 * SECOND, 20 * SECOND),)
        return Scenario(seed=seed, faults=faulty, seconds=60.0, detector=never_deaf)

    monkeypatch.setattr("heartbeat_core.testing._command.draw", scene)
    assert main(["--first", "4711", "--seeds", "2"]) == 1
    told = capsys.readouterr().out
    assert "seed 4711" in told
    assert "--first 4711 --seeds 1" in told
