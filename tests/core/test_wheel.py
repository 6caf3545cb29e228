"""The timer against a naive one that looks at everybody."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heartbeat_core import Incarnation, State
from heartbeat_core._record import Record
from heartbeat_core._wheel import BUDGET, SLOTS, Wheel

TIMES = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.3, 1.0, 2.0, 7.5, 30.0, 200.0])


def record(deadline: float) -> Record:
    """Give a record whose deadline is what it was heard."""
    return Record(1, State.ALIVE, deadline, Incarnation("n", 1))


def deadline(each: Record) -> float:
    """Give when a record is due."""
    return each.heard


class WheelMachine(RuleBasedStateMachine):
    """Deadlines move back and forth, time passes, and the timer is asked."""

    @initialize(width=st.sampled_from([0.1, 0.25, 1 / 3, 1.0]), start=st.sampled_from([0.0, 1e5]))
    def begin(self, width: float, start: float) -> None:
        """Begin at some time."""
        self.now = start
        self.wheel = Wheel(width, deadline)
        self.wheel.advance(start)
        self.armed: list[Record] = []

    @rule(after=TIMES)
    def arm(self, after: float) -> None:
        """Add one."""
        new = record(self.now + after)
        self.armed.append(new)
        self.wheel.arm(new)

    @rule(which=st.integers(0), later=TIMES)
    def postpone(self, which: int, later: float) -> None:
        """A deadline moves on, and nobody tells the timer."""
        if self.armed:
            self.armed[which % len(self.armed)].heard += later

    @rule(which=st.integers(0), after=TIMES)
    def hurry(self, which: int, after: float) -> None:
        """A deadline comes nearer, and the timer is told."""
        if self.armed:
            each = self.armed[which % len(self.armed)]
            each.heard = min(each.heard, self.now + after)
            self.wheel.arm(each)

    @rule(which=st.integers(0))
    def disarm(self, which: int) -> None:
        """One is not to be looked at any more."""
        if self.armed:
            self.wheel.disarm(self.armed.pop(which % len(self.armed)))

    @rule(seconds=TIMES)
    def pass_time(self, seconds: float) -> None:
        """Time passes; whoever is due is taken, nobody else, the earliest first."""
        self.now += seconds
        self.wheel.advance(self.now)
        due = [each for each in self.armed if each.heard <= self.now]
        found = self.wheel.due(self.now)
        assert sorted(map(id, found)) == sorted(map(id, due))
        taken = []
        while (each := self.wheel.take(self.now)) is not None:
            taken.append(each)
            self.armed.remove(each)
        assert [each.heard for each in taken] == sorted(each.heard for each in due)

    @invariant()
    def the_next_look_is_no_later_than_the_next_deadline(self) -> None:
        """Nobody falls due before the timer wants to be asked."""
        first = min((each.heard for each in self.armed), default=None)
        look = self.wheel.next_look()
        if first is None:
            assert look is None
        else:
            assert look is not None
            assert look <= first


TestWheel = WheelMachine.TestCase
TestWheel.settings = hypothesis_settings(stateful_step_count=50)


def test_no_call_looks_at_more_than_its_budget() -> None:
    """However many stand in one slot, a call looks at a limited number, and all are found."""
    looked = 0

    def count(each: Record) -> float:
        nonlocal looked
        looked += 1
        return each.heard

    wheel = Wheel(0.25, count)
    wheel.advance(0.0)
    for _ in range(10 * BUDGET):
        wheel.arm(record(1.0))
    taken = 0
    most = 0
    while taken < 10 * BUDGET:
        looked = 0
        wheel.advance(2.0)
        most = max(most, looked)
        while wheel.take(2.0) is not None:
            taken += 1
        look = wheel.next_look()
        assert look is None or look <= 1.0
    assert most <= 2 * BUDGET


def test_whoever_beats_costs_one_look_a_slot() -> None:
    """A healthy node is looked at when its slot comes up, and else never."""
    looked = 0

    def count(each: Record) -> float:
        nonlocal looked
        looked += 1
        return each.heard

    wheel = Wheel(0.25, count)
    wheel.advance(0.0)
    everybody = [record(2.0) for _ in range(1000)]
    for each in everybody:
        wheel.arm(each)
    looked = 0
    for quarter in range(400):
        now = quarter / 4
        if quarter % 4 == 0:
            for each in everybody:
                each.heard = now + 2.0
        wheel.advance(now)
        assert wheel.take(now) is None
    assert looked <= 1000 * 110


def test_far_beyond_its_reach_it_is_still_exact() -> None:
    """A deadline many turns of the wheel away is met when it comes, and not before."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(0.0)
    far = 5.3 * SLOTS * 0.25
    wheel.arm(record(far))
    now = 0.0
    while now < far - 1:
        wheel.advance(now)
        assert wheel.take(now) is None
        now += 0.7
    wheel.advance(far)
    assert wheel.take(far) is not None


