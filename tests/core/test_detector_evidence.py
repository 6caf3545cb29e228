"""What speaks for and against a node, scene by scene."""

import math
import pathlib
import random
import sys

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from world import ME, World

from heartbeat_core import Beat, Cause, Connections, Detector, Incarnation, Kind, Settings, State

ALIVE, SUSPECT, DEAD = State.ALIVE, State.SUSPECT, State.DEAD


@pytest.fixture
def world() -> World:
    """An observer with default settings and no other node."""
    return World()


# -- mute and stalled ---------------------------------------------------------------------------


def test_the_mute_are_suspected_for_being_mute(world: World) -> None:
    """Who is silent and connected is suspected with that cause, in words too."""
    world.beat("a")
    world.look(2.2, "a")
    assert world.causes("a") == ["FIRST_BEAT", "MUTE"]
    assert world.seen[-1].reason == "no beat for 2.10 s, connection open, 1 of 3 checks failed"


def test_the_stalled_are_suspected_and_never_buried(world: World) -> None:
    """Who beats, but says that its work does not move, is suspected as long as it says so."""
    world.beat("a")
    for _ in range(100):
        world.pass_time(1)
        world.beat("a", stalled=True)
    assert world.causes("a") == ["FIRST_BEAT", "STALLED"]
    assert "its work does not move" in world.seen[-1].reason
    (view,) = world.detector.nodes()
    assert view.stalled
    world.pass_time(1)
    world.beat("a")
    assert world.causes("a") == ["FIRST_BEAT", "STALLED", "BEAT"]
    assert world.states() == {"a": ALIVE}


def test_the_stalled_who_fall_silent_die_like_others(world: World) -> None:
    """Silence is judged as ever, whatever the last beat said."""
    world.beat("a", stalled=True)
    assert world.causes("a") == ["FIRST_BEAT", "STALLED"]
    world.pass_time(3.9)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.2)
    assert world.states() == {"a": DEAD}


def test_a_suspect_that_beats_stalled_says_both(world: World) -> None:
    """A silent suspect that beats again, stalled, beat again and is suspected for that."""
    world.beat("a")
    world.pass_time(3.0)
    assert [each.cause for each in world.beat("a", stalled=True)] == [Cause.BEAT, Cause.STALLED]


# -- most at once -------------------------------------------------------------------------------


