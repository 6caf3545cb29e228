"""A broker that is RabbitMQ: it brings back itself what a closed connection held.

What the heartbeat adds is the rest: connections whose process does not close them, tasks that were
acknowledged early, and poison.
"""

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import amqp
import attrs
from celery import Celery

from heartbeat_celery._announcer import Announcer
from heartbeat_celery._dead_letters import DELIVERY
from heartbeat_celery._fencing import Fencing, active_requests
from heartbeat_celery._hang_up import hang_up
from heartbeat_celery._management import Management, ManagementError
from heartbeat_celery._native import InWorker, native_lock
from heartbeat_celery._rabbit_calls import RabbitCalls
from heartbeat_celery._rabbit_custody import RabbitCustody
from heartbeat_celery._rabbit_names import Names
from heartbeat_celery._rabbit_poison import Poison
from heartbeat_celery._rabbit_record import Record
from heartbeat_celery._rabbit_records import Records
from heartbeat_celery._running import Running
from heartbeat_celery._settings import RecoverySettings
from heartbeat_celery._telling import Telling
from heartbeat_core import Heartbeat, Incarnation
from heartbeat_kombu import AmqpTransport
from heartbeat_kombu.connections import Broker as Address
from heartbeat_kombu.connections import Calls

__all__ = ("RabbitBroker", "calls_of")

logger = logging.getLogger("heartbeat_celery")

TIMEOUT = 2.0
"""After so many seconds without an answer the broker counts as away."""

MOMENT = 0.5
"""For so many seconds a message may wait until it is on its way to whoever has room for it."""

EXPIRES = 60_000
"""So many milliseconds the queue of who holds what outlives its last connection."""


def _nothing(_: Incarnation) -> None:
    """Do nothing."""


