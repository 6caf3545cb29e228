"""The recovery of what the dead held in Redis, by the agent of a worker."""

import functools
import logging
import time
from collections.abc import Callable

import anyio
import attrs

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._broker import Loop
from heartbeat_celery._claims import Claims
from heartbeat_celery._delivery import Delivery
from heartbeat_celery._recovery import Recovery
from heartbeat_celery._running import Running
from heartbeat_celery._threads import RETRY, until_done
from heartbeat_core import Heartbeat, Incarnation, TransportError
from heartbeat_redis import RedisTransport

__all__ = ("RedisCustody",)

logger = logging.getLogger("heartbeat_celery")


@attrs.define(eq=False, kw_only=True)
class RedisCustody:
    """Recovers, renews, and tells."""

    heartbeat: Heartbeat
    claims: Claims
    running: Running
    recovery: Recovery
    delivery: Delivery
    announcer: Announcer
    shard: Callable[[str], str]
    transport_for: Callable[[str], RedisTransport]

    def loops(self) -> list[Loop]:
        """Give all that runs as long as the heartbeat."""
        return [self.look_up, self.renew, self.keep_account, self.delivery.run]

    async def look_up(self) -> None:
        """Look, again and again, who is on record with claims and does not beat.

        So nothing is forgotten that was left half done, by whomever and however long ago.
        """
        missed: set[Incarnation] = set()
        await self._recover_earlier_lives(await self.heartbeat.wait_joined())
        while True:
            me = await self.heartbeat.wait_joined()
            if self.heartbeat.observing:
                unknown = await self._recover_the_known(me)
                ours = {each for each in unknown if self.shard(each.node) == self.shard(me.node)}
                self.heartbeat.expect(ours)
                missed = await self._recover_the_missed(unknown - ours, missed)
                self.delivery.look()
            await self._until_next_look()

    async def _until_next_look(self) -> None:
        """Wait for ``expire`` seconds, or until it is this worker's turn to observe."""
        observed = self.heartbeat.observing
        with anyio.move_on_after(self.heartbeat.settings.expire):
            while observed or not self.heartbeat.observing:
                observed = self.heartbeat.observing
                await anyio.sleep(self.heartbeat.settings.frequency)

    async def _recover_earlier_lives(self, me: Incarnation) -> None:
        """Recover what this very worker held before it was started again; others may be slower."""
        for holder in await until_done(self.recovery.holders):
            earlier = holder.node == me.node and holder.number < me.number
            if earlier and holder not in self._lives(me):
                await self.recover(holder)

    def _lives(self, me: Incarnation) -> set[Incarnation]:
        """Give the lives as which this very process holds anything."""
        return {me, *list(self.claims.held.values()), *self.running.incarnations()}

    async def _recover_the_known(self, me: Incarnation) -> set[Incarnation]:
        """Recover what the dead hold; give the holders of whom nothing is known."""
        unknown: set[Incarnation] = set()
        for holder, fenced in (await until_done(self.recovery.holders)).items():
            if holder in self._lives(me):
                continue
            earlier_life = holder.node == me.node and holder.number < me.number
            if fenced or earlier_life or self.heartbeat.is_dead(holder):
                await self.recover(holder)
            else:
                unknown.add(holder)
        return unknown

    async def _recover_the_missed(
        self, strangers: set[Incarnation], missed: set[Incarnation]
    ) -> set[Incarnation]:
        """Recover the holders of other shards that have not beaten at two looks.

        Their own observers are faster; this is for a shard in which nobody is left. A look
        counts while the broker keeps our own last beat.
        """
        absent: set[Incarnation] = set()
        for stranger in strangers:
            if not await self._beats(stranger.node):
                absent.add(stranger)
        if not absent or not await self._beats(self.heartbeat.incarnation.node):
            return set()
        for stranger in absent & missed:
            await self.recover(stranger)
        return absent - missed

    async def _beats(self, node: str) -> bool:
        """Tell whether the broker keeps a last beat of a node."""
        while True:
            try:
                return bool(await self.transport_for(node).last_beats([node]))
            except TransportError as exc:
                logger.debug("heartbeat: the broker did not answer: %s", exc)
            await anyio.sleep(RETRY)

    async def renew(self) -> None:
        """Keep the visibility timeout from taking what this worker holds."""
        timeout, expire = self.claims.keys.visibility_timeout, self.heartbeat.settings.expire
        if timeout <= expire:
            logger.warning(
                "heartbeat: visibility_timeout (%g s) must be longer than expire (%g s): after so "
                "long Kombu gives away what a silent worker holds, before it is known to be dead",
                timeout,
                expire,
            )
        while True:
            await anyio.sleep(self.claims.keys.renew_every)
            me = self.claims.incarnation
            if me is not None:
                renew = functools.partial(self.claims.renew, self.recovery.client, me)
                await until_done(renew)

    async def keep_account(self) -> None:
        """Take off the record, once a beat, what was dealt with and what has ended."""
        while True:
            await anyio.sleep(self.heartbeat.settings.frequency)
            await self._keep_account()

    async def _keep_account(self, *, stopping: bool = False) -> None:
        if self.claims.late:
            await until_done(lambda: self.claims.release_late(self.recovery.client))
        ended = self.running.ended(stopping=stopping)
        if ended:
            await until_done(lambda: self.claims.forget(self.recovery.client, ended))
            self.running.forget(ended)

    async def leave(self) -> None:
        """Take this worker off the record, and tell what became of what it leaves undone."""
        me = self.heartbeat.incarnation
        with anyio.move_on_after(RETRY, shield=True):
            await self._keep_account(stopping=True)
            await self.recover(me, left=True)
            await self.delivery.deliver()
        self.delivery.abandon()
        with anyio.move_on_after(RETRY, shield=True):
            await self.recover(me, left=True)

    async def recover(self, dead: Incarnation, *, left: bool = False) -> None:
        """Give back what an incarnation held, and post what else has to be told of it."""
        began = time.monotonic()
        recovered = await until_done(lambda: self.recovery.recover(dead, left=left))
        self.delivery.look()
        if not recovered:
            return
        tasks = [each.task_id for each in recovered]
        stops = left and dead == self.heartbeat.incarnation
        logger.log(
            logging.INFO if stops else logging.WARNING,
            "heartbeat: %d messages of %s %s after %.3f s: %s",
            len(tasks),
            dead,
            "were given back at its stop" if stops else "are back in their queues",
            time.monotonic() - began,
            ", ".join(tasks[:20]) + (", ..." if len(tasks) > 20 else ""),
            extra={
                "heartbeat_node": dead.node,
                "heartbeat_incarnation": dead.number,
                "heartbeat_recovered": tasks,
            },
        )
        for each in recovered:
            self.announcer.recovered(dead, each)
