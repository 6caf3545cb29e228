"""``celery -A app heartbeat``: the fleet of an app, its beats by hand, and its dead letters."""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import attrs
import click
import kombu.exceptions
import redis
from celery import Celery
from kombu.transport import pyamqp
from kombu.transport import redis as kombu_redis

from heartbeat_celery._commands.fleet import Fleet
from heartbeat_celery._commands.interrupts import run
from heartbeat_celery._commands.options import PROBE, of_a_sender
from heartbeat_celery._commands.output import log_to_stderr, utc
from heartbeat_celery._commands.send import Sender
from heartbeat_celery._commands.status import report
from heartbeat_celery._commands.watch import watch as watch_fleet
from heartbeat_celery._dead_letters import DeadLetter, DeadLetters
from heartbeat_celery._events import EventsTransport
from heartbeat_celery._probe import main as probe_main
from heartbeat_celery._rabbit_broker import calls_of
from heartbeat_celery._rabbit_dead_letters import RabbitDeadLetters
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._redis_broker import pool_and_keys
from heartbeat_celery._settings import ADAPTER_SETTINGS, namespace_of, probe_dir_of, shards_of
from heartbeat_celery._threads import RETRY
from heartbeat_core import (
    BeatError,
    HeartbeatError,
    Settings,
    SettingsError,
    Transport,
    TransportError,
    in_thread,
)
from heartbeat_kombu import AmqpTransport, KombuTransport
from heartbeat_redis import RedisTransport

__all__ = ("heartbeat",)

USAGE_ERROR, NO_BROKER, INTERRUPTED = 2, 3, 130
NOT_FOUND = FAILED = 1

BROKER_ERRORS = (TransportError, redis.RedisError, kombu.exceptions.OperationalError)

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
events_option = click.option(
    "--events",
    is_flag=True,
    help="Hear the workers' own events, for workers without heartbeat-core, and on other brokers.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def heartbeat() -> None:
    """Who is alive, who is dead, and what was left behind (heartbeat-core)."""


@heartbeat.group("dead-letters")
def dead_letters() -> None:
    """Messages that outlived as many workers as they may."""


def _of_the_app(command: Callable[..., int]) -> Callable[..., None]:
    """Give a command the app, and exit codes."""

    @click.pass_context
    @functools.wraps(command)
    def wrapped(context: click.Context, /, **options: Any) -> None:
        log_to_stderr()
        try:
            code = command(context.obj.app, **options)
        except (BeatError, SettingsError, click.UsageError) as exc:
            _say(exc, USAGE_ERROR)
        except BROKER_ERRORS as exc:
            _say(f"the broker cannot be reached: {exc}", NO_BROKER)
        except HeartbeatError as exc:
            _say(exc, FAILED)
        except KeyboardInterrupt:
            code = INTERRUPTED
        sys.exit(code)

    return wrapped


@heartbeat.command()
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="How long to listen.")
@events_option
@as_json_option
@_of_the_app
def status(app: Celery, *, wait: float | None, events: bool, as_json: bool) -> int:
    """Print the fleet once; exits like the command heartbeat."""
    fleet = _fleet_to_watch(app, events=events)
    return run(lambda: report(fleet, wait=wait, as_json=as_json), interrupted=INTERRUPTED)


@heartbeat.command()
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS")
@events_option
@as_json_option
@_of_the_app
def watch(app: Celery, *, seconds: float | None, events: bool, as_json: bool) -> int:
    """Watch who comes, is suspected, dies and goes, until Ctrl-C."""
    fleet = _fleet_to_watch(app, events=events)
    return run(lambda: watch_fleet(fleet, seconds=seconds, as_json=as_json), interrupted=0)


@heartbeat.command()
@of_a_sender
@_of_the_app
def send(app: Celery, *, once: bool, node: str, **says: Any) -> int:
    """Beat as NODE, or once; exits like the command heartbeat."""
    # What is wrong with the beat is known before anything connects.
    sender = Sender(fleet=_fleet(app, _nowhere), node=node, **says)

    def over(connect: Connect) -> Sender:
        return attrs.evolve(sender, fleet=attrs.evolve(sender.fleet, connect=connect))

    on_redis = _is(app, kombu_redis.Transport)
    if once:
        ready = over(_over_redis(app) if on_redis else _over_kombu(app))
        return run(ready.beat_once, interrupted=INTERRUPTED)

    async def keep_beating() -> int:
        connect = await _reach_redis(app, node) if on_redis else _over_kombu(app)
        return await over(connect).keep_beating()

    return run(keep_beating, interrupted=0)


