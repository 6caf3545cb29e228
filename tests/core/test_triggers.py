"""Every state of a node meets everything that can happen: the whole table."""

import pathlib
import sys
from collections.abc import Callable

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from world import World

from heartbeat_core import Incarnation, Kind, Settings, State

NUMBER = 5
SMALLER, SAME, LARGER = 4, 5, 6
A_LOOK = 0.1


def _silent(world: World, seconds: float) -> None:
    world.pass_time(seconds)


def _connected(world: World) -> None:
    world.beat("a", NUMBER)
    world.look(A_LOOK, "a")


def _left(world: World) -> None:
    world.beat("a", NUMBER)
    world.beat("a", NUMBER, kind=Kind.GOODBYE)


def _suspect(world: World) -> None:
    world.beat("a", NUMBER)
    world.pass_time(2.5)


def _mute(world: World) -> None:
    world.beat("a", NUMBER)
    world.look(2.5, "a")


def _disconnected(world: World) -> None:
    _connected(world)
    world.look(A_LOOK)


def _stalled(world: World) -> None:
    world.beat("a", NUMBER, stalled=True)


def _recorded(world: World) -> None:
    world.seen += world.detector.expect(Incarnation("a", NUMBER), world.now)


def _dead(world: World) -> None:
    world.beat("a", NUMBER)
    world.pass_time(4.5)


STATES: dict[str, Callable[[World], object]] = {
    "unknown": lambda _: None,
    "left": _left,
    "alive": lambda world: world.beat("a", NUMBER),
    "connected": _connected,
    "suspect": _suspect,
    "mute": _mute,
    "disconnected": _disconnected,
    "stalled": _stalled,
    "recorded": _recorded,
    "dead": _dead,
}


def _expect(world: World, number: int) -> None:
    world.seen += world.detector.expect(Incarnation("a", number), world.now)


def _deaf(world: World) -> None:
    world.now += 100
    world.echo()
    world.check()


TRIGGERS: dict[str, Callable[[World], object]] = {
    "beat": lambda world: world.beat("a", SAME),
    "beat again": lambda world: world.beat("a", SAME, sequence=1),
    "stalled beat": lambda world: world.beat("a", SAME, stalled=True),
    "stale beat": lambda world: world.beat("a", SAME, sent=world.now - 31),
    "smaller": lambda world: world.beat("a", SMALLER),
    "larger": lambda world: world.beat("a", LARGER),
    "goodbye": lambda world: world.beat("a", SAME, kind=Kind.GOODBYE),
    "goodbye of smaller": lambda world: world.beat("a", SMALLER, kind=Kind.GOODBYE),
    "goodbye of larger": lambda world: world.beat("a", LARGER, kind=Kind.GOODBYE),
    "obituary": lambda world: world.beat("a", SAME, kind=Kind.OBITUARY),
    "obituary of smaller": lambda world: world.beat("a", SMALLER, kind=Kind.OBITUARY),
    "obituary of larger": lambda world: world.beat("a", LARGER, kind=Kind.OBITUARY),
    "on record": lambda world: _expect(world, SAME),
    "larger on record": lambda world: _expect(world, LARGER),
    "seen connected": lambda world: world.look(A_LOOK, "a"),
    "missed once": lambda world: world.look(A_LOOK),
    "missed thrice": lambda world: world.look(3 * A_LOOK),
    "silence of 2.1 s": lambda world: _silent(world, 2.1),
    "silence of 4.1 s": lambda world: _silent(world, 4.1),
    "silence of 30.1 s": lambda world: _silent(world, 30.1),
    "deaf for 100 s": _deaf,
    "discard delay": lambda world: _silent(world, 60.1),
}

