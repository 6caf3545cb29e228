"""What plain workers say in their events, as beats: no I/O, and every time is an argument.

A plain worker knows nothing of incarnations, so they are made up here: a life is what goes on under
one process id, from coming online to going offline. What is read from the broker may be anybody's:
whatever is not as Celery sends it is refused, with a reason, and changes nothing.
"""

import base64
import binascii
import json
import math
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, NoReturn, cast

import attrs

from heartbeat_core import Beat, BeatError, Incarnation, Kind, Status, encode

__all__ = ("ECHO", "EVENTS", "EventError", "Worker", "Workers", "read_echo", "read_event")

ONLINE, HEARTBEAT, OFFLINE = EVENTS = ("worker-online", "worker-heartbeat", "worker-offline")
ECHO = "heartbeat-echo"

LARGEST_EVENT = 8192
LARGEST_DATA = 2048
LONGEST_NAME = 255
LONGEST_TEXT = 50
LARGEST_NUMBER = 2**63
LONGEST_FREQ = 86_400.0

QUIET = 1.5
"""A worker that is silent for more than so many of its own gaps is late."""

GIVE_UP = 60.0
"""After so many seconds without a sign of it nobody asks for a worker any more."""

FORGET = 3600.0
MOST_WORKERS = 10_000
MOST_EARLIER = 8

SAYS = ("active", "processed", "sw_ident", "sw_ver", "sw_sys")
"""What is passed on of an event as the status of the beat."""


class EventError(Exception):
    """An event is none, or says nothing new.

    Attributes:
        reason: A word to count it under.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.define(eq=False)
class Worker:
    """What is known of a worker; times are those of the observer's clock, in seconds.

    Attributes:
        incarnation: Its name, with the number that its present life was given.
        pid: Its process.
        freq: The gap between its heartbeats that it promises.
        since: When it came online, or was heard first.
        heard: When it was heard last.
        vouched: When the broker last said that it is connected.
        processed: How many tasks it has done, by its own account.
        sequence: How many beats were made of what it said.
        left: Whether it went offline.
        earlier: Processes that were there under its name before.
    """

    incarnation: Incarnation
    pid: int
    freq: float
    since: float
    heard: float
    vouched: float = -math.inf
    processed: int = 0
    sequence: int = 0
    left: bool = False
    earlier: deque[int] = attrs.field(factory=lambda: deque[int](maxlen=MOST_EARLIER))

    @property
    def node(self) -> str:
        """Its name."""
        return self.incarnation.node

    def is_late(self, now: float, listening_since: float = -math.inf) -> bool:
        """Tell whether it is silent for longer than it promised, while somebody listened."""
        return now - max(self.heard, listening_since) > QUIET * self.freq


class Workers:
    """The plain workers of a broker. Threads may share it.

    Args:
        namespace: Of the beats that are made.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._known: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def hear(
        self, event: Mapping[str, Any], now: float, *, wall: float, listening_since: float
    ) -> bytes:
        """Make a beat of an event.

        Args:
            event: As :func:`read_event` gives it.
            now: When it arrived.
            wall: The same on the wall's clock, from which incarnations are numbered.
            listening_since: From when on every event was heard.

        Raises:
            EventError: It says nothing, nothing new, or what Celery would not.
        """
        kind = event["type"]
        if kind not in EVENTS:
            raise EventError("unknown")
        node, pid = _text(event, "hostname"), _whole(event, "pid")
        freq, processed = _freq(event), _whole(event, "processed")
        with self._lock:
            worker = self._known.get(node)
            if worker is None or _is_born(
                worker, kind, pid, processed, late=worker.is_late(now, listening_since)
            ):
                worker = self._meet(node, pid, freq, now, wall)
            elif kind == ONLINE:
                worker.since = now  # It has connected again.
            worker.freq, worker.processed, worker.heard = freq, processed, now
            worker.left = kind == OFFLINE
            says = Kind.GOODBYE if worker.left else Kind.BEAT
            return self._beat(worker, now, says, _status(event))

    def stall(self, worker: Worker, now: float) -> bytes:
        """Make a beat for a worker that says nothing, but is connected."""
        with self._lock:
            worker.vouched = now
            return self._beat(worker, now, Kind.BEAT, {}, stalled=True)

    def late(self, now: float) -> list[Worker]:
        """Give those that are silent for longer than they promised, unless they were given up."""
        with self._lock:
            return [
                worker
                for worker in self._known.values()
                if not worker.left
                and worker.is_late(now)
                and now - max(worker.heard, worker.vouched) < GIVE_UP
            ]

    def longest_freq(self) -> float:
        """Give the longest gap that anybody promises; 0 if there is nobody."""
        with self._lock:
            return max((each.freq for each in self._known.values() if not each.left), default=0.0)

    def _meet(self, node: str, pid: int, freq: float, now: float, wall: float) -> Worker:
        before = self._known.get(node)
        if before is None:
            self._make_room(now)
        number = max(int(wall * 1e6), 0 if before is None else before.incarnation.number + 1)
        try:
            worker = Worker(Incarnation(node, number), pid, freq, now, now)
        except BeatError:
            _malformed()
        if before is not None:
            worker.earlier.extend(each for each in (*before.earlier, before.pid) if each != pid)
        self._known[node] = worker
        return worker

    def _make_room(self, now: float) -> None:
        if len(self._known) < MOST_WORKERS:
            return
        self._known = {
            node: worker
            for node, worker in self._known.items()
            if now - max(worker.heard, worker.vouched) < FORGET
        }
        if len(self._known) >= MOST_WORKERS:
            raise EventError("crowded")

    def _beat(
        self, worker: Worker, now: float, kind: Kind, status: Status, *, stalled: bool = False
    ) -> bytes:
        worker.sequence += 1
        beat = Beat(
            incarnation=worker.incarnation,
            sequence=worker.sequence,
            sent=now,
            gap=worker.freq,
            namespace=self._namespace,
            kind=kind,
            stalled=stalled,
            status=status,
        )
        try:
            return encode(beat)
        except BeatError as exc:
            raise EventError(exc.reason) from None


