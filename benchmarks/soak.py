"""No false alarm: living workers under full load, while the broker and a worker misbehave.

Twice as many busy workers as there are cores, one of them with threads, and by a schedule that
begins anew every two minutes:

* the broker is stopped for ten seconds (SIGSTOP), and goes on,
* one worker holds its interpreter's lock for twenty seconds in one call of C,
* the broker is restarted; it keeps what it had.

No worker dies in it, so nobody may be declared dead and nothing may be recovered: exits 1 if it is.
Suspicions are counted; the silent worker is rightly suspected. What ran twice is counted too: when
a connection breaks, Celery itself gives back what it held.

    python benchmarks/soak.py --minutes 6 --broker valkey
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

TESTS = pathlib.Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "celery")]

from servers import RabbitServer, RedisServer, ServerError, valkey_binary

from fleet import Fleet

FREEZE = 10.0
HOLD = 20.0
AWAY = 2.0
CYCLE = 120.0
QUEUED = 8
"""So many tasks wait for each worker."""

LINES = {
    "suspicions": re.compile(r"-> suspect \((?P<cause>[^)]*)\)"),
    "deaths": re.compile(r"-> dead \((?P<cause>[^)]*)\)"),
    "recoveries": re.compile(r"(?P<cause>are back in their queues)"),
    "taken_over": re.compile(r"(?P<cause>was taken over by another worker)"),
    "errors": re.compile(r"(?P<cause>Traceback)"),
}
"""What is counted in the logs of the workers."""


class Feeder:
    """Keeps tasks waiting while it is open, broker or not."""

    def __init__(self, fleet: Fleet, waiting: int) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _feed(self) -> None:
        number = sent = 0
        while not self._stop.wait(0.2):
            missing = self._waiting + len(self._fleet.by_number("start")) - sent
            if missing > 0:
                first, number = number, number + missing
                # The broker may be away: then they are missing the next time too, but how many of
                # these numbers have arrived nobody knows.
                with contextlib.suppress(Exception):
                    self._fleet.send("spin", missing, 2.0, first=first)
                    sent += missing


def hold(fleet: Fleet, number: int) -> None:
    """Let the worker with the queue for it hold its interpreter's lock."""
    fleet.app().send_task("hold", (number, HOLD), queue="hold")


def freeze(server: RedisServer | RabbitServer) -> None:
    """Keep the broker from doing anything for a while."""
    server.freeze()
    time.sleep(FREEZE)
    server.thaw()


def restart(server: RedisServer | RabbitServer) -> None:
    """Stop the broker and start it."""
    server.stop()
    time.sleep(AWAY)
    server.start()


def count(fleet: Fleet) -> dict[str, Any]:
    """Count in the logs what the workers say of each other."""
    found: dict[str, Counter[str]] = {what: Counter() for what in LINES}
    for path in fleet.folder.glob("soak*.log"):
        for line in path.read_text(errors="replace").splitlines():
            for what, pattern in LINES.items():
                if match := pattern.search(line):
                    found[what][match["cause"]] += 1
    return {
        what: dict(causes) if what == "suspicions" else sum(causes.values())
        for what, causes in found.items()
    }


def held(fleet: Fleet, first: int) -> list[float]:
    """Give how long the calls of C took."""
    starts, ends = fleet.by_number("start"), fleet.by_number("end")
    numbers = [number for number in starts if number >= first]
    return [
        round(ends[number][0]["at"] - starts[number][0]["at"], 1)
        for number in numbers
        if ends[number]
    ]


def soak(
    fleet: Fleet, server: RedisServer | RabbitServer, minutes: float, logs: pathlib.Path | None
) -> dict[str, Any]:
    """Run it; give the account."""
    cores = os.cpu_count() or 1
    busy = 2 * cores
    for number in range(busy - 1):
        pool = ("prefork", "solo")[number % 2]
        fleet.start(f"soak{number}", pool=pool, concurrency=1)
    fleet.start(f"soak{busy - 1}", "-Q", "celery,hold", pool="threads", concurrency=2)
    fleet.wait_ready(*fleet.workers)
    first_hold = 10**9
    events: tuple[tuple[float, str, Callable[[int], None]], ...] = (
        (10.0, "freeze", lambda _: freeze(server)),
        (35.0, "hold", lambda turn: hold(fleet, first_hold + turn)),
        (85.0, "restart", lambda _: restart(server)),
    )
    done: Counter[str] = Counter()
    began = time.monotonic()
    with Feeder(fleet, QUEUED * busy):
        turn = 0
        while (begin := turn * CYCLE) < minutes * 60:
            for at, what, act in events:
                if begin + at < minutes * 60:
                    _sleep_until(began + begin + at)
                    print(f"{time.monotonic() - began:.0f} s: {what}", file=sys.stderr)
                    act(turn)
                    done[what] += 1
            turn += 1
            _sleep_until(began + min(turn * CYCLE, minutes * 60))
            print(f"{time.monotonic() - began:.0f} s: {count(fleet)}", file=sys.stderr)
    ended = [worker.name for worker in fleet.workers if worker.process.poll() is not None]
    starts = fleet.by_number("start")
    account = {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "cores": cores,
        "workers": busy,
        "tasks": len(fleet.by_number("end")),
        "ran_twice": sum(len(records) > 1 for records in starts.values()),
        "events": dict(done),
        "held_s": held(fleet, first_hold),
        "ended_workers": ended,
        **count(fleet),
    }
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
        for path in fleet.folder.glob("soak*.log"):
            (logs / path.name).write_bytes(path.read_bytes())
    return account


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--broker", choices=["valkey", "rabbitmq"], default="valkey")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--logs", type=pathlib.Path, help="keep the workers' logs there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        records = RedisServer(valkey_binary(), folder)
        server: RedisServer | RabbitServer
        if options.broker == "valkey":
            server = RedisServer(valkey_binary(), folder, ["--appendonly", "yes"])
        else:
            server = RabbitServer(folder)
        try:
            for each in (records, server):
                each.start()
                stack.callback(each.stop)
        except ServerError as exc:
            parser.error(str(exc))
        fleet = stack.enter_context(Fleet(server.url, folder, records_url=records.url))
        fleet.conf["task_ignore_result"] = True
        account = {"broker": options.broker} | soak(fleet, server, options.minutes, options.logs)
    bad = bool(account["deaths"] or account["recoveries"] or account["ended_workers"])
    if options.json:
        print(json.dumps(account))
    else:
        print("\n".join(f"{key}: {value}" for key, value in account.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
