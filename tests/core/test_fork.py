"""Forks and the threads of the heartbeat: no child inherits what one of them held."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import anyio
import pytest

from heartbeat_core import _fork, no_fork, run_loop

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def child(does: Callable[[], object]) -> int:
    """Fork; give the exit code of a child that does this, or the number of what ended it."""
    pid = os.fork()
    if pid == 0:
        # A child that is locked for ever is ended.
        signal.alarm(5)
        does()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Says that the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_fork_waits_until_nobody_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held within ``no_fork`` is never held in a child."""
    monkeypatch.setattr(_fork, "LONGEST_WAIT", 10.0)
    lock, held = threading.Lock(), threading.Event()

    def be_busy() -> None:
        with no_fork(), no_fork(), lock:
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=be_busy)
    thread.start()
    held.wait()
    assert child(lock.acquire) == 0
    thread.join()


def test_a_fork_never_waits_for_long(ended: threading.Event) -> None:
    """Whoever is busy for ever delays a fork by a moment only, and the child is not locked."""
    held = threading.Event()

    def be_busy() -> None:
        with no_fork():
            held.set()
            ended.wait()

    threading.Thread(target=be_busy).start()
    held.wait()

    def enter() -> None:
        with no_fork():
            pass

    began = time.monotonic()
    assert child(enter) == 0
    assert time.monotonic() - began < 3


def test_who_is_busy_may_fork_itself() -> None:
    """A thread does not wait for itself."""
    with no_fork():
        assert child(lambda: None) == 0


def test_while_a_process_forks_everybody_rests() -> None:
    """Threads that come and go all the time hold nothing in any child."""
    lock, stop = threading.Lock(), threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with no_fork(), lock:
                time.sleep(0.0005)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert all(child(lock.acquire) == 0 for _ in range(30))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_loop_is_busy_but_for_its_waiting() -> None:
    """What an event loop of ours holds while it works, no child holds."""
    lock, stop = threading.Lock(), threading.Event()

    async def work() -> str:
        while not stop.is_set():
            with lock:
                time.sleep(0.0005)
            await anyio.sleep(0)
        await anyio.sleep(0.01)
        return "done"

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(run_loop(work)))
    thread.start()
    try:
        assert all(child(lock.acquire) == 0 for _ in range(30))
    finally:
        stop.set()
        thread.join()
    assert results == ["done"]


def test_without_fork_a_loop_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fork a loop is an ordinary one."""

    async def work() -> str:
        await anyio.sleep(0)
        return "done"

    monkeypatch.delattr(os, "fork")
    assert run_loop(work) == "done"
