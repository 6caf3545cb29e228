"""The beat on the wire: what is sent arrives as it was, and nothing else is a beat."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_core import Beat, BeatError, Incarnation, Kind, decode, encode

NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=60) | st.text(
    string.printable[:94], min_size=1, max_size=255
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20)
BEATS = st.builds(
    Beat,
    incarnation=st.builds(Incarnation, NAMES, st.integers(0, 2**63 - 1)),
    sequence=st.integers(0, 2**63 - 1),
    sent=st.floats(-1e9, 1e9).map(lambda value: round(value, 3)),
    gap=st.floats(0.001, 86_400),
    namespace=st.text(max_size=30),
    kind=st.sampled_from(Kind),
    stalled=st.booleans(),
    status=st.dictionaries(st.text(max_size=10), PLAIN, max_size=5),
)
ORDINARY = Beat(
    incarnation=Incarnation("celery@worker-17.example.org", 1_795_520_340_631_234),
    sequence=86_400,
    sent=86_400.123,
    gap=1.0,
    namespace="shop",
)


@given(BEATS)
def test_what_is_sent_arrives_as_it_was(beat: Beat) -> None:
    """Decoding gives back what was encoded."""
    assert decode(encode(beat)) == beat


def test_an_ordinary_beat_is_small() -> None:
    """A beat without a status takes at most 150 bytes."""
    assert len(encode(ORDINARY)) <= 150


@given(st.binary(max_size=300))
def test_noise_is_no_beat(data: bytes) -> None:
    """Whatever bytes come, nothing but a ``BeatError`` is raised."""
    with pytest.raises(BeatError):
        decode(data)


@given(st.data())
def test_a_spoilt_beat_is_a_beat_or_an_error(data: st.DataObject) -> None:
    """A beat with a field replaced by anything is refused, or still a beat."""
    fields = json.loads(encode(ORDINARY))
    name = data.draw(st.sampled_from([*sorted(fields), "s"]))
    fields[name] = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        )
    )
    try:
        beat = decode(json.dumps(fields).encode())
    except BeatError as exc:
        assert exc.reason in {"malformed", "oversized", "version"}
    else:
        assert isinstance(beat, Beat)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b"{", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 1500, "malformed"),
        (b"{}", "version"),
        (b'{"v":2}', "version"),
        (b'{"v":1}', "malformed"),
        (b" " * 3000, "oversized"),
        (encode(ORDINARY)[:-1], "malformed"),
        (encode(ORDINARY).replace(b'"g":1.0', b'"g":NaN'), "malformed"),
        (encode(ORDINARY).replace(b'"g":1.0', b'"g":0'), "malformed"),
        (encode(ORDINARY).replace(b'"g":1.0', b'"g":1e9'), "malformed"),
        (encode(ORDINARY).replace(b'"q":86400', b'"q":true'), "malformed"),
        (encode(ORDINARY).replace(b'"q":86400', b'"q":-1'), "malformed"),
        (encode(ORDINARY).replace(b'"v":1', b'"v":1,"k":"x"'), "malformed"),
        (encode(ORDINARY).replace(b'"t":86400.123', b'"t":Infinity'), "malformed"),
        (encode(ORDINARY).replace(b"celery@", b"\\u0007"), "malformed"),
        (encode(ORDINARY).replace(b"celery@", b"c" * 300), "malformed"),
        (encode(ORDINARY).replace(b'"v":1', b'"v":1,"s":{"a":[]}'), "malformed"),
        (encode(ORDINARY).replace(b'"v":1', b'"v":1,"s":"well"'), "malformed"),
    ],
)
def test_each_fault_has_its_reason(data: bytes, reason: str) -> None:
    """What is no beat is refused with one word for a counter."""
    with pytest.raises(BeatError) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_later_versions_may_add_fields() -> None:
    """A field that this version does not know changes nothing."""
    assert decode(encode(ORDINARY).replace(b'"v":1', b'"v":1,"new":[1]')) == ORDINARY


@pytest.mark.parametrize(
    "status",
    [
        {"a": object()},
        {"a": float("nan")},
        {"a": "x" * 3000},
        {"a": [1]},
        {"a": {"b": 1}},
        {"a": "\ud800"},
        {(): 1},
        ["a"],
        "a",
        5,
    ],
)
def test_a_status_that_does_not_fit_is_refused(status: object) -> None:
    """What nobody could decode is an error where it is encoded."""
    beat = Beat(incarnation=ORDINARY.incarnation, sequence=1, sent=0, gap=1, status=status)  # type: ignore[arg-type]
    with pytest.raises(BeatError):
        encode(beat)


@given(st.builds(Incarnation, NAMES, st.integers(0, 2**63 - 1)))
def test_an_incarnation_can_be_read_back(incarnation: Incarnation) -> None:
    """Its text form names it completely, whatever its node is called."""
    assert Incarnation.parse(str(incarnation)) == incarnation


@pytest.mark.parametrize(
    "text", ["", "a", "a#", "#1", "a#-1", "a#1.0", "\x00#1", "a#" + 5000 * "9"]
)
def test_other_texts_name_no_incarnation(text: str) -> None:
    """A text that is not of the form node#number is refused."""
    with pytest.raises(BeatError):
        Incarnation.parse(text)


@pytest.mark.parametrize("wrong", [None, 0, 1, "true", [], {}])
def test_a_stall_is_true_or_false(wrong: object) -> None:
    """Whether a node is stalled is nothing else than true or false."""
    fields = {**json.loads(encode(ORDINARY)), "x": wrong}
    with pytest.raises(BeatError, match="expected true or false"):
        decode(json.dumps(fields).encode())


@pytest.mark.parametrize("field", ["n", "ns"])
def test_a_name_is_text(field: str) -> None:
    """A node and a namespace are called by text."""
    fields = {**json.loads(encode(ORDINARY)), field: 5}
    with pytest.raises(BeatError, match="expected text"):
        decode(json.dumps(fields).encode())
