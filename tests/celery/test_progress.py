"""What tells whether a main loop turns, without a worker; and the end of a process."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from heartbeat_celery._children import Children
from heartbeat_celery._progress import Progress, Stopwatch
from heartbeat_celery._replacement import EXIT_CODE


@pytest.mark.parametrize(
    ("looks", "stood"),
    [
        ([(1, 0.0)], 0.0),
        ([(1, 0.0), (1, 1.0), (1, 2.0)], 2.0),
        ([(1, 0.0), (1, 1.0), (2, 2.0)], 0.0),
        ([(1, 0.0), (2, 1.0), (2, 2.0)], 1.0),
        ([(None, 0.0), (None, 1.0), (None, 2.0)], 0.0),
        ([(1, 0.0), (None, 1.0), (1, 2.0)], 0.0),
        ([(1, 0.0), (1, 100.0)], 2.0),
    ],
)
def test_only_what_was_looked_at_has_stood(
    looks: list[tuple[int | None, float]], stood: float
) -> None:
    """A change, a value that nobody expects to change and a pause of the looker do not count."""
    watch = Stopwatch()
    for value, now in looks:
        watch.look(value, now)
    assert watch.stood == stood


class _Consumer:
    """A consumer without a hub, whose loop turns three times."""

    hub = None

    def __init__(self) -> None:
        self.seen: list[int | None] = []
        self.progress = Progress()
        self.loop: Any = self._loop

    def perform_pending_operations(self) -> None:
        """Take note of what is known by now."""
        self.seen.append(self.progress.turns)

    @staticmethod
    def _loop(consumer: "_Consumer") -> None:
        perform = consumer.perform_pending_operations
        for _ in range(3):
            perform()
        raise ConnectionError


def test_turns_are_counted_while_the_loop_runs() -> None:
    """The count begins with the loop, at each connection anew, and is none outside of it."""
    consumer = _Consumer()
    for _ in range(2):
        consumer.progress.follow(consumer)
        with pytest.raises(ConnectionError):
            consumer.loop(consumer)
        assert consumer.progress.turns is None
    assert consumer.seen == [1, 2, 3] * 2


def test_what_cannot_be_watched_runs_all_the_same() -> None:
    """A consumer of another kind is named in the log, and its loop runs."""
    ran: list[object] = []
    consumer = SimpleNamespace(loop=ran.append, hub=object(), timer=None)
    progress = Progress()
    progress.follow(consumer)
    consumer.loop(consumer)
    assert ran == [consumer]
    assert progress.turns is None


def _job(pid: int, *, accepted: bool, **fields: Any) -> Any:
    job = SimpleNamespace(
        ready=lambda: False,
        correlation_id=f"task-{pid}",
        _worker_lost=None,
        _accepted=accepted,
        _worker_pid=pid if accepted else None,
        _write_to=SimpleNamespace(pid=pid),
        _time_accepted=0.0 if accepted else None,
        _timeout=None,
    )
    vars(job).update(fields)
    return job


@pytest.mark.parametrize(
    ("jobs", "hung"),
    [
        ([], set()),
        ([_job(-1, accepted=False)], {-1}),
        ([_job(-1, accepted=False, _write_to=None)], set()),
        ([_job(-1, accepted=False, ready=lambda: True)], set()),
        ([_job(-1, accepted=False), _job(-1, accepted=True)], set()),
        ([_job(-1, accepted=True)], set()),
        ([_job(-1, accepted=True, _timeout=0.001)], {-1}),
        ([_job(-1, accepted=True, _timeout=0.001, _worker_lost=(1.0, 9))], set()),
        ([_job(-1, accepted=True, _timeout=0.001, _time_accepted=None)], set()),
        ([_job(-1, accepted=True, _timeout=1e9)], set()),
        ([_job(-1, accepted=False), _job(-2, accepted=False)], {-1, -2}),
    ],
)
def test_which_children_hang(jobs: list[Any], hung: set[int]) -> None:
    """One that has a task and does not begin it, or outlives its limit; after that patience."""
    pool = SimpleNamespace(_pool=SimpleNamespace(_cache=dict(enumerate(jobs))))
    children = Children(patience=2.0)
    assert children.look(pool, 0.0) == children.look(pool, 1.0) == {}
    assert children.look(pool, 2.0).keys() == hung
    assert children.look(SimpleNamespace(_pool=None), 3.0) == {}


def test_where_no_process_replaces_itself_it_ends() -> None:
    """If the process cannot be begun anew it ends, with a code of its own for its supervisor."""
    code = (
        "import sys, types\n"
        "from heartbeat_celery._replacement import replace\n"
        "sys.executable = '/nowhere'\n"
        "replace(types.SimpleNamespace(pool=None, beat=None))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == EXIT_CODE
