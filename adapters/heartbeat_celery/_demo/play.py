"""A run of the demo from its first process to its last."""

import asyncio
import json
import logging
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import anyio
import anyio.to_thread
from celery import Celery
from rich.console import Console

from heartbeat_celery._demo.show import Lines, Picture, Quiet, Show, show_summary
from heartbeat_celery._demo.stage import SLOTS, Broker, Crew, DemoError, embedded, given
from heartbeat_celery._demo.story import Story
from heartbeat_celery._settings import ADAPTER_SETTINGS
from heartbeat_core import Heartbeat, Settings, SettingsError
from heartbeat_redis import RedisTransport

__all__ = ("DemoError", "play")

START_TIMEOUT = 60.0
PATIENCE = 30.0
LOOK = 0.02


def play(*, workers: int, tasks: int, kill: str, broker: str | None, as_json: bool) -> int:
    """Run the demo and show it; give the exit code.

    Raises:
        DemoError: It cannot run here.
        KeyboardInterrupt: Somebody ended it; nothing is left behind.
    """
    try:
        settings = Settings.load(environ=os.environ, known=ADAPTER_SETTINGS)
    except SettingsError as exc:
        raise DemoError(str(exc)) from exc
    if kill == "sigstop" and sys.platform == "win32":
        raise DemoError("--kill sigstop: this platform cannot stop a process")
    # What the log would say is shown in a better place.
    logging.getLogger("heartbeat_core").addHandler(logging.NullHandler())
    story = Story(workers, tasks, kill)
    console = Console()
    show: Show = Lines(story, console)
    if as_json:
        show = Quiet()
    elif console.is_terminal:
        show = Picture(story, console)
    with (
        _Interrupts() as interrupts,
        tempfile.TemporaryDirectory(prefix="heartbeat-demo-", ignore_cleanup_errors=True) as name,
    ):
        folder = pathlib.Path(name)
        stage = embedded(folder) if broker is None else given(broker)
        with stage as found, Crew(found, folder) as crew:
            with show:
                _run(_Play(found, crew, story, show, settings), interrupts)
            summary = story.summary(settings)
            if as_json:
                print(json.dumps(summary))  # noqa: T201 - what was asked for
            else:
                show_summary(summary, console)
    return 1 if summary["lost"] else 0


def _run(play: "_Play", interrupts: "_Interrupts") -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:
            interrupts.cancel = lambda: loop.call_soon_threadsafe(scope.cancel)
            interrupts.check()
            await play.run()

    try:
        anyio.run(run, backend="asyncio")
    except BaseExceptionGroup as group:
        # A task group wraps what was raised in it; one of its causes tells enough.
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        raise cause from None
    finally:
        interrupts.cancel = None
    interrupts.check()


class _Interrupts:
    """Turns SIGTERM into what Ctrl-C does, and lets nothing interrupt the tidying up.

    Attributes:
        cancel: What ends the event loop's work in the place of an exception, while it runs.
    """

    def __init__(self) -> None:
        self.cancel: Callable[[], object] | None = None
        self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the two signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise what was held back.

        Raises:
            KeyboardInterrupt: A signal came.
        """
        if self._came:
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = True
        if self.cancel is None:
            raise KeyboardInterrupt
        self.cancel()


class _Play:
    """The acts: start, send, kill, wait."""

    def __init__(
        self, broker: Broker, crew: Crew, story: Story, show: Show, settings: Settings
    ) -> None:
        self._broker = broker
        self._crew = crew
        self._story = story
        self._show = show
        self._settings = settings
        self._pending: set[str] = set()
        self._reading = anyio.Lock()
        self._app: Any = Celery("heartbeat-demo", broker=broker.url, backend=broker.url)
        self._app.conf.update(
            broker_transport_options={"global_keyprefix": broker.prefix},
            result_backend_transport_options={"global_keyprefix": broker.prefix},
        )

    async def run(self) -> None:
        """Play it through."""
        story = self._story
        story.say(f"starting {story.workers} workers", time.time())
        await anyio.to_thread.run_sync(self._crew.start, story.workers)
        transport = RedisTransport(
            self._broker.url, namespace="demo", key_prefix=self._broker.prefix
        )
        async with (
            Heartbeat(None, transport, settings=self._settings) as heartbeat,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._watch, heartbeat)
            tasks.start_soon(self._read_notes)
            tasks.start_soon(self._draw)
            await self._until_ready()
            tasks.start_soon(self._collect)
            tasks.start_soon(self._send)
            await self._kill()
            await self._until_done()
            tasks.cancel_scope.cancel()
        self._show.update()

    async def _until_ready(self) -> None:
        states = self._story.states
        until = time.monotonic() + START_TIMEOUT
        while not self._crew.ready() or len(states) < self._story.workers:
            if time.monotonic() > until:
                raise DemoError(f"the workers were not ready within {START_TIMEOUT:g} s")
            await anyio.sleep(0.1)
        self._story.say(f"{self._story.workers} workers beat and take tasks", time.time())

    async def _send(self) -> None:
        """Send at a rate that uses half of the fleet."""
        story = self._story
        pause = 2.0 / (story.workers * SLOTS)
        for number in range(story.tasks):
            await anyio.to_thread.run_sync(self._send_one, number)
            story.sent += 1
            await anyio.sleep(pause)

    def _send_one(self, number: int) -> None:
        self._pending.add(self._app.send_task("demo.work", (number,)).id)

    async def _kill(self) -> None:
        """Kill the busiest worker when a third of the work is done."""
        story = self._story
        while True:
            await anyio.sleep(LOOK)
            victim = story.busiest()
            if victim is not None and story.results >= story.tasks // 3:
                break
        end = self._crew.kill if story.kill == "sigkill" else self._crew.stop_for_good
        story.on_kill(victim, time.time())
        end(victim)
        await self._note_all()
        story.after_kill()
        if story.kill == "sigstop":
            seconds = self._settings.expire
            story.say(f"its connection is open: it is buried after {seconds:g} s", time.time())

    async def _until_done(self) -> None:
        """Wait for every result, or until nothing has moved for long."""
        story = self._story
        patience = PATIENCE + (self._settings.expire if story.kill == "sigstop" else 0.0)
        moved, seen = time.monotonic(), -1
        while story.results < story.tasks and time.monotonic() - moved < patience:
            if story.results != seen:
                moved, seen = time.monotonic(), story.results
            await anyio.sleep(LOOK)
        story.say(f"{story.results} of {story.sent} results received", time.time())

    async def _watch(self, heartbeat: Heartbeat) -> None:
        async for transition in heartbeat.transitions():
            self._story.on_transition(transition, time.time())

    async def _read_notes(self) -> None:
        while True:
            await self._note_all()
            await anyio.sleep(LOOK)

    async def _note_all(self) -> None:
        """Take in what the tasks have written down, in its order."""
        key = f"{self._broker.prefix}records"
        async with self._reading:
            for note in await anyio.to_thread.run_sync(self._broker.client.lpop, key, 1000) or ():
                self._story.on_note(json.loads(note))

    async def _collect(self) -> None:
        while True:
            await anyio.to_thread.run_sync(self._collect_all)
            await anyio.sleep(0.1)

    def _collect_all(self) -> None:
        pending = list(self._pending)
        keys = [self._app.backend.get_key_for_task(each) for each in pending]
        for each, value in zip(pending, self._app.backend.mget(keys) if keys else (), strict=True):
            if value is not None and json.loads(value)["status"] == "SUCCESS":
                self._pending.discard(each)
                self._story.results += 1

    async def _draw(self) -> None:
        while True:
            self._show.update()
            await anyio.sleep(0.1)
