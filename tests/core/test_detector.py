"""The detector, scene by scene, on a clock that the test advances."""

import pathlib
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


def test_who_beats_is_alive(world: World) -> None:
    """A first beat puts a node into the table; further ones change nothing."""
    assert [each.cause for each in world.beat("a")] == [Cause.FIRST_BEAT]
    world.pass_time(1)
    assert world.beat("a") == []
    assert world.states() == {"a": ALIVE}


def test_silence_is_suspect_after_max_freq(world: World) -> None:
    """A silence of ``max_freq`` is still normal; a longer one is suspect, said once."""
    world.beat("a")
    world.pass_time(2.0)
    assert world.states() == {"a": ALIVE}
    world.pass_time(0.1)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(1.0)
    assert world.causes("a") == ["FIRST_BEAT", "SILENCE"]


def test_silence_is_death_after_checks_and_min_freq(world: World) -> None:
    """Where nothing is known of connections, silent checks bury, not before ``min_freq``."""
    world.beat("a")
    world.pass_time(3.9)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.3)
    assert world.states() == {"a": DEAD}
    assert world.seen[-1].cause is Cause.CHECKS_FAILED
    assert world.seen[-1].checks_failed == 3


def test_more_checks_take_longer() -> None:
    """A death takes as many failed checks as it is set to, one a ``frequency``."""
    world = World(Settings(checks=5))
    world.beat("a")
    world.pass_time(5.9)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.3)
    assert world.states() == {"a": DEAD}


def test_checks_alone_never_bury_who_beats_every_min_freq() -> None:
    """A node that beats just within ``min_freq`` is suspected again and again, never buried."""
    world = World(Settings(checks=1))
    for _ in range(20):
        world.beat("a")
        world.pass_time(3.9)
    assert DEAD not in [each.state for each in world.seen]
    assert world.causes("a").count("SILENCE") == 20


def test_a_beat_clears_the_suspicion(world: World) -> None:
    """A suspect that beats is alive, and its checks count from nothing again."""
    world.beat("a")
    world.pass_time(3.5)
    assert [each.cause for each in world.beat("a")] == [Cause.BEAT]
    world.pass_time(3.5)
    assert world.states() == {"a": SUSPECT}


def test_a_closed_connection_is_evidence(world: World) -> None:
    """Who was connected and is no more is suspect at the first look, and dead at the third."""
    world.beat("a")
    world.look(0.3, "a")
    world.look(0.1)
    assert world.states() == {"a": SUSPECT}
    world.look(0.1)
    assert world.states() == {"a": SUSPECT}
    world.look(0.1)
    assert world.states() == {"a": DEAD}
    assert world.causes("a") == ["FIRST_BEAT", "DISCONNECTED", "CHECKS_FAILED"]
    assert world.seen[-1].disconnected_for == pytest.approx(0.2)
    assert "connection closed 0.20 s ago, 3 of 3 checks failed" in world.seen[-1].reason


def test_a_connection_that_returns_clears_the_evidence(world: World) -> None:
    """Two failed looks, a look that succeeds, and two more failed ones make no death."""
    world.beat("a")
    world.look(0.1, "a")
    world.look(0.2)
    world.look(0.1, "a")
    world.look(0.2)
    assert world.states() == {"a": SUSPECT}
    world.beat("a")
    assert world.states() == {"a": ALIVE}


def test_who_beats_has_some_connection(world: World) -> None:
    """A beat sent after a connection went is proof of another: silence decides from then on."""
    world.beat("a")
    world.look(0.1, "a")
    world.look(0.2)
    world.beat("a")
    world.look(1.9)
    assert world.states() == {"a": ALIVE}
    world.look(0.1, "a")
    world.look(0.3)
    assert world.states() == {"a": DEAD}


def test_a_beat_from_before_is_no_proof(world: World) -> None:
    """A beat that was sent before the connection went, and came late, proves nothing."""
    world.beat("a")
    world.look(1.0, "a")
    last = world.now - 0.05
    world.look(0.2)
    world.beat("a", sent=last)
    assert world.states() == {"a": SUSPECT}
    world.look(0.1)
    assert world.states() == {"a": DEAD}


