"""The command ``heartbeat`` in processes of its own."""

import contextlib
import json
import os
import pathlib
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import attrs

MAIN = "from heartbeat_celery.cli import main; main()"


@attrs.define(eq=False)
class Run:
    """A command that was started; what it prints goes into files.

    Attributes:
        process: It.
        out: Its standard output.
        err: Its standard error.
    """

    process: "subprocess.Popen[bytes]"
    out: pathlib.Path
    err: pathlib.Path

    def lines(self, word: str = "") -> list[str]:
        """Give the whole lines of its output that have a word in them."""
        text = self.out.read_text()
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if word in line]

    def objects(self, **wanted: Any) -> list[dict[str, Any]]:
        """Give the objects of its output that have these values."""
        objects = [json.loads(line) for line in self.lines()]
        return [each for each in objects if wanted.items() <= each.items()]

    def said(self) -> str:
        """Give its standard error."""
        return self.err.read_text()

    def end(self, number: int) -> int:
        """Send it a signal; give its exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


@attrs.define(eq=False)
class Shell:
    """Where commands are started, all about one fleet. Leaving the context ends them.

    Attributes:
        url: The broker's.
        folder: Where their output goes.
        environ: What else stands in their environment.
        namespace: The fleet.
    """

    url: str
    folder: pathlib.Path
    environ: dict[str, str] = attrs.field(factory=dict)
    namespace: str = attrs.field(factory=lambda: f"cli-{secrets.token_hex(4)}")
    _runs: list[Run] = attrs.field(factory=list, init=False)

    def start(self, *arguments: str, before: str = "", **environ: str) -> Run:
        """Start a command.

        Args:
            *arguments: Its arguments.
            before: What Python does before.
            **environ: What else stands in its environment; empty for what does not.
        """
        out, err = (self.folder / f"{len(self._runs)}.{each}" for each in ("out", "err"))
        given = {
            "HEARTBEAT_BROKER_URL": self.url,
            "CELERY_HEARTBEAT_NAMESPACE": self.namespace,
            **self.environ,
            **environ,
        }
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{before}{MAIN}", *arguments],
                stdout=stdout,
                stderr=stderr,
                env={name: value for name, value in {**os.environ, **given}.items() if value},
            )
        run = Run(process, out, err)
        self._runs.append(run)
        return run

    def run(self, *arguments: str, **kwargs: Any) -> tuple[int, Run]:
        """Run a command to its end; give its exit code."""
        run = self.start(*arguments, **kwargs)
        return run.process.wait(60), run


@contextlib.contextmanager
def shell(url: str, folder: pathlib.Path, **environ: str) -> Iterator[Shell]:
    """Give a place to start commands."""
    place = Shell(url, folder, environ)
    try:
        yield place
    finally:
        for run in place._runs:
            if run.process.poll() is None:
                run.process.kill()
            run.process.wait()
