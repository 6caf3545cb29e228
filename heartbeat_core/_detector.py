"""The failure detector of one observer: beats and times in, transitions out.

No I/O, no clock, no thread: every time is an argument, in seconds, on one clock that never goes
backwards (``time.monotonic``, say). Not safe to share between threads; whoever drives it calls
it from one.

**Silence counts only up to the observer's own last echo.** An observer beats too and hears its
own beats come back through the broker. ``check`` judges everybody as of the last echo, so while
none comes back nobody grows more silent; and when one comes after a gap longer than normal
(the broker was away, the observer was cut off or paused), everyone's silence starts from zero.
"""

from collections.abc import Iterator

import attrs

from heartbeat_core._beat import Beat, Incarnation, Kind, Status
from heartbeat_core._settings import Settings
from heartbeat_core._states import Cause, State, Transition, next_state

__all__ = ("Connections", "Detector", "NodeView")

CLOCK_DRIFT = 0.001
"""Two clocks never drift apart faster than this; the smallest delay seen of a node ages so."""

MASS = 3
"""So many connections that go in one moment, and over half of all, are no evidence."""


@attrs.frozen(kw_only=True)
class Connections:
    """What the broker says of the connections of some incarnations.

    Attributes:
        session: Changes whenever the observer's own connection was lost: what was known
            before is worth nothing then.
        asked: The incarnations that the broker was asked about.
        connected: Those of them that still have a connection.
    """

    session: int
    asked: frozenset[Incarnation]
    connected: frozenset[Incarnation]


@attrs.frozen(kw_only=True)
class NodeView:
    """A line of the table of nodes.

    Attributes:
        incarnation: The node and its latest incarnation.
        state: What the observer holds it for.
        silence: For how many seconds it was not heard, as ``Detector`` counts them.
        connected: Whether it has a connection to the broker; ``None`` if nothing is known.
        checks_failed: How many checks of it have failed.
        status: What it last said of itself.
    """

    incarnation: Incarnation
    state: State
    silence: float
    connected: bool | None = None
    checks_failed: int = 0
    status: Status = attrs.field(factory=dict[str, None])


@attrs.define
class _Record:
    """What is kept of a node; one a node."""

    incarnation: Incarnation
    state: State
    heard: float
    sequence: int = 0
    slack: float = 1.0
    smallest_delay: float = float("inf")
    status: Status = attrs.field(factory=dict[str, None])
    connected: bool | None = None
    disconnected_at: float = float("-inf")
    checks_failed: int = 0
    next_check: float = 0.0
    discard_at: float = 0.0