def test_nobody_is_missed_who_was_never_seen(world: World) -> None:
    """An absence is no evidence unless the node was seen connected before."""
    world.beat("a")
    world.look(1.9)
    assert world.states() == {"a": ALIVE}


def test_what_was_seen_before_the_own_loss_is_forgotten(world: World) -> None:
    """After the observer's own connection was lost, absences count only once seen again."""
    world.beat("a")
    world.look(0.3, "a")
    world.session += 1
    world.look(1.5)
    assert world.states() == {"a": ALIVE}
    world.look(0.1, "a")
    world.look(0.3)
    assert world.states() == {"a": DEAD}


def test_the_mute_are_buried_at_expire(world: World) -> None:
    """A silent node that is still connected is suspected, and buried only at ``expire``."""
    world.beat("a")
    world.look(29.8, "a")
    assert world.states() == {"a": SUSPECT}
    world.look(0.3, "a")
    assert world.states() == {"a": DEAD}
    assert world.causes("a") == ["FIRST_BEAT", "MUTE", "EXPIRED"]
    assert "connection open" in world.seen[-1].reason


def test_the_mute_who_lose_their_connection_die_soon(world: World) -> None:
    """Once the connection of a mute node goes, three looks are enough."""
    world.beat("a")
    world.look(10.0, "a")
    world.look(0.2)
    assert world.states() == {"a": SUSPECT}
    world.look(0.1)
    assert world.states() == {"a": DEAD}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_one_death_is_found_at_full_speed(world: World, size: int) -> None:
    """In a fleet of any size a single closed connection is evidence."""
    names = [f"n{number}" for number in range(size)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    world.look(0.3, *names[1:])
    assert world.states()["n0"] is DEAD


@pytest.mark.parametrize(("size", "gone"), [(3, 3), (4, 3), (5, 3), (20, 11)])
def test_when_most_go_at_once_it_is_no_evidence(world: World, size: int, gone: int) -> None:
    """Three or more, and over half, gone in one moment: silence decides."""
    names = [f"n{number}" for number in range(size)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    world.look(1.8, *names[gone:])
    assert DEAD not in world.states().values()
    world.look(3.0, *names[gone:])
    assert list(world.states().values()).count(DEAD) >= gone


@pytest.mark.parametrize(("size", "gone"), [(6, 3), (20, 10)])
def test_half_of_them_may_die_at_once(world: World, size: int, gone: int) -> None:
    """Up to half of the fleet is believed to have died."""
    names = [f"n{number:02}" for number in range(size)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    world.look(0.3, *names[gone:])
    assert [name for name, state in world.states().items() if state is DEAD] == names[:gone]


@pytest.mark.parametrize("seconds", [5.0, 60.0, 3600.0])
def test_nobody_dies_while_the_observer_is_deaf(world: World, seconds: float) -> None:
    """While its own beats do not come back, silence does not grow, however long."""
    for name in "ab":
        world.beat(name)
    world.pass_time(0.9)
    world.pass_time(seconds, deaf=True, step=seconds / 100)
    assert world.states() == {"a": ALIVE, "b": ALIVE}
    world.echo()
    world.check()
    assert {view.silence for view in world.detector.nodes()} == {0.0}
    world.pass_time(1.9)
    assert set(world.causes("a")) == {"FIRST_BEAT"}
    assert world.detector.frozen == pytest.approx(seconds)
    world.pass_time(5)
    assert world.states() == {"a": DEAD, "b": DEAD}


def test_a_pause_of_the_observer_is_nobodys_silence(world: World) -> None:
    """An observer that wakes late counts from its first echo, not from before its pause."""
    world.beat("a")
    world.pass_time(1.9)
    world.now += 30
    assert world.check() == []
    world.echo()
    assert world.check() == []
    assert world.states() == {"a": ALIVE}


def test_failed_checks_do_not_outlive_deafness(world: World) -> None:
    """A suspect before an outage has its checks before it again after it."""
    world.beat("a")
    world.pass_time(3.5)
    world.pass_time(20, deaf=True)
    world.pass_time(2.0)
    assert world.states() == {"a": SUSPECT}


def test_a_larger_incarnation_buries_the_smaller(world: World) -> None:
    """A restart is a death and a birth: what the old life held must be recovered."""
    world.beat("a", 1)
    world.beat("a", 2)
    assert world.causes("a") == ["FIRST_BEAT", "SUPERSEDED", "LARGER_INCARNATION"]
    assert world.states() == {"a": ALIVE}
    assert world.detector.is_dead(Incarnation("a", 1))
    assert not world.detector.is_dead(Incarnation("a", 2))
    assert not world.detector.is_dead(Incarnation("a", 3))
    assert not world.detector.is_dead(Incarnation("b", 1))


def test_the_goodbye_of_somebody_larger_buries_the_smaller(world: World) -> None:
    """Whose restart was missed but for its end is dead all the same."""
    world.beat("a", 1)
    world.beat("a", 2, kind=Kind.GOODBYE)
    assert world.causes("a") == ["FIRST_BEAT", "SUPERSEDED"]


def test_the_dead_stay_dead(world: World) -> None:
    """Beats of a dead incarnation are dropped and counted; a larger one lives."""
    world.beat("a", 5)
    world.pass_time(5)
    assert world.beat("a", 5) == []
    assert world.states() == {"a": DEAD}
    assert world.detector.dropped == {"late": 1}
    assert world.detector.is_dead(Incarnation("a", 5))
    world.beat("a", 6)
    assert world.states() == {"a": ALIVE}


def test_a_tombstone_goes_after_the_discard_delay(world: World) -> None:
    """The dead are forgotten ``discard_delay`` after their death, with a word."""
    world.beat("a")
    world.pass_time(4.1)
    assert world.states() == {"a": DEAD}
    world.pass_time(59.8)
    assert world.states() == {"a": DEAD}
    world.pass_time(0.3)
    assert world.states() == {}
    assert world.causes("a")[-1] == "DISCARDED"


@pytest.mark.parametrize("after", [0.0, 2.5])
def test_who_says_goodbye_left(world: World, after: float) -> None:
    """A goodbye removes a node, alive or suspect, without an alarm."""
    world.beat("a")
    world.pass_time(after)
    (transition,) = world.beat("a", kind=Kind.GOODBYE)
    assert (transition.state, transition.cause) == (None, Cause.GOODBYE)
    world.pass_time(10)
    assert world.states() == {}


def test_who_left_does_not_come_back_by_an_old_beat(world: World) -> None:
    """A beat that was overtaken by the goodbye revives nobody; a new life is met."""
    world.beat("a", 3)
    world.beat("a", 3, kind=Kind.GOODBYE)
    assert world.beat("a", 3) == world.beat("a", 2) == []
    assert world.beat("a", 2, kind=Kind.GOODBYE) == []
    assert world.states() == {}
    world.beat("a", 4)
    assert world.states() == {"a": ALIVE}


def test_a_departure_is_forgotten_in_the_end(world: World) -> None:
    """What is remembered of those who left goes after ``discard_delay``."""
    world.beat("a")
    world.beat("a", kind=Kind.GOODBYE)
    world.pass_time(60.1)
    assert len(world.detector._gone) == 0


def test_the_goodbye_of_a_stranger_means_nothing(world: World) -> None:
    """Who was never met cannot leave."""
    assert world.beat("a", kind=Kind.GOODBYE) == []
    assert world.states() == {}


def test_the_smaller_and_the_seen_change_nothing(world: World) -> None:
    """Beats of a smaller incarnation and of a known sequence number are counted, not heard."""
    world.beat("a", 2, sequence=10)
    world.pass_time(1.9)
    world.beat("a", 1)
    world.beat("a", 2, sequence=10)
    world.beat("a", 2, sequence=9)
    world.pass_time(0.3)
    assert world.states() == {"a": SUSPECT}
    assert world.detector.dropped == {"outdated": 1, "repeated": 2}


def test_old_beats_are_dropped(world: World) -> None:
    """A beat that was sent longer than ``expire`` ago is dropped on arrival."""
    world.beat("a")
    world.pass_time(3.0)
    world.beat("a", sent=world.now - 31)
    assert world.states() == {"a": SUSPECT}
    assert world.detector.dropped == {"stale": 1}


@pytest.mark.parametrize("clock", [-3600.0, -1.0, 0.0, 3600.0, 1e9])
def test_clocks_need_not_agree(world: World, clock: float) -> None:
    """The age of a beat is judged by the sender's own clock, whatever that says."""
    world.beat("a", clock=clock)
    for _ in range(100):
        world.pass_time(1)
        world.beat("a", clock=clock)
    assert world.causes("a") == ["FIRST_BEAT"]
    assert world.detector.dropped == {}


def test_clocks_may_drift(world: World) -> None:
    """A clock that loses a second in an hour makes no beat look old, in a month."""
    drift = 0.0
    world.beat("a")
    for hour in range(24 * 30):
        drift = -float(hour)
        for _ in range(4):
            world.now += 900
            world.echo()
            world.beat("a", clock=drift)
    assert "stale" not in world.detector.dropped


def test_who_promises_less_is_given_more_time(world: World) -> None:
    """A node that says it beats every three seconds is suspected three times as late."""
    world.beat("a", gap=3.0)
    world.pass_time(5.9)
    assert world.states() == {"a": ALIVE}
    world.pass_time(0.3)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(5.5)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(1.0)
    assert world.states() == {"a": DEAD}


def test_no_promise_reaches_beyond_expire(world: World) -> None:
    """Whatever gap a node promises, it is dead at ``expire``."""
    world.beat("a", gap=86_400)
    world.pass_time(30.1)
    assert world.states() == {"a": DEAD}


def test_who_is_on_record_is_missed(world: World) -> None:
    """Who is known by its claims only is suspected at once, and dead by silence."""
    (transition,) = world.detector.expect(Incarnation("a", 1), world.now)
    assert (transition.state, transition.cause) == (SUSPECT, Cause.RECORDED)
    world.pass_time(3.9)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.3)
    assert world.states() == {"a": DEAD}


def test_who_is_known_is_not_expected(world: World) -> None:
    """Expecting a node that is known, left, or oneself changes nothing."""
    world.beat("a", 2)
    world.beat("b", 2)
    world.beat("b", 2, kind=Kind.GOODBYE)
    for incarnation in (Incarnation("a", 1), Incarnation("b", 1), ME):
        assert not world.detector.expect(incarnation, world.now)


def test_whom_check_will_bury_can_be_asked_before(world: World) -> None:
    """``dying`` names exactly those whom the next ``check`` buries."""
    names = [f"n{number}" for number in range(10)]
    for name in names:
        world.beat(name)
        world.pass_time(0.7)
    for _ in range(100):
        world.now += 0.1
        world.echo()
        asked = {each.node for each in world.detector.dying()}
        buried = {each.node for each in world.check() if each.state is DEAD}
        assert asked == buried
    assert set(world.states().values()) == {DEAD}


def test_a_last_beat_that_is_read_saves_a_life(world: World) -> None:
    """A beat read back for one about to die keeps it alive."""
    world.beat("a", sequence=1)
    world.pass_time(3.9)
    world.now += 0.5
    world.echo()
    assert world.detector.dying() == [Incarnation("a", 1)]
    world.beat("a", sequence=5)
    world.check()
    assert world.states() == {"a": ALIVE}


def test_deadlines_are_kept() -> None:
    """If nothing is heard, nothing changes before ``next_deadline``, and something soon after."""
    world = World()
    world.beat("a")
    world.beat("b", gap=2.0)
    world.look(0.1, "b")
    changes = 0
    while (deadline := world.detector.next_deadline()) is not None and changes < 50:
        before = dict(world.states())
        while world.now < deadline - 1e-6:
            world.now = min(world.now + 0.5, deadline - 1e-6)
            world.echo()
            world.check()
            assert world.states() == before, f"changed before {deadline}"
        world.now = deadline + 1e-6
        world.echo()
        world.check()
        changes += 1
    assert world.states() == {}
    assert changes < 50


def test_before_the_first_echo_nobody_is_judged() -> None:
    """An observer that never heard itself judges nobody."""
    detector = Detector(Settings(), ME)
    other = Beat(incarnation=Incarnation("a", 1), sequence=1, sent=0, gap=1)
    detector.observe(other, 0.0)
    assert detector.check(1e6) == []
    assert detector.heard_self_at is None
    detector.observe(Beat(incarnation=ME, sequence=1, sent=0, gap=1), 1e6)
    assert detector.check(1e6) == []
    assert detector.heard_self_at == 1e6


def test_obituaries_and_other_lives_of_oneself_are_not_judged(world: World) -> None:
    """The detector keeps no record of its own node, and takes no obituary for a beat."""
    assert world.beat("me", 7) == []
    assert world.beat("a", kind=Kind.OBITUARY) == []
    assert world.states() == {}


def test_answers_about_others_are_ignored(world: World) -> None:
    """What is said of the connections of the unknown, the dead and former lives is nothing."""
    world.beat("a", 2)
    for incarnation in (Incarnation("a", 1), Incarnation("x", 1)):
        asked = frozenset({incarnation})
        seen = Connections(session=1, asked=asked, connected=asked)
        assert world.detector.connections(seen, world.now) == []
    assert world.detector.nodes()[0].connected is None


@pytest.mark.parametrize("number", [1, 2])
def test_a_goodbye_that_overtakes_the_beats_revives_nobody(world: World, number: int) -> None:
    """Beats of a life whose goodbye came first are dropped, whether or not the node was known."""
    if number == 2:
        world.beat("a", 1)
    world.beat("a", number, sequence=3, kind=Kind.GOODBYE)
    before = world.states()
    assert world.beat("a", number, sequence=2) == []
    assert world.states() == before
    assert world.detector.dropped == {"outdated": 1}
    world.beat("a", number + 1)
    assert world.states() == {"a": ALIVE}


def test_a_life_on_record_after_the_one_that_left_is_missed(world: World) -> None:
    """Who left as one incarnation and is on record as a larger one is expected."""
    world.beat("a", 1)
    world.beat("a", 1, kind=Kind.GOODBYE)
    (transition,) = world.detector.expect(Incarnation("a", 2), world.now)
    assert transition.cause is Cause.RECORDED


def test_who_is_on_record_and_promises_less_is_given_more_time(world: World) -> None:
    """The promise of a node counts from its first beat, also if it was on record before."""
    world.detector.expect(Incarnation("a", 1), world.now)
    for _ in range(4):
        world.beat("a", gap=3.0)
        world.pass_time(5.9)
    assert world.causes("a") == ["BEAT"]


def test_a_flood_of_old_beats_stays_old(world: World) -> None:
    """However many old beats come at once, all are dropped."""
    world.beat("a")
    world.pass_time(0.1)
    world.now += 60
    world.echo()
    for number in range(1000):
        world.beat("a", sequence=2 + number, sent=world.now - 59)
    assert world.detector.dropped == {"stale": 1000}


def test_the_loss_of_the_own_connection_gives_the_mute_time(world: World) -> None:
    """A mute node is not buried by the checks that failed while its connection was open.

    The broker restarts in a moment; the mute node connects again a little after the observer.
    """
    world.beat("a")
    world.look(10.0, "a")
    world.session += 1
    world.look(1.0)
    assert world.states() == {"a": SUSPECT}
    world.look(10.0, "a")
    assert world.states() == {"a": SUSPECT}


@pytest.mark.parametrize("gaps", [(1.0, 2.0, 2.0, 30.0), (1.0, 2.0, 4.5, 30.0), (1.0,) * 4])
@pytest.mark.parametrize("checks", [1, 2, 3])
@pytest.mark.parametrize("step", [0.1, 0.5, 1.0, 1.4])
def test_deadlines_and_forecasts_hold_for_any_settings(
    gaps: tuple[float, float, float, float], checks: int, step: float
) -> None:
    """Nothing happens before ``next_deadline``, and whom ``check`` buries was named before."""
    frequency, max_freq, min_freq, expire = gaps
    world = World(
        Settings(
            frequency=frequency,
            max_freq=max_freq,
            min_freq=min_freq,
            expire=expire,
            checks=checks,
        )
    )
    world.beat("a")
    world.beat("b")
    world.connections("b")
    for _ in range(round(100 / step)):
        world.now += step
        world.echo()
        if world.now < 1020:
            world.connections("b")
        deadline = world.detector.next_deadline()
        dying = {each.node for each in world.detector.dying()}
        transitions = world.check()
        assert dying == {each.node for each in transitions if each.state is DEAD}
        assert not transitions or (deadline is not None and deadline <= world.now + 1e-6)
    assert world.states() == {}


def test_what_is_said_does_not_depend_on_the_order_of_sets() -> None:
    """Transitions come in the order in which the nodes were met, in every run."""
    world = World()
    names = [f"n{number}" for number in range(20)]
    for name in names:
        world.beat(name)
    world.connections(*names)
    gone = world.connections(*names[9:])
    assert [each.node for each in gone] == names[:9]


def test_stragglers_of_a_mass_loss_are_no_evidence(world: World) -> None:
    """Whose connection goes up to ``max_freq`` after most others went is not judged by it."""
    names = [f"n{number}" for number in range(8)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    world.look(0.4, "n0")
    world.look(0.5)
    assert DEAD not in world.states().values()
    for name in names:
        world.beat(name)
    world.look(2.1, *names)
    for name in names:
        world.beat(name)
    world.look(0.3, *names[1:])
    assert world.states()["n0"] is DEAD


def test_after_the_last_failed_look_there_is_nothing_to_wait_for(world: World) -> None:
    """Once enough looks have failed, the deadline has come."""
    world.beat("a")
    world.look(0.3, "a")
    for _ in range(3):
        assert world.check() == []
        world.now += 0.1
        world.connections()
    deadline = world.detector.next_deadline()
    assert deadline is not None
    assert deadline <= world.now
    assert [each.state for each in world.check()] == [DEAD]


def test_only_the_own_beats_of_this_life_are_an_echo(world: World) -> None:
    """The goodbye of oneself, and beats of one's other lives, prove no hearing."""
    heard = world.detector.heard_self_at
    world.now += 1
    world.beat("me", 7)
    world.beat("me", 1, kind=Kind.GOODBYE)
    assert world.detector.heard_self_at == heard


def test_age_is_judged_by_the_quickest_beat(world: World) -> None:
    """A first beat that came late does not make later ones look young."""
    world.beat("a", sent=world.now - 20)
    world.now += 1
    world.beat("a")
    world.beat("a", sent=world.now - 31)
    assert world.detector.dropped == {"stale": 1}
    world.beat("a", sent=world.now - 30)
    assert world.detector.dropped == {"stale": 1}


def test_limits_are_exact() -> None:
    """A node is dead when its silence is ``min_freq`` or ``expire``, and forgotten on time."""
    world = World(Settings(checks=1))
    world.beat("a")
    world.beat("b")
    world.connections("b")
    for second, states in [
        (2, {"a": ALIVE, "b": ALIVE}),
        (3, {"a": SUSPECT, "b": SUSPECT}),
        (4, {"a": DEAD, "b": SUSPECT}),
        (6, {"a": DEAD, "b": SUSPECT}),
        *((second, None) for second in range(8, 29, 2)),
        (29, {"a": DEAD, "b": SUSPECT}),
        (30, {"a": DEAD, "b": DEAD}),
        (63, {"a": DEAD, "b": DEAD}),
        (64, {"b": DEAD}),
        (90, {}),
    ]:
        world.now = 1000.0 + second
        world.echo()
        world.check()
        assert states is None or world.states() == states


def test_a_departure_is_remembered_for_the_discard_delay(world: World) -> None:
    """Its late beats are dropped until exactly ``discard_delay`` after the goodbye."""
    world.beat("a", 1)
    world.beat("a", 1, kind=Kind.GOODBYE)
    assert not world.detector.expect(Incarnation("a", 1), world.now)
    world.now += 59
    world.check()
    assert world.beat("a", 1) == []
    world.now += 1
    world.check()
    assert [each.cause for each in world.beat("a", 1)] == [Cause.FIRST_BEAT]


@pytest.mark.parametrize("deaf", [0, 20])
def test_each_of_many_checks_takes_its_time(deaf: int) -> None:
    """Of six checks of a node on record the first fails at once and the last after five seconds.

    Once the observer hears again after an outage, its silence starts from zero like everybody's,
    and the first check fails at ``max_freq``.
    """
    world = World(Settings(checks=6))
    world.detector.expect(Incarnation("a", 1), world.now)
    if deaf:
        world.pass_time(4.5)
        world.pass_time(deaf, deaf=True)
        world.now += 0.1
        world.echo()
        world.pass_time(world.settings.max_freq)
    world.pass_time(4.9)
    assert world.states() == {"a": SUSPECT}
    world.pass_time(0.2)
    assert world.states() == {"a": DEAD}


def test_looks_in_a_hurry_count_once(world: World) -> None:
    """However often the broker is asked, one check fails every ``disconnect_interval``."""
    world.beat("a")
    world.look(0.1, "a")
    for state in (SUSPECT, SUSPECT, DEAD):
        world.now += 0.1
        for _ in range(5):
            world.connections()
            world.check()
        assert world.states() == {"a": state}


def test_a_beat_does_not_make_looks_hurry(world: World) -> None:
    """After a beat without a connection, too, one check fails every ``disconnect_interval``."""
    world.beat("a")
    world.look(0.1, "a")
    world.look(0.1)
    world.beat("a", sent=world.now - 0.05)
    for state in (SUSPECT, DEAD):
        world.now += 0.1
        for _ in range(5):
            world.connections()
            world.check()
        assert world.states() == {"a": state}


def test_failed_looks_are_forgotten_when_the_connection_is_back(world: World) -> None:
    """A suspect that is connected again has one failed check: its silence."""
    world.beat("a")
    world.look(0.1, "a")
    world.look(0.2)
    world.look(0.1, "a")
    (view,) = world.detector.nodes()
    assert (view.connected, view.checks_failed) == (True, 1)


def test_the_unknown_do_not_count_as_gone(world: World) -> None:
    """Nodes of whose connections nothing was ever known neither go nor brake."""
    names = [f"n{number}" for number in range(10)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names[:4])
    world.look(0.3, "n0")
    assert [name for name, state in world.states().items() if state is DEAD] == names[1:4]


def test_deadlines_are_exact() -> None:
    """The deadline is the moment at which something happens, also after an outage."""
    world = World(Settings(checks=2, min_freq=4.5))
    world.beat("a")
    assert world.detector.next_deadline() == pytest.approx(1002.0, abs=1e-9)
    world.now = 1010.0
    world.echo()
    assert world.detector.next_deadline() == pytest.approx(1012.0, abs=1e-9)
    for second in (1011.0, 1012.0, 1012.5):
        world.now = second
        world.echo()
        world.check()
    assert world.states() == {"a": SUSPECT}
    for second in (1013.5, 1014.25):
        assert world.detector.next_deadline() == 1014.5
        world.now = second
        world.echo()
        world.check()
    assert world.states() == {"a": SUSPECT}
    world.now = 1014.5
    world.echo()
    world.check()
    assert world.states() == {"a": DEAD}
    assert world.detector.next_deadline() == 1074.5
