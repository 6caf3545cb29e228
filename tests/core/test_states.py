"""The table of transitions: what stands in it happens, and nothing else."""

import itertools

import pytest

from heartbeat_core import TRANSITIONS, Cause, State, next_state

PAIRS = list(itertools.product([None, *State], Cause))


@pytest.mark.parametrize(("state", "cause"), PAIRS)
def test_every_pair(state: State | None, cause: Cause) -> None:
    """A pair in the table leads where it says; any other pair is a mistake."""
    if (state, cause) in TRANSITIONS:
        assert next_state(state, cause) is TRANSITIONS[state, cause]
    else:
        with pytest.raises(KeyError):
            next_state(state, cause)


def test_the_dead_come_back_only_as_somebody_larger() -> None:
    """From DEAD there are two ways: a larger incarnation, and being forgotten."""
    ways = {cause: to for (state, cause), to in TRANSITIONS.items() if state is State.DEAD}
    assert ways == {Cause.LARGER_INCARNATION: State.ALIVE, Cause.DISCARDED: None}


def test_silence_alone_leads_to_death_through_suspicion() -> None:
    """No silence, closed connection or failed check makes a living node dead in one step."""
    gradual = {Cause.SILENCE, Cause.DISCONNECTED, Cause.CHECKS_FAILED, Cause.EXPIRED}
    for (state, cause), to in TRANSITIONS.items():
        if cause in gradual and state is State.ALIVE:
            assert to is State.SUSPECT


def test_the_table_cannot_be_changed() -> None:
    """The table is the same for everybody."""
    with pytest.raises(TypeError):
        TRANSITIONS[None, Cause.BEAT] = State.DEAD  # type: ignore[index]
