"""Simulate whole fleets, one for each seed, and see whether the detector keeps its promises.

    python -m heartbeat_core.testing --seeds 1000
    python -m heartbeat_core.testing --first 4711 --seeds 1

The first seed that breaks a promise is told with the last events before it, and the exit code is
1 then. A seed gives the same run everywhere, so its number is all that a report of a bug needs.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import attrs

from heartbeat_core._settings import Settings
from heartbeat_core.testing._scenario import draw
from heartbeat_core.testing._simulator import BrokenPromise, simulate

__all__ = ("Outcome", "main", "run_seed", "summary")


@attrs.frozen(kw_only=True)
class Outcome:
    """What a seed came to.

    Attributes:
        seed: The seed.
        broken: The story of the promise that was broken; empty if none was.
        events: How many steps there were.
        excused: How many living nodes were buried, by what excuses it.
        suspected: From crash to suspicion, in microseconds, with the usual settings and without
            presence, last beats or not.
        died: From crash to death, likewise.
    """

    seed: int
    broken: str = ""
    events: int = 0
    excused: dict[str, int] = attrs.field(factory=dict[str, int])
    suspected: tuple[int, ...] = ()
    died: tuple[int, ...] = ()


def run_seed(seed: int) -> Outcome:
    """Run one seed."""
    scenario = draw(seed)
    try:
        report = simulate(scenario)
    except BrokenPromise as exc:
        return Outcome(seed=seed, broken=str(exc))
    settings = scenario.settings
    given = Settings()
    same = all(
        getattr(settings, name) == getattr(given, name)
        for name in ("detector", "frequency", "max_freq", "checks", "min_freq")
    )
    usual = same and not scenario.presence
    return Outcome(
        seed=seed,
        events=report.events,
        excused=report.excused,
        suspected=report.suspected if usual else (),
        died=report.died if usual else (),
    )


def summary(outcomes: Iterable[Outcome]) -> dict[str, object]:
    """Add up what the seeds came to."""
    excused: Counter[str] = Counter()
    suspected: list[int] = []
    died: list[int] = []
    seeds = events = 0
    for outcome in outcomes:
        seeds += 1
        events += outcome.events
        excused.update(outcome.excused)
        suspected += outcome.suspected
        died += outcome.died
    return {
        "seeds": seeds,
        "events": events,
        "buried_alive_with_excuse": dict(sorted(excused.items())),
        "suspect_s": _spread(suspected),
        "dead_s": _spread(died),
    }


def _spread(times: Sequence[int]) -> dict[str, float]:
    """Give median, 99th percentile and maximum in seconds, and of how many."""
    if not times:
        return {"crashes": 0}
    ordered = sorted(times)
    return {
        "crashes": len(ordered),
        "p50": ordered[len(ordered) // 2] / 1e6,
        "p99": ordered[len(ordered) * 99 // 100] / 1e6,
        "max": ordered[-1] / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m heartbeat_core.testing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes (1)")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for outcome in _outcomes(seeds, options.jobs):
        if outcome.broken:
            sys.stdout.write(
                f"{outcome.broken}\n\nreplay it: python -m heartbeat_core.testing "
                f"--first {outcome.seed} --seeds 1\n"
            )
            return 1
        outcomes.append(outcome)
    told = summary(outcomes) | {"took_s": round(time.monotonic() - started, 1)}
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return 0


def _outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    if jobs < 2:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=8)
