"""Kills of random workers under load, and the account of every task.

    python tests/celery/chaos.py --kills 200 --broker valkey --seed 1 --json

Kills whole process groups at moments that matter (see ``MOMENTS``), once under a full queue and
once under a trickling one, and prints one account each. Exits 1 if a task was lost or handed over
twice, or ran again without a death that explains it. The seed replays the choices, not the times.
"""

import argparse
import base64
import contextlib
import itertools
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

import attrs
from fleet import Fleet, Worker, wait_for
from servers import RabbitServer, RedisServer, ServerError, valkey_binary

FULL = 300
"""So many tasks wait, at least, in a full queue."""

QUEUES = ("celery", "second", "third")

POOLS = (("prefork", 1), ("prefork", 2), ("solo", 1), ("threads", 2))

HOLDERS = "heartbeat:{fleet}:holders"
CLAIMS = "heartbeat:{fleet}:claims:"
FENCE = "heartbeat:{fleet}:fence:"
OBSERVERS = "heartbeat:{fleet}:observers"

SETTLED = 45.0
"""After so many seconds without a record nothing moves any more: longer than ``expire``."""

ACKED = 1.0
"""So many seconds after its end a task may be unacknowledged still."""


# -- the account ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Death:
    """A kill.

    Attributes:
        began: The wall clock before the signal.
        held: The numbers of the tasks whose messages the worker held then, as the broker says;
            ``None`` if nobody can ask it in time.
    """

    began: float
    held: frozenset[int] | None


@attrs.frozen(kw_only=True)
class Verdict:
    """What a task's records say.

    Attributes:
        lost: It never ended.
        twice: There was a second copy of its message: it ran again though whoever ran it lived,
            or twice after the same number of recoveries.
        extra: How often it ran again.
        unexplained: How often it did without a death that explains it.
    """

    lost: bool
    twice: bool
    extra: int
    unexplained: int


def judge(
    starts: Sequence[Mapping[str, Any]],
    ends: Sequence[Mapping[str, Any]],
    deaths: Mapping[str, Death],
) -> Verdict:
    """Judge one task by its records.

    It may run again if the worker that ran it last was killed before, and held its message at
    that moment. Where the broker could not be asked, the message must say that it was delivered
    before, and the task must not have ended long before the kill.
    """
    ended = {record["life"]: record["at"] for record in ends}
    in_order = sorted(starts, key=lambda record: float(record["at"]))
    twice, unexplained = False, 0
    for before, after in itertools.pairwise(in_order):
        death = deaths.get(before["life"])
        if death is None or after["at"] < death.began or before["life"] == after["life"]:
            twice = True
            unexplained += 1
        elif death.held is None:
            late = death.began - ended.get(before["life"], death.began) > ACKED
            unexplained += late or not after["redelivered"]
        elif after["recoveries"] <= before["recoveries"]:
            twice = True
            unexplained += 1
        else:
            number = before["number"]
            unexplained += number not in death.held
    return Verdict(
        lost=not ends, twice=twice, extra=max(0, len(starts) - 1), unexplained=unexplained
    )


