"""The beat and its wire format.

On the wire a beat is a JSON object with short keys, some hundred bytes long. JSON, because it
can be read by eye in any broker's tools, executes nothing, and is decoded by the standard
library in C. Version 1 has these keys; unknown ones are ignored:

======  =======================================================================
``v``   version, the number 1
``k``   kind: ``g`` goodbye, ``o`` obituary, ``e`` echo; left out of a beat, which is ``b``
``ns``  namespace
``n``   node
``i``   incarnation, a whole number that grows with every restart
``q``   sequence number within the incarnation, from 1; of an obituary, the largest incarnation
        that is known of the node
``t``   time of sending, in seconds on the sender's own clock
``g``   promised gap to the next beat, in seconds
``x``   true: the node's work does not move (stalled); left out when it does
``s``   status, a small mapping; left out when empty
======  =======================================================================
"""

import enum
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import attrs

from heartbeat_core._errors import BeatError

__all__ = ("Beat", "Incarnation", "Kind", "decode", "encode")

VERSION = 1
MAX_BYTES = 2048
MAX_NAME = 255
MAX_WHOLE = 2**63
MAX_DIGITS = len(str(MAX_WHOLE))
LONGEST_GAP = 86_400.0

Status = Mapping[str, str | int | float | bool | None]
"""What a node says of itself with each beat: a small mapping of plain values."""

NO_STATUS: Status = MappingProxyType(dict[str, None]())
"""The status of who says nothing; one for all, since there may be a million."""


class Kind(enum.Enum):
    """What a beat says; the value is what stands on the wire."""

    BEAT = "b"
    GOODBYE = "g"
    OBITUARY = "o"
    ECHO = "e"


def _printable(_instance: object, _attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value or len(value) > MAX_NAME or not value.isprintable():
        raise BeatError("malformed", "a node's name has 1 to 255 printable characters")


@attrs.frozen(order=True, weakref_slot=False)
class Incarnation:
    """One life of a node. A restart is a new incarnation with a larger number.

    Attributes:
        node: The name of the node: 1 to 255 printable characters.
        number: Grows with every restart of the node.
    """

    node: str = attrs.field(validator=_printable)
    number: int

    def __str__(self) -> str:
        """Give the form in which it stands in keys and logs, ``node#number``."""
        return f"{self.node}#{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Incarnation":
        """Read back what ``str`` gave.

        Raises:
            BeatError: The text is not of the form ``node#number``.
        """
        node, _, number = text.rpartition("#")
        if not number.isdecimal() or len(number) > MAX_DIGITS:
            raise BeatError("malformed", f"{text!r} is not of the form node#number")
        return cls(node, int(number))


@attrs.frozen(kw_only=True, weakref_slot=False)
class Beat:
    """One heartbeat message.

    Attributes:
        incarnation: Who sends it; of an obituary: who is dead.
        sequence: Counts the beats of the incarnation, from 1; of an obituary, the largest
            incarnation that is known of the node.
        sent: When it was sent, in seconds, on a clock of the sender's that never jumps. It is
            compared only with other times of the same incarnation.
        gap: The promised gap to the next beat, in seconds.
        namespace: The fleet it belongs to.
        kind: A beat, a goodbye or an obituary; or an echo, by which somebody who only watches,
            and is no node, hears itself. To all others an echo says nothing.
        stalled: Whether the node says that it lives, but its work does not move.
        status: What the node says of itself.
    """

    incarnation: Incarnation
    sequence: int
    sent: float
    gap: float
    namespace: str = "default"
    kind: Kind = Kind.BEAT
    stalled: bool = False
    status: Status = NO_STATUS


def encode(beat: Beat) -> bytes:
    """Give the bytes that stand for a beat on the wire.

    Raises:
        BeatError: The status is not of plain values, or makes the beat too large.
    """
    fields: dict[str, Any] = {
        "v": VERSION,
        "ns": beat.namespace,
        "n": beat.incarnation.node,
        "i": beat.incarnation.number,
        "q": beat.sequence,
        "t": round(beat.sent, 3),
        "g": beat.gap,
    }
    if beat.kind is not Kind.BEAT:
        fields["k"] = beat.kind.value
    if beat.stalled:
        fields["x"] = True
    try:
        if beat.status:
            fields["s"] = dict(_plain(beat.status))
        data = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        encoded = data.encode()
    except (TypeError, ValueError) as exc:
        raise BeatError("malformed", f"a status holds plain values only ({exc})") from exc
    if len(encoded) > MAX_BYTES:
        raise BeatError("oversized", f"{len(encoded)} bytes, at most {MAX_BYTES}")
    return encoded


def decode(data: bytes) -> Beat:
    """Read a beat from the wire; whatever the bytes are, nothing of them is executed.

    Raises:
        BeatError: The bytes are not a beat of this version. ``reason`` is one of
            ``oversized``, ``malformed`` and ``version``.
    """
    if len(data) > MAX_BYTES:
        raise BeatError("oversized", f"{len(data)} bytes, at most {MAX_BYTES}")
    try:
        fields: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise BeatError("malformed", "not JSON") from None
    if not isinstance(fields, dict):
        raise BeatError("malformed", "not a JSON object")
    return _from_fields(cast("dict[str, Any]", fields))


def _from_fields(fields: dict[str, Any]) -> Beat:
    if fields.get("v") != VERSION:
        raise BeatError("version", f"version {fields.get('v')!r:.20}, this is {VERSION}")
    try:
        beat = Beat(
            incarnation=Incarnation(_text(fields["n"]), _whole(fields["i"])),
            sequence=_whole(fields["q"]),
            sent=_finite(fields["t"]),
            gap=_finite(fields["g"]),
            namespace=_text(fields["ns"]),
            kind=Kind(fields.get("k", "b")),
            stalled=_flag(fields.get("x", False)),
            status=_plain(fields.get("s", NO_STATUS)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise BeatError("malformed", f"{type(exc).__name__}: {exc}") from None
    if not 0 < beat.gap <= LONGEST_GAP:
        raise BeatError("malformed", "the promised gap is not within a day")
    return beat


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def _plain(value: Any) -> Status:
    if not isinstance(value, Mapping) or not all(
        isinstance(each, str | int | float | bool | None)
        for each in cast("Mapping[str, Any]", value).values()
    ):
        raise TypeError("expected a mapping of plain values")
    return cast("Status", value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_WHOLE:
        raise TypeError("expected a whole number")
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("expected a finite number")
    return float(value)
