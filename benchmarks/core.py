"""What the machine costs, beside the least that the interpreter could do.

    python benchmarks/core.py            # a table
    python benchmarks/core.py --json     # the ratios as one object

``observe`` is timed in worker processes of pyperf, beside its *floor*: the same call with the same
beats, in the same random order, that does nothing but one look-up in a dict and one attribute
written on a slotted object. So the ratio says what the machine does, not what a call costs; the
same two steps without a call, as no transport could do them, are in the output as ``inline``.
Beats are made before the clock starts, a batch at a time, as a transport would hand them over.

What a node costs in memory is what ``tracemalloc`` counts after a first beat of each. The longest
call is the longest of all calls of ``check`` and ``next_deadline`` in ten seconds of the life of a
million nodes that beat once a second, the garbage collector on; in processor time of its thread,
since on a busy machine a call on the wall clock is as long as the others let it be.
"""

import argparse
import functools
import gc
import itertools
import json
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator

import attrs
import pyperf

from heartbeat_core import Beat, Detector, Incarnation, Settings

SMALL, LARGE = 10_000, 1_000_000
BATCH = 2_000
SECONDS = 10
LOOPS = 400_000


@attrs.define(eq=False, weakref_slot=False)
class Slot:
    """The least that could be kept of a node."""

    heard: float = 0.0