def read_event(content_type: object, body: bytes) -> Mapping[str, Any]:
    """Decode an event: JSON and nothing else, so that nothing of it is executed.

    Raises:
        EventError: It is something else, too large, or has no type.
    """
    if content_type != "application/json":
        raise EventError("content type")
    if len(body) > LARGEST_EVENT:
        raise EventError("oversized")
    try:
        event: Any = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        _malformed()
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        _malformed()
    return cast("dict[str, Any]", event)


def read_echo(event: Mapping[str, Any], namespace: str) -> bytes | None:
    """Give what is in an echo; nothing if it is one of another namespace.

    Raises:
        EventError: Nothing can be in it.
    """
    if event.get("namespace") != namespace:
        return None
    try:
        data = base64.b64decode(_text(event, "data", LARGEST_EVENT), validate=True)
    except (binascii.Error, ValueError):
        _malformed()
    if not 0 < len(data) <= LARGEST_DATA:
        _malformed()
    return data


def _is_born(worker: Worker, kind: str, pid: int, processed: int, *, late: bool) -> bool:
    """Tell whether an event is the first of a new life of a known worker.

    Raises:
        EventError: It is one of a former life.
    """
    if pid != worker.pid:
        if kind != ONLINE and pid in worker.earlier and not (worker.left or late):
            # Two that share a name would take it from each other all the time.
            raise EventError("outdated")
        return True
    if worker.left and kind != ONLINE and not late:
        raise EventError("outdated")
    if worker.left:
        return True
    # In a container each life may have the same process id; but one that merely connects again,
    # since the broker was away, goes on counting, and was not missed by anybody who could hear.
    return kind == ONLINE and (late or processed < worker.processed)


def _status(event: Mapping[str, Any]) -> Status:
    status: dict[str, str | int | float | bool | None] = {}
    for name in SAYS:
        value = event.get(name)
        if _is_plain(value):
            status[name] = value
    loads = event.get("loadavg")
    if isinstance(loads, list) and loads and isinstance(loads[0], int | float):
        load = cast("list[float]", loads)[0]
        if _is_plain(load):
            status["load"] = load
    status["pid"] = event["pid"]
    return status


def _is_plain(value: object) -> bool:
    if isinstance(value, int | float):
        return -LARGEST_NUMBER < value < LARGEST_NUMBER
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _text(event: Mapping[str, Any], name: str, longest: int = LONGEST_NAME) -> str:
    value = event.get(name)
    if not isinstance(value, str) or len(value) > longest:
        _malformed()
    return value


def _whole(event: Mapping[str, Any], name: str) -> int:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_NUMBER:
        _malformed()
    return value


def _freq(event: Mapping[str, Any]) -> float:
    value = event.get("freq")
    if isinstance(value, bool) or not isinstance(value, int | float):
        _malformed()
    if not 0 < value <= LONGEST_FREQ:
        _malformed()
    return float(value)


def _no_number(_constant: str) -> NoReturn:
    raise ValueError("not a number")


def _malformed() -> NoReturn:
    raise EventError("malformed")
