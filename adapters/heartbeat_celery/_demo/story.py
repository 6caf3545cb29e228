"""What happened in a run, as far as it is known; and the account at the end."""

import statistics
from collections import Counter
from typing import Any

import attrs

from heartbeat_core import Cause, Settings, State, Transition

__all__ = ("Story",)


@attrs.define
class Story:
    """Facts come in, with the times of one machine's wall clock; a summary comes out.

    Attributes:
        workers: How many workers there are.
        tasks: How many tasks are to be sent.
        kill: How one of them ends.
        sent: How many tasks were sent.
        results: How many results were received.
        states: What the demo's own observer holds each worker for.
        running: Which tasks run, and on which worker.
        done: How many tasks each worker has ended.
        events: What changed, with the time of it.
    """

    workers: int
    tasks: int
    kill: str
    sent: int = 0
    results: int = 0
    states: dict[str, State | None] = attrs.field(factory=dict)
    running: dict[int, str] = attrs.field(factory=dict)
    done: "Counter[str]" = attrs.field(factory=Counter)
    events: list[tuple[float, str]] = attrs.field(factory=list)
    victim: str | None = None
    killed_at: float | None = None
    suspect_at: float | None = None
    dead_at: float | None = None
    held: set[int] = attrs.field(factory=set)
    reruns: dict[int, float] = attrs.field(factory=dict)
    _ends: "Counter[int]" = attrs.field(factory=Counter)

    def say(self, text: str, at: float) -> None:
        """Note an event for people."""
        self.events.append((at, text))

    def on_kill(self, victim: str, at: float) -> None:
        """Note that the victim is now killed or stopped."""
        self.victim, self.killed_at = victim, at
        self.say(f"{victim} is {'killed' if self.kill == 'sigkill' else 'stopped'}", at)

    def after_kill(self) -> None:
        """Note what it was doing, once all that it wrote down before is known."""
        self.held = {number for number, worker in self.running.items() if worker == self.victim}
        numbers = ", ".join(f"#{number}" for number in sorted(self.held))
        self.say(f"{self.victim} was running {numbers or 'nothing'}", self.killed_at or 0.0)

    def on_transition(self, transition: Transition, at: float) -> None:
        """Note what the demo's own observer found."""
        if transition.cause is Cause.MASS_LOSS:
            self.say(transition.reason, at)
            return
        name = transition.node.partition("@")[0]
        self.states[name] = transition.state
        if transition.previous is None or self.killed_at is None:
            return
        state = transition.state.value.upper() if transition.state else "gone"
        self.say(f"{name} is {state}: {transition.reason}", at)
        if name == self.victim and transition.state is State.SUSPECT and self.suspect_at is None:
            self.suspect_at = at
        if name == self.victim and transition.state is State.DEAD and self.dead_at is None:
            self.dead_at = at

    def on_note(self, note: dict[str, Any]) -> None:
        """Note that a task started or ended."""
        number, worker, at = note["number"], note["worker"], note["at"]
        if note["what"] == "end":
            self.running.pop(number, None)
            self.done[worker] += 1
            self._ends[number] += 1
            return
        if number in self.held and worker != self.victim and number not in self.reruns:
            self.reruns[number] = at
            self.say(f"task #{number} runs again, on {worker}", at)
        self.running[number] = worker

    def since_kill(self, at: float | None) -> float | None:
        """Give the seconds since the kill."""
        if at is None or self.killed_at is None:
            return None
        return round(at - self.killed_at, 3)

    def busiest(self) -> str | None:
        """Give the worker that runs most tasks now, if any runs one."""
        counts = Counter(self.running.values())
        return counts.most_common(1)[0][0] if counts else None

    def summary(self, settings: Settings) -> dict[str, Any]:
        """Give the account."""
        times = sorted(self.reruns.values())
        return {
            "tasks": self.sent,
            "results": self.results,
            "lost": self.sent - self.results,
            "twice": sum(count > 1 for count in self._ends.values()),
            "rerun": len(self.reruns),
            "kill_to_suspect_s": self.since_kill(self.suspect_at),
            "kill_to_dead_s": self.since_kill(self.dead_at),
            "kill_to_first_rerun_s": self.since_kill(times[0] if times else None),
            "kill_to_median_rerun_s": self.since_kill(statistics.median(times) if times else None),
            "kill_to_last_rerun_s": self.since_kill(times[-1] if times else None),
            "workers": self.workers,
            "kill": self.kill,
            "victim": self.victim,
            "settings": {
                "frequency": settings.frequency,
                "max_freq": settings.max_freq,
                "checks": settings.checks,
                "min_freq": settings.min_freq,
                "expire": settings.expire,
                "disconnect_interval": settings.disconnect_interval,
            },
        }
