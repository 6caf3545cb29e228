"""What the adapter costs: the processor time of a worker and of its broker, with it and without.

One worker with one process (or solo) on a private server, now with and now without the adapter.
Tasks do nothing, so that all that is measured is what surrounds a task. Three loads:

* full: so many tasks are queued before the worker starts; measured while it works them off, from
  some way in to nearly the end, so that neither its start nor its stop is in the figures,
* trickling: a task every few milliseconds, for which the worker waits,
* idle: no task; the processor time a second, which is what the heartbeat's thread adds for ever.

    python benchmarks/cost.py --rounds 5 --brokers valkey --pools prefork --acks late

Reads processor times from /proc: Linux only. A ratio is that of the medians of all rounds, and
its spread that of the rounds, each of which runs one worker with and one without.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

TESTS = pathlib.Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "celery")]

from servers import RabbitServer, RedisServer, ServerError, valkey_binary

from fleet import Fleet, Worker

QUEUE = "celery"
LOADS = ("full", "trickling", "idle")
TARGETS = {("valkey", "full"): 0.85}
"""At most this ratio is aimed at; elsewhere 1.03."""

TARGET = 1.03


# -- what is read --------------------------------------------------------------------------------


def spent(pid: int) -> float:
    """Give the seconds of processor time of a process and of its group, if it leads one."""
    total = 0.0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            group = stat.read_text().rpartition(")")[2].split()[2]
            each = int(stat.parent.name)
            if pid in {each, int(group)}:
                # What clock_getcpuclockid(3) gives: /proc counts hundredths of a second only.
                total += time.clock_gettime((~each << 3) | 2)
    return total


@attrs.frozen
class Broker:
    """A server, and how many messages wait in it.

    Attributes:
        url: Where it is.
        pid: Its process.
        waiting: Gives how many messages wait.
        empty: Deletes all that is in it.
    """

    url: str
    pid: int
    waiting: Callable[[], int]
    empty: Callable[[], object]


@contextlib.contextmanager
def valkey(folder: pathlib.Path) -> Iterator[Broker]:
    """Start a Valkey."""
    server = RedisServer(valkey_binary(), folder)
    server.start()
    try:
        with server.client() as client:
            yield Broker(server.url, _pid(server), lambda: int(client.llen(QUEUE)), client.flushall)
    finally:
        server.stop()


@contextlib.contextmanager
def rabbitmq(folder: pathlib.Path) -> Iterator[Broker]:
    """Start a RabbitMQ."""
    import kombu  # noqa: PLC0415 - heavy

    server = RabbitServer(folder)
    server.start()
    try:
        with kombu.Connection(server.url) as connection:
            connection.ensure_connection(max_retries=20, interval_start=0.5)
            channel = connection.default_channel

            def waiting() -> int:
                return int(channel.queue_declare(QUEUE, durable=True, auto_delete=False)[1])

            yield Broker(server.url, _pid(server), waiting, lambda: channel.queue_delete(QUEUE))
    finally:
        server.stop()


def _pid(server: RedisServer | RabbitServer) -> int:
    assert server._process is not None
    return server._process.pid


BROKERS = {"valkey": valkey, "rabbitmq": rabbitmq}


# -- what is measured ----------------------------------------------------------------------------


@attrs.frozen
class Meter:
    """Reads what a worker and its broker have spent since it was made."""

    worker: Worker
    broker: Broker
    _worker: float = attrs.field(init=False)
    _broker: float = attrs.field(init=False)
    _at: float = attrs.field(init=False, factory=time.monotonic)

    @_worker.default
    def _spent_by_the_worker(self) -> float:
        return spent(self.worker.process.pid)

    @_broker.default
    def _spent_by_the_broker(self) -> float:
        return spent(self.broker.pid)

    def read(self, tasks: int) -> dict[str, float]:
        """Give microseconds a task, or a second if there is no task."""
        per = tasks or time.monotonic() - self._at
        worker = (spent(self.worker.process.pid) - self._worker) / per * 1e6
        broker = (spent(self.broker.pid) - self._broker) / per * 1e6
        return {"worker": worker, "broker": broker, "both": worker + broker}


def one(broker: Broker, *, pool: str, acks: str, adapter: bool, options: Any) -> dict[str, Any]:
    """Run one worker through all loads; give what each cost."""
    broker.empty()
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(broker.url, pathlib.Path(name))
        fleet.environ["FLEET_HEARTBEAT"] = "1" if adapter else "0"
        fleet.conf |= {
            "task_acks_late": acks == "late",
            "task_ignore_result": True,
            "worker_prefetch_multiplier": 4,
        }
        with fleet:
            return _loads(fleet, broker, pool, options)


def _loads(fleet: Fleet, broker: Broker, pool: str, options: Any) -> dict[str, Any]:
    app, found = fleet.app(), {}
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:

        def send() -> None:
            app.send_task("empty", producer=producer)

        for _ in range(options.tasks):
            send()
        # A line in the log for every task would be the larger part of its cost.
        worker = fleet.start("one", "-l", "WARNING", pool=pool, concurrency=1)
        found["full"] = _full(worker, broker, options.tasks)
        time.sleep(2)  # It has settled.
        found["trickling"] = _trickling(worker, broker, send, options)
        time.sleep(1)
        meter = Meter(worker, broker)
        time.sleep(options.idle)
        found["idle"] = meter.read(0)
    fleet.stop(worker)
    return found


def _full(worker: Worker, broker: Broker, tasks: int) -> dict[str, float]:
    begin, end = tasks * 5 // 6, tasks // 15
    _wait_for_fewer(broker, begin)
    first, meter = broker.waiting(), Meter(worker, broker)
    _wait_for_fewer(broker, end)
    last = broker.waiting()
    found = meter.read(first - last)
    _wait_for_fewer(broker, 0)
    return found


def _trickling(
    worker: Worker, broker: Broker, send: Callable[[], None], options: Any
) -> dict[str, float]:
    meter, tasks = Meter(worker, broker), 0
    began = time.monotonic()
    while time.monotonic() < began + options.seconds:
        send()
        tasks += 1
        time.sleep(max(0.0, began + tasks * options.gap - time.monotonic()))
    _wait_for_fewer(broker, 0)
    return meter.read(tasks)


def _wait_for_fewer(broker: Broker, count: int) -> None:
    """Wait until at most so many messages wait, without asking so often that it costs."""
    until = time.monotonic() + 120
    while broker.waiting() > count:
        if time.monotonic() > until:
            raise SystemExit(f"the worker is stuck: {broker.waiting()} messages wait")
        time.sleep(0.02)


# -- what is told --------------------------------------------------------------------------------


def row(
    name: str, pool: str, acks: str, load: str, rounds: list[dict[bool, dict[str, Any]]]
) -> dict[str, Any]:
    """Sum up the rounds of one case."""
    cost: dict[str, Any] = {}
    for who in ("worker", "broker", "both"):
        with_, without = ([each[way][load][who] for each in rounds] for way in (True, False))
        ratios = sorted(_ratio(a, b) for a, b in zip(with_, without, strict=True))
        cost[who] = {
            "without_us": round(statistics.median(without), 1),
            "with_us": round(statistics.median(with_), 1),
            "adds_us": round(statistics.median(with_) - statistics.median(without), 1),
            "ratio": round(_ratio(statistics.median(with_), statistics.median(without)), 3),
            "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    target = TARGETS.get((name, load), TARGET)
    case = {"broker": name, "pool": pool, "acks": acks, "load": load, "target": target}
    return case | {"cost": cost}


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def table(rows: list[dict[str, Any]]) -> str:
    """Give the rows as one table."""
    heads = (
        *("broker", "pool", "acks", "load", "unit"),
        *("worker without, with", "ratio (spread)", "broker without, with", "ratio (spread)"),
        *("both: ratio (spread)", "target"),
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for each in rows:
        unit = "us a second" if each["load"] == "idle" else "us a task"
        cells = [each["broker"], each["pool"], each["acks"], each["load"], unit]
        cost = each["cost"]
        for who in ("worker", "broker"):
            cells += [f"{cost[who]['without_us']:.0f}, {cost[who]['with_us']:.0f}"]
            cells += [_spread(cost[who])]
        cells += [_spread(cost["both"]), f"at most {each['target']:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [
        f"What the heartbeat itself takes, {each['broker']} {each['pool']} {each['acks']}: "
        f"{each['cost']['worker']['adds_us'] / 1e4:.2f} % of a core in the worker, "
        f"{each['cost']['broker']['adds_us'] / 1e4:.2f} % in the broker."
        for each in rows
        if each["load"] == "idle"
    ]
    return "\n".join(lines)


def _spread(found: dict[str, Any]) -> str:
    low, high = found["spread"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--brokers", nargs="+", choices=list(BROKERS), default=list(BROKERS))
    parser.add_argument("--pools", nargs="+", default=["prefork", "solo"])
    parser.add_argument("--acks", nargs="+", choices=["late", "early"], default=["late", "early"])
    parser.add_argument("--tasks", type=int, default=3000, help="in the full queue")
    parser.add_argument("--gap", type=float, default=0.007, help="of trickling tasks, in seconds")
    parser.add_argument("--seconds", type=float, default=5, help="of trickling")
    parser.add_argument("--idle", type=float, default=10, help="seconds without a task")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print("cost.py reads processor times from /proc, which is on Linux only", file=sys.stderr)
        return 2
    rows = []
    for name in options.brokers:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            try:
                broker = stack.enter_context(BROKERS[name](pathlib.Path(folder)))
            except ServerError as exc:
                print(f"{name} is left out: {exc}", file=sys.stderr)
                continue
            for pool in options.pools:
                for acks in options.acks:
                    rounds = []
                    for number in range(options.rounds):
                        found = {}
                        # Whatever warms up or grows must not always fall to the same one.
                        for adapter in (number % 2 == 0, number % 2 == 1):
                            found[adapter] = one(
                                broker, pool=pool, acks=acks, adapter=adapter, options=options
                            )
                            print(
                                f"{name} {pool} {acks} {'with' if adapter else 'without'}: "
                                f"{json.dumps(found[adapter])}",
                                file=sys.stderr,
                                flush=True,
                            )
                        rounds.append(found)
                    rows += [row(name, pool, acks, load, rounds) for load in LOADS]
    print(json.dumps(rows) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