def test_a_mass_loss_says_so_once(world: World) -> None:
    """That most went at once is one transition of the observer's own, until it is over."""
    names = [f"n{number}" for number in range(6)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    for _ in range(3):
        world.look(0.5)
        for name in names:
            world.beat(name)
    (told,) = [each for each in world.seen if each.cause is Cause.MASS_LOSS]
    assert (told.incarnation, told.previous, told.state) == (ME, ALIVE, ALIVE)
    assert told.reason == (
        "the connections of 6 of 6 nodes went at once: that is no evidence, silence decides"
    )
    world.look(2.5, *names)
    for name in names:
        world.beat(name)
    world.look(0.2, *names[4:])
    assert world.causes("me") == ["MASS_LOSS", "MASS_LOSS"]


# -- obituaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 2.5])
def test_the_obituary_of_another_is_believed(world: World, after: float) -> None:
    """Whom another observer has buried is fenced already, and dead here too."""
    world.beat("a")
    world.pass_time(after)
    assert [each.cause for each in world.beat("a", kind=Kind.OBITUARY)] == [Cause.OBITUARY]
    assert world.states() == {"a": DEAD}
    assert not world.beat("a", kind=Kind.OBITUARY)
    world.beat("a", 2)
    assert world.states() == {"a": ALIVE}


def test_an_obituary_is_of_one_life(world: World) -> None:
    """The obituary of a former life, or of a later one, says nothing of this one."""
    world.beat("a", 5)
    for number in (4, 6):
        assert not world.beat("a", number, kind=Kind.OBITUARY)
    assert world.states() == {"a": ALIVE}


def test_ones_own_obituary_is_told(world: World) -> None:
    """An observer that reads its own obituary says so; that of a former life is nothing."""
    assert [each.cause for each in world.beat("me", 1, kind=Kind.OBITUARY)] == [Cause.OBITUARY]
    assert world.seen[-1].incarnation == ME
    assert not world.beat("me", 7, kind=Kind.OBITUARY)


# -- age ----------------------------------------------------------------------------------------


def test_a_backlog_extends_nobodys_life(world: World) -> None:
    """Beats that were held up and come all at once count as of when they were sent."""
    world.beat("a")
    start = world.now
    world.pass_time(1.0)
    backlog = [start + 0.5, start + 1.0]
    world.pass_time(2.5)
    for sent in backlog:
        world.beat("a", sent=sent)
    (view,) = world.detector.nodes()
    assert view.silence == pytest.approx(2.5, abs=0.01)
    world.pass_time(1.4)
    assert DEAD not in world.states().values()
    world.pass_time(0.2)
    assert world.states() == {"a": DEAD}


def test_a_delayed_beat_is_a_beat(world: World) -> None:
    """One beat that comes late, and is followed by others in their time, speaks for its node."""
    world.beat("a")
    for second in range(1, 20):
        world.pass_time(1.0)
        late = 0.7 if second == 5 else 0.0
        world.beat("a", sent=world.now - late)
    assert world.causes("a") == ["FIRST_BEAT"]


@pytest.mark.parametrize("seconds", [0.4, 1.5, 10.0, 29.0, 40.0, 110.0])
def test_a_sender_whose_clock_stood_still_is_believed_again(world: World, seconds: float) -> None:
    """After a suspended machine's clock lost some seconds its beats count as they come."""
    world.beat("a")
    world.connections("a")
    for _ in range(100):
        world.pass_time(1.0)
        world.beat("a", clock=-seconds)
    assert world.states() == {"a": ALIVE}
    assert DEAD not in [each.state for each in world.seen]
    assert world.causes("a").count("MUTE") <= 1
    assert world.detector.dropped.get("stale", 0) <= 3


# -- the observer's own pauses ------------------------------------------------------------------


@pytest.mark.parametrize("first", ["beats", "echo"])
def test_a_pause_of_its_own_makes_nobody_silent(world: World, first: str) -> None:
    """What an observer slept is nobody's silence, in whatever order it then reads."""
    world.beat("a")
    world.beat("b")
    world.pass_time(0.9)
    world.now += 30
    world.detector.oversleep(world.now, 30.0)
    assert world.check() == []
    if first == "beats":
        for ago in (20.0, 10.0, 0.5):
            world.beat("a", sent=world.now - ago)
    world.echo()
    assert world.check() == []
    assert [view.silence for view in world.detector.nodes()][1] == 0.0
    world.pass_time(2.1)
    assert world.causes("b") == ["FIRST_BEAT", "SILENCE"]
    assert world.detector.frozen == pytest.approx(30)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 0.0])
def test_a_pause_that_is_none(world: World, seconds: float) -> None:
    """A pause of no length, or of one that is no number, is none."""
    world.beat("a")
    world.now += 1
    world.detector.oversleep(world.now, seconds)
    assert world.detector.frozen == 0.0


# -- times --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 0.0, 999.9])
def test_a_clock_that_is_wrong_is_counted(world: World, wrong: float) -> None:
    """A time that is none, or before an earlier one, is taken for the latest good one."""
    world.beat("a")
    detector = world.detector
    beat = Beat(incarnation=Incarnation("a", 1), sequence=2, sent=world.now, gap=1.0)
    assert not detector.observe(beat, wrong)
    assert not detector.check(wrong)
    assert not detector.expect(ME, wrong)
    detector.oversleep(wrong, 1.0)
    assert detector.dropped == {"clock": 4}
    assert world.states() == {"a": ALIVE}
    world.pass_time(4.2)
    assert world.states() == {"a": DEAD}


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_first_time_that_is_wrong(first: float) -> None:
    """A detector whose first time is no number begins at zero."""
    detector = Detector(Settings(), ME)
    assert not detector.check(first)
    assert detector.dropped == {"clock": 1}
    detector.observe(Beat(incarnation=Incarnation("a", 1), sequence=1, sent=0, gap=1), 1.0)
    assert detector.nodes()[0].state is ALIVE


