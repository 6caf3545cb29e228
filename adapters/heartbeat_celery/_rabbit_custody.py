"""What becomes on RabbitMQ of what the dead held, by the agent of a worker."""

import functools
import logging
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import attrs

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Loop
from heartbeat_celery._dead_letters import RECOVERIES
from heartbeat_celery._management import Management, ManagementError
from heartbeat_celery._rabbit_calls import RabbitCalls
from heartbeat_celery._rabbit_holding import NEVER, Delivery, Holding
from heartbeat_celery._rabbit_messages import rebuilt
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._rabbit_poison import dead_letter
from heartbeat_celery._rabbit_record import Record
from heartbeat_celery._rabbit_records import Records
from heartbeat_celery._recovery import Recovered
from heartbeat_celery._running import Running
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._telling import LONGEST_PAUSE, Telling
from heartbeat_celery._threads import RETRY
from heartbeat_celery._verdicts import Kind
from heartbeat_core import Heartbeat, Incarnation, TransportError, in_thread
from heartbeat_kombu.connections import Broker as Address
from heartbeat_kombu.connections import Mailbox

__all__ = ("RabbitCustody",)

logger = logging.getLogger("heartbeat_celery")

T = TypeVar("T")

THREADS = 40

MOST = 20
"""So many records an observer holds at a time."""

LOOK = 0.5
"""So often it is looked whether a connection is gone, in seconds."""

CLOSE = 60.0
"""For so many seconds it is tried to close the connections of the dead."""


