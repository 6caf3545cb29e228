"""``heartbeat send``: a beat by hand, or many."""

import time
from collections.abc import Collection, Mapping
from typing import Any

import anyio
import attrs

from heartbeat_celery._commands.fleet import Fleet
from heartbeat_celery._commands.output import Output, utc
from heartbeat_core import (
    Beat,
    BeatError,
    Cause,
    Heartbeat,
    HeartbeatError,
    Incarnation,
    LastBeats,
    Presence,
    Status,
    Transport,
    decode,
    encode,
)

__all__ = ("Sender", "TakenError")


class TakenError(HeartbeatError):
    """A node of that name is there already."""


@attrs.frozen(kw_only=True)
class Sender:
    """A node that beats from the command line.

    Attributes:
        fleet: To which it belongs.
        node: Its name.
        status: What it says of itself.
        stalled: Whether it says that its work does not move.
        as_json: Whether it tells of itself in objects.
        quiet: Whether it tells nothing.

    Raises:
        BeatError: No beat can be made of that.
    """

    fleet: Fleet
    node: str
    status: Status
    stalled: bool
    as_json: bool
    quiet: bool
    output: Output = attrs.field(factory=Output, init=False)

    def __attrs_post_init__(self) -> None:
        """Make sure that it can beat."""
        encode(self._beat(Incarnation(self.node, _new_number(())), self.fleet.namespaces[-1]))

    async def keep_beating(self) -> int:
        """Beat until cancelled, and then say goodbye."""
        heartbeat = Heartbeat(
            self.node,
            self.fleet.transport_of(self.node),
            settings=self.fleet.settings,
            observe=False,
            status=lambda: self.status,
            stalled=lambda: self.stalled,
        )
        every = f"every {self.fleet.settings.frequency:g} s"
        async with heartbeat:
            transitions = heartbeat.transitions()
            self._tell("beats", await heartbeat.wait_joined(), every)
            async for transition in transitions:
                if transition.cause is Cause.OBITUARY:
                    self._tell("declared dead", transition.incarnation, "begins anew")
                    self._tell("beats", await heartbeat.wait_joined(), every)
        return 0

    async def beat_once(self) -> int:
        """Send one beat of a new incarnation, and nothing after it.

        Raises:
            TakenError: A node of that name is there.
            TransportError: The broker could not be reached, or refused.
        """
        transport = self.fleet.transport_of(self.node)
        try:
            others = await _others(transport, self.node)
            me = Incarnation(self.node, _new_number(others))
            if await _are_there(transport, me, others):
                # A larger incarnation would bury it, and let its work be taken over.
                raise TakenError(f"a node called {self.node} is there already: not sent")
            await transport.publish(
                encode(self._beat(me, transport.namespace)),
                sender=me,
                ttl=self.fleet.settings.expire,
            )
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()
        self._tell("sent", me, "once; it is suspected when no more follow")
        return 0

    def _beat(self, me: Incarnation, namespace: str) -> Beat:
        return Beat(
            incarnation=me,
            sequence=1,
            sent=time.monotonic(),
            gap=self.fleet.settings.frequency,
            namespace=namespace,
            stalled=self.stalled,
            status=self.status,
        )

    def _tell(self, event: str, me: Incarnation, more: str) -> None:
        if self.quiet:
            return
        if self.as_json:
            said: Mapping[str, Any] = {
                "at": utc(time.time()),
                "event": event,
                "node": me.node,
                "incarnation": me.number,
            }
            self.output.json(said)
        else:
            self.output.line(f"{me} {event} {more}")


async def _others(transport: Transport, node: str) -> set[Incarnation]:
    """Find the incarnations of a node of which a last beat is kept."""
    found: set[Incarnation] = set()
    if isinstance(transport, LastBeats):
        for data in await transport.last_beats([node]):
            try:
                found.add(decode(data).incarnation)
            except BeatError:
                continue  # Whoever wrote that, it is no node.
    return found


async def _are_there(
    transport: Transport, me: Incarnation, others: Collection[Incarnation]
) -> bool:
    """Tell whether one of these is connected, as far as the transport can tell."""
    if not others or not isinstance(transport, Presence):
        return False
    async with transport.attend(me):
        return bool((await transport.connections(others)).connected)


def _new_number(others: Collection[Incarnation]) -> int:
    """Give the wall clock in microseconds, or what is larger than any other."""
    return max([time.time_ns() // 1000, *(other.number + 1 for other in others)])
