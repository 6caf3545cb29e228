"""A million beats of every wrong kind: none raises, each is counted, no healthy node is hurt."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from heartbeat_core import (
    Beat,
    BeatError,
    Detector,
    Incarnation,
    Kind,
    Settings,
    State,
    decode,
    encode,
)

ME = Incarnation("me", 1)
HEALTHY = Incarnation("healthy", 5)
ROUNDS = 250_000

ODD: list[object] = [
    None, True, False, "", "\x00", "\n", "a" * 10_000, "\u202e", "é", -1, 0, 1, 2**63 - 1, 2**63,
    2**70, 1.5, -0.0, 1e308, math.nan, math.inf, -math.inf, [], {}, [[]], {"a": []}, "o", "g", "b",
    "healthy", "me", "default",
]  # fmt: skip
FIELDS = ["v", "k", "ns", "n", "i", "q", "t", "g", "x", "s", "?"]


def template(chance: random.Random) -> dict[str, object]:
    """Give the fields of a good beat."""
    return {
        "v": 1,
        "k": chance.choice("bgoe"),
        "ns": "default",
        "n": f"n{chance.randrange(50)}",
        "i": chance.randrange(1, 4),
        "q": chance.randrange(1, 9),
        "t": chance.choice([0.0, 5.0, 1e9, -1e9]),
        "g": chance.choice([0.5, 1.0, 86_400.0]),
    }


def odd_fields(chance: random.Random) -> bytes:
    """Give a beat of which some fields are something else, or gone."""
    fields = template(chance)
    for _ in range(chance.randrange(1, 3)):
        name = chance.choice(FIELDS)
        if chance.random() < 0.3:
            fields.pop(name, None)
        else:
            fields[name] = chance.choice(ODD)
    return json.dumps(fields).encode()


def damaged(chance: random.Random) -> bytes:
    """Give a good beat that was cut, or of which some bytes were changed."""
    data = bytearray(json.dumps(template(chance)).encode())
    if chance.random() < 0.3:
        return bytes(data[: chance.randrange(len(data))])
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def noise(chance: random.Random) -> bytes:
    """Give bytes that never were a beat."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(100))
    if kind == 1:
        return b"[" * chance.randrange(3000)
    if kind == 2:
        return b'{"v":' + b"9" * chance.randrange(5000) + b"}"
    return json.dumps(chance.choice(ODD)).encode()


def replayed(chance: random.Random) -> bytes:
    """Give a beat that is well made: repeated, reordered, of any life, of a foreign fleet."""
    fields = template(chance)
    if chance.random() < 0.1:
        fields["ns"] = "other"
    return json.dumps(fields).encode()


@pytest.mark.parametrize("make", [odd_fields, damaged, noise, replayed])
def test_a_quarter_of_a_million(make: Callable[[random.Random], bytes]) -> None:
    """Whatever comes is decoded or refused for a reason, and what is decoded can be observed."""
    chance = random.Random(7)
    detector = Detector(Settings(), ME)
    refused: Counter[str] = Counter()
    outcomes = 0
    now = 1000.0
    sequence = 0
    seen: list[State | None] = []
    for number in range(ROUNDS):
        if number % 5_000 == 0:
            # Meanwhile somebody healthy beats, and the observer hears itself.
            now += 1.0
            sequence += 1
            for each in (ME, HEALTHY):
                beat = Beat(incarnation=each, sequence=sequence, sent=now, gap=1.0)
                assert decode(encode(beat)) == beat
                detector.observe(beat, now)
            detector.check(now)
        try:
            beat = decode(make(chance))
        except BeatError as exc:
            refused[exc.reason] += 1
            outcomes += 1
            continue
        if beat.incarnation.node in {"healthy", "me"}:
            outcomes += 1
            continue
        seen += [each.state for each in detector.observe(beat, now)]
        outcomes += 1
    assert outcomes == ROUNDS
    assert set(refused) <= {"malformed", "oversized", "version"}
    assert {view.state for view in detector.nodes() if view.incarnation == HEALTHY} == {State.ALIVE}
    assert set(detector.dropped) <= {"stale", "repeated", "outdated", "late"}


def test_an_endless_stream_of_names_does_not_grow_without_end() -> None:
    """Whoever invents a node a beat fills the table only for as long as nodes are kept."""
    settings = Settings(expire=5.0, discard_delay=5.0)
    detector = Detector(settings, ME)
    most = 0
    for number in range(1, 400):
        now = number / 4
        detector.observe(Beat(incarnation=ME, sequence=number, sent=now, gap=1.0), now)
        for k in range(20):
            incarnation = Incarnation(f"n{number}-{k}", 1)
            kind = Kind.GOODBYE if k % 2 else Kind.BEAT
            detector.observe(
                Beat(incarnation=incarnation, sequence=1, sent=now, gap=1.0, kind=kind), now
            )
        while detector.check(now):
            pass
        most = max(most, len(detector.nodes()))
    assert most < 20 * 4 * (settings.min_freq + settings.discard_delay + 2)
    assert len(detector._gone) < 20 * 4 * (settings.discard_delay + 1)
