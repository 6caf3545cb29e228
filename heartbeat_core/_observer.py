"""Observing: what a node does besides beating, as long as it is one of those who judge."""

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence

import anyio
import attrs

from heartbeat_core._beat import Beat
from heartbeat_core._detector import Detector
from heartbeat_core._errors import TransportError
from heartbeat_core._outage import Outage, Retry
from heartbeat_core._settings import Settings
from heartbeat_core._states import Transition
from heartbeat_core._transport import LastBeats, Presence, Transport

__all__ = ("Observe", "Observer", "Voice")

logger = logging.getLogger("heartbeat_core")

MANY = 3000
"""So many nodes are more than one observer should judge."""

Observe = Callable[[Beat, float], Sequence[Transition]]


@attrs.frozen
class Voice:
    """What an observer asks of the node for which it judges.

    Attributes:
        joined: Tells whether the broker knows the node.
        take: Decodes what came, lets it be observed, and reports what changed.
        emit: Reports what changed.
        beat_at_once: Beats without waiting for the next time.
        ask_for_echo: Beats at once, unless a beat is on its way that did not come back yet.
        listens: Called when the observer hears the others, and has read the last beats.
    """

    joined: Callable[[], bool]
    take: Callable[[Iterable[bytes], Observe], None]
    emit: Callable[[Iterable[Transition]], None]
    beat_at_once: Callable[[], None]
    ask_for_echo: Callable[[], None]
    listens: Callable[[], None]


class Observer:
    """Drives a detector: listens, looks at connections, judges in time.

    Args:
        voice: Whose observer it is.
        transport: What carries the beats.
        detector: What judges. It knows nobody yet.
        settings: How to judge.
        outage: Where losing the broker is reported.

    Attributes:
        detector: What judges.
        listening: Whether it hears the others, and has read the last beats.
    """

    def __init__(
        self,
        voice: Voice,
        transport: Transport,
        detector: Detector,
        settings: Settings,
        outage: Outage,
    ) -> None:
        self.detector = detector
        self.listening = False
        self._voice = voice
        self._transport = transport
        self._settings = settings
        self._outage = outage
        self._wake = anyio.Event()
        self._judging = anyio.Lock()
        self._warned = False
        self._subscription = anyio.CancelScope()
        self._subscribed_at = math.inf

    def loops(self) -> list[Callable[[], Coroutine[None, None, None]]]:
        """Give what has to run; cancelled, it leaves nothing behind."""
        loops: list[Callable[[], Coroutine[None, None, None]]]
        loops = [self._keep_listening, self._keep_time, self._keep_judging]
        if isinstance(self._transport, Presence):
            loops.append(self._keep_asking)
        return loops

    def poke(self) -> None:
        """Let it look for its next deadline: something has changed."""
        self._wake.set()

    def end(self) -> None:
        """Forget which of its ways to the broker were broken: none is used any more."""
        for part in ("listen", "ask", "read"):
            self._outage.end(part)

    async def _keep_listening(self) -> None:
        retry = Retry()
        while True:
            try:
                async with self._transport.subscribe() as batches:
                    if isinstance(self._transport, LastBeats):
                        last = await self._transport.last_beats()
                        self._voice.take(last, self.detector.recall)
                    self._outage.end("listen")
                    self.listening = True
                    self._voice.listens()
                    self._voice.beat_at_once()
                    retry.reset()
                    self._subscribed_at = anyio.current_time()
                    with anyio.CancelScope() as self._subscription:
                        async for batch in batches:
                            self._voice.take(batch, self.detector.observe)
            except TransportError as exc:
                self._outage.begin("listen", exc)
                await retry.wait()

    async def _keep_asking(self) -> None:
        """Ask for the connections of the living, every ``disconnect_interval``."""
        presence = self._transport
        assert isinstance(presence, Presence)
        while True:
            await anyio.sleep(self._settings.disconnect_interval)
            living = self.detector.living()
            if not living or not self._voice.joined():
                self._outage.end("ask")
                continue
            try:
                seen = await presence.connections(living)
            except TransportError as exc:
                self._outage.begin("ask", exc)
                continue
            self._outage.end("ask")
            self._voice.emit(self.detector.connections(seen, anyio.current_time()))
            if seen.connected != seen.asked:
                await self._judge()

    async def _keep_judging(self) -> None:
        """Judge whenever a deadline has passed, as of an echo that is younger than it."""
        judged = False
        while True:
            self._wake = anyio.Event()
            deadline = self.detector.next_deadline()
            wait = math.inf if deadline is None else deadline - anyio.current_time()
            if wait <= 0 and judged and self.detector.overdue:
                wait = 0.0  # There is more to do than one call does.
            elif wait <= 0:
                wait = self._settings.frequency
                self._voice.ask_for_echo()
            with anyio.move_on_after(wait):
                await self._wake.wait()
            judged = await self._judge()

    async def _keep_time(self) -> None:
        """Count no silence while this process was stopped, or its loop was blocked."""
        while True:
            planned = anyio.current_time() + self._settings.frequency
            await anyio.sleep_until(planned)
            now = anyio.current_time()
            if now - planned > self._settings.frequency / 2:
                self.detector.oversleep(now, now - planned)
                # What came meanwhile has yet to be read.
                self._subscribed_at = max(self._subscribed_at, now)
            self._hear(now)
            self._count()

    def _hear(self, now: float) -> None:
        """Listen anew if nothing comes back for long: some brokers lose a listener silently."""
        since = max(self._subscribed_at, self.detector.heard_self_at or -math.inf)
        if now - since > self._settings.min_freq + 2 * self._settings.frequency:
            self._subscribed_at = math.inf
            self._subscription.cancel()

    def _count(self) -> None:
        """Say once that there are too many."""
        count = len(self.detector.living())
        if count > MANY and not self._warned:
            self._warned = True
            logger.warning(
                "heartbeat: an observer of %r judges %d nodes: that costs it much. Split the "
                "fleet into shards of some thousand",
                self._transport.namespace,
                count,
            )

    async def _judge(self) -> bool:
        """Read the last beats of those about to die, then judge; tell whether that was possible."""
        async with self._judging:
            dying = self.detector.dying()
            if dying and isinstance(self._transport, LastBeats):
                try:
                    last = await self._transport.last_beats([each.node for each in dying])
                except TransportError as exc:
                    self._outage.begin("read", exc)
                    return False
                self._voice.take(last, self.detector.recall)
            self._outage.end("read")
            # Who has fallen due meanwhile is asked for next time.
            self._voice.emit(self.detector.check(anyio.current_time(), may_die=frozenset(dying)))
            return True
