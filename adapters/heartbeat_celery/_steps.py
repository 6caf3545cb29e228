"""The worker's boot steps: where the heartbeat begins, claims, and says goodbye."""

import atexit
import logging
import os
from typing import Any

import attrs
import click
import redis  # noqa: F401 - if it is missing, this says so, and Kombu would not
from celery import bootsteps
from kombu.transport import pyamqp
from kombu.transport import redis as stock

from heartbeat_celery._agent import Agent
from heartbeat_celery._broker import Broker
from heartbeat_celery._kombu import ALIASES, SentinelTransport, Transport
from heartbeat_celery._rabbit_broker import RabbitBroker
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._redis_broker import RedisBroker
from heartbeat_celery._settings import (
    ADAPTER_SETTINGS,
    RecoverySettings,
    management_url_of,
    namespace_of,
    shards_of,
)
from heartbeat_core import Settings, SettingsError

__all__ = ("ConsumerStep", "WorkerStep", "worker_options")

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


def _agent_for(worker: Any, given: dict[str, Any]) -> Agent | None:
    """Set up the agent of a worker; ``None`` if it is switched off or cannot work here."""
    app = worker.app
    settings = Settings.load(app.conf, os.environ, known=ADAPTER_SETTINGS, **given)
    if not settings.enabled:
        return None
    broker = _broker_of(worker)
    return None if broker is None else Agent(app, worker.hostname, settings, broker)


def _broker_of(worker: Any) -> Broker | None:
    """Set up the broker over which a worker's tasks come; ``None`` if it is of no kind we know."""
    app = worker.app
    transport = app.connection_for_read().get_transport_cls()
    namespace = namespace_of(app.conf, os.environ, app.main)
    shards = shards_of(app.conf, os.environ)
    settings = RecoverySettings.load(app.conf, os.environ)
    for kind, ours in _OURS.items():
        if transport in {kind, ours}:
            broker = RedisBroker(app, namespace=namespace, shards=shards, settings=settings)
            app.conf.broker_transport = ALIASES[ours]
            return broker
    if issubclass(transport, pyamqp.Transport):
        rabbit = RabbitBroker(
            app,
            names=Names(namespace, shards),
            node=worker.hostname,
            settings=settings,
            management_url=management_url_of(app.conf, os.environ),
        )
        rabbit.say_what_is_missing()
        return rabbit
    logger.warning(
        "heartbeat: off, since it does not support the broker transport %s.%s: it works "
        "with redis://, rediss://, sentinel://, amqp:// and amqps://. The worker goes on "
        "without it",
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