@heartbeat.command(**PROBE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_of_the_app
def probe(app: Celery, *, arguments: tuple[str, ...]) -> int:
    """Tell whether a worker of this machine is alive; heartbeat-probe starts faster."""
    return probe_main(
        arguments,
        program="celery heartbeat probe",
        namespace=namespace_of(app.conf, os.environ, app.main),
        parent=probe_dir_of(app.conf, os.environ),
        enabled=Settings.load(app.conf, os.environ, known=ADAPTER_SETTINGS).enabled,
    )


@dead_letters.command("list")
@click.option("--most", type=click.IntRange(min=1), default=1000, show_default=True)
@as_json_option
@_of_the_app
def list_(app: Celery, *, most: int, as_json: bool) -> int:
    """List them, the oldest first."""
    letters, others = _dead_letters(app).read(most)
    if as_json:
        click.echo(json.dumps([_object(each) for each in letters]))
        return 0
    for each in letters:
        click.echo(f"{utc(each.at)}  {each.task_id}  {each.task}  {each.queue}: {each.reason}")
    click.echo(f"{len(letters)} dead letters" + (f", {others} unreadable" if others else ""))
    return 0


@dead_letters.command()
@click.argument("task_id")
@_of_the_app
def show(app: Celery, *, task_id: str) -> int:
    """Print one whole, as JSON."""
    for each in _found(app, task_id):
        click.echo(json.dumps({**_object(each), "message": each.message}))
        return 0
    return NOT_FOUND


@dead_letters.command()
@click.argument("task_id", required=False)
@click.option("--all", "every", is_flag=True, help="Requeue all that are there now.")
@_of_the_app
def requeue(app: Celery, *, task_id: str | None, every: bool) -> int:
    """Put one back into its queue, or all, as if no worker had died of them."""
    if every is (task_id is not None):
        raise click.UsageError("give the id of a task, or --all")
    letters = _dead_letters(app)
    if every:
        click.echo(f"{letters.requeue_all()} messages are back in their queues")
        return 0
    count = sum(letters.requeue(each) for each in _found(app, str(task_id)))
    click.echo(f"{count} messages are back in their queues")
    return 0 if count else NOT_FOUND


@dead_letters.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@_of_the_app
def purge(app: Celery, *, yes: bool) -> int:
    """Delete all of them for ever."""
    letters = _dead_letters(app)
    if not yes:
        click.confirm(f"Delete {len(letters)} dead letters for ever?", abort=True)
    click.echo(f"{letters.purge()} dead letters are deleted")
    return 0


Connect = Callable[[str], Transport]
"""Makes the transport of a namespace."""


def _fleet(app: Celery, connect: Connect, *, shards: int | None = None) -> Fleet:
    return Fleet(
        connect=connect,
        namespace=namespace_of(app.conf, os.environ, app.main),
        shards=shards or shards_of(app.conf, os.environ),
        settings=Settings.load(app.conf, os.environ, known=ADAPTER_SETTINGS),
    )


def _fleet_to_watch(app: Celery, *, events: bool) -> Fleet:
    if events:
        return _fleet(app, lambda each: EventsTransport(app, namespace=each), shards=1)
    if _is(app, pyamqp.Transport):
        return _fleet(app, _over_kombu(app))
    _must_be_redis(app, "try --events")
    return _fleet(app, _over_redis(app))


def _over_redis(app: Celery) -> Connect:
    """Connect as Kombu does. Blocks, and raises what Kombu and Redis do."""
    pool, keys = pool_and_keys(app, namespace_of(app.conf, os.environ, app.main))
    return lambda each: RedisTransport(pool=pool, namespace=each, key_prefix=keys.prefix)


def _over_kombu(app: Celery) -> Connect:
    kind = AmqpTransport if _is(app, pyamqp.Transport) else KombuTransport
    return lambda each: kind(app.connection_for_write(), namespace=each)


async def _reach_redis(app: Celery, node: str) -> Connect:
    """Connect as soon as the broker is there."""
    said = False
    while True:
        try:
            return await in_thread(lambda: _over_redis(app))
        except BROKER_ERRORS as exc:
            if not said:
                click.echo(f"heartbeat: {node} does not reach the broker yet: {exc}", err=True)
                said = True
        await anyio.sleep(RETRY)


def _nowhere(namespace: str) -> NoReturn:
    raise TransportError(f"{namespace} has no broker yet")


def _dead_letters(app: Celery) -> DeadLetters | RabbitDeadLetters:
    namespace = namespace_of(app.conf, os.environ, app.main)
    if _is(app, pyamqp.Transport):
        calls = calls_of(app, "heartbeat dead letters")
        click.get_current_context().call_on_close(calls.close)
        return RabbitDeadLetters(calls, Names(namespace, 1).dead_letters)
    _must_be_redis(app, "there are no dead letters elsewhere")
    pool, keys = pool_and_keys(app, namespace)
    return DeadLetters(redis.Redis(connection_pool=pool), keys)


def _must_be_redis(app: Celery, otherwise: str) -> None:
    if not _is(app, kombu_redis.Transport):
        raise SettingsError(
            f"the broker of {app.main} is not Redis, Valkey or RabbitMQ: {otherwise}"
        )


def _is(app: Celery, kind: type) -> bool:
    """Tell whether an app's broker is of a kind."""
    return issubclass(app.connection_for_write().get_transport_cls(), kind)


def _found(app: Celery, task_id: str) -> list[DeadLetter]:
    letters = _dead_letters(app)
    found = [each for each in letters.read(len(letters) or 1)[0] if each.task_id == task_id]
    if not found:
        click.echo(f"heartbeat: no dead letter is of the task {task_id}", err=True)
    return found


def _object(letter: DeadLetter) -> dict[str, Any]:
    return {
        "task_id": letter.task_id,
        "task": letter.task,
        "queue": letter.queue,
        "reason": letter.reason,
        "recoveries": letter.recoveries,
        "owner": letter.owner,
        "at": utc(letter.at),
    }


def _say(why: object, code: int) -> NoReturn:
    click.echo(f"heartbeat: {' '.join(str(why).split())}", err=True)
    sys.exit(code)