class Fleet:
    """Nodes that beat in an order of their own, and an observer of theirs."""

    def __init__(self, size: int) -> None:
        self.names = [f"worker-{number:07}@host-{number % 997:03}" for number in range(size)]
        self.order = list(range(size))
        random.Random(1).shuffle(self.order)
        self.now = 1_000.0
        self.me = Incarnation("observer", 1)
        self.detector = Detector(Settings(), self.me)
        self._sequence = 0
        self._echoes = itertools.count(1)

    def rounds(self) -> Iterator[list[int]]:
        """Give batches of nodes, round after round, without an end."""
        while True:
            self._sequence += 1
            for start in range(0, len(self.order), BATCH):
                yield self.order[start : start + BATCH]

    def beats(self, batch: list[int]) -> list[Beat]:
        """Make the beats of a batch as they come from the wire: each with objects of its own."""
        return [
            Beat(
                incarnation=Incarnation(self.names[number], 1_700_000_000_000_000 + number),
                sequence=self._sequence,
                sent=self.now - 0.0005 * (1 + number % 5),
                gap=1.0,
            )
            for number in batch
        ]

    def meet_all(self) -> None:
        """Let everybody beat once, in the order of names: later ones are met in another order."""
        self._sequence += 1
        for start in range(0, len(self.names), BATCH):
            for beat in self.beats(list(range(start, min(start + BATCH, len(self.names))))):
                self.detector.observe(beat, self.now)

    def beat_all(self) -> None:
        """Let everybody beat once."""
        for batch in itertools.islice(self.rounds(), -(-len(self.order) // BATCH)):
            for beat in self.beats(batch):
                self.detector.observe(beat, self.now)

    def echo(self) -> None:
        """Let the observer hear itself."""
        beat = Beat(incarnation=self.me, sequence=next(self._echoes), sent=self.now, gap=1.0)
        self.detector.observe(beat, self.now)


class Floor:
    """A detector that only notes when a node was heard."""

    def __init__(self, names: list[str]) -> None:
        self.slots = {name: Slot() for name in names}

    def observe(self, beat: Beat, now: float) -> None:
        """Note it."""
        self.slots[beat.incarnation.node].heard = now


@functools.cache
def fleet_of(size: int) -> tuple[Fleet, Floor]:
    """Give the fleet of this process, of which everybody has beaten once, and its floor."""
    fleet = Fleet(size)
    fleet.meet_all()
    return fleet, Floor(fleet.names)


def time_beats(loops: int, size: int, what: str) -> float:
    """Time so many beats."""
    fleet, floor = fleet_of(size)
    observe = fleet.detector.observe if what == "observe" else floor.observe
    spent, left = 0.0, loops
    for batch in fleet.rounds():
        beats = fleet.beats(batch)[:left]
        fleet.now += 1e-6
        spent += (
            inline(beats, floor, fleet.now) if what == "inline" else run(beats, observe, fleet.now)
        )
        left -= len(beats)
        if not left:
            return spent
    raise AssertionError


def run(beats: list[Beat], observe: Callable[[Beat, float], object], now: float) -> float:
    """Time a call a beat."""
    began = time.perf_counter()
    for beat in beats:
        observe(beat, now)
    return time.perf_counter() - began


def inline(beats: list[Beat], floor: Floor, now: float) -> float:
    """Time what ``Floor.observe`` does, without the call."""
    slots = floor.slots
    began = time.perf_counter()
    for beat in beats:
        slots[beat.incarnation.node].heard = now
    return time.perf_counter() - began


def bytes_per_node(size: int) -> float:
    """Count what a detector keeps of a node that has beaten, its names and beats included."""
    fleet = Fleet(size)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    fleet.meet_all()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / size


def longest_call(size: int) -> dict[str, float]:
    """Let a fleet live for some seconds; time each call of the clock's, in milliseconds."""
    fleet = Fleet(size)
    detector = fleet.detector
    fleet.meet_all()
    fleet.echo()
    calls: list[float] = []
    wall: list[float] = []

    def timed(call: Callable[[], object]) -> object:
        began, began_wall = time.thread_time(), time.perf_counter()
        result = call()
        calls.append(1000 * (time.thread_time() - began))
        wall.append(1000 * (time.perf_counter() - began_wall))
        return result

    for quarter in range(4 * SECONDS):
        fleet.now += 0.25
        if quarter % 4 == 0:
            fleet.beat_all()
        fleet.echo()
        while True:
            assert not timed(lambda: detector.check(fleet.now))
            deadline = timed(detector.next_deadline)
            assert isinstance(deadline, float)
            if deadline > fleet.now:
                break
    calls.sort()
    return {
        "longest_ms": calls[-1],
        "longest_wall_ms": max(wall),
        "p99_ms": calls[int(0.99 * len(calls))],
        "core_share": sum(calls) / 1000 / SECONDS,
        "calls": float(len(calls)),
    }


def medians(suite: pyperf.BenchmarkSuite) -> dict[str, float]:
    """Give the median of each benchmark, in nanoseconds."""
    return {
        bench.get_name(): 1e9 * statistics.median(bench.get_values())
        for bench in suite.get_benchmarks()
    }


def _run_pyperf() -> None:
    """Run the timed part: this process is pyperf's, and starts workers of its own."""
    runner = pyperf.Runner(processes=2, values=3, warmups=1, loops=LOOPS)
    for size in (SMALL, LARGE):
        for what in ("inline", "floor", "observe"):
            runner.bench_time_func(f"{what}_{size}", time_beats, size, what)


def main() -> None:
    """Measure, and print."""
    if "--timed" in sys.argv or "--worker" in sys.argv:
        sys.argv = [each for each in sys.argv if each != "--timed"]
        _run_pyperf()
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "times.json"
        command = [sys.executable, __file__, "--timed", "--quiet", "-o", str(result)]
        subprocess.run(command, stdout=sys.stderr, check=True)
        times = medians(pyperf.BenchmarkSuite.load(str(result)))
    calls = longest_call(LARGE)
    ratios = {
        "observe_over_floor_10k": times[f"observe_{SMALL}"] / times[f"floor_{SMALL}"],
        "observe_over_floor_1m": times[f"observe_{LARGE}"] / times[f"floor_{LARGE}"],
        "bytes_per_node": bytes_per_node(100_000),
        "longest_call_ms_1m": calls["longest_ms"],
    }
    if options.json:
        raw = {**{f"{name}_ns": value for name, value in times.items()}, **calls}
        rounded = {name: round(value, 3) for name, value in {**ratios, **raw}.items()}
        print(json.dumps({**rounded, "python": platform.python_version()}))
        return
    for size in (SMALL, LARGE):
        floor, observe = times[f"floor_{size}"], times[f"observe_{size}"]
        print(
            f"{size:>9} nodes: observe {observe:6.0f} ns, floor {floor:6.0f} ns, "
            f"ratio {observe / floor:.2f}"
        )
    print(f"a node costs {ratios['bytes_per_node']:.0f} bytes")
    print(
        f"a million nodes: the longest call of the clock takes {calls['longest_ms']:.1f} ms "
        f"(99 of 100: {calls['p99_ms']:.1f} ms), all of them {calls['core_share']:.2f} of a core"
    )


if __name__ == "__main__":
    main()
