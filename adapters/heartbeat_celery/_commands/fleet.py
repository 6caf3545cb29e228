"""The fleet that a command is about: where it beats, and how to watch all of it."""

import os
from collections.abc import Awaitable, Callable
from typing import Self

import anyio
import attrs

from heartbeat_celery._brokers import transport_for
from heartbeat_celery._settings import ADAPTER_SETTINGS, namespace_of, shards_of
from heartbeat_core import Heartbeat, Settings, Transport, all_shards, shard_of

__all__ = ("Fleet",)


@attrs.frozen(kw_only=True)
class Fleet:
    """A fleet on a broker, in one shard or in several.

    Attributes:
        connect: Makes the transport of a namespace; connects to nothing yet.
        namespace: The fleet's name.
        shards: Into how many it is split.
        settings: How to beat and judge.
    """

    connect: Callable[[str], Transport] = attrs.field(repr=False)
    namespace: str
    shards: int
    settings: Settings

    @classmethod
    def load(
        cls,
        *,
        broker: str,
        namespace: str | None,
        shards: int | None,
        key_prefix: str,
        frequency: float | None,
    ) -> Self:
        """Take what is given, and the settings from the environment.

        Raises:
            SettingsError: Something of that is wrong.
            BrokerError: Nothing here speaks to such a broker.
        """
        fleet = cls(
            connect=lambda each: transport_for(broker, namespace=each, key_prefix=key_prefix),
            namespace=namespace_of({"heartbeat_namespace": namespace}, {}, None),
            shards=shards_of({"heartbeat_shards": shards}, {}),
            settings=Settings.load(environ=os.environ, known=ADAPTER_SETTINGS, frequency=frequency),
        )
        fleet.transport(fleet.namespace)
        return fleet

    @property
    def namespaces(self) -> list[str]:
        """One for each shard."""
        return all_shards(self.namespace, self.shards)

    def transport(self, namespace: str) -> Transport:
        """Make the transport of a shard; it connects to nothing yet."""
        return self.connect(namespace)

    def transport_of(self, node: str) -> Transport:
        """Make the transport of the shard that a node belongs to."""
        return self.transport(shard_of(self.namespace, node, self.shards))

    async def knock(self) -> None:
        """Make sure that the broker lets us listen.

        Raises:
            TransportError: It does not answer, or refuses.
        """
        transport = self.transport(self.namespaces[0])
        try:
            async with transport.subscribe():
                pass
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()

    async def watch(self, work: Callable[[str, Heartbeat], Awaitable[None]]) -> None:
        """Watch each shard, doing some work with its namespace and watcher; wait until all is done.

        A watcher is no node: nobody hears of it.
        """

        async def watch_one(namespace: str) -> None:
            watcher = Heartbeat(None, self.transport(namespace), settings=self.settings)
            async with watcher:
                await work(namespace, watcher)

        async with anyio.create_task_group() as tasks:
            for namespace in self.namespaces:
                tasks.start_soon(watch_one, namespace)
