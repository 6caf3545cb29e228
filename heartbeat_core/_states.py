"""The state machine as data: states, causes, and the one table that joins them.

Whatever the detector decides goes through :func:`next_state`; the diagram in the docs is drawn
from :data:`TRANSITIONS` at every build.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from heartbeat_core._beat import Incarnation

__all__ = ("TRANSITIONS", "Cause", "State", "Transition", "next_state")


class State(enum.Enum):
    """What an observer holds a node for. ``None`` in its place means: not in the table."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Cause(enum.Enum):
    """Why a node changed its state."""

    FIRST_BEAT = "first beat"
    RECORDED = "known by record only"
    BEAT = "beat"
    SILENCE = "silence"
    MUTE = "silent, but connected"
    STALLED = "stalled"
    DISCONNECTED = "connection closed"
    CHECKS_FAILED = "checks failed"
    PHI = "phi exceeded"
    EXPIRED = "expired"
    SUPERSEDED = "superseded by a larger incarnation"
    LARGER_INCARNATION = "larger incarnation"
    OBITUARY = "obituary"
    GOODBYE = "goodbye"
    DISCARDED = "discard delay passed"
    MASS_LOSS = "most connections went at once"


TRANSITIONS: Mapping[tuple[State | None, Cause], State | None] = MappingProxyType(
    {
        (None, Cause.FIRST_BEAT): State.ALIVE,
        (None, Cause.RECORDED): State.SUSPECT,
        (State.ALIVE, Cause.SILENCE): State.SUSPECT,
        (State.ALIVE, Cause.MUTE): State.SUSPECT,
        (State.ALIVE, Cause.DISCONNECTED): State.SUSPECT,
        (State.ALIVE, Cause.STALLED): State.SUSPECT,
        (State.SUSPECT, Cause.BEAT): State.ALIVE,
        (State.SUSPECT, Cause.CHECKS_FAILED): State.DEAD,
        (State.SUSPECT, Cause.PHI): State.DEAD,
        (State.SUSPECT, Cause.EXPIRED): State.DEAD,
        (State.ALIVE, Cause.SUPERSEDED): State.DEAD,
        (State.SUSPECT, Cause.SUPERSEDED): State.DEAD,
        (State.DEAD, Cause.LARGER_INCARNATION): State.ALIVE,
        (State.ALIVE, Cause.OBITUARY): State.DEAD,
        (State.SUSPECT, Cause.OBITUARY): State.DEAD,
        (State.ALIVE, Cause.GOODBYE): None,
        (State.SUSPECT, Cause.GOODBYE): None,
        (State.DEAD, Cause.DISCARDED): None,
        # Of the observer itself: it sets aside what it knows of connections.
        (State.ALIVE, Cause.MASS_LOSS): State.ALIVE,
    }
)
"""Every transition there is. What is not in the table does not happen."""


def next_state(state: State | None, cause: Cause) -> State | None:
    """Give the state that follows.

    Raises:
        KeyError: There is no such transition.
    """
    return TRANSITIONS[state, cause]


@attrs.frozen(kw_only=True)
class Transition:
    """A change of state of one incarnation, as one observer saw it.

    Attributes:
        incarnation: Whose state changed.
        previous: The state before; ``None`` if the node was not in the table.
        state: The state now; ``None`` if the node left or was forgotten.
        cause: Why.
        at: When, in seconds on the clock that drives the detector.
        silence: For how many seconds the observer had not heard the node.
        checks_failed: How many checks had failed.
        disconnected_for: For how many seconds its connection had been gone; ``None`` if it was
            not known to be gone.
        reason: One sentence for people.
    """

    incarnation: Incarnation
    previous: State | None
    state: State | None
    cause: Cause
    at: float
    silence: float = 0.0
    checks_failed: int = 0
    disconnected_for: float | None = None
    reason: str = ""

    @property
    def node(self) -> str:
        """The name of the node."""
        return self.incarnation.node
