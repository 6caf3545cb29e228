"""The command ``heartbeat``."""

import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

try:
    import click
except ImportError:
    # The core alone has no command line.
    sys.exit("heartbeat needs click: pip install 'heartbeat-core[cli]'")

from heartbeat_celery._commands.options import PROBE, of_a_sender

__all__ = ("main",)

# What is heavy is imported by the command that needs it.
# ruff: noqa: PLC0415

FAILED = 1
USAGE_ERROR = 2
NO_BROKER = 3
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
        from heartbeat_celery._demo.play import DemoError, play

        try:
            code = play(workers=workers, tasks=tasks, kill=kill, broker=broker, as_json=as_json)
        except DemoError as exc:
            _fail(exc, USAGE_ERROR)
    except ImportError as exc:
        _fail(f"the demo needs {exc.name}: pip install 'heartbeat-core[demo]'", USAGE_ERROR)
    except KeyboardInterrupt:
        click.echo("interrupted; every process of the demo was ended", err=True)
        code = INTERRUPTED
    sys.exit(code)


def _of_a_fleet(command: Callable[..., int]) -> Callable[..., None]:
    """Give a command the options that say which fleet it is about, and its exit codes."""

    @click.option(
        "--broker",
        metavar="URL",
        required=True,
        envvar=["HEARTBEAT_BROKER_URL", "CELERY_BROKER_URL"],
        show_envvar=True,
        help="redis://, rediss://, unix://, sentinel://, redis+cluster://, amqp:// or whatever "
        "else Celery takes. Put it into the environment: others can read a command line.",
    )
    @click.option(
        "--namespace",
        envvar="CELERY_HEARTBEAT_NAMESPACE",
        show_envvar=True,
        help="The fleet: for Celery workers the name of their app.  [default: celery]",
    )
    @click.option(
        "--shards",
        type=int,
        envvar="CELERY_HEARTBEAT_SHARDS",
        show_envvar=True,
        help="Into how many the fleet is split.  [default: 1]",
    )
    @click.option(
        "--key-prefix",
        default="",
        help="What stands before every key in Redis (Kombu's global_keyprefix).",
    )
    @click.option(
        "--frequency",
        type=float,
        metavar="SECONDS",
        help="The gap between two beats. This and all other settings can stand in the "
        "environment, as CELERY_HEARTBEAT_FREQUENCY and so on.  [default: 1]",
    )
    @functools.wraps(command)
    def run(
        broker: str,
        namespace: str | None,
        shards: int | None,
        key_prefix: str,
        frequency: float | None,
        **options: Any,
    ) -> None:
        from heartbeat_celery._brokers import BrokerError
        from heartbeat_celery._commands.fleet import Fleet
        from heartbeat_celery._commands.output import log_to_stderr
        from heartbeat_core import BeatError, HeartbeatError, SettingsError, TransportError

        log_to_stderr()
        try:
            fleet = Fleet.load(
                broker=broker,
                namespace=namespace,
                shards=shards,
                key_prefix=key_prefix,
                frequency=frequency,
            )
            code = command(fleet, **options)
        except (BeatError, BrokerError, SettingsError) as exc:
            _fail(exc, USAGE_ERROR)
        except TransportError as exc:
            _fail(f"the broker cannot be reached: {exc}", NO_BROKER)
        except HeartbeatError as exc:
            _fail(exc, FAILED)
        except OSError as exc:
            _fail(f"cannot write: {exc.strerror}", USAGE_ERROR)
        except KeyboardInterrupt:
            code = INTERRUPTED
        sys.exit(code)

    return run


@main.command()
@of_a_sender
@_of_a_fleet
def send(
    fleet: Any,
    node: str,
    *,
    once: bool,
    status: dict[str, Any],
    stalled: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Beat as NODE, which is then a node like any other.

    Killed, it is found like a worker; Ctrl-C or SIGTERM says goodbye, and exits with 0. A broker
    that is away is looked for until it is there.

    With --once it is a new incarnation that beats one time: it is suspected after max_freq, and
    dead soon after, if no more beats follow. Exits with 0 when the broker has taken it.
    """
    from heartbeat_celery._commands.send import Sender

    sender = Sender(
        fleet=fleet, node=node, status=status, stalled=stalled, quiet=quiet, as_json=as_json
    )
    if once:
        return _run(sender.beat_once, INTERRUPTED)
    return _run(sender.keep_beating, 0)


@main.command()
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after so long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object a transition, one a line.")
@_of_a_fleet
def watch(fleet: Any, *, seconds: float | None, as_json: bool) -> int:
    """Watch who comes, is suspected, dies and goes; first, who is there.

    Draws a table on a terminal, if rich is installed, and else prints a line a transition. It
    only watches: nobody sees it as a node, and it is none of the observers. It goes on until
    Ctrl-C, which exits with 0.
    """
    from heartbeat_celery._commands.watch import watch

    return _run(lambda: watch(fleet, seconds=seconds, as_json=as_json), 0)


@main.command()
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to listen.  [default: max_freq, and half a frequency]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of nodes.")
@_of_a_fleet
def status(fleet: Any, *, wait: float | None, as_json: bool) -> int:
    """Print the fleet once.

    It reads the last beats, and listens for so long that whoever is alive has beaten: who has not
    is suspected. A node that died longer ago than expire (30 s) has left no trace.

    \b
    Exits with
      0  if all are alive,
      1  if somebody is suspected or dead,
      2  if it was called wrongly, or a setting is wrong,
      3  if the broker cannot be reached,
      4  if nobody is there.
    """  # noqa: D301 - click wants a backspace
    from heartbeat_celery._commands.status import report

    return _run(lambda: report(fleet, wait=wait, as_json=as_json), INTERRUPTED)


@main.command(**PROBE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def probe(arguments: tuple[str, ...]) -> None:
    """Tell whether a worker of this machine is alive, for a container.

    It is the command heartbeat-probe, which starts faster.
    """
    from heartbeat_celery._probe import main as probe_main

    sys.exit(probe_main(arguments, program="heartbeat probe"))


def _run(work: Callable[[], Awaitable[int]], interrupted: int) -> int:
    from heartbeat_celery._commands.interrupts import run

    return run(work, interrupted=interrupted)


def _fail(why: object, code: int) -> NoReturn:
    """Say in one line what is wrong, and exit."""
    name = click.get_current_context().info_name
    click.echo(f"heartbeat {name}: {' '.join(str(why).split())}", err=True)
    sys.exit(code)
