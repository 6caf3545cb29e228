"""``heartbeat status``: the fleet as it is now."""

from collections import Counter
from collections.abc import Sequence

import anyio
import attrs

from heartbeat_celery._commands.fleet import Fleet
from heartbeat_celery._commands.output import CONNECTED, Output, object_of
from heartbeat_core import Heartbeat, NodeView, Settings, State, TransportError

__all__ = ("report", "table")

ALL_ALIVE, NOT_ALL_ALIVE, NOBODY = 0, 1, 4

PATIENCE = 5.0
"""For so many seconds the broker may take to let us join, once it has answered."""


@attrs.frozen
class Line:
    """A line of the table of nodes, and from which shard it is."""

    namespace: str
    view: NodeView


async def report(fleet: Fleet, *, wait: float | None, as_json: bool) -> int:
    """Listen for a while, print who is there, and give the exit code.

    Raises:
        TransportError: The broker could not be reached, or went away.
        OSError: Standard output could not be written.
    """
    lines = await _look(fleet, _long_enough(fleet.settings) if wait is None else wait)
    output = Output()
    if as_json:
        output.json([object_of(line.view, line.namespace) for line in lines])
    else:
        for text in table(lines):
            output.line(text)
    output.check()
    if not lines:
        return NOBODY
    alive = all(line.view.state is State.ALIVE for line in lines)
    return ALL_ALIVE if alive else NOT_ALL_ALIVE


async def _look(fleet: Fleet, wait: float) -> list[Line]:
    found: list[Line] = []
    joined: set[str] = set()

    async def look(namespace: str, watcher: Heartbeat) -> None:
        with anyio.move_on_after(PATIENCE):
            await watcher.wait_joined()
            joined.add(namespace)
        if namespace in joined:
            await anyio.sleep(wait)
            found.extend(Line(namespace, view) for view in watcher.nodes())

    await fleet.knock()
    await fleet.watch(look)
    if len(joined) < fleet.shards:
        raise TransportError("the broker does not answer any more")
    # Had it gone meanwhile, nobody would have grown silent.
    await fleet.knock()
    return sorted(found, key=lambda line: (line.view.incarnation, line.namespace))


def _long_enough(settings: Settings) -> float:
    """Tell how long to listen, so that who does not beat is suspected.

    That is ``max_freq``, and some time for the echo for which a verdict waits.
    """
    return settings.max_freq + settings.frequency / 2


def table(lines: Sequence[Line]) -> list[str]:
    """Give the table for people."""
    if not lines:
        return ["nobody beats"]
    rows = [("NODE", "STATE", "SILENCE", "CONNECTED", "STATUS")]
    rows += [_row(line.view) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    counts = Counter(line.view.state for line in lines)
    return [
        *(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
        f"{len(lines)} {'node' if len(lines) == 1 else 'nodes'}: "
        + ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]),
    ]


def _row(view: NodeView) -> tuple[str, str, str, str, str]:
    said = " ".join(f"{name}={value}" for name, value in view.status.items())
    if view.stalled:
        said = f"(stalled) {said}"
    # Whatever a node says of itself, it must not write to our terminal.
    shown = said if said.isprintable() else ascii(said)
    return (
        view.incarnation.node,
        view.state.value,
        f"{view.silence:.1f} s",
        CONNECTED[view.connected],
        shown,
    )
