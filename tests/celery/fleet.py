"""Real workers in processes of their own, and the account of what they did."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import redis

HERE = pathlib.Path(__file__).parent


@attrs.define(eq=False)
class Worker:
    """One worker: a process with a group of its own.

    Attributes:
        name: Its name, which the next one may bear again.
        process: Its parent process.
        log: What it says.
        life: This one of its lives.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: pathlib.Path
    life: str

    def kill_group(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the worker and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def is_ready(self) -> bool:
        """Tell whether it takes tasks.

        Raises:
            AssertionError: It has ended.
        """
        assert self.process.poll() is None, self.log.read_text()
        return bool(self.lines(" ready."))

    def lines(self, word: str = "") -> list[str]:
        """Give the lines of its log that have a word in them."""
        return [line for line in self.log.read_text().splitlines() if word in line]


@attrs.define(eq=False)
class Fleet:
    """Workers on one broker. Leaving the context ends them all, by process id.

    Attributes:
        url: The broker.
        folder: For the logs.
        conf: Settings of the app.
        environ: More of the workers' environment.
        app_name: The app.
        records_url: The Redis where the tasks write down what they do; the broker, if empty.
        workers: Those that were started and not ended.
    """

    url: str
    folder: pathlib.Path
    conf: dict[str, Any] = attrs.field(factory=dict)
    environ: dict[str, str] = attrs.field(factory=dict)
    app_name: str = "fleet_app"
    records_url: str = ""
    celery: tuple[str, ...] = (sys.executable, "-m", "celery")
    workers: list[Worker] = attrs.field(factory=list, init=False)
    client: "redis.Redis[str]" = attrs.field(init=False)
    _started: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        """Connect to where the records are."""
        url = self.records_url or (self.url if self.url.startswith("redis") else "redis://")
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def __enter__(self) -> "Fleet":
        """Begin with nobody."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End every worker that is left."""
        for worker in self.workers:
            worker.kill_group(signal.SIGKILL)
        for worker in self.workers:
            worker.process.wait()
        self.client.close()

    def start(
        self, name: str, *options: str, pool: str = "prefork", concurrency: int = 2
    ) -> Worker:
        """Start a worker; does not wait until it is ready."""
        options = ("-P", pool, "-c", str(concurrency), "-n", f"{name}@here", *options)
        return self._start(name, "worker", "-l", "INFO", *options)

    def start_beat(self, *options: str) -> Worker:
        """Start a scheduler; does not wait for it."""
        schedule = str(self.folder / f"beat-{self._started}.schedule")
        return self._start("beat", "beat", "-l", "INFO", "-s", schedule, *options)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of Celery's to its end."""
        command = [*self.celery, "-A", self.app_name, *arguments]
        environ = self.environment()
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, check=False, timeout=60
        )

    def environment(self) -> dict[str, str]:
        """Give the environment of every worker."""
        return {
            **os.environ,
            "FLEET_BROKER": self.url,
            "FLEET_RECORDS": self.records_url,
            "FLEET_CONF": json.dumps(self.conf),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), str(self.folder), os.environ.get("PYTHONPATH", "")]
            ),
            "PYTHONWARNINGS": "ignore",
            # Whoever is killed leaves temporary files.
            "TMPDIR": str(self.folder),
            **self.environ,
        }

    def _start(self, name: str, *arguments: str) -> Worker:
        self._started += 1
        life = f"{name}-{self._started}"
        log = self.folder / f"{life}.log"
        command = [*self.celery, "-A", self.app_name, *arguments]
        environ = {**self.environment(), "FLEET_LIFE": life}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=environ, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        worker = Worker(name, process, log, life)
        self.workers.append(worker)
        return worker

    def start_all(self, count: int, **kwargs: Any) -> list[Worker]:
        """Start so many workers, and wait until they are ready and know each other."""
        workers = [self.start(f"w{self._started + 1}", **kwargs) for _ in range(count)]
        self.wait_ready(*workers)
        return workers

    def wait_ready(self, *workers: Worker) -> None:
        """Wait until these workers take tasks."""
        for worker in workers:
            wait_for(worker.is_ready, f"{worker.name} is ready", 60)

    def wait_listening(self, *workers: Worker) -> None:
        """Wait until these workers take orders, which may be later than tasks.

        What is broadcast before that is lost.
        """
        for worker in workers:
            ping, name = self.app().control.ping, [f"{worker.name}@here"]
            wait_for(lambda ping=ping, name=name: ping(name, timeout=1), "it listens to orders")

    def stop(self, worker: Worker, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """End a worker gracefully; give its exit code."""
        worker.process.send_signal(number)
        try:
            code = worker.process.wait(timeout)
        except subprocess.TimeoutExpired:
            # Celery's own way to tell where each of its threads is.
            worker.process.send_signal(signal.SIGUSR1)
            time.sleep(2)
            raise AssertionError(
                f"{worker.name} does not stop:\n{worker.log.read_text()[-20_000:]}"
            ) from None
        self.workers.remove(worker)
        return code

    def stop_all(self, timeout: float = 30) -> None:
        """End all workers gracefully, at the same time."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in list(self.workers):
            worker.process.wait(timeout)
            self.workers.remove(worker)

    def send(self, task: str, count: int, seconds: float, first: int = 0) -> None:
        """Send tasks, numbered from ``first``."""
        app = self.app()
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for number in range(first, first + count):
                app.send_task(task, (number, seconds), producer=producer)

    def app(self) -> Any:
        """Give an app that sends to the workers."""
        import celery

        where = self.records_url or self.url
        backend = where if where.startswith("redis") else None
        app = celery.Celery("fleet", broker=self.url, backend=backend)
        # Of results only the workers are told elsewhere.
        app.conf.update({name: self.conf[name] for name in self.conf.keys() - {"result_backend"}})
        return app

    # -- the account --------------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """Give what the tasks wrote down."""
        return [json.loads(line) for line in self.client.lrange("fleet:records", 0, -1)]

    def by_number(self, what: str) -> dict[int, list[dict[str, Any]]]:
        """Give the starts or the ends, by the task's number."""
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for record in self.records():
            if record["what"] == what:
                found[record["number"]].append(record)
        return found

    def running(self) -> dict[int, str]:
        """Tell which tasks run where."""
        running: dict[int, str] = {}
        for record in self.records():
            if record["what"] == "start":
                running[record["number"]] = record["worker"]
            else:
                running.pop(record["number"], None)
        return running

    def wait_ended(self, count: int, timeout: float = 60) -> None:
        """Wait until tasks 0 to ``count`` - 1 have come to their end."""
        wait_for(lambda: len(self.by_number("end")) >= count, f"{count} tasks ended", timeout)

    def left_over(self) -> dict[str, list[str]]:
        """Give what is left of claims and unacknowledged messages in the broker."""
        left = {}
        for key in self.client.scan_iter("*"):
            if key == "unacked" or ":claims:" in key:
                left[key] = sorted(self.client.hkeys(key))
            elif key.endswith(":holders"):
                left[key] = sorted(self.client.smembers(key))
        return left


def wait_for(what: Callable[[], Any], claim: str, timeout: float = 20) -> Any:
    """Wait until something is true; fail with the claim if it does not become so."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        value = what()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout} s: {claim}")


@contextlib.contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """Keep a worker and its children stopped."""
    worker.kill_group(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.kill_group(signal.SIGCONT)
