"""The command ``heartbeat``."""

import sys
from typing import NoReturn

try:
    import click
except ImportError:
    # The core alone has no command line.
    sys.exit("heartbeat needs more than the core: pip install 'heartbeat-core[demo]'")

__all__ = ("main",)

USAGE_ERROR = 2
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="heartbeat-core")
def main() -> None:
    """Know within a second that a peer is dead."""


@main.command()
@click.option("--workers", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option("--tasks", type=click.IntRange(6, 10_000), default=60, show_default=True)
@click.option(
    "--kill",
    type=click.Choice(["sigkill", "sigstop"]),
    default="sigkill",
    show_default=True,
    help="How one of the workers ends: killed, or stopped for good.",
)
@click.option("--broker", metavar="URL", help="A redis:// server in the place of an embedded one.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def demo(workers: int, tasks: int, kill: str, broker: str | None, *, as_json: bool) -> None:
    """Kill a Celery worker in mid-task, and watch its work being taken over.

    Starts an embedded Valkey server, real workers and real work; leaves nothing behind. Exits
    with 0 if no task was lost, with 1 if one was.
    """
    try:
        from heartbeat_celery._demo.play import DemoError, play  # noqa: PLC0415 - heavy

        try:
            code = play(workers=workers, tasks=tasks, kill=kill, broker=broker, as_json=as_json)
        except DemoError as exc:
            _fail(str(exc))
    except ImportError as exc:
        _fail(f"the demo needs {exc.name}: pip install 'heartbeat-core[demo]'")
    except KeyboardInterrupt:
        click.echo("interrupted; every process of the demo was ended", err=True)
        code = INTERRUPTED
    sys.exit(code)


def _fail(why: str) -> NoReturn:
    click.echo(f"heartbeat demo: {why}", err=True)
    sys.exit(USAGE_ERROR)