@attrs.define(eq=False)
class RabbitBroker:
    """The RabbitMQ over which a worker's tasks come.

    Args:
        app: The worker's app.
        names: What the queues are called.
        node: The worker's name.
        settings: What becomes of what the dead held.
        management_url: Where the management API is, if that is known.

    Attributes:
        on_fenced: Never called: RabbitMQ tells nobody that they are dead but by closing their
            connections.
        running: The tasks that run although their messages are acknowledged.
        records: Where those of them are kept, while that is possible.
        fencing: Deals with what this worker runs that others run too.
        poison: Takes poison out of this worker's way. The consumer's thread uses it.
        incarnation: As whom this worker takes messages now.
        came: When the last message came.

    Raises:
        SettingsError: The URL is wrong.
    """

    app: Celery
    names: Names
    node: str
    settings: RecoverySettings
    management_url: str | None = attrs.field(default=None, repr=False)
    on_fenced: Callable[[Incarnation], None] = attrs.field(default=_nothing, init=False)
    running: Running = attrs.field(init=False)
    fencing: Fencing = attrs.field(init=False)
    poison: Poison = attrs.field(init=False)
    records: Records | None = attrs.field(default=None, init=False)
    incarnation: Incarnation | None = attrs.field(default=None, init=False)
    _management: Management | None = attrs.field(default=None, init=False)
    _heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    _calls: RabbitCalls | None = attrs.field(default=None, init=False)
    _attached: "_Attached | None" = attrs.field(default=None, init=False)
    _attachments: Any = attrs.field(factory=itertools.count, init=False)
    came: float = attrs.field(factory=time.monotonic, init=False)
    _keeps_records: bool = attrs.field(default=True, init=False)
    _lock: threading.Lock = attrs.field(factory=native_lock, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with no task, and look at the settings."""
        self.running = Running(self.app, self.settings.on_lost)
        self.fencing = Fencing(self.settings.on_fenced)
        # Of its own: under greenlets a connection belongs to the thread that has opened it.
        calls = calls_of(self.app, f"heartbeat poison of {self.node}")
        self.poison = Poison(self.names, self.node, self.settings.max_recoveries, calls)
        if self.management_url is None:
            return
        connection: Any = self.app.connection_for_read()
        self._management = Management.at(
            self.management_url,
            virtual_host=connection.virtual_host or "/",
            user=connection.userid or "guest",
            password=connection.password if isinstance(connection.password, str) else "guest",
        )

    def say_what_is_missing(self) -> None:
        """Log what this worker cannot do for others."""
        if self._management is None:
            logger.warning(
                "heartbeat: heartbeat_management_url is not set: what a worker holds that is "
                "stopped or cut off comes back only when RabbitMQ itself notices, after two or "
                "three times broker_heartbeat. What a killed worker holds comes back at once"
            )

    def connect(self) -> None:
        """Reach the broker for the first time."""
        self._reach().run(lambda _channel: None)

    def transport_for(self, node: str) -> AmqpTransport:
        """Make the transport of the shard that a node is in."""
        return AmqpTransport(self.app.connection_for_read(), namespace=self.names.shard(node))

    def claim_as(self, incarnation: Incarnation) -> None:
        """Take messages as this incarnation from now on."""
        self.incarnation = incarnation

    def is_fenced(self, incarnation: Incarnation) -> bool:
        """Say no: RabbitMQ keeps no fences, and an obituary tells soon enough."""
        del incarnation
        return False

    def fence(self, incarnation: Incarnation) -> None:
        """Take messages as nobody; what was handed over is known when a connection is lost."""
        if self.incarnation == incarnation:
            self.incarnation = None

    def may_begin(self, request: Any) -> bool:
        """Tell whether its connection stands: RabbitMQ has handed on what another one held."""
        return bool(request.message.channel.is_open)

    def custody(
        self, heartbeat: Heartbeat, announcer: Announcer, in_worker: InWorker
    ) -> RabbitCustody:
        """Begin to close, and to tell, what the dead leave behind."""
        self._heartbeat = heartbeat
        calls = self._reach()
        return RabbitCustody(
            heartbeat=heartbeat,
            address=Address(self.app.connection_for_read(), TIMEOUT),
            calls=calls,
            names=self.names,
            settings=self.settings,
            running=self.running,
            management=self._management,
            telling=Telling(self.app, in_worker),
            announcer=announcer,
            keep=self._keep_at,
        )

    def attach(self, consumer: Any) -> None:
        """Let others know by which connection this worker takes tasks, and look at what comes.

        Blocks for a few round trips. Called before the first task comes.

        Raises:
            Exception: One of the connection's own errors.
        """
        # All that still runs was taken over a connection that is lost, and so comes back.
        self.fencing.refuse_results(each for each in active_requests() if not each.acknowledged)
        self.came = time.monotonic()
        attached = _Attached(self, consumer.task_consumer, str(next(self._attachments)))
        attached.watch(consumer)
        self._attached = attached

    def waits(self, consumer: Any) -> float | None:
        """Tell since when nothing came, if there is room for more."""
        attached, qos = self._attached, consumer.qos
        if attached is None or qos is None:
            return None
        # Celery does not count what waits for its rate limit; RabbitMQ does.
        return self.came if not qos.value or attached.unanswered < qos.value else None

    def owes(self, consumer: Any) -> bool:
        """Tell whether there is something that should have come. Blocks for a few round trips."""
        queues = [
            queue.name
            for queue in consumer.task_consumer.queues
            # Of such a queue all consumers but one get nothing.
            if not (queue.queue_arguments or {}).get("x-single-active-consumer")
        ]

        def ask(channel: Any) -> bool:
            return any(channel.queue_declare(name, passive=True).message_count for name in queues)

        came = self.came
        if not self._reach().run(ask):
            return False
        # That may have come a moment ago, and be on its way.
        time.sleep(MOMENT)
        return bool(self._reach().run(ask)) and self.came == came

    def hang_up(self, consumer: Any) -> None:
        """End the connection of the consumer; what is lost on its way to here comes back."""
        connection: Any = getattr(consumer.connection, "_connection", None)
        sock = getattr(getattr(connection, "transport", None), "sock", None)
        if sock is not None:
            threading.Thread(target=self._hang_up, args=(sock,), daemon=True).start()

    def _hang_up(self, sock: Any) -> None:
        me, management = self.incarnation, self._management
        if me is not None and management is not None:
            # In this order: it must not close the connection that comes next.
            try:
                management.close_consumers(self.names.holds(me), f"heartbeat: {me} hangs")
            except ManagementError as exc:
                logger.warning(
                    "heartbeat: what was lost on its way to %s comes back when RabbitMQ itself "
                    "notices: %s",
                    self.node,
                    exc,
                )
        hang_up(sock)

    @property
    def me(self) -> Incarnation | None:
        """Which life of the worker this is, or is about to be, if that is known yet."""
        if self.incarnation is None and self._heartbeat is not None:
            return self._heartbeat.incarnation
        return self.incarnation

    def keep(self, early: Any, message: Any, key: str, queue: str) -> None:
        """Keep a record of a task that runs, before its message is acknowledged."""
        me, records = self.incarnation, self.records
        if me is None or records is None or records.me != me:
            kept = False
        else:
            record = Record.of(
                message,
                key=key,
                on_lost=early.on_lost,
                owner=me,
                queue=queue,
                dead_letters=self.names.dead_letters,
            )
            # Known before it is sent, or it would be let go of when it comes back.
            self.running.add(me, attrs.evolve(early, tag=key))
            kept = records.keep(record)
        if kept is not self._keeps_records:
            self._keeps_records = kept
            if kept:
                logger.info("heartbeat: tasks that are acknowledged early are on record again")
            else:
                logger.warning(
                    "heartbeat: tasks that are acknowledged early are not on record now, since "
                    "RabbitMQ takes no messages or is away; if %s dies, those are not told of",
                    self.node,
                )

    def _keep_at(self, records: Records | None) -> None:
        self.records = records

    def _reach(self) -> RabbitCalls:
        with self._lock:
            if self._calls is None:
                self._calls = calls_of(self.app, f"heartbeat calls of {self.node}")
            return self._calls


@attrs.define(eq=False)
class _Attached:
    """What stands between a worker's consumer and one of its connections.

    Everything is called in the consumer's thread.

    Attributes:
        unanswered: How many messages came and are neither acknowledged nor rejected.
    """

    broker: RabbitBroker
    task_consumer: Any
    number: str
    errors: tuple[type[Exception], ...] = ()
    unanswered: int = attrs.field(default=0, init=False)
    _early: dict[int, Any] = attrs.field(factory=dict, init=False)
    _queues: dict[str, str] = attrs.field(factory=dict, init=False)
    _mark: Any = attrs.field(default=None, init=False)
    _marked: Incarnation | None = attrs.field(default=None, init=False)

    def watch(self, consumer: Any) -> None:
        """Look at each message before the worker does, and at each answer to it."""
        self.errors = consumer.connection_errors
        me = self.broker.me
        if me is not None:
            self._mark_first(consumer, me)
        stock = getattr(consumer, "heartbeat_stock_handler", None) or consumer.create_task_handler
        consumer.heartbeat_stock_handler = stock
        consumer.create_task_handler = functools.partial(self._handler, stock)
        channel = self.task_consumer.channel
        channel.basic_ack = functools.partial(self._ack, channel.basic_ack)
        channel.basic_reject = functools.partial(self._reject, channel.basic_reject)

    def _mark_first(self, consumer: Any, me: Incarnation) -> None:
        """Consume what tells others whose connection this is."""
        channel = consumer.connection.channel()
        queue = self.broker.names.holds(me)
        try:
            _consume(channel, queue, nowait=False)
        except amqp.ChannelError as exc:
            logger.error(
                "heartbeat: nobody can bring back what %s holds if it is stopped or cut off, "
                "since RabbitMQ does not let it consume %s: %s",
                me,
                queue,
                exc,
            )
        else:
            self._mark, self._marked = channel, me

    def _mark_anew(self, me: Incarnation) -> None:
        """The same as somebody else, without waiting; what is taken from now on is theirs."""
        former, self._marked = self._marked, me
        _consume(self._mark, self.broker.names.holds(me), nowait=True)
        if former is not None:
            self._mark.basic_cancel(self.broker.names.holds(former), nowait=True)

    def _handler(self, stock: Any, *args: Any, **kwargs: Any) -> Any:
        handle = stock(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            self.broker.came = time.monotonic()
            self.unanswered += 1
            if self._is_out_of_the_way(message):
                return None
            return handle(message)

        return on_task_received

    def _is_out_of_the_way(self, message: Any) -> bool:
        try:
            me = self.broker.me
            if me is not self._marked and self._mark is not None and me != self._marked:
                assert me is not None
                self._mark_anew(me)
            headers = message.headers
            headers[DELIVERY] = f"{self.number}.{message.delivery_tag}"
            if "x-delivery-count" in headers and self.broker.poison.take(
                message, self._queue(message)
            ):
                return True
            task = self.broker.app.tasks.get(headers.get("task"))
            if task is not None and not task.acks_late:
                self._early[message.delivery_tag] = message
        except self.errors:
            raise
        except Exception:
            logger.exception("heartbeat: a message could not be looked at; the worker takes it")
        return False

    def _ack(self, stock: Any, delivery_tag: int, *args: Any, **kwargs: Any) -> Any:
        self.unanswered -= 1
        message = self._early.pop(delivery_tag, None)
        if message is not None:
            try:
                early = self.broker.running.early(message)
                if early is not None:
                    key = message.headers[DELIVERY]
                    self.broker.keep(early, message, key, self._queue(message))
            except Exception:
                logger.exception("heartbeat: a task that is acknowledged early is not on record")
        return stock(delivery_tag, *args, **kwargs)

    def _reject(self, stock: Any, delivery_tag: int, *args: Any, **kwargs: Any) -> Any:
        self.unanswered -= 1
        self._early.pop(delivery_tag, None)
        return stock(delivery_tag, *args, **kwargs)

    def _queue(self, message: Any) -> str:
        """Tell from which queue a message came."""
        tag = message.delivery_info.get("consumer_tag")
        if tag not in self._queues:
            tags = getattr(self.task_consumer, "_active_tags", {})
            self._queues = {each: queue for queue, each in tags.items()}
        return self._queues.get(tag) or str(message.delivery_info.get("routing_key") or "")


def calls_of(app: Celery, name: str) -> RabbitCalls:
    """Make the connection for calls to the broker of an app. Connects to nothing yet.

    Args:
        app: The app.
        name: What the connection is called in the broker.
    """
    address = Address(app.connection_for_read(), TIMEOUT)
    return RabbitCalls(Calls(address, name, lambda _line: None))


def _consume(channel: Any, queue: str, *, nowait: bool) -> None:
    channel.queue_declare(
        queue=queue,
        durable=True,
        auto_delete=False,
        arguments={"x-expires": EXPIRES},
        nowait=nowait,
    )
    # Whoever deletes the queue shall not disturb the worker.
    channel.basic_consume(
        queue=queue, consumer_tag=queue, callback=_drop, on_cancel=_drop, nowait=nowait
    )


def _drop(*_: Any) -> None:
    """Do nothing."""