@attrs.define
class Detector:
    """Judges the nodes of a namespace for one observer.

    Args:
        settings: How silence is judged.
        me: The observer's own incarnation, whose beats are its echo.

    Attributes:
        dropped: How many beats were dropped, by reason: ``stale`` (older than ``expire``),
            ``repeated`` (sequence number already seen), ``outdated`` (a smaller incarnation),
            ``late`` (of a dead incarnation).
        deaf: For how many seconds the observer could not hear itself, in all.
    """

    settings: Settings
    me: Incarnation
    dropped: dict[str, int] = attrs.field(factory=dict[str, int], init=False)
    deaf: float = attrs.field(default=0.0, init=False)
    _records: dict[str, _Record] = attrs.field(factory=dict[str, _Record], init=False)
    _left: dict[str, tuple[int, float]] = attrs.field(
        factory=dict[str, tuple[int, float]], init=False
    )
    _echo: float | None = attrs.field(default=None, init=False)
    _floor: float = attrs.field(default=0.0, init=False)
    _session: int | None = attrs.field(default=None, init=False)

    # -- what comes in -----------------------------------------------------------------------

    def observe(self, beat: Beat, now: float) -> list[Transition]:
        """Take in one beat, goodbye or echo; obituaries are not the detector's business."""
        incarnation = beat.incarnation
        if incarnation.node == self.me.node:
            if incarnation == self.me and beat.kind is Kind.BEAT:
                self._hear_self(now)
            return []
        if beat.kind is Kind.OBITUARY:
            return []
        left = self._left.get(incarnation.node)
        if left is not None and incarnation.number <= left[0]:
            return self._drop("outdated")
        record = self._records.get(incarnation.node)
        if record is None:
            return self._meet(beat, now)
        if incarnation.number < record.incarnation.number:
            return self._drop("outdated")
        if incarnation.number > record.incarnation.number:
            return self._supersede(record, beat, now)
        if record.state is State.DEAD:
            return self._drop("late")
        if beat.kind is Kind.GOODBYE:
            return [self._leave(record, now)]
        if beat.sequence <= record.sequence:
            return self._drop("repeated")
        delay = now - beat.sent
        smallest_delay = record.smallest_delay + (now - record.heard) * CLOCK_DRIFT
        if delay - smallest_delay > self.settings.expire:
            return self._drop("stale")
        record.smallest_delay = min(smallest_delay, delay)
        record.sequence = beat.sequence
        record.heard = now
        record.slack = self._slack(beat)
        record.status = beat.status
        sent = beat.sent + record.smallest_delay
        if record.connected is False and sent > record.disconnected_at:
            # It came over some other connection: not every one is gone.
            self._set_aside(record)
        if record.state is State.ALIVE:
            return []
        transition = self._transition(record, Cause.BEAT, now, f"{incarnation.node} beats again")
        record.checks_failed = 0
        return [transition]

    def expect(self, incarnation: Incarnation, now: float) -> list[Transition]:
        """Take in that an incarnation is on record (it holds claims, say) but was not heard.

        It is suspected from now on, and judged like any suspect. Nothing happens if its node
        is known, or left as this incarnation or a larger one.
        """
        node = incarnation.node
        left = self._left.get(node)
        if (
            node == self.me.node
            or node in self._records
            or (left is not None and incarnation.number <= left[0])
        ):
            return []
        record = _Record(incarnation, State.SUSPECT, now)
        self._records[node] = record
        record.checks_failed = 1
        record.next_check = now + self.settings.frequency
        return [
            Transition(
                incarnation=incarnation,
                previous=None,
                state=next_state(None, Cause.RECORDED),
                cause=Cause.RECORDED,
                at=now,
                checks_failed=1,
                reason=f"{node} is on record, and was not heard yet",
            )
        ]

    def connections(self, seen: Connections, now: float) -> list[Transition]:
        """Take in what the broker says of connections; each call may fail one check a node.

        An absence is evidence only of an incarnation that was seen connected before, in the
        same session. When three or more nodes, and over half of all, are without connection at
        one moment, none of that is evidence, and silence decides.
        """
        if seen.session != self._session:
            self._session = seen.session
            for record in self._records.values():
                self._set_aside(record)
        transitions: list[Transition] = []
        for record in self._records.values():
            if record.incarnation not in seen.asked or record.state is State.DEAD:
                continue
            if record.incarnation in seen.connected:
                if record.connected is False and record.state is State.SUSPECT:
                    record.checks_failed = 1
                    record.next_check = now + self.settings.frequency * record.slack
                record.connected = True
            elif record.connected is True:
                record.connected = False
                record.disconnected_at = now
                record.checks_failed = 1
                if record.state is State.ALIVE:
                    transitions.append(self._suspect(record, Cause.DISCONNECTED, now))
                record.next_check = now + self.settings.disconnect_interval
            elif record.connected is False:
                if record.state is State.ALIVE:
                    transitions.append(self._suspect(record, Cause.DISCONNECTED, now))
                    record.next_check = now + self.settings.disconnect_interval
                elif now >= record.next_check - self.settings.disconnect_interval / 2:
                    # A look that comes a little early is a look all the same.
                    record.checks_failed += 1
                    record.next_check = now + self.settings.disconnect_interval
        self._brake(now)
        return transitions

    # -- what follows from time --------------------------------------------------------------

    def dying(self) -> list[Incarnation]:
        """Tell whom ``check`` would declare dead.

        Whoever can read the last beat of these reads it, and lets the detector observe it,
        before it calls ``check``: a lost message then costs a read, not a worker.
        """
        return [
            record.incarnation
            for record in self._records.values()
            if self._prospect(record) is not None
        ]

    def check(self, now: float) -> list[Transition]:
        """Judge everybody as of the last echo; forget whose discard delay has passed."""
        transitions: list[Transition] = []
        for record in list(self._records.values()):
            if record.state is State.DEAD:
                if now >= record.discard_at:
                    del self._records[record.incarnation.node]
                    reason = f"{record.incarnation.node} is forgotten"
                    transitions.append(self._transition(record, Cause.DISCARDED, now, reason))
                continue
            if record.state is State.ALIVE:
                if self._is_suspicious(record):
                    transitions.append(self._suspect(record, Cause.SILENCE, now))
            else:
                due = self._due(record)
                if due:
                    record.checks_failed += due
                    record.next_check += due * self.settings.frequency * record.slack
            if record.state is State.SUSPECT:
                cause = self._verdict(record, record.checks_failed)
                if cause is not None:
                    transitions.append(self._bury(record, cause, now))
        for node, (_, until) in list(self._left.items()):
            if now >= until:
                del self._left[node]
        return transitions

    def next_deadline(self) -> float | None:
        """Tell when ``check`` has something to do if nothing is heard until then, if ever.

        Where the answer lies in the past, the detector waits for an echo.
        """
        return min(self._deadlines(), default=None)

    @property
    def heard_self_at(self) -> float | None:
        """When the observer last heard itself; ``None`` if it never did."""
        return self._echo

    # -- what can be asked -------------------------------------------------------------------

    def nodes(self) -> list[NodeView]:
        """Give the table of the other nodes, by name."""
        return [
            NodeView(
                incarnation=record.incarnation,
                state=record.state,
                silence=self._silence(record),
                connected=record.connected,
                checks_failed=record.checks_failed,
                status=record.status,
            )
            for _, record in sorted(self._records.items())
        ]

    def is_dead(self, incarnation: Incarnation) -> bool:
        """Tell whether an incarnation is held for dead, or is older than its node's latest."""
        record = self._records.get(incarnation.node)
        if record is None or incarnation.number > record.incarnation.number:
            return False
        return incarnation.number < record.incarnation.number or record.state is State.DEAD

    def living(self) -> frozenset[Incarnation]:
        """Give the incarnations that are ALIVE or SUSPECT."""
        return frozenset(
            record.incarnation
            for record in self._records.values()
            if record.state is not State.DEAD
        )

    # -- inside ------------------------------------------------------------------------------

    @property
    def _longest_hearing_gap(self) -> float:
        return max(self.settings.max_freq, 1.5 * self.settings.frequency)

    def _hear_self(self, now: float) -> None:
        if self._echo is None:
            self._floor = now
        elif now - self._echo > self._longest_hearing_gap:
            self.deaf += now - self._echo
            self._floor = now
            for record in self._records.values():
                if record.state is State.SUSPECT and record.connected is not False:
                    record.checks_failed = 1
                    record.next_check = now + self.settings.frequency * record.slack
        self._echo = now

    def _silence(self, record: _Record) -> float:
        if self._echo is None:
            return 0.0
        return max(0.0, self._echo - max(record.heard, self._floor))

    def _due(self, record: _Record) -> int:
        """Count the silent checks that have failed since the last one was counted."""
        if record.state is not State.SUSPECT or record.connected is False or self._echo is None:
            return 0
        late = self._echo - record.next_check
        if late < 0:
            return 0
        return 1 + int(late / (self.settings.frequency * record.slack))

    def _is_suspicious(self, record: _Record) -> bool:
        return self._silence(record) > self.settings.max_freq * record.slack

    def _prospect(self, record: _Record) -> Cause | None:
        """Tell what ``check`` would bury a node for, if for anything."""
        if record.state is State.SUSPECT:
            return self._verdict(record, record.checks_failed + self._due(record))
        if record.state is State.ALIVE and self._is_suspicious(record):
            return self._verdict(record, 1)
        return None

    def _verdict(self, record: _Record, checks_failed: int) -> Cause | None:
        """Judge a suspect."""
        silence = self._silence(record)
        if silence >= self.settings.expire:
            return Cause.EXPIRED
        if checks_failed < self.settings.checks:
            return None
        if record.connected is False:
            return Cause.CHECKS_FAILED
        if record.connected is None and silence >= self.settings.min_freq * record.slack:
            return Cause.CHECKS_FAILED
        return None

    def _deadlines(self) -> Iterator[float]:
        settings = self.settings
        for record in self._records.values():
            if record.state is State.DEAD:
                yield record.discard_at
                continue
            base = max(record.heard, self._floor)
            if record.state is State.ALIVE:
                yield base + settings.max_freq * record.slack
            else:
                yield base + settings.expire
                if record.connected is not True:
                    yield record.next_check
                if record.checks_failed >= settings.checks:
                    if record.connected is False:
                        yield base
                    elif record.connected is None:
                        yield base + settings.min_freq * record.slack

    def _meet(self, beat: Beat, now: float) -> list[Transition]:
        incarnation = beat.incarnation
        if beat.kind is Kind.GOODBYE:
            self._remember_goodbye(incarnation, now)
            return []
        self._left.pop(incarnation.node, None)
        record = self._records[incarnation.node] = self._record(beat, now)
        return [
            Transition(
                incarnation=incarnation,
                previous=None,
                state=next_state(None, Cause.FIRST_BEAT),
                cause=Cause.FIRST_BEAT,
                at=record.heard,
                reason=f"{incarnation.node} beats",
            )
        ]

    def _record(self, beat: Beat, now: float) -> _Record:
        return _Record(
            beat.incarnation,
            State.ALIVE,
            now,
            sequence=beat.sequence,
            slack=self._slack(beat),
            smallest_delay=now - beat.sent,
            status=beat.status,
        )

    def _slack(self, beat: Beat) -> float:
        """Tell how much more time a node needs that promises less than the settings do."""
        longest = self.settings.expire / self.settings.min_freq
        return max(1.0, min(beat.gap / self.settings.frequency, longest))

    def _supersede(self, record: _Record, beat: Beat, now: float) -> list[Transition]:
        """Bury the old incarnation, if it still lives, and meet the new one."""
        transitions: list[Transition] = []
        node = beat.incarnation.node
        if record.state is not State.DEAD:
            transitions.append(self._bury(record, Cause.SUPERSEDED, now))
        if beat.kind is Kind.GOODBYE:
            self._remember_goodbye(beat.incarnation, now)
            return transitions
        self._records[node] = self._record(beat, now)
        transitions.append(
            Transition(
                incarnation=beat.incarnation,
                previous=State.DEAD,
                state=next_state(State.DEAD, Cause.LARGER_INCARNATION),
                cause=Cause.LARGER_INCARNATION,
                at=now,
                reason=f"{node} came back as a larger incarnation",
            )
        )
        return transitions

    def _suspect(self, record: _Record, cause: Cause, now: float) -> Transition:
        record.checks_failed = 1
        start = now if self._echo is None else self._echo
        record.next_check = start + self.settings.frequency * record.slack
        return self._transition(record, cause, now)

    def _bury(self, record: _Record, cause: Cause, now: float) -> Transition:
        record.discard_at = now + self.settings.discard_delay
        return self._transition(record, cause, now)

    def _leave(self, record: _Record, now: float) -> Transition:
        incarnation = record.incarnation
        del self._records[incarnation.node]
        self._remember_goodbye(incarnation, now)
        return self._transition(record, Cause.GOODBYE, now, f"{incarnation.node} said goodbye")

    def _remember_goodbye(self, incarnation: Incarnation, now: float) -> None:
        self._left[incarnation.node] = (incarnation.number, now + self.settings.discard_delay)

    def _set_aside(self, record: _Record) -> None:
        """Forget what is known of a node's connections, and what was concluded from that."""
        if record.connected is not None and record.state is State.SUSPECT:
            record.checks_failed = 1
            record.next_check = self._floor if self._echo is None else self._echo
            record.next_check += self.settings.frequency * record.slack
        record.connected = None

    def _brake(self, now: float) -> None:
        """Set connections aside when most of them went at once: a proxy restarted, say.

        Who was set aside and did not connect again still counts for ``max_freq``, so that
        stragglers are set aside like the rest.
        """
        living = [record for record in self._records.values() if record.state is not State.DEAD]
        recent = now - self.settings.max_freq
        gone = [
            record
            for record in living
            if record.connected is False
            or (record.connected is None and record.disconnected_at > recent)
        ]
        if len(gone) >= MASS and 2 * len(gone) > len(living):
            for record in gone:
                self._set_aside(record)

    def _drop(self, reason: str) -> list[Transition]:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return []

    def _transition(
        self, record: _Record, cause: Cause, now: float, reason: str | None = None
    ) -> Transition:
        """Move a record along the table, and say so."""
        previous = record.state
        state = next_state(previous, cause)
        if state is not None:
            record.state = state
        silence = self._silence(record)
        gone = now - record.disconnected_at if record.connected is False else None
        return Transition(
            incarnation=record.incarnation,
            previous=previous,
            state=state,
            cause=cause,
            at=now,
            silence=silence,
            checks_failed=record.checks_failed,
            disconnected_for=gone,
            reason=reason or self._explain(record, silence, gone),
        )

    def _explain(self, record: _Record, silence: float, gone: float | None) -> str:
        connection = (
            "connection open"
            if record.connected
            else "nothing known of its connections"
            if gone is None
            else f"connection closed {gone:.2f} s ago"
        )
        return (
            f"no beat for {silence:.2f} s, {connection}, "
            f"{record.checks_failed} of {self.settings.checks} checks failed"
        )
