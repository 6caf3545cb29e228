"""``heartbeat watch``: the transitions of a fleet, as they happen."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from heartbeat_celery._commands.fleet import Fleet
from heartbeat_celery._commands.output import Output, Seen
from heartbeat_core import Heartbeat, TransportError

__all__ = ("Show", "watch")


class Show(Protocol):
    """Shows what a watcher sees."""

    def see(self, seen: Seen) -> None:
        """Show a transition."""
        ...

    async def run(self, watchers: Mapping[str, Heartbeat]) -> None:
        """Show the nodes, too, until cancelled.

        Args:
            watchers: Whose nodes, one watcher a shard. Those that join later are put into it.
        """
        ...


class Lines:
    """Shows a line a transition."""

    def __init__(self, write: Callable[[Seen], None]) -> None:
        self._write = write

    def see(self, seen: Seen) -> None:
        """Print a line."""
        self._write(seen)

    async def run(self, watchers: Mapping[str, Heartbeat]) -> None:
        """Show nothing besides."""


async def watch(fleet: Fleet, *, seconds: float | None, as_json: bool) -> int:
    """Show what changes until the time is over, or nobody reads it any more.

    Raises:
        TransportError: The time was over before the broker had answered.
        OSError: Standard output could not be written.
    """
    output = Output()
    show = _show(fleet, output, as_json=as_json)
    watchers: dict[str, Heartbeat] = {}

    async def follow(namespace: str, watcher: Heartbeat) -> None:
        transitions = watcher.transitions()
        await watcher.wait_joined()
        watchers[namespace] = watcher
        async for transition in transitions:
            show.see(Seen.now(transition, namespace))

    with anyio.move_on_after(math.inf if seconds is None else seconds) as time:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fleet.watch, follow)
            tasks.start_soon(show.run, watchers)
            await output.until_closed()
            tasks.cancel_scope.cancel()
    output.check()
    if time.cancelled_caught and len(watchers) < fleet.shards:
        raise TransportError(f"no answer within {seconds:g} s")
    return 0


def _show(fleet: Fleet, output: Output, *, as_json: bool) -> Show:
    if as_json:
        return Lines(lambda seen: output.json(seen.object()))
    try:
        from heartbeat_celery._commands.picture import Picture  # noqa: PLC0415 - may be missing
    except ImportError:
        picture = None
    else:
        picture = Picture.on_terminal(fleet)
    return picture or Lines(lambda seen: output.line(seen.line()))
