"""Kills under load, in short; ``nox -s chaos`` runs as many as one likes."""

import pathlib
import sys
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

import chaos
from chaos import Death, Verdict
from fleet import Fleet

HELD = Death(began=5.0, held=frozenset({7}))
NOT_HELD = Death(began=5.0, held=frozenset())
UNKNOWN = Death(began=5.0, held=None)


def record(life: str, at: float, recoveries: int = 0, *, redelivered: bool = True) -> Any:
    """Give what a task wrote down."""
    return {
        "number": 7,
        "life": life,
        "at": at,
        "recoveries": recoveries,
        "redelivered": redelivered,
    }


FIRST = record("a", 4.0)
AGAIN = record("b", 6.0, 1)


@pytest.mark.parametrize(
    ("starts", "ends", "death", "verdict"),
    [
        ([FIRST], [FIRST], None, {}),
        ([FIRST], [], None, {"lost": True}),
        ([], [], None, {"lost": True}),
        # Its worker was killed before, and held it.
        ([FIRST, AGAIN], [AGAIN], HELD, {"extra": 1}),
        ([AGAIN, FIRST], [AGAIN], HELD, {"extra": 1}),
        # Its worker was killed before, but did not hold it any more.
        ([FIRST, AGAIN], [AGAIN], NOT_HELD, {"extra": 1, "unexplained": 1}),
        # Its worker lives, or lived then.
        ([FIRST, AGAIN], [AGAIN], None, {"twice": True, "extra": 1, "unexplained": 1}),
        (
            [FIRST, record("b", 4.5, 1)],
            [AGAIN],
            HELD,
            {"twice": True, "extra": 1, "unexplained": 1},
        ),
        # One life ran it twice.
        (
            [FIRST, record("a", 6.0, 1)],
            [AGAIN],
            HELD,
            {"twice": True, "extra": 1, "unexplained": 1},
        ),
        # One death gave it back twice.
        (
            [FIRST, AGAIN, record("c", 7.0, 1)],
            [AGAIN],
            HELD,
            {"twice": True, "extra": 2, "unexplained": 1},
        ),
        # Nobody could be asked who held it.
        ([FIRST, AGAIN], [AGAIN], UNKNOWN, {"extra": 1}),
        ([FIRST, AGAIN], [record("a", 4.9), AGAIN], UNKNOWN, {"extra": 1}),
        (
            [record("a", 2.0), AGAIN],
            [record("a", 3.0), AGAIN],
            UNKNOWN,
            {"extra": 1, "unexplained": 1},
        ),
        (
            [FIRST, record("b", 6.0, redelivered=False)],
            [AGAIN],
            UNKNOWN,
            {"extra": 1, "unexplained": 1},
        ),
    ],
)
def test_only_a_death_that_held_a_task_explains_that_it_ran_again(
    starts: Any, ends: Any, death: Death | None, verdict: dict[str, Any]
) -> None:
    """A task may run again if the one that ran it was killed with it, and once a death."""
    deaths = {"a": death} if death else {}
    expected = {"lost": False, "twice": False, "extra": 0, "unexplained": 0} | verdict
    assert chaos.judge(starts, ends, deaths) == Verdict(**expected)


@pytest.mark.promise(2)
@pytest.mark.promise(1)
@pytest.mark.parametrize("trickle", [False, True], ids=["full", "trickling"])
def test_kills_under_load_lose_nothing(valkey: Any, tmp_path: pathlib.Path, trickle: bool) -> None:
    """Kills under load, of observers in a recovery too, lose no task and double none."""
    with Fleet(valkey.url, tmp_path) as fleet:
        fleet.client.flushdb()
        account = chaos.run(fleet, kills=12, seed=7, trickle=trickle, queues=not trickle)
    assert chaos.is_good(account), account
    assert account["left_over"] == {}


def test_kills_under_load_lose_nothing_on_rabbitmq(
    rabbitmq: Any, valkey: Any, tmp_path: pathlib.Path
) -> None:
    """Where the broker redelivers by itself, a kill loses no task and doubles none either."""
    with Fleet(rabbitmq.url, tmp_path, records_url=valkey.url) as fleet:
        fleet.client.flushdb()
        account = chaos.run(fleet, kills=6, seed=7, broker="rabbitmq")
    assert chaos.is_good(account), account
    assert account["left_over"] == {}
