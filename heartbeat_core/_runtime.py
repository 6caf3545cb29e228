"""The runtime of a node: it beats, is present, takes its turn in observing, and reports."""

import logging
import secrets
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.abc
import attrs

from heartbeat_core._beat import NO_STATUS, Beat, Incarnation, Kind, Status, decode, encode
from heartbeat_core._detector import Detector
from heartbeat_core._errors import BeatError, TransportError
from heartbeat_core._observer import Observe, Observer, Voice
from heartbeat_core._outage import Outage, Retry
from heartbeat_core._record import NodeView
from heartbeat_core._reports import Subscriber, log
from heartbeat_core._settings import Settings
from heartbeat_core._states import Cause, State, Transition
from heartbeat_core._transport import LastBeats, Presence, Seats, Transport

__all__ = ("Heartbeat",)

logger = logging.getLogger("heartbeat_core")

T = TypeVar("T")

LONGEST_STEM = 230
"""So much of a name that is taken goes into the new one, which must not be too long."""

GOODBYE_TIMEOUT = 1.0


class Heartbeat:
    """The heartbeat of one node: it beats, and if it observes, it judges the others.

    Use it as an asynchronous context manager on asyncio or trio. Entering does not wait for
    the broker, and a broker that is away is no error: it is looked for until it is there, with
    one log line when it is lost and one when it is back. Leaving says goodbye. All methods
    belong to the event loop in which it was entered.

    Args:
        node: The node's name, the same after a restart. ``None`` for who only watches: it judges,
            without being one of the observers, and is no node; nobody hears of it.
        transport: What carries the beats. It is closed on leaving.
        settings: How to beat and judge.
        observe: Whether to take turns in judging the others: of all that do, as many judge at a
            time as ``settings.observers`` says, if the transport can tell whose turn it is.
        status: Asked before each beat for what the node says of itself. It must not block; if
            it raises, the beat goes out without a status.
        stalled: Asked before each beat whether this node's work does not move, though its process
            lives; the others then suspect it, for that cause. It must not block; if it raises,
            the node counts as moving.

    Attributes:
        dropped: How many messages were dropped, by reason.
    """

    def __init__(
        self,
        node: str | None,
        transport: Transport,
        *,
        settings: Settings | None = None,
        observe: bool = True,
        status: Callable[[], Status] | None = None,
        stalled: Callable[[], bool] | None = None,
    ) -> None:
        self.name = f"watcher-{secrets.token_hex(8)}" if node is None else node
        self.settings = settings or Settings()
        self.dropped: dict[str, int] = {}
        self._watches = node is None
        self._observe = observe or self._watches
        self._transport = transport
        self._status = status
        self._stalled = stalled
        self._sequence = 0
        self._echoed = 0
        self._incarnation = Incarnation(self.name, _new_number(0))
        self._detector = Detector(self.settings, self._incarnation)
        self._observer: Observer | None = None
        self._joined = False
        self._seated: bool | None = None
        self._attendance: anyio.CancelScope | None = None
        self._candidacy: anyio.CancelScope | None = None
        self._news = _News()
        self._next_beat = anyio.Event()
        self._publishing = anyio.Lock()
        self._leaving = False
        self._outage = Outage(self.name)
        self._subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Start to beat."""
        tasks = self._tasks = anyio.create_task_group()
        await tasks.__aenter__()
        for loop in self._loops():
            tasks.start_soon(loop)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Say goodbye, and stop."""
        assert self._tasks is not None
        self._leaving = True
        with anyio.move_on_after(GOODBYE_TIMEOUT, shield=True):
            await self._say_goodbye()
            # Whoever looks for our connection now has heard the goodbye before it misses us.
            await anyio.sleep(self.settings.disconnect_interval)
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(exc_type, exc, traceback)
        finally:
            with anyio.move_on_after(GOODBYE_TIMEOUT, shield=True):
                await self._transport.aclose()
            for subscriber in self._subscribers:
                subscriber.end()

    # -- what users ask and do ----------------------------------------------------------------

    @property
    def incarnation(self) -> Incarnation:
        """Which life of the node this is; it changes when the node finds itself declared dead."""
        return self._incarnation

    @property
    def observing(self) -> bool:
        """Whether this node judges the others now: it has a seat, or none is needed."""
        return self._observer is not None and self._observer.listening

    @property
    def joined(self) -> bool:
        """Whether the broker knows this node now: it is present, and its beats get through."""
        return (
            self._joined
            and not self._leaving
            and not self._outage.holds("attend")
            and not self._outage.holds("publish")
        )

    async def wait_joined(self) -> Incarnation:
        """Wait until the node is known to the broker, and return its incarnation.

        If it is its turn to observe, it then also hears the others, and knows those that have a
        last beat.
        """
        await self._news.until(self._is_settled)
        return self._incarnation

    def nodes(self) -> list[NodeView]:
        """Give the table of nodes by name: this one, and while it is ``observing`` the others."""
        nodes = self._detector.nodes()
        if not self._watches:
            nodes.append(NodeView(incarnation=self._incarnation, state=State.ALIVE, silence=0.0))
        return sorted(nodes, key=lambda view: view.incarnation)

    def transitions(self) -> Subscriber:
        """Iterate what changes from now on, this node's own obituary included.

        Of the others it tells while the node is ``observing``; when its turn begins, it meets
        them all anew. The iteration ends when the heartbeat does. Whoever falls behind by more
        than 16,384 loses the newest; they are counted in ``dropped`` as ``unread``.
        """
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        return subscriber

    def expect(self, incarnations: Iterable[Incarnation]) -> None:
        """Say that these are on record somewhere, so that they are missed if they do not beat.

        Nothing happens while this node does not observe: it would never hear from them.
        """
        if self._observer is None:
            return
        now = anyio.current_time()
        for incarnation in incarnations:
            self._emit(self._detector.expect(incarnation, now))

    def is_dead(self, incarnation: Incarnation) -> bool:
        """Tell whether this node holds an incarnation for dead, or knows a larger one."""
        return self._detector.is_dead(incarnation)

    def rejoin(self, fenced: Incarnation) -> None:
        """Begin a new, larger incarnation, since this one was found to be fenced.

        Nothing happens if it is not the present one any more.
        """
        obituary = self._beat_of(Kind.OBITUARY, fenced, fenced.number)
        if fenced == self._incarnation:
            self._take(obituary, self._detector.observe(obituary, anyio.current_time()))

    # -- beating ------------------------------------------------------------------------------

    def _loops(self) -> list[Callable[[], Coroutine[None, None, None]]]:
        loops: list[Callable[[], Coroutine[None, None, None]]] = [self._keep_beating]
        if isinstance(self._transport, Presence):
            loops.append(self._keep_attending)
        else:
            self._joined = True
        if self._observe:
            loops.append(self._keep_observing)
            if isinstance(self._transport, Seats) and not self._watches:
                loops.append(self._keep_contending)
            else:
                self._seated = True
        return loops

    async def _keep_beating(self) -> None:
        while True:
            await self._news.until(lambda: self._joined)
            self._next_beat = anyio.Event()
            try:
                await self._beat()
            except TransportError as exc:
                self._outage.begin("publish", exc)
            else:
                self._outage.end("publish")
            with anyio.move_on_after(self.settings.frequency):
                await self._next_beat.wait()

    def _beat_at_once(self) -> None:
        self._next_beat.set()

    def _ask_for_echo(self) -> None:
        if self._echoed == self._sequence:
            self._beat_at_once()

    async def _beat(self) -> None:
        async with self._publishing:
            if self._leaving:
                return
            self._sequence += 1
            await self._transport.publish(
                self._encode(
                    Kind.ECHO if self._watches else Kind.BEAT, self._incarnation, self._sequence
                ),
                sender=self._incarnation,
                ttl=0 if self._watches else self.settings.expire,
            )

    def _beat_of(self, kind: Kind, incarnation: Incarnation, sequence: int) -> Beat:
        speaks = kind is Kind.BEAT
        return Beat(
            incarnation=incarnation,
            sequence=sequence,
            sent=anyio.current_time(),
            gap=self.settings.frequency,
            namespace=self._transport.namespace,
            kind=kind,
            stalled=speaks and bool(self._ask("stalled", self._stalled, False)),
            status=self._ask("status", self._status, NO_STATUS) if speaks else NO_STATUS,
        )

    def _encode(self, kind: Kind, incarnation: Incarnation, sequence: int) -> bytes:
        beat = self._beat_of(kind, incarnation, sequence)
        try:
            return encode(beat)
        except BeatError as exc:
            if self._drop("status") == 1:
                logger.warning("heartbeat: the status of %s is left out: %s", self.name, exc)
            return encode(attrs.evolve(beat, status=NO_STATUS))

    def _ask(self, what: str, ask: Callable[[], T] | None, otherwise: T) -> T:
        """Ask the service about itself; its mistakes cost no beat."""
        if ask is None:
            return otherwise
        try:
            return ask()
        except Exception:
            if self._drop(what) == 1:
                logger.exception("heartbeat: %s of %s could not be asked for", what, self.name)
            return otherwise

    async def _say_goodbye(self) -> None:
        if not self._joined or self._watches:
            return
        try:
            async with self._publishing:
                await self._transport.publish(
                    self._encode(Kind.GOODBYE, self._incarnation, self._sequence + 1),
                    sender=self._incarnation,
                    ttl=0,
                )
        except TransportError as exc:
            logger.warning("heartbeat: %s could not say goodbye: %s", self.name, exc)

    # -- being present ------------------------------------------------------------------------

    async def _keep_attending(self) -> None:
        """Hold the connection by which the node is present, and read what comes to its inbox."""
        presence = self._transport
        assert isinstance(presence, Presence)
        retry = Retry()
        while True:
            incarnation = self._incarnation
            try:
                async with presence.attend(incarnation) as inbox:
                    if not self._joined and await self._name_is_taken(presence):
                        self._incarnation = Incarnation(
                            f"{self.name[:LONGEST_STEM]}~{self._incarnation.number}",
                            self._incarnation.number,
                        )
                        self._detector.me = self._incarnation
                    if incarnation != self._incarnation:
                        continue
                    self._joined = True
                    self._news.tell()
                    self._outage.end("attend")
                    self._beat_at_once()
                    retry.reset()
                    with anyio.CancelScope() as self._attendance:
                        async for batch in inbox:
                            self._take_all(batch, self._detector.observe)
            except TransportError as exc:
                self._outage.begin("attend", exc)
                self._beat_at_once()
                await retry.wait()

    async def _name_is_taken(self, presence: Presence) -> bool:
        """Make sure that this incarnation is the largest of its node, and the only one there."""
        if self._watches or not isinstance(self._transport, LastBeats):
            return False
        others: set[Incarnation] = set()
        for data in await self._transport.last_beats([self._incarnation.node]):
            try:
                other = decode(data).incarnation
            except BeatError as exc:
                self._refuse(exc.reason, str(exc))
                continue
            if other != self._incarnation and other.node == self._incarnation.node:
                others.add(other)
        if not others:
            return False
        largest = max(other.number for other in others)
        seen = await presence.connections([*others, self._incarnation])
        if seen.connected & others:
            logger.warning(
                "heartbeat: a node called %s is there already; this one beats as %s~%d. "
                "Give each node a name of its own (celery worker -n NAME)",
                self.name,
                self.name,
                self._incarnation.number,
            )
            return True
        if largest >= self._incarnation.number:
            self._incarnation = Incarnation(self._incarnation.node, largest + 1)
            self._detector.me = self._incarnation
        return False

    def _begin_anew(self, above: int) -> None:
        """Begin a new incarnation, since this one was declared dead."""
        self._incarnation = Incarnation(self.name, _new_number(above))
        self._detector.me = self._incarnation
        self._sequence = self._echoed = 0
        if isinstance(self._transport, Presence):
            self._joined = False
            if self._attendance is not None:
                self._attendance.cancel()
        if self._candidacy is not None:
            self._candidacy.cancel()

    # -- observing ----------------------------------------------------------------------------

    async def _keep_contending(self) -> None:
        """Contend for one of the seats; while the broker is away everything stays as it is."""
        seats = self._transport
        assert isinstance(seats, Seats)
        retry = Retry()
        while True:
            await self._news.until(lambda: self._joined)
            incarnation = self._incarnation
            try:
                async with seats.contend(incarnation, self.settings.observers) as answers:
                    self._outage.end("contend")
                    with anyio.CancelScope() as self._candidacy:
                        if incarnation != self._incarnation:
                            continue
                        async for self._seated in answers:
                            self._news.tell()
                            retry.reset()
            except TransportError as exc:
                self._outage.begin("contend", exc)
                if self._seated is None:
                    # Nobody has to wait for that: it beats all the same.
                    self._seated = False
                    self._news.tell()
                await retry.wait()

    async def _keep_observing(self) -> None:
        """Observe whenever it is this node's turn."""
        while True:
            await self._news.until(lambda: bool(self._seated))
            observer = self._new_observer()
            async with anyio.create_task_group() as tasks:
                self._observer = observer
                for loop in observer.loops():
                    tasks.start_soon(loop)
                await self._news.until(lambda: not self._seated)
                tasks.cancel_scope.cancel()
            self._observer = None
            observer.end()
            # Who does not observe knows nobody.
            self._detector = Detector(self.settings, self._incarnation)

    def _new_observer(self) -> Observer:
        voice = Voice(
            joined=lambda: self._joined,
            take=self._take_all,
            emit=self._emit,
            beat_at_once=self._beat_at_once,
            ask_for_echo=self._ask_for_echo,
            listens=self._news.tell,
        )
        return Observer(voice, self._transport, self._detector, self.settings, self._outage)

    def _is_settled(self) -> bool:
        """Tell whether the node is known, and observes if it is its turn to."""
        if not self._joined:
            return False
        return not self._observe or self._seated is False or self.observing

    def _take_all(self, batch: Iterable[bytes], observe: Observe) -> None:
        now = anyio.current_time()
        for data in batch:
            try:
                beat = decode(data)
            except BeatError as exc:
                self._refuse(exc.reason, str(exc))
                continue
            if beat.namespace != self._transport.namespace:
                self._refuse("namespace", f"it is of the namespace {beat.namespace!r:.80}")
            else:
                self._take(beat, observe(beat, now))

    def _take(self, beat: Beat, transitions: Sequence[Transition]) -> None:
        if transitions:
            if beat.incarnation == self._incarnation:
                # Its own obituary, which also says what it has to be larger than.
                self._begin_anew(max(beat.sequence, beat.incarnation.number))
            self._emit(transitions)
        elif beat.incarnation == self._incarnation:
            self._echoed = max(self._echoed, beat.sequence)
            self._poke()
        elif self._detector.is_dead(beat.incarnation):
            self._tell(beat.incarnation)

    # -- reporting ----------------------------------------------------------------------------

    def _emit(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            log(transition)
            for subscriber in self._subscribers:
                if not subscriber.put(transition):
                    self._drop("unread")
            if transition.state is State.DEAD and transition.cause is not Cause.OBITUARY:
                self._tell(transition.incarnation)
            self._poke()

    def _tell(self, incarnation: Incarnation) -> None:
        """Post its obituary to an incarnation, should it still be able to read."""
        if self._tasks is not None and isinstance(self._transport, Presence):
            self._tasks.start_soon(self._post_obituary, self._transport, incarnation)

    async def _post_obituary(self, presence: Presence, incarnation: Incarnation) -> None:
        latest = self._detector.latest(incarnation.node) or incarnation
        try:
            await presence.post(
                self._encode(Kind.OBITUARY, incarnation, latest.number), incarnation
            )
        except TransportError as exc:
            self._outage.begin("ask", exc)

    def _poke(self) -> None:
        if self._observer is not None:
            self._observer.poke()

    def _refuse(self, reason: str, why: str) -> None:
        """Drop a message that is no beat of this fleet; say so of the first of its kind."""
        if self._drop(reason) == 1:
            logger.warning(
                "heartbeat: %s dropped a message: %s. More like it are counted only",
                self.name,
                why,
            )

    def _drop(self, reason: str) -> int:
        count = self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return count


class _News:
    """Wakes who waits for something to become true."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def tell(self) -> None:
        """Let them look."""
        self._event.set()
        self._event = anyio.Event()

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until it is true."""
        while not what():
            await self._event.wait()


def _new_number(above: int) -> int:
    """Give the number of a new incarnation: the wall clock in microseconds, or more."""
    return max(time.time_ns() // 1000, above + 1)
