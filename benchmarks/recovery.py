"""From the end of a worker to its task running on another worker.

Three workers with their default settings on a private broker; each time the worker ends, or is
stopped, that runs the one long task. Times are of one machine's wall clock: from just before the
signal is sent to what the task writes down first when it runs again. Prints one JSON object.

    python benchmarks/recovery.py --kills 20
    python benchmarks/recovery.py --kills 20 --broker rabbitmq
    python benchmarks/recovery.py --kills 20 --broker rabbitmq --without
    python benchmarks/recovery.py --kills 3 --signal stop
"""

import argparse
import contextlib
import json
import pathlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

TESTS = pathlib.Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "celery")]

from servers import RabbitServer, RedisServer, valkey_binary

from fleet import Fleet, wait_for

SIGNALS = {"kill": "SIGKILL", "stop": "SIGSTOP"}
LONGEST = 300.0


@contextlib.contextmanager
def fleet_on(broker: str, *, heartbeat: bool) -> Iterator[Fleet]:
    """Start the servers; give a fleet of nobody yet."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = RedisServer(valkey_binary(), folder)
        valkey.start()
        stack.callback(valkey.stop)
        url, environ = valkey.url, {"FLEET_HEARTBEAT": "1" if heartbeat else "0"}
        if broker == "rabbitmq":
            (folder / "rabbitmq").mkdir()
            rabbit = RabbitServer(folder / "rabbitmq")
            rabbit.start()
            stack.callback(rabbit.stop)
            url = rabbit.url
            environ["CELERY_HEARTBEAT_MANAGEMENT_URL"] = rabbit.management_url
        fleet = Fleet(url, folder, environ=environ, records_url=valkey.url)
        yield stack.enter_context(fleet)


def once(fleet: Fleet, number: int, kind: str) -> float:
    """End the worker that runs a new task; give the seconds until the task runs elsewhere."""
    fleet.send("sleep", 1, 3.0, first=number)
    wait_for(lambda: number in fleet.running(), "the task runs")
    time.sleep(0.5)
    name = fleet.running()[number]
    victim = next(each for each in fleet.workers if f"{each.name}@here" == name)
    began = time.time()
    victim.kill_group(getattr(signal, SIGNALS[kind]))
    starts: list[dict[str, Any]] = wait_for(
        lambda: len(s := fleet.by_number("start")[number]) > 1 and s, "it runs again", LONGEST
    )
    victim.kill_group(signal.SIGKILL)
    victim.process.wait()
    fleet.workers.remove(victim)
    wait_for(lambda: fleet.by_number("end")[number], "the task ended", 60)
    return float(starts[1]["at"] - began)


def main() -> None:
    """Run it and print the account."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many workers to end")
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--broker", choices=["valkey", "rabbitmq"], default="valkey")
    parser.add_argument("--signal", choices=sorted(SIGNALS), default="kill")
    parser.add_argument("--without", action="store_true", help="without the heartbeat")
    options = parser.parse_args()
    times = []
    with fleet_on(options.broker, heartbeat=not options.without) as fleet:
        for number in range(options.kills):
            fleet.start_all(3 - len(fleet.workers), pool=options.pool)
            time.sleep(1.5)
            times.append(once(fleet, number, options.signal))
            print(f"{number + 1}: {times[-1]:.3f} s", file=sys.stderr)
    account = {
        "kills": len(times),
        "signal": SIGNALS[options.signal],
        "broker": options.broker,
        "heartbeat": not options.without,
        "pool": options.pool,
        "median_s": round(statistics.median(times), 3),
        "max_s": round(max(times), 3),
        "min_s": round(min(times), 3),
        "raw_s": [round(each, 3) for each in times],
    }
    print(json.dumps(account))


if __name__ == "__main__":
    main()
