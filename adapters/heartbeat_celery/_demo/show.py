"""How a run looks: live on a terminal, a line an event elsewhere, or not at all."""

import time
from collections import Counter
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heartbeat_celery._demo.story import Story
from heartbeat_core import State

__all__ = ("Lines", "Picture", "Quiet", "Show", "show_summary")

COLOURS = {State.ALIVE: "green", State.SUSPECT: "yellow", State.DEAD: "red", None: "dim"}
EVENTS = 14


class Show(Protocol):
    """Shows a story while it happens."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        ...

    def update(self) -> None:
        """Show what is new."""
        ...


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End."""

    def update(self) -> None:
        """Do nothing."""


class Lines(Quiet):
    """Prints a line an event."""

    def __init__(self, story: Story, console: Console) -> None:
        self._story = story
        self._console = console
        self._shown = 0

    def update(self) -> None:
        """Print what is new."""
        for at, text in self._story.events[self._shown :]:
            self._console.print(
                f"{_time(self._story, at):>9}  {text}", highlight=False, soft_wrap=True
            )
        self._shown = len(self._story.events)


class Picture:
    """Draws the fleet, the progress and the latest events, again and again."""

    def __init__(self, story: Story, console: Console) -> None:
        self._story = story
        self._live = Live(console=console, refresh_per_second=10, transient=False)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Draw the last state, and end."""
        self.update()
        self._live.__exit__(exc_type, exc, traceback)

    def update(self) -> None:
        """Draw anew."""
        self._live.update(_draw(self._story))


def _draw(story: Story) -> Group:
    fleet = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("worker", "state", "running", "done"):
        fleet.add_column(column, justify="left" if column != "done" else "right")
    running = Counter(story.running.values())
    for name in sorted(story.states):
        state = story.states[name]
        word = state.value.upper() if state else "gone"
        if name == story.victim and state is State.ALIVE:
            word = "killed" if story.kill == "sigkill" else "stopped"
        alive = name != story.victim
        tasks = "■" * running[name] if alive else "□" * running[name]
        fleet.add_row(
            name, Text(word, style=COLOURS[state]), Text(tasks, style="cyan"), str(story.done[name])
        )
    bar = ProgressBar(total=story.tasks, completed=story.results, width=40)
    progress = Table.grid(padding=(0, 2))
    progress.add_row(bar, Text(f"{story.results} of {story.tasks} results"))
    events = Table.grid(padding=(0, 2))
    events.add_column(justify="right", style="dim", no_wrap=True)
    for at, text in story.events[-EVENTS:]:
        events.add_row(_time(story, at), text)
    return Group(fleet, Text(), progress, Text(), events)


def show_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the account for people."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, key in (
        ("tasks sent", "tasks"),
        ("results received", "results"),
        ("lost", "lost"),
        ("executed twice", "twice"),
        ("run again elsewhere", "rerun"),
    ):
        table.add_row(name, str(summary[key]))
    for name, key in (
        ("to suspect", "kill_to_suspect_s"),
        ("to dead", "kill_to_dead_s"),
        ("to the first task running again", "kill_to_first_rerun_s"),
        ("to the last task running again", "kill_to_last_rerun_s"),
    ):
        value = summary[key]
        table.add_row(name, "-" if value is None else f"{value:.3f} s after the kill")
    console.print()
    console.print(table)


def _time(story: Story, at: float) -> str:
    since = story.since_kill(at)
    return time.strftime("%H:%M:%S", time.localtime(at)) if since is None else f"{since:+.3f} s"
