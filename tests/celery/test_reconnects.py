"""A connection that breaks under a living worker: what runs, runs on; what waited goes back."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fleet import Fleet, wait_for
from proxy import Proxy

Broken = Callable[[Proxy], contextlib.AbstractContextManager[None]]


@pytest.fixture
def proxy(valkey: Any) -> Iterator[Proxy]:
    """The workers' way to the broker; the records of their tasks take another."""
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def fleet(valkey: Any, proxy: Proxy, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker."""
    url = f"redis://127.0.0.1:{proxy.port}/0"
    with Fleet(url, tmp_path, records_url=valkey.url) as fleet:
        fleet.client.flushdb()
        yield fleet


@contextlib.contextmanager
def dropped(proxy: Proxy) -> Iterator[None]:
    """Every connection is closed, once."""
    proxy.drop()
    yield


@contextlib.contextmanager
def refused(proxy: Proxy) -> Iterator[None]:
    """Nobody is let in for a while."""
    proxy.refuse()
    yield
    proxy.heal()


@pytest.mark.promise(3)
@pytest.mark.parametrize("broken", [dropped, refused])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_each_task_runs_once(fleet: Fleet, proxy: Proxy, broken: Broken, pool: str) -> None:
    """What runs is acknowledged over the next connection; what had only been fetched runs once."""
    fleet.conf["worker_prefetch_multiplier"] = 4
    (worker,) = fleet.start_all(1, pool=pool)
    fleet.send("sleep", 8, 1.5)
    wait_for(fleet.running, "a task runs")
    with broken(proxy):
        # Some end while there is no connection.
        wait_for(lambda: fleet.by_number("end"), "a task has ended")
    fleet.send("sleep", 4, 0.1, first=8)
    fleet.wait_ended(12)
    wait_for(lambda: _is_idle(fleet), "all is let go")
    assert {
        number: len(starts) for number, starts in fleet.by_number("start").items()
    } == dict.fromkeys(range(12), 1), worker.log.read_text()
    assert fleet.stop(worker) == 0
    assert fleet.left_over() == {}


def _is_idle(fleet: Fleet) -> bool:
    """Tell whether nothing is held."""
    return not any(
        tag
        for key, tags in fleet.left_over().items()
        if not key.endswith(":holders")
        for tag in tags
    )
