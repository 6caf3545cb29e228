"""The worker's boot steps: where the heartbeat begins, claims, and says goodbye."""

import atexit
import logging
import os
from typing import Any

import attrs
import click
from celery import Celery, bootsteps
from kombu.transport import pyamqp
from kombu.transport import redis as stock

from heartbeat_celery._agent import Agent
from heartbeat_celery._fencing import ask_before_each
from heartbeat_celery._kombu import ALIASES, SentinelTransport, Transport
from heartbeat_celery._rabbit_broker import RabbitBroker
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._redis_broker import RedisBroker
from heartbeat_celery._scheduler import Scheduler
from heartbeat_celery._settings import (
    ADAPTER_SETTINGS,
    RecoverySettings,
    management_url_of,
    namespace_of,
    probe_dir_of,
    restarts_on_stall,
    shards_of,
)
from heartbeat_celery._sign_writer import SignWriter
from heartbeat_celery._stalls import Stalls, patience_for
from heartbeat_core import Settings, SettingsError

__all__ = ("ConsumerStep", "WorkerStep", "agent_for_scheduler", "worker_options")

logger = logging.getLogger("heartbeat_celery")

_OURS = {stock.Transport: Transport, stock.SentinelTransport: SentinelTransport}


class WorkerStep(bootsteps.StartStopStep):
    """Starts the heartbeat before all else, and says goodbye after all else.

    Whatever goes wrong here leaves the worker as it would be without the heartbeat.
    """

    label = "Heartbeat"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.heartbeat_agent = None
        try:
            given = {name: kwargs.get(f"heartbeat_{name}") for name in _names()}
            worker.heartbeat_agent = _agent_for(worker, given)
        except SettingsError as exc:
            logger.error("heartbeat: off, since a setting is wrong: %s", exc)
        except Exception:
            logger.exception("heartbeat: off, since it could not be set up")
        self.agent: Agent | None = worker.heartbeat_agent
        self.enabled = self.agent is not None
        if self.agent is not None:
            self.agent.start()
            _stop_last(worker, self.agent)


class ConsumerStep(bootsteps.StartStopStep):
    """Makes the consumer claim what it takes, at every connection anew."""

    label = "Heartbeat claims"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        agent: Agent | None = getattr(consumer.controller, "heartbeat_agent", None)
        if agent is not None:
            ask_before_each(consumer, agent.broker.may_begin)

    def start(self, consumer: Any) -> None:
        """Give the claims to the channel over which tasks come."""
        agent: Agent | None = getattr(consumer.controller, "heartbeat_agent", None)
        if agent is None:
            return
        try:
            agent.attach(consumer)
        except consumer.connection_errors:
            raise  # The worker's own connection is gone: its affair, and it connects again.
        except Exception:
            logger.exception("heartbeat: %s works without claims", agent.node)

    def stop(self, consumer: Any) -> None:
        """Do nothing: the channel goes, and its claims are given back, with the connection."""


def worker_options() -> list[click.Option]:
    """Give the options of ``celery worker`` that stand for the settings, one each."""
    return [
        click.Option(
            [f"--heartbeat-{field.name.replace('_', '-')}"],
            type=field.type,
            help=f"heartbeat-core: overrides the setting heartbeat_{field.name}.",
        )
        for field in attrs.fields(Settings)
    ]


def _names() -> list[str]:
    return [field.name for field in attrs.fields(Settings)]


def agent_for_scheduler(app: Celery, role: Scheduler) -> Agent | None:
    """Set up the agent of a scheduler; ``None`` if it is switched off or cannot work here.

    Raises:
        SettingsError: A setting is wrong.
    """
    settings = Settings.load(app.conf, os.environ, known=ADAPTER_SETTINGS)
    broker = _broker_for(app, role.node) if settings.enabled else None
    return Agent(app, role.node, settings, broker, role) if broker is not None else None


def _agent_for(worker: Any, given: dict[str, Any]) -> Agent | None:
    """Set up the agent of a worker; ``None`` if it is switched off or cannot work here."""
    app, node = worker.app, worker.hostname
    settings = Settings.load(app.conf, os.environ, known=ADAPTER_SETTINGS, **given)
    broker = _broker_for(app, node) if settings.enabled else None
    if broker is None:
        return None
    restarts = restarts_on_stall(app.conf, os.environ)
    stalls = Stalls(worker, broker, node, patience_for(settings.expire), restarts)
    if isinstance(broker, RabbitBroker):
        broker.say_what_is_missing()
    else:
        transport = app.connection_for_read().get_transport_cls()
        app.conf.broker_transport = ALIASES[_OURS.get(transport, transport)]
    # The name of a scheduler that is embedded in this worker.
    app.heartbeat_worker = node
    gate = broker.fencing.gate
    gate.pause = min(2.0, max(0.1, settings.min_freq / 2))
    gate.guard(app)
    sign_writer = SignWriter(
        node=node,
        namespace=namespace_of(app.conf, os.environ, app.main),
        settings=settings,
        parent=probe_dir_of(app.conf, os.environ),
        stalled=stalls.is_stalled,
    )
    return Agent(app, node, settings, broker, stalls, gate, sign_writer)


def _broker_for(app: Celery, node: str) -> RedisBroker | RabbitBroker | None:
    """Set up the broker of an app; ``None``, and one line in the log, if it is not supported."""
    transport = app.connection_for_read().get_transport_cls()
    namespace = namespace_of(app.conf, os.environ, app.main)
    shards = shards_of(app.conf, os.environ)
    settings = RecoverySettings.load(app.conf, os.environ)
    if any(transport in pair for pair in _OURS.items()):
        return RedisBroker(app, namespace=namespace, shards=shards, settings=settings)
    if issubclass(transport, pyamqp.Transport):
        return RabbitBroker(
            app,
            names=Names(namespace, shards),
            node=node,
            settings=settings,
            management_url=management_url_of(app.conf, os.environ),
        )
    logger.warning(
        "heartbeat: off, since it does not support the broker transport %s.%s: it works with "
        "redis://, rediss://, sentinel://, amqp:// and amqps://. The worker goes on without it",
        transport.__module__,
        transport.__qualname__,
    )
    return None


def _stop_last(worker: Any, agent: Agent) -> None:
    """Say goodbye when the worker has closed its broker connection, and so holds no message.

    No step is certain to be stopped after the one that closes the connection, so this stands
    around the worker's own last act. A worker that does not get so far says it at exit.
    """
    blueprint = worker.blueprint
    on_stopped = blueprint.on_stopped

    def stopped() -> None:
        try:
            on_stopped()
        finally:
            agent.stop()

    blueprint.on_stopped = stopped
    atexit.register(agent.stop)