class Tail:
    """What the tasks have written down, read on from where one was. Safe for threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._client = fleet.client
        self._read = 0
        self._lock = threading.Lock()
        self.starts: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.running: dict[str, set[int]] = defaultdict(set)

    def read(self) -> list[dict[str, Any]]:
        """Read on; give what is new."""
        with self._lock:
            lines = self._client.lrange("fleet:records", self._read, -1)
            self._read += len(lines)
            records = [json.loads(line) for line in lines]
            for record in records:
                number, running = record["number"], self.running[record["life"]]
                if record["what"] == "start":
                    self.starts[number].append(record)
                    running.add(number)
                else:
                    self.ends[number].append(record)
                    running.discard(number)
            return records


# -- the load -------------------------------------------------------------------------------------


class Load:
    """Sends tasks while it is open: so many that some always wait, or so few that none does."""

    def __init__(
        self, fleet: Fleet, tail: Tail, chance: random.Random, *, trickle: bool, queues: bool
    ) -> None:
        self._fleet = fleet
        self._tail = tail
        self._chance = chance
        self._trickle = trickle
        self._queues = queues
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self.seconds: list[float] = []

    @property
    def sent(self) -> int:
        """How many were sent."""
        return len(self.seconds)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _feed(self) -> None:
        app = self._fleet.app()
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            while not self._stop.is_set():
                if self._trickle:
                    self._send(app, producer)
                    self._stop.wait(0.015)
                elif self.sent - len(self._tail.starts) < FULL:
                    for _ in range(100):
                        self._send(app, producer)
                else:
                    self._tail.read()
                    self._stop.wait(0.02)

    def _send(self, app: Any, producer: Any) -> None:
        # Most are so short that kills meet their ends; some so long that they are met running.
        long = self._chance.random() < (0.05 if self._trickle else 0.15)
        seconds = self._chance.uniform(0.1, 0.4) if long else self._chance.choice((0, 0.002, 0.01))
        where: dict[str, Any] = {}
        if self._queues:
            where["queue"] = self._chance.choice(QUEUES)
            where["priority"] = self._chance.randrange(10)
        # Before it is sent: it may run at once.
        self.seconds.append(seconds)
        app.send_task("sleep", (self.sent - 1, seconds), producer=producer, **where)


# -- the kills ------------------------------------------------------------------------------------


class Reaper:
    """Kills workers at moments that matter, and starts others.

    Args:
        fleet: Whom.
        tail: What they do.
        load: What they have to do.
        chance: Makes all choices.
        claims: Whether the broker has claims, so that it can be asked who holds what.
        options: Of each worker.
    """

    def __init__(
        self,
        fleet: Fleet,
        tail: Tail,
        load: Load,
        chance: random.Random,
        *,
        claims: bool,
        options: Sequence[str],
    ) -> None:
        self._fleet = fleet
        self._tail = tail
        self._load = load
        self._chance = chance
        self._claims = claims
        self._options = ("--without-mingle", "--without-gossip", *options)
        self._ready: set[str] = set()
        self._free: list[str] = []
        self.deaths: dict[str, Death] = {}
        self.met: Counter[str] = Counter()

    def run(self, kills: int, workers: int) -> None:
        """Kill so many."""
        said = 0
        while (left := kills - len(self.deaths)) > 0:
            self.refill(workers)
            wait_for(lambda: len(self.ready()) * 2 >= workers, "half of the workers are ready", 120)
            time.sleep(self._chance.uniform(0.05, 0.5))
            moment = self._chance.choice(list(MOMENTS))
            before = len(self.deaths)
            for victim in itertools.islice(MOMENTS[moment](self), left):
                self._kill(victim)
            self.met[moment] += len(self.deaths) - before
            if len(self.deaths) >= said + 10:
                said = len(self.deaths)
                self._tail.read()
                done = len(self._tail.ends)
                print(f"{said} kills, {self._load.sent} tasks, {done} ended", file=sys.stderr)

    def refill(self, workers: int) -> Sequence[Worker]:
        """Start who is missing, some under the name of one who was killed; give those."""
        started = []
        while len(self._fleet.workers) < workers:
            started.append(self._start())
        return started

    def ready(self) -> list[Worker]:
        """Give those that take tasks."""
        for worker in self._fleet.workers:
            if worker.life not in self._ready and worker.is_ready():
                self._ready.add(worker.life)
        return [worker for worker in self._fleet.workers if worker.life in self._ready]

    def _start(self) -> Worker:
        name = f"w{len(self.deaths) + len(self._fleet.workers)}"
        if self._free and self._chance.random() < 1 / 3:
            name = self._free.pop()
        pool, concurrency = self._chance.choice(POOLS)
        return self._fleet.start(name, *self._options, pool=pool, concurrency=concurrency)

    def _kill(self, victim: Worker) -> None:
        began = time.time()
        victim.kill_group(signal.SIGKILL)
        victim.process.wait()
        # The others need longer than this to notice, so nothing of it has been given back yet.
        held = self._held(victim) if self._claims else None
        self.deaths[victim.life] = Death(began=began, held=held)
        self._fleet.workers.remove(victim)
        self._free.append(victim.name)

    def _lives(self, worker: Worker) -> list[str]:
        """Give the incarnations of a worker that may hold anything."""
        holders = self._fleet.client.smembers(HOLDERS)
        return [each for each in holders if each.startswith(f"{worker.name}@here#")]

    def _held(self, worker: Worker) -> frozenset[int]:
        client = self._fleet.client
        tags = [tag for life in self._lives(worker) for tag in client.hkeys(f"{CLAIMS}{life}")]
        held = (client.hget("unacked", tag) for tag in tags if tag)
        return frozenset(number_of(json.loads(each)[0]) for each in held if each)

    # -- moments ----------------------------------------------------------------------------------

    def at_random(self) -> Iterator[Worker]:
        """At any time."""
        yield self._chance.choice(self.ready())

    def pair(self) -> Iterator[Worker]:
        """Two at once."""
        yield from self._chance.sample(self.ready(), min(2, len(self.ready())))

    def task(self) -> Iterator[Worker]:
        """In the middle of a task."""
        until = time.monotonic() + 1
        busy: list[tuple[Worker, float]] = []
        while not busy and time.monotonic() < until:
            self._tail.read()
            busy = [
                (worker, self._load.seconds[number])
                for worker in self.ready()
                for number in set(self._tail.running[worker.life])
                if self._load.seconds[number] >= 0.1
            ]
        if busy:
            worker, seconds = self._chance.choice(busy)
            time.sleep(self._chance.uniform(0, seconds / 2))
            yield worker
        else:
            yield from self.at_random()

    def prefetch(self) -> Iterator[Worker]:
        """When it holds more than it runs."""
        if self._claims:
            yield max(self.ready(), key=lambda worker: len(self._held(worker)))
        else:
            yield from self.at_random()

    def ack(self) -> Iterator[Worker]:
        """Just when a task has ended, and is being acknowledged."""
        until = time.monotonic() + 1
        pause = self._chance.uniform(0, 0.002)
        self._tail.read()
        while time.monotonic() < until:
            lives = {each["life"] for each in self._tail.read() if each["what"] == "end"}
            ended = [worker for worker in self._fleet.workers if worker.life in lives]
            if ended:
                time.sleep(pause)
                yield ended[-1]
                return
        yield from self.at_random()

    def recovery(self) -> Iterator[Worker]:
        """A worker, and then an observer or two that recover it at this moment."""
        first = self._chance.choice(self.ready())
        fences = [f"{FENCE}{life}" for life in self._lives(first)] if self._claims else []
        yield first
        if fences:
            with contextlib.suppress(AssertionError):
                wait_for(lambda: self._fleet.client.exists(*fences), "it is declared dead", 2)
            time.sleep(self._chance.uniform(0, 0.003))
        else:
            time.sleep(self._chance.uniform(0, 0.4))
        names = {
            each.rpartition("@")[0] for each in self._fleet.client.zrange(OBSERVERS, 0, -1)
        } or {worker.name for worker in self._fleet.workers}
        observers = [worker for worker in self.ready() if worker.name in names]
        many = min(len(observers), self._chance.choice((1, 1, 2)))
        yield from self._chance.sample(observers, many)

    def newcomer(self) -> Iterator[Worker]:
        """One that has only just begun to take tasks."""
        worker = self._start()
        wait_for(worker.is_ready, "the newcomer is ready", 60)
        time.sleep(self._chance.uniform(0, 0.05))
        yield worker


MOMENTS: dict[str, Callable[[Reaper], Iterator[Worker]]] = {
    "at random": Reaper.at_random,
    "pair": Reaper.pair,
    "task": Reaper.task,
    "prefetch": Reaper.prefetch,
    "ack": Reaper.ack,
    "recovery": Reaper.recovery,
    "newcomer": Reaper.newcomer,
}


def number_of(message: Mapping[str, Any]) -> int:
    """Give the number of the task that a message asks for."""
    (number, *_), *_ = json.loads(base64.b64decode(message["body"]))
    return int(number)


# -- a run ----------------------------------------------------------------------------------------


def conf(*, broker: str, queues: bool) -> dict[str, Any]:
    """Give the settings of the app."""
    settings: dict[str, Any] = {
        "worker_prefetch_multiplier": 4,
        "task_ignore_result": True,
        # Here a message may outlive so many owners as chance has it.
        "heartbeat_max_recoveries": 1000,
    }
    if queues and broker == "rabbitmq":
        settings["task_queue_max_priority"] = 9
    return settings


def run(
    fleet: Fleet,
    *,
    kills: int,
    seed: int,
    broker: str = "valkey",
    trickle: bool = False,
    queues: bool = False,
    workers: int = 6,
) -> dict[str, Any]:
    """Kill so many workers under load; give the account of every task.

    Args:
        fleet: Has no worker yet, and an empty broker.
        kills: How many.
        seed: Of all choices.
        broker: ``valkey`` or ``rabbitmq``.
        trickle: Whether the workers wait for the next task most of the time, instead of the tasks
            for a worker.
        queues: Whether tasks come over several queues, with priorities.
        workers: How many work at a time.
    """
    began = time.monotonic()
    fleet.conf |= conf(broker=broker, queues=queues)
    chance = random.Random(f"{seed} kills {trickle} {queues}")
    tail = Tail(fleet)
    load = Load(
        fleet, tail, random.Random(f"{seed} load {trickle}"), trickle=trickle, queues=queues
    )
    options = ["-Q", ",".join(QUEUES)] if queues else []
    reaper = Reaper(fleet, tail, load, chance, claims=broker == "valkey", options=options)
    fleet.wait_ready(*reaper.refill(workers))
    with load:
        reaper.run(kills, workers)
    fleet.wait_ready(*reaper.refill(workers))
    settled = _settle(tail, load.sent)
    verdicts = {
        number: judge(tail.starts[number], tail.ends[number], reaper.deaths)
        for number in range(load.sent)
    }
    lost = [number for number, verdict in verdicts.items() if verdict.lost]
    for number in _suspicious(verdicts)[:10]:
        _show(number, tail, reaper.deaths, verdicts[number])
    fleet.stop_all()
    extra = sum(verdict.extra for verdict in verdicts.values())
    return {
        "kills": len(reaper.deaths),
        "tasks": load.sent,
        "lost": len(lost),
        "recovered_twice": sum(verdict.twice for verdict in verdicts.values()),
        "extra_executions": extra,
        "explained": extra - sum(verdict.unexplained for verdict in verdicts.values()),
        "seed": seed,
        "broker": broker,
        "trickle": trickle,
        "queues": queues,
        "left_over": left_over(fleet, broker=broker, queues=queues),
        "lost_before_they_started": sum(not tail.starts[number] for number in lost),
        "moments": dict(sorted(reaper.met.items())),
        "settled_s": round(settled, 1),
        "seconds": round(time.monotonic() - began),
    }


def is_good(account: Mapping[str, Any]) -> bool:
    """Tell whether nothing was lost or handed over twice, and every extra run is explained."""
    return (
        account["lost"] == account["recovered_twice"] == 0
        and account["explained"] == account["extra_executions"]
    )


def left_over(fleet: Fleet, *, broker: str, queues: bool) -> dict[str, int]:
    """Tell what is left in the broker when all workers have stopped."""
    if broker == "valkey":
        return {key: len(value) for key, value in fleet.left_over().items()}
    left = {}
    with fleet.app().connection_for_read() as connection:
        channel = connection.default_channel
        for queue in QUEUES if queues else QUEUES[:1]:
            left[queue] = channel.queue_declare(queue, passive=True).message_count
    return {queue: count for queue, count in left.items() if count}


def _settle(tail: Tail, sent: int) -> float:
    """Wait until all has ended, or nothing moves any more; give the seconds to the last record."""
    began = moved = time.monotonic()
    while len(tail.ends) < sent and time.monotonic() < moved + SETTLED:
        time.sleep(0.2)
        if tail.read():
            moved = time.monotonic()
    # A second copy of a task would run about now.
    time.sleep(2)
    tail.read()
    return moved - began


def _suspicious(verdicts: Mapping[int, Verdict]) -> list[int]:
    return [
        number for number, each in verdicts.items() if each.lost or each.twice or each.unexplained
    ]


def _show(number: int, tail: Tail, deaths: Mapping[str, Death], verdict: Verdict) -> None:
    """Print all that is known of a task that something is wrong with."""
    print(f"task {number}: {verdict}", file=sys.stderr)
    for record in [*tail.starts[number], *tail.ends[number]]:
        print(f"  {record}", file=sys.stderr)
        death = deaths.get(record["life"])
        if death is not None:
            held = death.held if death.held is None else number in death.held
            print(f"    killed at {death.began}, held it: {held}", file=sys.stderr)
    for life, death in deaths.items():
        if death.held and number in death.held:
            print(f"  held by {life}, killed at {death.began}", file=sys.stderr)


@contextlib.contextmanager
def server(broker: str, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Start a broker; give where it is, and where the records are to stand."""
    with contextlib.ExitStack() as stack:
        valkey = RedisServer(valkey_binary(), folder)
        valkey.start()
        stack.callback(valkey.stop)
        if broker == "valkey":
            yield valkey.url, ""
        else:
            rabbit = RabbitServer(folder)
            rabbit.start()
            stack.callback(rabbit.stop)
            yield rabbit.url, valkey.url


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="in each run (default: 20)")
    parser.add_argument("--broker", choices=["valkey", "rabbitmq"], default="valkey")
    parser.add_argument("--seed", type=int, default=None, help="of the choices (default: another)")
    parser.add_argument("--workers", type=int, default=6, help="at a time (default: 6)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="only the run with a full queue")
    which.add_argument("--trickle", action="store_true", help="only the run with a trickling one")
    parser.add_argument(
        "--queues",
        action=argparse.BooleanOptionalAction,
        help="several queues and priorities (default: in one of the two runs, by the seed)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    parser.add_argument("--logs", type=pathlib.Path, help="keep the workers' logs there")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    good = True
    runs = [False] if options.full else [True] if options.trickle else [False, True]
    for trickle in runs:
        queues = (seed + trickle) % 2 == 1 if options.queues is None else options.queues
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            try:
                with (
                    server(options.broker, folder) as (url, records),
                    Fleet(url, folder, records_url=records) as fleet,
                ):
                    account = run(
                        fleet,
                        kills=options.kills,
                        seed=seed,
                        broker=options.broker,
                        trickle=trickle,
                        queues=queues,
                        workers=options.workers,
                    )
            except ServerError as exc:
                parser.error(str(exc))
            if options.logs:
                kept = options.logs / ("trickle" if trickle else "full")
                kept.mkdir(parents=True, exist_ok=True)
                for log in folder.glob("*.log"):
                    shutil.copy(log, kept)
        good = good and is_good(account)
        print(json.dumps(account) if options.json else sentence(account), flush=True)
    return 0 if good else 1


def sentence(account: Mapping[str, Any]) -> str:
    """Say an account in words."""
    load = "trickling" if account["trickle"] else "full"
    return (
        f"{account['kills']} kills on {account['broker']} under a {load} queue: "
        f"{account['tasks']} tasks, {account['lost']} lost, "
        f"{account['recovered_twice']} recovered twice; {account['extra_executions']} ran again, "
        f"{account['explained']} of them explained (seed {account['seed']})"
    )


if __name__ == "__main__":
    sys.exit(main())
