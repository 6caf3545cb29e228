"""The failure detector of one observer: beats and times in, transitions out.

No I/O, no clock, no thread: every time is an argument, in seconds, on one clock that never goes
backwards (``time.monotonic``, say). Not safe to share between threads; whoever drives it calls
it from one.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import attrs

from heartbeat_core._beat import Beat, Incarnation, Kind
from heartbeat_core._gone import Gone
from heartbeat_core._hearing import Hearing
from heartbeat_core._judges import Judge, judge_for
from heartbeat_core._looks import Connections, Looks
from heartbeat_core._record import NodeView, Record
from heartbeat_core._settings import Settings
from heartbeat_core._silence import Silence
from heartbeat_core._states import Cause, State, Transition, next_state
from heartbeat_core._wheel import Wheel

__all__ = ("Detector",)

CLOCK_DRIFT = 0.001
"""Two clocks never drift apart faster than this; the smallest delay seen of a node ages so."""

MOST_AT_ONCE = 512
"""So many transitions a call of ``check`` gives at most, so that no call is long."""

NOTHING: Sequence[Transition] = ()
_ALIVE, _BEAT, _INF = State.ALIVE, Kind.BEAT, math.inf


@attrs.define(eq=False)
class Detector:
    """Judges the nodes of a namespace for one observer.

    Whoever drives it lets it ``observe`` what arrives, its own beats too; calls ``check`` at
    ``next_deadline`` at the latest, with everything observed that had arrived by then; and tells
    it with ``oversleep`` when it could not.

    A time that is before an earlier one, infinite or not a number is counted in ``dropped`` as
    ``clock``, and taken for the latest good one. No beat, whatever is in it, makes a call raise.

    Args:
        settings: How silence is judged.
        me: The observer's own incarnation, whose beats are its echo.

    Attributes:
        dropped: How many beats were dropped, by reason: ``stale`` (older than ``expire``),
            ``repeated`` (sequence number already seen), ``outdated`` (a smaller incarnation),
            ``late`` (of a dead incarnation), ``malformed`` (its times are no numbers); and how many
            times of the driver's were no good, ``clock``.
    """

    settings: Settings
    me: Incarnation
    dropped: dict[str, int] = attrs.field(factory=dict[str, int], init=False)
    _records: dict[str, Record] = attrs.field(factory=dict[str, Record], init=False)
    _living: set[Incarnation] = attrs.field(factory=set[Incarnation], init=False)
    _living_view: frozenset[Incarnation] | None = attrs.field(default=None, init=False)
    _now: float = attrs.field(default=-_INF, init=False)
    _judge: Judge = attrs.field(init=False)
    _hearing: Hearing = attrs.field(init=False)
    _silence: Silence = attrs.field(init=False)
    _looks: Looks = attrs.field(init=False)
    _gone: Gone = attrs.field(init=False)
    _wheel: Wheel = attrs.field(init=False)
    _punctual: float = attrs.field(init=False)
    _jitter: float = attrs.field(init=False)
    _drift: float = attrs.field(init=False)
    _learns: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Set up the parts."""
        frequency = self.settings.frequency
        self._judge = judge_for(self.settings)
        self._learns = self._judge.learns
        self._hearing = Hearing(max(self.settings.max_freq, 1.5 * frequency))
        self._silence = Silence(self.settings, self._judge, self._hearing)
        self._looks = Looks(self.settings)
        self._gone = Gone(self.settings.discard_delay)
        self._wheel = Wheel(frequency / 4, self._silence.deadline)
        self._punctual = frequency / 4
        self._jitter = frequency / 8
        self._drift = CLOCK_DRIFT * frequency

    # -- what comes in -----------------------------------------------------------------------

    def observe(self, beat: Beat, now: float) -> Sequence[Transition]:
        """Take in one message, of whatever kind. O(1)."""
        # The way of nearly every beat comes first, and does as little as it can.
        record = self._records.get(beat.incarnation.node)
        if (
            record is None
            or beat.gap != record.regular
            or beat.sequence <= record.sequence
            or beat.incarnation.number != record.number
            or beat.kind is not _BEAT
            or beat.stalled
            or not self._now <= now
        ):
            return self._observe(beat, record, self._clean(now))
        age = now - beat.sent - record.offset
        if not age < self._punctual:
            return self._observe(beat, record, self._clean(now))
        if not 0.0 <= age <= self._jitter:
            if age == -_INF:
                return self._observe(beat, record, self._clean(now))
            # The smallest yet; or it may be that the clocks drift apart.
            record.offset += age if age < 0.0 else self._drift
        self._now = now
        lag = self._hearing.lag
        heard = now - lag if lag else now
        if self._learns:
            self._learn(record, beat, heard)
        record.heard = heard
        record.sequence = beat.sequence
        record.status = beat.status
        return NOTHING

    def recall(self, beat: Beat, now: float) -> Sequence[Transition]:
        """Take in a last beat that was read back from where the transport keeps it. O(1).

        It is like a beat that came late; but it counts as of when it was sent.
        """
        return self._observe(
            beat, self._records.get(beat.incarnation.node), self._clean(now), kept=True
        )

    def expect(self, incarnation: Incarnation, now: float) -> Sequence[Transition]:
        """Take in that an incarnation is on record (it holds claims, say) but was not heard.

        It is suspected from now on, and judged like any suspect. Nothing happens if its node
        is known, or left as this incarnation or a larger one.
        """
        now = self._clean(now)
        node = incarnation.node
        known = node == self.me.node or node in self._records
        if known or self._gone.has_left(incarnation):
            return NOTHING
        heard = now - self._hearing.lag
        record = Record(incarnation.number, State.SUSPECT, heard, incarnation)
        record.gap = self.settings.frequency
        record.checks_from = record.heard
        reason = f"{node} is on record, and was not heard yet"
        return [self._add(record, None, Cause.RECORDED, reason)]

    def connections(self, seen: Connections, now: float) -> Sequence[Transition]:
        """Take in what the broker says of connections; each call may fail one check a node.

        When three or more nodes, and over half of all, are without connection at one moment,
        none of that is evidence, and silence decides; one transition of the observer's own says
        so. Costs as much as has changed, and sets operations over all that were asked about.
        """
        now = self._clean(now)
        for record in self._looks.begin_session(seen.session):
            self._set_aside(record)
        transitions: list[Transition] = []
        for record in self._looks.take(seen, self._records, now):
            if record.state is _ALIVE:
                transitions.append(self._change(record, Cause.DISCONNECTED))
            else:
                # It was mute until now: the looks come first, and then its silence.
                record.checks_from = self._judged_as_of()
                self._wheel.arm(record)
        aside, begins = self._looks.brake(len(self._living), now)
        for record in aside:
            self._set_aside(record)
        if begins:
            transitions.append(self._brake(len(aside)))
        return transitions

    def oversleep(self, now: float, seconds: float) -> None:
        """Take in that the observer stood still for so many seconds until now. O(1).

        It woke so much later than it wanted to: its process was stopped, or starved. Nobody grows
        silent in that time, and after a long pause everyone's silence starts from zero. What
        arrived meanwhile may be observed before or after.
        """
        awake_at = self._now
        now = self._clean(now)
        if 0 < seconds < _INF:
            self._hearing.oversleep(now, seconds, awake_at)

    # -- what follows from time --------------------------------------------------------------

    def dying(self) -> list[Incarnation]:
        """Tell whom ``check`` would declare dead, of those that it has looked at.

        Whoever can read the last beats of these reads them, and lets the detector observe them,
        before it calls ``check(now, may_die=...)``: a lost message then costs a read, not a life.
        """
        echo = self._hearing.echo
        found = {record.incarnation for record in self._looks.condemned()}
        if echo is not None:
            self._wheel.advance(echo)
            for record in self._wheel.due(echo):
                if self._silence.dead_at(record) <= echo:
                    found.add(record.incarnation)
        return sorted(found)

    def check(
        self, now: float, *, may_die: Collection[Incarnation] | None = None
    ) -> Sequence[Transition]:
        """Judge everybody as of the last echo; forget whose discard delay has passed.

        It does a limited piece of work. Where more is left, it is ``overdue``.

        Args:
            now: The time.
            may_die: If given, nobody else is declared dead by this call.
        """
        now = self._clean(now)
        transitions: list[Transition] = list(self._discard(now))
        transitions += [
            self._change(record, Cause.CHECKS_FAILED)
            for record in self._looks.condemned()
            if may_die is None or record.incarnation in may_die
        ]
        echo = self._hearing.echo
        if echo is None:
            return transitions
        self._wheel.advance(now - self._hearing.lag)
        spared: list[Record] = []
        while len(transitions) < MOST_AT_ONCE:
            taken = self._wheel.take(echo)
            if taken is None:
                break
            record = taken
            if record.state is _ALIVE:
                cause = Cause.MUTE if record.connected else Cause.SILENCE
                transitions.append(self._change(record, cause))
            elif may_die is None or record.incarnation in may_die:
                transitions.append(self._change(record, self._silence.verdict(record)))
            else:
                spared.append(record)
        for record in spared:
            self._wheel.arm(record)
        return transitions

    def next_deadline(self) -> float | None:
        """Tell when ``check`` has something to do, if ever: no later than the next transition.

        If nothing is heard until then. Where it lies in the past and nothing is ``overdue``, the
        detector waits for an echo: no verdict needs more than one at or after it.
        """
        return min(self._deadlines(), default=None)

    @property
    def overdue(self) -> bool:
        """Whether ``check`` has something to do at once, and needs no further echo for it."""
        discard = self._gone.next_discard
        if self._looks.condemned() or (discard is not None and discard <= self._now):
            return True
        look, echo = self._wheel.next_look(), self._hearing.echo
        return look is not None and echo is not None and look <= echo

    # -- what can be asked -------------------------------------------------------------------

    @property
    def heard_self_at(self) -> float | None:
        """When the observer last heard itself; ``None`` if it never did."""
        echo = self._hearing.echo
        return None if echo is None else echo + self._hearing.lag

    @property
    def frozen(self) -> float:
        """For how many seconds, in all, nobody grew silent: it was deaf, or stood still."""
        return self._hearing.deaf + self._hearing.late

    def suspicion(self, node: str, now: float) -> float:
        """Tell how suspicious a node is at a time, as if the observer could hear itself then.

        Phi, or how many checks have failed; 0 for a node that is not in the table. For whoever
        wants to plot it: transitions follow from deadlines, not from this.
        """
        record = self._records.get(node)
        return 0.0 if record is None else self._silence.level(record, now - self._hearing.lag)

    def nodes(self) -> list[NodeView]:
        """Give the table of the other nodes, by name."""
        return [
            NodeView(
                incarnation=record.incarnation,
                state=record.state,
                silence=self._silence.length(record),
                connected=record.connected,
                checks_failed=self._silence.checks_failed(record),
                stalled=record.stalled,
                status=record.status,
            )
            for _, record in sorted(self._records.items())
        ]

    def is_dead(self, incarnation: Incarnation) -> bool:
        """Tell whether an incarnation is held for dead, or is older than its node's latest."""
        record = self._records.get(incarnation.node)
        if record is None or incarnation.number > record.number:
            return False
        return incarnation.number < record.number or record.state is State.DEAD

    def latest(self, node: str) -> Incarnation | None:
        """Give the largest incarnation of a node that is in the table."""
        record = self._records.get(node)
        return None if record is None else record.incarnation

    def living(self) -> frozenset[Incarnation]:
        """Give the incarnations that are ALIVE or SUSPECT; the same object while they are."""
        if self._living_view is None:
            self._living_view = frozenset(self._living)
        return self._living_view

    # -- beats, the long way -----------------------------------------------------------------

    def _observe(
        self, beat: Beat, record: Record | None, now: float, *, kept: bool = False
    ) -> Sequence[Transition]:
        incarnation = beat.incarnation
        if incarnation.node == self.me.node:
            return self._observe_self(beat, now)
        if beat.kind is Kind.ECHO:
            return NOTHING
        if not (math.isfinite(beat.sent) and 0 < beat.gap < _INF):
            return self._drop("malformed")
        if self._gone.has_left(incarnation):
            return self._drop("outdated")
        if beat.kind is Kind.OBITUARY:
            return self._read_obituary(record, incarnation)
        if record is None:
            return self._meet(beat, now, kept=kept)
        if incarnation.number < record.number:
            return self._drop("outdated")
        if incarnation.number > record.number:
            return self._supersede(record, beat, now, kept=kept)
        if record.state is State.DEAD:
            return self._drop("late")
        if beat.kind is Kind.GOODBYE:
            return [self._leave(record, now)]
        if beat.sequence <= record.sequence:
            return self._drop("repeated")
        return self._hear(record, beat, now, kept=kept)

    def _observe_self(self, beat: Beat, now: float) -> Sequence[Transition]:
        if beat.incarnation != self.me:
            return NOTHING
        if beat.kind is Kind.BEAT or beat.kind is Kind.ECHO:
            self._hearing.hear_self(now)
        if beat.kind is Kind.OBITUARY:
            return [
                Transition(
                    incarnation=self.me,
                    previous=State.ALIVE,
                    state=next_state(State.ALIVE, Cause.OBITUARY),
                    cause=Cause.OBITUARY,
                    at=now,
                    reason=f"{self.me.node} was declared dead by an observer",
                )
            ]
        return NOTHING

    def _read_obituary(
        self, record: Record | None, incarnation: Incarnation
    ) -> Sequence[Transition]:
        """Believe another observer: who is dead is fenced already."""
        if record is None or record.incarnation != incarnation or record.state is State.DEAD:
            return NOTHING
        reason = f"{incarnation.node} was declared dead by another observer"
        return [self._change(record, Cause.OBITUARY, reason)]

    def _hear(self, record: Record, beat: Beat, now: float, *, kept: bool) -> Sequence[Transition]:
        """Take in a beat of a living node that is not like all the others."""
        age = max(0.0, now - beat.sent - record.offset)
        held_up = kept
        if not kept:
            age, held_up = self._note_age(record, beat.sequence, age, now)
        if age > self.settings.expire:
            return self._drop("stale")
        heard = self._hearing.when(now, age if held_up else 0.0)
        if kept:
            heard = max(record.heard, heard)
        if self._learns:
            self._learn(record, beat, heard)
        if record.connected is False and now - age >= record.disconnected_at:
            # It came over some other connection: not every one is gone.
            self._set_aside(record)
        # One that was sent before its connection went is heard, but proves nothing.
        proof = record.connected is not False
        if not kept:
            record.offset = min(record.offset, now - beat.sent) + min(age, self._drift)
        record.heard = heard
        record.sequence = beat.sequence
        record.status = beat.status
        self._promise(record, beat.gap)
        transitions: list[Transition] = []
        node = record.incarnation.node
        if proof and record.state is State.SUSPECT and not (record.stalled and beat.stalled):
            record.checks_from = -_INF
            transitions.append(self._change(record, Cause.BEAT, f"{node} beats again"))
        transitions += self._note_stall(record, beat)
        record.settle()
        # Its deadline may have come nearer: it promises more, phi has learned, it was held up.
        self._wheel.arm(record)
        return transitions

    def _note_age(
        self, record: Record, sequence: int, age: float, now: float
    ) -> tuple[float, bool]:
        """Give the age of a beat on arrival, and whether it was held up in a backlog.

        A beat counts from its arrival, but for one out of a backlog that is being flushed, which
        shows in beats that come faster than they were sent: that extends nobody's life beyond its
        sending. Those that go on to come late in their own time are of a node whose clock stood
        still, its machine suspended say: what counts as late is shifted, by half the way each time.
        """
        if age <= self._punctual:
            return age, False
        # Of the beat before, if that was late.
        before = record.age if record.late_sequence >= record.sequence else 0.0
        held_up = age < before - record.gap / 4
        if before and not held_up and now - record.late_at > record.gap / 2:
            age /= 2
            record.offset += age
        record.age, record.late_at, record.late_sequence = age, now, sequence
        return age, held_up

    def _learn(self, record: Record, beat: Beat, heard: float) -> None:
        """Let the judge learn from a gap, unless the observer was deaf in it."""
        if record.heard > self._hearing.floor and record.sequence:
            gap = heard - record.heard
            if gap > 0:
                self._judge.learn(record, gap / (beat.sequence - record.sequence))

    def _note_stall(self, record: Record, beat: Beat) -> Sequence[Transition]:
        record.stalled = beat.stalled
        if not beat.stalled or record.state is not State.ALIVE:
            return NOTHING
        reason = f"{record.incarnation.node} beats, but says that its work does not move"
        return [self._change(record, Cause.STALLED, reason)]

    def _promise(self, record: Record, gap: float) -> None:
        """Give a node that promises less than the settings do so much more time."""
        record.gap = gap
        longest = self.settings.expire / self.settings.min_freq
        record.slack = max(1.0, min(gap / self.settings.frequency, longest))

    def _meet(self, beat: Beat, now: float, *, kept: bool) -> Sequence[Transition]:
        if beat.kind is Kind.GOODBYE:
            self._gone.leave(beat.incarnation, now)
            return NOTHING
        reason = f"{beat.incarnation.node} beats"
        return self._add_alive(beat, now, None, Cause.FIRST_BEAT, reason, kept=kept)

    def _supersede(
        self, record: Record, beat: Beat, now: float, *, kept: bool
    ) -> Sequence[Transition]:
        """Bury the old incarnation, if it still lives, and meet the new one."""
        transitions: list[Transition] = []
        if record.state is not State.DEAD:
            transitions.append(self._change(record, Cause.SUPERSEDED))
        if beat.kind is Kind.GOODBYE:
            self._gone.leave(beat.incarnation, now)
            return transitions
        reason = f"{beat.incarnation.node} came back as a larger incarnation"
        dead, larger = State.DEAD, Cause.LARGER_INCARNATION
        transitions += self._add_alive(beat, now, dead, larger, reason, kept=kept)
        return transitions

    def _add_alive(
        self,
        beat: Beat,
        now: float,
        previous: State | None,
        cause: Cause,
        reason: str,
        *,
        kept: bool,
    ) -> list[Transition]:
        heard = now - self._hearing.lag
        record = Record(beat.incarnation.number, State.ALIVE, heard, beat.incarnation)
        record.sequence = beat.sequence
        if not kept:
            record.offset = now - beat.sent
        record.status = beat.status
        self._promise(record, beat.gap)
        added = self._add(record, previous, cause, reason)
        return [added, *self._note_stall(record, beat)]

    def _add(self, record: Record, previous: State | None, cause: Cause, reason: str) -> Transition:
        """Put a record into the table, and say so."""
        record.state = next_state(previous, cause) or record.state
        record.settle()
        self._gone.come_back(record.incarnation.node)
        self._records[record.incarnation.node] = record
        self._living.add(record.incarnation)
        self._living_view = None
        self._judge.meet(record)
        self._wheel.arm(record)
        return Transition(
            incarnation=record.incarnation,
            previous=previous,
            state=record.state,
            cause=cause,
            at=self._now,
            checks_failed=self._silence.checks_failed(record),
            reason=reason,
        )

    def _leave(self, record: Record, now: float) -> Transition:
        self._gone.leave(record.incarnation, now)
        reason = f"{record.incarnation.node} said goodbye"
        return self._change(record, Cause.GOODBYE, reason)

    # -- inside ------------------------------------------------------------------------------

    def _deadlines(self) -> Iterator[float]:
        if self._looks.condemned():
            yield self._now
        look = self._wheel.next_look()
        if look is not None:
            # With a lag one step later, so that no rounding puts it before the look.
            lag = self._hearing.lag
            yield math.nextafter(look + lag, _INF) if lag else look
        discard = self._gone.next_discard
        if discard is not None:
            yield discard

    def _discard(self, now: float) -> Iterator[Transition]:
        """Forget the dead whose time has come, unless they came back."""
        for record in self._gone.discard(now, MOST_AT_ONCE):
            if self._records.get(record.incarnation.node) is record:
                reason = f"{record.incarnation.node} is forgotten"
                yield self._change(record, Cause.DISCARDED, reason)

    def _clean(self, now: float) -> float:
        """Give the time, or the latest good one."""
        if self._now <= now < _INF:
            self._now = now
        else:
            self._drop("clock")
            self._now = max(self._now, 0.0)
        return self._now

    def _drop(self, reason: str) -> Sequence[Transition]:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return NOTHING

    def _set_aside(self, record: Record) -> None:
        """Let silence decide of a node."""
        self._looks.set_aside(record, self._judged_as_of())
        record.settle()
        self._wheel.arm(record)

    def _judged_as_of(self) -> float:
        echo = self._hearing.echo
        return self._now - self._hearing.lag if echo is None else echo

    def _brake(self, count: int) -> Transition:
        return Transition(
            incarnation=self.me,
            previous=State.ALIVE,
            state=next_state(State.ALIVE, Cause.MASS_LOSS),
            cause=Cause.MASS_LOSS,
            at=self._now,
            reason=f"the connections of {count} of {len(self._living)} nodes went at once: that "
            "is no evidence, silence decides",
        )

    def _change(self, record: Record, cause: Cause, reason: str | None = None) -> Transition:
        """Move a record along the table, and say so."""
        previous = record.state
        state = next_state(previous, cause)
        if state is State.SUSPECT:
            # Before it is described: the first check has failed.
            record.state = state
        gone = self._now - record.disconnected_at if record.connected is False else None
        transition = Transition(
            incarnation=record.incarnation,
            previous=previous,
            state=state,
            cause=cause,
            at=self._now,
            silence=self._silence.length(record),
            checks_failed=self._silence.checks_failed(record),
            disconnected_for=gone,
            reason=reason or self._silence.explain(record, cause, self._now),
        )
        if state is None:
            self._remove(record)
        elif state is State.DEAD:
            self._bury(record, transition.checks_failed)
        else:
            record.state = state
            self._wheel.arm(record)
        record.settle()
        return transition

    def _bury(self, record: Record, checks_failed: int) -> None:
        record.state = State.DEAD
        record.checks_failed = checks_failed
        self._living.discard(record.incarnation)
        self._living_view = None
        self._looks.forget(record)
        self._wheel.disarm(record)
        self._gone.bury(record, self._now)

    def _remove(self, record: Record) -> None:
        del self._records[record.incarnation.node]
        self._living.discard(record.incarnation)
        self._living_view = None
        self._looks.forget(record)
        self._wheel.disarm(record)
