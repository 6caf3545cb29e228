"""The heartbeat for threaded services: the same names, from any thread."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from heartbeat_core import (
    BlockingHeartbeat,
    Cause,
    HeartbeatError,
    Incarnation,
    MemoryTransport,
    NodeView,
    Settings,
    State,
    Transition,
    TransportError,
)

FAST = Settings(frequency=0.05, max_freq=0.4, min_freq=0.8, expire=3.0, disconnect_interval=0.05)
STRANGER = Incarnation("stranger", 1)


@pytest.fixture
def heartbeat() -> Iterator[BlockingHeartbeat]:
    """A lone node that runs."""
    with BlockingHeartbeat("a", MemoryTransport(), settings=FAST) as heartbeat:
        yield heartbeat


def until(what: Callable[[], object]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def states(heartbeat: BlockingHeartbeat) -> dict[str, State]:
    """Give the table of nodes."""
    return {view.incarnation.node: view.state for view in heartbeat.nodes()}


def test_it_beats_while_its_service_blocks(heartbeat: BlockingHeartbeat) -> None:
    """Without an event loop of the service's a node joins, and sees who dies."""
    assert heartbeat.wait_joined(10) == heartbeat.incarnation
    until(lambda: heartbeat.joined)
    heartbeat.expect([STRANGER])
    assert states(heartbeat) == {"a": State.ALIVE, "stranger": State.SUSPECT}
    time.sleep(FAST.min_freq + 4 * FAST.frequency)
    until(lambda: heartbeat.is_dead(STRANGER))
    assert heartbeat.dropped == {}


def test_transitions_are_iterated_until_it_ends() -> None:
    """A thread that iterates transitions gets all of them, and ends with the heartbeat."""
    seen: list[Transition] = []
    with BlockingHeartbeat("a", MemoryTransport(), settings=FAST) as heartbeat:
        transitions = heartbeat.transitions()
        thread = threading.Thread(target=lambda: seen.extend(transitions))
        thread.start()
        first = heartbeat.wait_joined(10)
        heartbeat.expect([STRANGER])
        heartbeat.rejoin(first)
        heartbeat.rejoin(first)
        assert heartbeat.wait_joined(10) > first
    thread.join(10)
    assert not thread.is_alive()
    assert [each.cause for each in seen] == [Cause.RECORDED, Cause.OBITUARY]


def test_what_nobody_read_before_the_end_can_be_read_after_it() -> None:
    """The end of the heartbeat loses no transition."""
    with BlockingHeartbeat("a", MemoryTransport(), settings=FAST) as heartbeat:
        transitions = heartbeat.transitions()
        heartbeat.wait_joined(10)
        heartbeat.expect(Incarnation(f"n{number}", 1) for number in range(3))
    assert [each.node for each in transitions] == ["n0", "n1", "n2"]


def test_who_does_not_observe_misses_nobody() -> None:
    """Whoever would never hear from them suspects nobody that is on record."""
    transport = MemoryTransport()
    with BlockingHeartbeat("a", transport, settings=FAST, observe=False) as heartbeat:
        heartbeat.wait_joined(10)
        heartbeat.expect([STRANGER])
        assert states(heartbeat) == {"a": State.ALIVE}


def test_every_thread_may_use_it(heartbeat: BlockingHeartbeat) -> None:
    """Many threads ask at once, and all are answered."""
    answers: list[list[NodeView]] = []
    heartbeat.wait_joined(10)

    def ask() -> None:
        answers.extend(heartbeat.nodes() for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 160


class Away(MemoryTransport):
    """The broker cannot be reached."""

    async def _call(self) -> None:
        raise TransportError("no route to the broker")


def test_a_broker_that_is_away_delays_nobody() -> None:
    """Entering does not wait for the broker, waiting for it ends in time, and so does leaving."""
    began = time.monotonic()
    with BlockingHeartbeat("a", Away(), settings=FAST) as heartbeat:
        with pytest.raises(TimeoutError):
            heartbeat.wait_joined(0.05)
        waiting = threading.Thread(target=_wait_for_ever, args=[heartbeat])
        waiting.start()
        time.sleep(0.05)
    waiting.join(10)
    assert not waiting.is_alive()
    assert time.monotonic() - began < 5


def _wait_for_ever(heartbeat: BlockingHeartbeat) -> None:
    with pytest.raises(HeartbeatError):
        heartbeat.wait_joined()


def test_outside_of_its_life_it_says_so() -> None:
    """Before it is entered and after it ended every call raises one clear error."""
    heartbeat = BlockingHeartbeat("a", MemoryTransport(), settings=FAST)
    heartbeat.__exit__(None, None, None)
    for _ in range(2):
        with pytest.raises(HeartbeatError, match="it was not entered, or has ended"):
            heartbeat.nodes()
        with pytest.raises(HeartbeatError, match="it was not entered, or has ended"):
            heartbeat.transitions()
        if heartbeat._thread is None:
            with heartbeat:
                heartbeat.nodes()


def test_an_error_in_the_service_is_the_one_that_is_seen() -> None:
    """Leaving by an error of the service's stops the heartbeat and raises that error."""
    heartbeat = BlockingHeartbeat("a", MemoryTransport(), settings=FAST)
    with pytest.raises(ZeroDivisionError), heartbeat:
        raise ZeroDivisionError
    assert heartbeat._thread is not None
    assert not heartbeat._thread.is_alive()


class Broken(MemoryTransport):
    """A transport with a bug: it raises what it may not."""

    async def _call(self) -> None:
        raise ZeroDivisionError("a bug")


def test_an_error_of_its_own_is_told_in_the_end() -> None:
    """A heartbeat that ended by a bug says so when it is left, with the bug as the cause."""
    heartbeat = BlockingHeartbeat("a", Broken(), settings=FAST)
    with pytest.raises(HeartbeatError, match="had ended by an error") as caught, heartbeat:
        until(lambda: heartbeat._portal is None)
    group = caught.value.__cause__
    assert isinstance(group, BaseExceptionGroup)
    assert group.subgroup(ZeroDivisionError) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_no_node(heartbeat: BlockingHeartbeat) -> None:
    """In a child the heartbeat of the parent says whose it is, and a new one can begin."""
    heartbeat.wait_joined(10)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(HeartbeatError, match="runs in the parent process"):
                heartbeat.nodes()
            heartbeat.__exit__(None, None, None)
            with BlockingHeartbeat("child", MemoryTransport(), settings=FAST) as own:
                own.wait_joined(10)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert states(heartbeat) == {"a": State.ALIVE}


def test_in_another_process_nothing_is_done(
    heartbeat: BlockingHeartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its thread is not, every call says so, and leaving does nothing."""
    heartbeat.wait_joined(10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(HeartbeatError, match="runs in the parent process"):
            heartbeat.is_dead(STRANGER)
        heartbeat.__exit__(None, None, None)
    assert not heartbeat.is_dead(STRANGER)


def test_status_and_stall_are_asked_for_in_its_thread() -> None:
    """What a node says of itself is asked for by its own thread, and is in the next beat."""
    asked = threading.Event()
    threads: set[str] = set()

    def stalled() -> bool:
        threads.add(threading.current_thread().name)
        asked.set()
        return True

    with BlockingHeartbeat("a", MemoryTransport(), settings=FAST, stalled=stalled):
        assert asked.wait(10)
    assert threads == {"heartbeat"}