@attrs.define(eq=False, kw_only=True)
class RabbitCustody:
    """Closes the connections of the dead, keeps records of what runs, and tells those of the dead.

    Args:
        keep: Called with where records are kept from now on.
    """

    heartbeat: Heartbeat
    address: Address
    calls: RabbitCalls
    names: Names
    settings: RecoverySettings
    running: Running
    management: Management | None
    telling: Telling
    announcer: Announcer
    keep: Callable[[Records | None], None]
    _records: Records | None = attrs.field(default=None, init=False)
    _said: dict[str, str] = attrs.field(factory=dict, init=False)
    _one_at_a_time: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)
    _threads: anyio.CapacityLimiter = attrs.field(
        factory=lambda: anyio.CapacityLimiter(THREADS), init=False
    )

    def loops(self) -> list[Loop]:
        """Give all that runs as long as the heartbeat."""
        return [self.keep_records, self.forget_ended, self.tell]

    # -- connections --------------------------------------------------------------------------

    async def recover(self, dead: Incarnation, *, left: bool = False) -> None:
        """Close the connections of an incarnation; what it held then comes back."""
        if left:
            return
        began = time.monotonic()
        queues = [self.names.holds(dead), self.names.running(dead)]
        closed: set[str] = set()
        while await self._until_done(lambda: self.calls.consumers(*queues)):
            if self.management is None:
                logger.warning(
                    "heartbeat: %s is dead, but its connection to RabbitMQ is open: what it held "
                    "comes back when RabbitMQ itself notices. With heartbeat_management_url it "
                    "would come back now",
                    dead,
                    extra=_fields(dead),
                )
                return
            why = "the management API does not know them"
            try:
                for queue in queues:
                    call = functools.partial(
                        self.management.close_consumers, queue, f"heartbeat: {dead} is dead"
                    )
                    closed |= await in_thread(call, self._threads)
                self._unsay("management")
            except ManagementError as exc:
                why = str(exc)
                self._say("management", f"a connection of the dead cannot be closed yet: {exc}")
            if time.monotonic() - began > CLOSE:
                logger.error(
                    "heartbeat: the connections of %s could not be closed within %g s; what it "
                    "held comes back when RabbitMQ itself notices: %s",
                    dead,
                    CLOSE,
                    why,
                    extra=_fields(dead),
                )
                return
            await anyio.sleep(LOOK)
        if closed:
            logger.warning(
                "heartbeat: %d connections of %s were closed after %.3f s; what it held is back "
                "in its queues",
                len(closed),
                dead,
                time.monotonic() - began,
                extra=_fields(dead),
            )

    # -- records ------------------------------------------------------------------------------

    async def keep_records(self) -> None:
        """Hold the records of what this worker runs, under each of its incarnations."""
        while True:
            me = await self.heartbeat.wait_joined()
            mailbox = Mailbox[Delivery]()
            records = Records(self.address, self.names, me, self.running, mailbox)
            try:
                async with self._open(records):
                    self._records = records
                    self.keep(records)
                    self._unsay("records")
                    while records.alive and self.heartbeat.incarnation == me:  # noqa: ASYNC110
                        await anyio.sleep(LOOK)
            except TransportError as exc:
                self._say(
                    "records",
                    f"tasks that are acknowledged early cannot be kept on record yet: {exc}",
                )
            finally:
                self.keep(None)
                self._records = None
            await anyio.sleep(RETRY)

    async def forget_ended(self) -> None:
        """Let go of the records of tasks that have ended, once a beat."""
        while True:
            await anyio.sleep(self.heartbeat.settings.frequency)
            self._forget_ended()

    def _forget_ended(self, *, stopping: bool = False) -> None:
        ended = self.running.ended(stopping=stopping)
        # In this order, or one that arrives just now would be held for ever.
        self.running.forget(ended)
        if self._records is not None:
            self._records.ended([key for keys in ended.values() for key in keys])

    async def leave(self) -> None:
        """Let go of what has ended. What is given up goes to those who observe."""
        self._forget_ended(stopping=True)
        with anyio.move_on_after(RETRY, shield=True):
            await in_thread(self.calls.close, self._threads)

    # -- verdicts -----------------------------------------------------------------------------

    async def tell(self) -> None:
        """Tell what the dead leave untold, while this worker observes."""
        while True:
            me = await self.heartbeat.wait_joined()
            if self.heartbeat.observing:
                try:
                    await self._tell_all(self.names.verdicts(me.node))
                except TransportError as exc:
                    self._say("verdicts", f"what is to be told of lost tasks cannot be read: {exc}")
            await anyio.sleep(self.heartbeat.settings.frequency)

    async def _tell_all(self, queue: str) -> None:
        mailbox = Mailbox[Delivery]()
        name = f"{queue} {self.heartbeat.incarnation}"
        holding = Holding(self.address, name, mailbox, queue=queue, arguments=NEVER, most=MOST)
        async with self._open(holding), anyio.create_task_group() as tasks:
            self._unsay("verdicts")
            tasks.start_soon(self._while_observing, holding)
            try:
                async for batch in mailbox:
                    for delivery in batch:
                        tasks.start_soon(self._settle, holding, delivery)
            except TransportError:
                tasks.cancel_scope.cancel()

    async def _while_observing(self, holding: Holding) -> None:
        while self.heartbeat.observing:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(LOOK)
        holding.close()

    async def _settle(self, holding: Holding, delivery: Delivery) -> None:
        """Bring one record to its end, and let go of it."""
        try:
            record = Record.loads(delivery.body)
        except ValueError as exc:
            logger.error("heartbeat: a verdict cannot be read, and is dropped: %s", exc)
            holding.let_go(delivery.tag)
            return
        owner = record.owner
        if owner is not None:
            is_dead, left = await self._await_fate(owner)
            if not is_dead:
                await self._until_done(
                    lambda: self.calls.send(self.names.running(owner), record.message())
                )
                holding.let_go(delivery.tag)
                return
            record = attrs.evolve(record, verdict=attrs.evolve(record.verdict, left=left))
        with anyio.CancelScope(shield=True):
            if record.on_lost == "rerun" and owner is not None:
                done = await self._rerun(record, owner)
            else:
                done = await self._tell(record)
        if done:
            holding.let_go(delivery.tag)

    async def _await_fate(self, owner: Incarnation) -> tuple[bool, bool]:
        """Wait until it is known whether who ran a task is dead.

        Returns:
            Whether it is gone, and whether it left. If it lives it is connected again.
        """
        while True:
            if self.heartbeat.is_dead(owner):
                return True, False
            me = self.heartbeat.incarnation
            if owner.node == me.node and owner.number < me.number:
                return True, False
            for _ in range(10):
                await anyio.sleep(RETRY / 10)
                if self.heartbeat.is_dead(owner):
                    return True, False
            self.heartbeat.expect([owner])
            running = self.names.running(owner)
            if await self._until_done(functools.partial(self.calls.consumers, running)):
                return False, False
            if owner not in {view.incarnation for view in self.heartbeat.nodes()}:
                return True, True

    async def _tell(self, record: Record) -> bool:
        times, pause = 1, RETRY
        while True:
            try:
                async with self._one_at_a_time:
                    await self.telling.tell(record.verdict, times)
            except Exception as exc:  # noqa: BLE001 - a result backend may raise anything
                self.telling.say_that_it_waits(record.verdict, exc)
                times += await self.telling.is_half_told(record.verdict)
            else:
                return True
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _rerun(self, record: Record, owner: Incarnation) -> bool:
        verdict = record.verdict
        message = verdict.message
        if verdict.recoveries >= self.settings.max_recoveries and not verdict.left:
            verdict = attrs.evolve(verdict, kind=Kind.DEAD_LETTERED)
            letter = rebuilt(dead_letter(verdict, str(owner)))
            await self._until_done(lambda: self.calls.send(verdict.dead_letters, letter, {}))
            return await self._tell(attrs.evolve(record, verdict=verdict))
        recoveries = verdict.recoveries + (not verdict.left)
        headers = {**message["headers"], RECOVERIES: recoveries}
        again = rebuilt({**message, "headers": headers})
        await self._until_done(lambda: self.calls.send(verdict.queue, again))
        recovered = Recovered(verdict.task_id, verdict.task, verdict.queue, recoveries)
        logger.warning(
            "heartbeat: task %s[%s], which was lost with %s, is back in queue %s",
            verdict.task,
            verdict.task_id,
            owner,
            verdict.queue,
            extra={**_fields(owner), "heartbeat_recovered": [verdict.task_id]},
        )
        self.announcer.recovered(owner, recovered)
        return True

    # -- both ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _open(self, holding: Holding) -> Any:
        try:
            await holding.open(self._threads)
            yield
        finally:
            await holding.aclose()

    async def _until_done(self, call: Callable[[], T]) -> T:
        """Run what blocks in a thread, again and again until the broker answers."""
        while True:
            try:
                done = await in_thread(call, self._threads)
            except TransportError as exc:
                self._say("calls", f"RabbitMQ does not do what it is asked for: {exc}")
            else:
                self._unsay("calls")
                return done
            await anyio.sleep(RETRY)

    def _say(self, what: str, line: str) -> None:
        """Log what is wrong, once until it is well again."""
        if self._said.get(what) != line:
            self._said[what] = line
            logger.warning("heartbeat: %s: %s", self.heartbeat.incarnation.node, line)

    def _unsay(self, what: str) -> None:
        self._said.pop(what, None)


def _fields(owner: Incarnation) -> dict[str, object]:
    return {"heartbeat_node": owner.node, "heartbeat_incarnation": owner.number}