@pytest.mark.parametrize("field", ["sent", "gap"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("known", [True, False])
def test_a_beat_whose_times_are_no_numbers(
    world: World, field: str, wrong: float, known: bool
) -> None:
    """A beat with a time that is no number is counted and dropped."""
    if known:
        world.beat("a")
    times = {"sent": world.now, "gap": 1.0, field: wrong}
    beat = Beat(incarnation=Incarnation("a", 1), sequence=9, **times)  # type: ignore[arg-type]
    assert not world.detector.observe(beat, world.now)
    assert world.detector.dropped == {"malformed": 1}
    assert world.states() == ({"a": ALIVE} if known else {})
    if known:
        world.beat("a", sequence=2)
        assert world.detector.dropped == {"malformed": 1}


# -- phi ----------------------------------------------------------------------------------------


PHI = Settings(detector="phi")


def test_phi_buries_with_its_own_cause() -> None:
    """A regular node that falls silent is suspected by phi, and dead by phi at ``min_freq``."""
    world = World(PHI)
    for _ in range(200):
        world.beat("a")
        world.pass_time(1.0)
    world.pass_time(1.2)
    assert world.states() == {"a": ALIVE}
    world.pass_time(0.4)
    assert world.states() == {"a": SUSPECT}
    assert "phi " in world.seen[-1].reason
    world.pass_time(1.3)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.2)
    assert world.causes("a") == ["FIRST_BEAT", "SILENCE", "PHI"]


def test_phi_forgives_the_irregular() -> None:
    """A node whose gaps come and go is not suspected for the long ones, once they are known."""
    world = World(PHI)
    for number in range(300):
        world.beat("a")
        world.pass_time(0.5 if number % 3 else 2.8)
        if number == 100:
            world.seen.clear()
    assert world.seen == []


def test_a_lost_beat_is_no_slow_one() -> None:
    """Phi learns from the gap a step of the sequence: losses make a node no more irregular."""
    levels = []
    for lossy in (False, True):
        world = World(PHI)
        for number in range(1, 300):
            world.now += 1
            world.echo()
            if not lossy or number % 3 != 0 or number == 299:
                world.beat("a", sequence=number)
        levels.append(world.detector.suspicion("a", world.now + 2.4))
    assert levels[1] == pytest.approx(levels[0], rel=0.2)


@pytest.mark.parametrize("oversleeps", [True, False])
def test_phi_learns_nothing_from_its_own_deafness(oversleeps: bool) -> None:
    """A gap in which the observer was deaf, or slept, is no gap of the node's."""
    world = World(PHI)
    for _ in range(100):
        world.beat("a")
        world.pass_time(1.0)
    before = world.detector.suspicion("a", world.now + 1.5)
    for _ in range(10):
        world.now += 20
        if oversleeps:
            world.detector.oversleep(world.now, 19.9)
        world.echo()
        for _ in range(3):
            world.beat("a")
            world.pass_time(1.0)
    after = world.detector.suspicion("a", world.now + 1.5)
    assert after == pytest.approx(before, rel=0.3)


# -- suspicion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Settings(), PHI])
def test_suspicion_can_be_plotted(settings: Settings) -> None:
    """The level grows with silence, and is that of the verdicts at their thresholds."""
    world = World(settings)
    assert world.detector.suspicion("a", world.now) == 0.0
    world.beat("a")
    assert world.detector.suspicion("a", world.now) == 0.0
    levels = [world.detector.suspicion("a", world.now + tenth / 10) for tenth in range(100)]
    assert levels == sorted(levels)
    assert levels[-1] > 5
    assert world.states() == {"a": ALIVE}


# -- work in portions ---------------------------------------------------------------------------


def test_a_call_gives_a_limited_number_of_transitions(
    monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """When very many die at once, each call judges some, and none is left out."""
    monkeypatch.setattr("heartbeat_core._detector.MOST_AT_ONCE", 10)
    names = {f"n{number}" for number in range(100)}
    for name in names:
        world.beat(name)
    world.now += 1.9
    world.echo()
    world.now += 1.9
    world.echo()
    world.now += 1.9
    world.echo()
    calls = 0
    while True:
        given = world.check()
        assert len(given) <= 10
        if not given:
            break
        calls += 1
    assert calls == 20
    assert set(world.states().values()) == {DEAD}
    deadline = world.detector.next_deadline()
    assert deadline == world.now + 60
    world.now += 60
    calls = 0
    while world.check():
        calls += 1
    assert (calls, world.states()) == (10, {})


def test_who_may_not_die_yet_is_spared(world: World) -> None:
    """With ``may_die`` nobody else is declared dead, and whoever is spared stays due."""
    for name in "abc":
        world.beat(name)
    world.look(0.1, "c")
    world.pass_time(3.8)
    world.now += 0.5
    world.echo()
    detector = world.detector
    assert detector.dying() == [Incarnation("a", 1), Incarnation("b", 1)]
    for _ in range(2):
        given = detector.check(world.now, may_die={Incarnation("b", 1)})
        assert {each.node for each in given if each.state is DEAD} <= {"b"}
    assert world.states() == {"a": SUSPECT, "b": DEAD, "c": SUSPECT}
    deadline = detector.next_deadline()
    assert deadline is not None
    assert deadline <= world.now
    world.check()
    assert world.states()["a"] is DEAD


def test_looks_condemn_only_whom_they_may(world: World) -> None:
    """Whom a look has condemned is spared as well, until it may die."""
    world.beat("a")
    world.look(0.1, "a")
    for _ in range(3):
        world.now += 0.1
        world.connections()
    assert world.detector.dying() == [Incarnation("a", 1)]
    assert not world.detector.check(world.now, may_die=())
    assert [each.state for each in world.check()] == [DEAD]


# -- thresholds, from both sides ----------------------------------------------------------------


@pytest.mark.parametrize(("age", "silence"), [(2.74, 2.74), (2.76, 0.0)])
def test_what_catches_up_is_a_backlog(world: World, age: float, silence: float) -> None:
    """A beat that is younger than the late one before by over a quarter of a gap was held up."""
    world.beat("a", sent=world.now)
    world.pass_time(3.0)
    world.beat("a", sent=world.now - 3.0)
    world.beat("a", sent=world.now - age)
    world.echo()
    (view,) = world.detector.nodes()
    assert view.silence == pytest.approx(silence, abs=0.005)


@pytest.mark.parametrize(("spacing", "learned"), [(0.45, 0.0), (0.55, 3.0 / 2)])
def test_another_clock_is_learned_in_its_own_time(
    world: World, spacing: float, learned: float
) -> None:
    """Beats that go on to be late, over half a gap apart, shift what is late by half."""
    world.beat("a")
    offset = world.detector._records["a"].offset
    world.now += 1.0
    world.beat("a", clock=-3.0)
    world.now += spacing
    world.beat("a", clock=-3.0)
    assert world.detector._records["a"].offset - offset == pytest.approx(learned, abs=0.01)


def test_one_late_beat_teaches_nothing(world: World) -> None:
    """After a beat in time a late one counts from its arrival, and is no other clock."""
    world.beat("a")
    world.now += 1.0
    world.beat("a", gap=1.5)
    offset = world.detector._records["a"].offset
    world.now += 1.0
    world.beat("a", gap=1.5, sent=world.now - 0.5)
    world.echo()
    assert world.detector.nodes()[0].silence == 0.0
    assert world.detector._records["a"].offset == pytest.approx(offset, abs=0.002)


def test_phi_learns_no_gap_from_a_backlog() -> None:
    """A beat out of a backlog, which counts from before the one ahead of it, teaches no gap."""
    world = World(PHI)
    world.beat("a")
    world.pass_time(1.0)
    world.beat("a", sent=world.now - 0.9)
    mean = world.detector._records["a"].mean
    world.beat("a", sent=world.now - 0.4)
    assert world.detector._records["a"].mean == mean


def test_who_promises_more_is_given_no_less_time(world: World) -> None:
    """A node that beats ten times a second is suspected no sooner than the others."""
    world.beat("a", gap=0.1)
    world.pass_time(1.9)
    assert world.states() == {"a": ALIVE}


@pytest.mark.parametrize("gap", [0.0, -1.0])
def test_a_promise_of_nothing(world: World, gap: float) -> None:
    """A beat that promises no gap is malformed."""
    assert not world.beat("a", gap=gap)
    assert world.detector.dropped == {"malformed": 1}


def test_a_beat_after_the_last_echo_leaves_no_silence(world: World) -> None:
    """Who was heard after the observer last heard itself is not silent, nor less than that."""
    world.now += 1.0
    world.beat("a")
    assert world.detector.nodes()[0].silence == 0.0


@pytest.mark.parametrize(("gap", "frozen"), [(3.0, 0.0), (3.1, 3.1)])
def test_a_slow_beat_of_its_own_is_no_deafness(gap: float, frozen: float) -> None:
    """An observer that beats as slowly as it may is deaf after half as much again."""
    world = World(Settings(frequency=2.0, max_freq=2.0))
    world.now += gap
    world.echo()
    assert world.detector.frozen == pytest.approx(frozen)


def test_a_short_pause_counts_too(world: World) -> None:
    """Half a second that the observer slept is half a second of nobody's silence."""
    world.beat("a")
    world.pass_time(1.0)
    world.now += 1.0
    world.detector.oversleep(world.now, 0.5)
    world.echo()
    assert world.detector.nodes()[0].silence == pytest.approx(1.5)


@pytest.mark.parametrize(("seconds", "dead"), [(1.7, False), (2.0, True)])
def test_stragglers_are_set_aside_for_max_freq(world: World, seconds: float, dead: bool) -> None:
    """Whose connection goes within ``max_freq`` after a mass loss is set aside, later not."""
    names = [f"n{number}" for number in range(5)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    world.look(0.1, *names[3:])
    steps = round(seconds / 0.1)
    for step in range(steps):
        for name in names:
            if step % 5 == 0:
                world.beat(name)
        # The three stay away, but beat over other connections.
        world.look(0.1, *names[3:])
    world.look(0.3, names[4])
    assert (world.states()["n3"] is DEAD) is dead


def test_who_left_twice_is_remembered_from_the_second_time(world: World) -> None:
    """A later goodbye is not forgotten when the time of an earlier one has come."""
    world.beat("a", 1, kind=Kind.GOODBYE)
    world.now += 30
    world.beat("a", 2, kind=Kind.GOODBYE)
    world.now += 30
    world.check()
    assert not world.beat("a", 2)
    assert world.detector.dropped == {"outdated": 1}
    world.now += 30
    world.check()
    world.beat("a", 2)
    assert world.states() == {"a": ALIVE}


def test_the_tombstone_of_who_came_back_goes_without_a_word(world: World) -> None:
    """When the discard delay of a dead life has passed, the larger one that lives stays."""
    world.beat("a", 1)
    world.beat("a", 2)
    for _ in range(70):
        world.pass_time(1.0)
        world.beat("a", 2)
    assert world.causes("a") == ["FIRST_BEAT", "SUPERSEDED", "LARGER_INCARNATION"]
    assert world.states() == {"a": ALIVE}


def test_who_died_while_the_broker_was_asked_is_not_seen(world: World) -> None:
    """An answer about somebody who has died meanwhile changes nothing."""
    world.beat("a")
    incarnation = frozenset({Incarnation("a", 1)})
    world.beat("a", kind=Kind.OBITUARY)
    seen = Connections(session=1, asked=incarnation, connected=incarnation)
    assert not world.detector.connections(seen, world.now)
    assert world.detector.nodes()[0].connected is None


def test_who_is_seen_connected_has_no_failed_check(world: World) -> None:
    """A look that succeeds, and one that is set aside, leave a living node without failed ones."""
    world.beat("a")
    world.look(0.1, "a")
    assert world.detector.nodes()[0].checks_failed == 0
    world.look(0.2)
    world.beat("a")
    assert world.detector.nodes()[0].checks_failed == 0


def test_who_never_heard_itself_holds_nobody_for_dying() -> None:
    """Before its first echo an observer has nobody to ask about."""
    detector = Detector(Settings(), ME)
    detector.observe(Beat(incarnation=Incarnation("a", 1), sequence=1, sent=0, gap=1), 0.0)
    detector.check(100.0)
    assert detector.dying() == []


def test_what_a_late_beat_brings_is_told_as_of_now(world: World) -> None:
    """A transition that a late beat causes happened when it came."""
    world.beat("a")
    world.pass_time(1.0)
    world.now += 0.5
    (told,) = world.beat("a", sent=world.now - 1.0, stalled=True)
    assert told.at == world.now
    world.now += 0.5
    world.beat("a", sent=world.now - 1.0)
    world.now += 0.25
    assert not world.beat("a", sent=world.now - 1.0)
    assert world.detector._now == world.now


def test_a_deadline_after_a_pause_has_come_when_it_is_there() -> None:
    """However the clock of hearing lags, and is rounded, judging at the deadline judges."""
    chance = random.Random(3)
    for _ in range(300):
        world = World()
        world.now += chance.uniform(0, 1e6)
        world.echo()
        world.beat("a")
        for _ in range(2):
            lag = chance.uniform(0.3, 1.5)
            world.now += lag + 0.1
            world.detector.oversleep(world.now, lag)
            world.echo()
        deadline = world.detector.next_deadline()
        assert deadline is not None
        world.now = deadline
        world.echo()
        assert [each.state for each in world.check()] == [SUSPECT]


def test_what_is_overdue_needs_no_echo(world: World) -> None:
    """Overdue is what a call of ``check`` would change at once; a past deadline alone is not."""
    detector = world.detector
    assert not detector.overdue
    world.beat("a")
    world.look(0.1, "a")
    world.now += 1.5
    world.echo()
    world.now += 1.0
    assert not detector.overdue  # It waits for an echo.
    world.echo()
    assert detector.overdue
    world.check()
    assert not detector.overdue
    for _ in range(3):
        world.now += 0.1
        world.connections()
    assert detector.overdue  # Condemned by looks.
    world.check()
    assert world.states() == {"a": DEAD}
    world.now += 59.9
    assert not detector.check(world.now)
    assert not detector.overdue
    world.now += 0.1
    detector.observe(Beat(incarnation=Incarnation("b", 1), sequence=1, sent=0, gap=1), world.now)
    assert detector.overdue  # A tombstone goes.


@pytest.mark.parametrize("known", [True, False])
def test_a_last_beat_counts_as_of_its_sending(world: World, known: bool) -> None:
    """A beat that was read back is as old as it is; of a stranger nobody knows how old."""
    if known:
        world.beat("a")
    world.pass_time(1.5)
    kept = Beat(incarnation=Incarnation("a", 1), sequence=5, sent=world.now - 1.0, gap=1.0)
    world.seen += world.detector.recall(kept, world.now)
    (view,) = world.detector.nodes()
    assert view.silence == (pytest.approx(1.0, abs=0.01) if known else 0.0)
    assert not world.detector.recall(kept, world.now)
    assert world.detector.dropped == {"repeated": 1}


def test_a_last_beat_never_makes_a_node_more_silent(world: World) -> None:
    """Of two beats the one that was heard later counts, in whatever order they come."""
    world.beat("a")
    world.pass_time(1.0)
    world.beat("a", sequence=2)
    kept = Beat(incarnation=Incarnation("a", 1), sequence=3, sent=world.now - 0.9, gap=1.0)
    assert not world.detector.recall(kept, world.now)
    assert world.detector.nodes()[0].silence == 0.0


def test_a_last_beat_that_is_older_than_expire_is_none(world: World) -> None:
    """What was kept for too long is dropped like any other."""
    world.beat("a")
    world.pass_time(1.0)
    kept = Beat(incarnation=Incarnation("a", 1), sequence=3, sent=world.now - 31.0, gap=1.0)
    assert not world.detector.recall(kept, world.now)
    assert world.detector.dropped == {"stale": 1}


def test_the_latest_life_can_be_asked_for(world: World) -> None:
    """Of a node that is in the table the largest incarnation is known, of others none."""
    world.beat("a", 3)
    world.beat("a", 2)
    assert world.detector.latest("a") == Incarnation("a", 3)
    assert world.detector.latest("b") is None


def test_a_kept_beat_of_unknown_age_sets_connections_aside(world: World) -> None:
    """Where none came live, a kept beat may be from after the disconnect: silence decides."""
    first, later = (
        Beat(incarnation=Incarnation("a", 1), sequence=sequence, sent=5.0 + sequence, gap=1.0)
        for sequence in (1, 2)
    )
    world.seen += world.detector.recall(first, world.now)
    world.look(0.1, "a")
    world.look(0.1)
    assert world.states() == {"a": SUSPECT}
    world.seen += world.detector.recall(later, world.now)
    world.look(1.9)
    assert world.states() == {"a": ALIVE}
    world.look(0.2)
    assert world.causes("a") == ["FIRST_BEAT", "DISCONNECTED", "BEAT", "SILENCE"]


def test_a_kept_beat_from_before_is_no_proof(world: World) -> None:
    """A last beat that was lost on its way and is read back is heard, and saves nobody."""
    world.beat("a")
    world.look(1.0, "a")
    last = Beat(incarnation=Incarnation("a", 1), sequence=2, sent=world.now - 0.05, gap=1.0)
    world.look(0.2)
    assert not world.detector.recall(last, world.now)
    world.look(0.1)
    assert world.states() == {"a": DEAD}


# -- echoes of those who only watch --------------------------------------------------------------


def test_the_echo_of_a_watcher_says_nothing_to_others(world: World) -> None:
    """Who only watches is no node: nobody meets it, and nothing is counted."""
    assert not world.beat("watcher", kind=Kind.ECHO)
    assert world.states() == {}
    assert world.detector.dropped == {}
    world.beat("a")
    world.pass_time(1.5)
    assert not world.beat("a", kind=Kind.ECHO)
    assert world.detector.nodes()[0].silence == pytest.approx(1.5)


def test_by_its_own_echo_a_watcher_hears_itself() -> None:
    """It judges as of its echoes, as nodes do as of their beats."""
    world = World()
    me = world.detector.me
    world.beat("a")
    for second in range(5):
        world.now += 1.0
        echo = Beat(incarnation=me, sequence=10 + second, sent=0, gap=1, kind=Kind.ECHO)
        assert not world.detector.observe(echo, world.now)
        world.check()
    assert world.states() == {"a": DEAD}


# -- limits, from both sides --------------------------------------------------------------------


def test_two_that_go_at_once_are_no_mass(world: World) -> None:
    """Two of three without a connection are two deaths, not a broker's trouble."""
    for node in "abc":
        world.beat(node)
    world.look(0.1, *"abc")
    world.look(0.4, "c")
    assert world.states() == {"a": DEAD, "b": DEAD, "c": ALIVE}


def test_a_look_a_little_early_counts(world: World) -> None:
    """Looks that come after six tenths of their time each fail a check."""
    world.beat("a")
    world.look(0.1, "a")
    for _ in range(3):
        world.now += 0.06
        world.echo()
        world.connections()
        world.check()
    assert world.states() == {"a": DEAD}


@pytest.mark.parametrize(
    ("late", "beats", "shift"),
    [
        (-0.5, 1, -0.5),  # The fastest yet: nothing is that fast again.
        (0.12, 100, 0.0),  # Jitter.
        (0.1305, 100, 0.006),  # It may be that the clocks drift apart.
        (0.22, 1, 0.001),  # Punctual still.
        (0.22, 2, 0.002),
        (0.3, 1, 0.001),
        (0.3, 2, 0.1515),  # Late in its own time, again: its clock stood still.
    ],
)
def test_what_counts_as_late_follows_the_beats(
    world: World, late: float, beats: int, shift: float
) -> None:
    """The smallest delay seen is what the age of a beat is measured by; it moves with reason."""
    world.beat("a")
    for _ in range(beats):
        world.pass_time(1.0)
        world.beat("a", sent=world.now - late)
    world.pass_time(1.0)
    kept = Beat(incarnation=Incarnation("a", 1), sequence=999, sent=world.now - 0.3, gap=1.0)
    world.detector.recall(kept, world.now)
    assert world.detector.nodes()[0].silence == pytest.approx(0.3 - shift, abs=0.0004)


def test_who_never_heard_itself_knows_no_silence() -> None:
    """Without an echo nobody has been silent yet."""
    detector = Detector(Settings(), ME)
    detector.observe(Beat(incarnation=Incarnation("a", 1), sequence=1, sent=0, gap=1), 5.0)
    detector.check(50.0)
    assert [view.silence for view in detector.nodes()] == [0.0]


def test_without_a_good_time_it_is_the_start() -> None:
    """If not even the first time is a number, time begins at zero."""
    detector = Detector(Settings(), ME)
    beat = Beat(incarnation=Incarnation("a", 1), sequence=1, sent=0, gap=1)
    assert [each.at for each in detector.observe(beat, math.nan)] == [0.0]


def test_a_short_silence_has_its_level_too() -> None:
    """Phi of a silence under a second is small, but not nothing."""
    world = World(Settings(detector="phi"))
    world.beat("a")
    world.pass_time(0.9)
    assert 0.0 < world.detector.suspicion("a", world.now) < 0.01


def test_tombstones_go_one_by_one(world: World) -> None:
    """What was buried first is forgotten first, whatever was buried after it."""
    for node in "abc":
        world.beat(node)
        world.pass_time(0.5)
    world.pass_time(0.6)
    for node in "abc":
        world.beat(node, kind=Kind.OBITUARY, sequence=1)
        assert world.states()[node] is DEAD
        world.pass_time(0.5)
    world.pass_time(58.6)
    assert set(world.states()) == {"b", "c"}
    world.pass_time(0.5)
    assert set(world.states()) == {"c"}


def test_goodbyes_are_forgotten_one_by_one(world: World) -> None:
    """Who left first may come back first as who it was, whoever left after it."""
    for node in "ab":
        world.beat(node)
        world.beat(node, kind=Kind.GOODBYE)
        world.pass_time(30)
    world.pass_time(1)
    for node in "ab":
        world.beat(node)
    assert world.states() == {"a": ALIVE}
    assert world.detector.dropped == {"outdated": 1}