def test_with_many_it_wants_to_look_at_the_start_of_a_slot_or_exactly() -> None:
    """With many records the next look is the start of the first slot, then the very deadline."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(0.0)
    for number in range(200):
        wheel.arm(record(1.1 + number / 1000))
    assert wheel.next_look() == 1.0
    wheel.advance(1.0)
    assert wheel.next_look() == 1.1
    wheel.advance(1.25)
    assert wheel.take(1.0999) is None
    first = wheel.take(1.1)
    assert first is not None
    assert wheel.next_look() == 1.101


def test_who_is_never_due_is_let_go() -> None:
    """A record whose deadline is never is kept nowhere."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(0.0)
    never, later = record(0.5), record(0.6)
    for each in (never, later):
        wheel.arm(each)
        each.heard = float("inf")
    wheel.advance(0.5)
    assert wheel.take(1.0) is None
    wheel.arm(never)
    wheel.advance(10.0)
    assert wheel.next_look() is None


def test_a_deadline_at_the_edge_of_its_reach() -> None:
    """A deadline exactly one turn of the wheel away is met."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(0.0)
    edges = [record(slots * 0.25) for slots in (SLOTS - 1, SLOTS, SLOTS + 1, SLOTS + 2)]
    for each in edges:
        wheel.arm(each)
    for each in edges:
        wheel.advance(each.heard)
        assert wheel.take(each.heard) is each
        assert wheel.take(each.heard) is None


def test_at_its_next_look_it_finds_something() -> None:
    """However a slot's start is rounded, the timer moves on when it is asked at its next look."""
    for width in (0.05, 0.1, 1 / 3, 0.0125):
        wheel = Wheel(width, deadline)
        now = 574_686.123
        wheel.advance(now)
        for number in range(400):
            wheel.arm(record(now + 0.3 + number * width / 3))
        for _ in range(300):
            look = wheel.next_look()
            assert look is not None
            wheel.advance(look)
            again = wheel.next_look()
            assert again is not None
            assert again > look or wheel.due(look)
            while wheel.take(look) is not None:
                pass


def test_who_was_hurried_is_taken_once() -> None:
    """A record that stands in the heap twice, since its deadline came nearer, is taken once."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(10.0)
    each = record(9.5)
    wheel.arm(each)
    each.heard = 9.4
    wheel.arm(each)
    assert wheel.take(10.0) is each
    assert wheel.take(10.0) is None
    assert wheel.next_look() is None


@pytest.mark.parametrize("looks_again", [True, False])
def test_who_was_due_and_is_not_any_more(looks_again: bool) -> None:
    """A record in the heap whose deadline has moved on is not taken, but later."""
    wheel = Wheel(0.25, deadline)
    wheel.advance(10.0)
    each = record(9.5)
    wheel.arm(each)
    each.heard = 9.4
    wheel.arm(each)
    each.heard = 12.0
    if looks_again:
        wheel.advance(10.0)
    assert wheel.take(10.0) is None
    wheel.advance(12.0)
    assert wheel.take(12.0) is each
