"""The live table of ``heartbeat watch``; needs rich, and a terminal."""

from collections import Counter, deque
from collections.abc import Mapping

import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from heartbeat_celery._commands.fleet import Fleet
from heartbeat_celery._commands.output import CONNECTED, Seen
from heartbeat_core import Heartbeat, NodeView, State

__all__ = ("Picture",)

COLOURS = {State.ALIVE: "green", State.SUSPECT: "yellow", State.DEAD: "red"}
WORST_FIRST = (State.DEAD, State.SUSPECT, State.ALIVE)
EVENTS = 10
REFRESH = 0.25
AROUND = 6
"""So many lines of the screen are neither a node's nor an event's."""


class Picture:
    """Draws the fleet and the latest transitions, again and again.

    Args:
        fleet: Whose name stands above it.
        console: Where to draw.
    """

    def __init__(self, fleet: Fleet, console: Console) -> None:
        self._fleet = fleet
        self._console = console
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._watchers: Mapping[str, Heartbeat] = {}

    @classmethod
    def on_terminal(cls, fleet: Fleet) -> "Picture | None":
        """Give one if standard output is a terminal."""
        console = Console()
        return cls(fleet, console) if console.is_terminal else None

    def see(self, seen: Seen) -> None:
        """Take a transition into the picture."""
        self._events.append(seen.line())

    async def run(self, watchers: Mapping[str, Heartbeat]) -> None:
        """Draw until cancelled."""
        self._watchers = watchers
        # Not by a thread of rich's: a heartbeat belongs to its event loop.
        with Live(console=self._console, get_renderable=self._draw, auto_refresh=False) as live:
            while True:
                live.refresh()
                await anyio.sleep(REFRESH)

    def _draw(self) -> Group:
        views = [view for watcher in self._watchers.values() for view in watcher.nodes()]
        views.sort(key=lambda view: (WORST_FIRST.index(view.state), view.incarnation))
        events = list(self._events)
        room = max(3, self._console.height - len(events) - AROUND)
        nodes = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        for column in ("node", "state", "silence", "connected"):
            nodes.add_column(column, justify="right" if column == "silence" else "left")
        for view in views[:room]:
            nodes.add_row(*_row(view))
        parts: list[RenderableType] = [self._title(views), Text(), nodes]
        if len(views) > room:
            parts.append(Text(f"... and {len(views) - room} more", style="dim"))
        return Group(*parts, Text(), *(Text(event, no_wrap=True) for event in events))

    def _title(self, views: list[NodeView]) -> Text:
        if len(self._watchers) < self._fleet.shards:
            return Text(f"{self._fleet.namespace}: waiting for the broker", style="yellow")
        counts = Counter(view.state for view in views)
        said = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
        return Text(f"{self._fleet.namespace}: {said or 'nobody beats'}", style="bold")


def _row(view: NodeView) -> tuple[Text, Text, Text, Text]:
    return (
        Text(view.incarnation.node),
        Text(view.state.value.upper(), style=COLOURS[view.state]),
        Text(f"{view.silence:.1f} s"),
        Text(CONNECTED[view.connected]),
    )