# What follows: the causes of the transitions, and the state in the end; a dot for nothing.
TABLE = """
unknown
  beat                 FIRST_BEAT -> alive
  beat again           FIRST_BEAT -> alive
  stalled beat         FIRST_BEAT STALLED -> suspect
  stale beat           FIRST_BEAT -> alive
  smaller              FIRST_BEAT -> alive
  larger               FIRST_BEAT -> alive
  goodbye              .
  goodbye of smaller   .
  goodbye of larger    .
  obituary             .
  obituary of smaller  .
  obituary of larger   .
  on record            RECORDED -> suspect
  larger on record     RECORDED -> suspect
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     .
  silence of 4.1 s     .
  silence of 30.1 s    .
  deaf for 100 s       .
  discard delay        .
left
  beat                 .
  beat again           .
  stalled beat         .
  stale beat           .
  smaller              .
  larger               FIRST_BEAT -> alive
  goodbye              .
  goodbye of smaller   .
  goodbye of larger    .
  obituary             .
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     RECORDED -> suspect
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     .
  silence of 4.1 s     .
  silence of 30.1 s    .
  deaf for 100 s       .
  discard delay        .
alive
  beat                 .
  beat again           .
  stalled beat         STALLED -> suspect
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     SILENCE -> suspect
  silence of 4.1 s     SILENCE CHECKS_FAILED -> dead
  silence of 30.1 s    SILENCE CHECKS_FAILED -> dead
  deaf for 100 s       .
  discard delay        SILENCE CHECKS_FAILED -> dead
connected
  beat                 .
  beat again           .
  stalled beat         STALLED -> suspect
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          DISCONNECTED -> suspect
  missed thrice        DISCONNECTED CHECKS_FAILED -> dead
  silence of 2.1 s     MUTE -> suspect
  silence of 4.1 s     MUTE -> suspect
  silence of 30.1 s    MUTE EXPIRED -> dead
  deaf for 100 s       .
  discard delay        MUTE EXPIRED -> dead
suspect
  beat                 BEAT -> alive
  beat again           .
  stalled beat         BEAT STALLED -> suspect
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     CHECKS_FAILED -> dead
  silence of 4.1 s     CHECKS_FAILED -> dead
  silence of 30.1 s    CHECKS_FAILED -> dead
  deaf for 100 s       .
  discard delay        CHECKS_FAILED -> dead
mute
  beat                 BEAT -> alive
  beat again           .
  stalled beat         BEAT STALLED -> suspect
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        CHECKS_FAILED -> dead
  silence of 2.1 s     .
  silence of 4.1 s     .
  silence of 30.1 s    EXPIRED -> dead
  deaf for 100 s       .
  discard delay        EXPIRED -> dead
disconnected
  beat                 BEAT -> alive
  beat again           .
  stalled beat         BEAT STALLED -> suspect
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        CHECKS_FAILED -> dead
  silence of 2.1 s     .
  silence of 4.1 s     CHECKS_FAILED -> dead
  silence of 30.1 s    CHECKS_FAILED -> dead
  deaf for 100 s       .
  discard delay        CHECKS_FAILED -> dead
stalled
  beat                 BEAT -> alive
  beat again           .
  stalled beat         .
  stale beat           .
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     .
  silence of 4.1 s     CHECKS_FAILED -> dead
  silence of 30.1 s    CHECKS_FAILED -> dead
  deaf for 100 s       .
  discard delay        CHECKS_FAILED -> dead
recorded
  beat                 BEAT -> alive
  beat again           BEAT -> alive
  stalled beat         BEAT STALLED -> suspect
  stale beat           BEAT -> alive
  smaller              .
  larger               SUPERSEDED LARGER_INCARNATION -> alive
  goodbye              GOODBYE -> gone
  goodbye of smaller   .
  goodbye of larger    SUPERSEDED -> dead
  obituary             OBITUARY -> dead
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     .
  silence of 4.1 s     CHECKS_FAILED -> dead
  silence of 30.1 s    CHECKS_FAILED -> dead
  deaf for 100 s       .
  discard delay        CHECKS_FAILED -> dead
dead
  beat                 .
  beat again           .
  stalled beat         .
  stale beat           .
  smaller              .
  larger               LARGER_INCARNATION -> alive
  goodbye              .
  goodbye of smaller   .
  goodbye of larger    .
  obituary             .
  obituary of smaller  .
  obituary of larger   .
  on record            .
  larger on record     .
  seen connected       .
  missed once          .
  missed thrice        .
  silence of 2.1 s     .
  silence of 4.1 s     .
  silence of 30.1 s    .
  deaf for 100 s       DISCARDED -> gone
  discard delay        DISCARDED -> gone
"""


def outcome(state: str, trigger: str) -> str:
    """Give what follows when something happens to a node in a state."""
    world = World(Settings())
    STATES[state](world)
    before = len(world.seen)
    TRIGGERS[trigger](world)
    causes = [each.cause.name for each in world.seen[before:]]
    after = world.states().get("a")
    return " ".join([*causes, "->", after.value if after else "gone"]) if causes else "."


def rows() -> list[tuple[str, str, str]]:
    """Read the table."""
    found = []
    state = ""
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            state = line
        else:
            found.append((state, line[2:22].strip(), line[23:]))
    return found


def test_the_table_is_complete() -> None:
    """Every state meets every trigger."""
    assert [row[:2] for row in rows()] == [(s, t) for s in STATES for t in TRIGGERS]


@pytest.mark.parametrize(("state", "trigger", "follows"), rows())
def test_what_follows(state: str, trigger: str, follows: str) -> None:
    """A node in this state, to which that happens, changes so and ends there."""
    assert outcome(state, trigger) == follows


@pytest.mark.parametrize("state", STATES)
def test_the_dead_stay_dead(state: str) -> None:
    """After a death nothing but a larger incarnation or time changes anything."""
    for happen in TRIGGERS.values():
        world = World(Settings())
        STATES[state](world)
        world.beat("a", NUMBER, kind=Kind.OBITUARY)
        if world.states().get("a") is not State.DEAD:
            continue
        before = len(world.seen)
        happen(world)
        for each in world.seen[before:]:
            assert each.state is None or each.incarnation.number > NUMBER
