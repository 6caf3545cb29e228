"""``heartbeat send``: a node of the command line is a node like any other."""

import pathlib
import signal
import sys
import time
from typing import Any

import pytest
from command import Run, Shell, shell
from fleet import wait_for

SIGNALS = [signal.SIGINT, signal.SIGTERM] if sys.platform != "win32" else []


def watching(place: Shell, **environ: str) -> Run:
    """Start a watcher, and wait until it sees who comes."""
    watcher = place.start("watch", "--json", **environ)
    probe = place.start("send", "probe", "-q")
    wait_for(lambda: watcher.objects(node="probe", state="alive"), "it sees a node", 30)
    probe.process.terminate()
    wait_for(lambda: watcher.objects(node="probe", state=None), "it sees that it is gone")
    return watcher


def test_killed_it_is_found_like_a_worker(heartbeat: Shell) -> None:
    """A steady beat is ALIVE; its process killed, it is SUSPECT and then DEAD."""
    watcher = watching(heartbeat)
    sender = heartbeat.start("send", "hand", "--status", "tasks=3", "--status", "queue=a b")
    (first,) = wait_for(lambda: watcher.objects(node="hand"), "it is seen", 30)
    assert (first["previous"], first["state"], first["cause"]) == (None, "alive", "first_beat")
    assert wait_for(sender.lines, "it tells of itself") == [
        f"hand#{first['incarnation']} beats every 1 s"
    ]
    time.sleep(2)  # The watcher has seen its connection by then.
    sender.process.kill()
    dead = wait_for(lambda: watcher.objects(node="hand", state="dead"), "its death is seen")
    assert (dead[0]["previous"], dead[0]["cause"]) == ("suspect", "checks_failed")
    (suspect,) = watcher.objects(node="hand", state="suspect")
    assert (suspect["previous"], suspect["cause"]) == ("alive", "disconnected")
    assert 0 < dead[0]["disconnected_for_s"] < 2
    assert dead[0]["checks_failed"] == 3
    assert sender.said() == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_asked_to_end_it_says_goodbye(heartbeat: Shell, number: int) -> None:
    """Ctrl-C and SIGTERM are a goodbye, without a word, and exit with 0."""
    watcher = watching(heartbeat)
    sender = heartbeat.start("send", "hand", "--json")
    wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
    assert sender.end(number) == 0
    wait_for(lambda: watcher.objects(node="hand", cause="goodbye"), "its goodbye is heard")
    assert not watcher.objects(node="hand", state="suspect")
    assert [each["event"] for each in sender.objects()] == ["beats"]
    assert sender.said() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shell that ignores Ctrl-C")
def test_in_the_background_it_does_not_hear_ctrl_c(heartbeat: Shell) -> None:
    """Where a shell has it ignore Ctrl-C, it goes on to; SIGTERM still is a goodbye."""
    watcher = watching(heartbeat)
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    sender = heartbeat.start("send", "hand", before=before)
    wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
    sender.process.send_signal(signal.SIGINT)
    assert sender.end(signal.SIGTERM) == 0
    wait_for(lambda: watcher.objects(node="hand", cause="goodbye"), "its goodbye is heard")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process")
def test_declared_dead_it_begins_anew(heartbeat: Shell) -> None:
    """A sender that was stopped for too long reads its obituary, and says who it is now."""
    short = {"CELERY_HEARTBEAT_EXPIRE": "4"}
    watcher = watching(heartbeat, **short)
    sender = heartbeat.start("send", "hand", "--json", **short)
    wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
    sender.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: watcher.objects(node="hand", state="dead"), "its death is seen", 30)
    assert watcher.objects(node="hand", cause="mute")
    sender.process.send_signal(signal.SIGCONT)
    wait_for(lambda: watcher.objects(node="hand", cause="larger_incarnation"), "it is back", 30)
    first, obituary, second = wait_for(
        lambda: len(sender.objects()) == 3 and sender.objects(), "it says so"
    )
    assert [first["event"], obituary["event"], second["event"]] == [
        "beats",
        "declared dead",
        "beats",
    ]
    assert first["incarnation"] == obituary["incarnation"] < second["incarnation"]


def test_stalled_it_is_suspected(heartbeat: Shell) -> None:
    """A node that says that its work stands still is suspected for that."""
    watcher = watching(heartbeat)
    heartbeat.start("send", "hand", "--stalled")
    wait_for(lambda: watcher.objects(node="hand", state="suspect", cause="stalled"), "it is", 30)


def test_one_beat(heartbeat: Shell) -> None:
    """One beat is seen, and its node is suspected by its silence."""
    watcher = watching(heartbeat)
    code, sender = heartbeat.run("send", "hand", "--once")
    assert (code, sender.said()) == (0, "")
    (first,) = wait_for(lambda: watcher.objects(node="hand"), "it is seen")
    assert (first["state"], first["cause"]) == ("alive", "first_beat")
    assert sender.lines() == [
        f"hand#{first['incarnation']} sent once; it is suspected when no more follow"
    ]
    (suspect,) = wait_for(lambda: watcher.objects(node="hand", state="suspect"), "it is suspected")
    assert suspect["cause"] == "silence"
    assert suspect["silence_s"] >= 2


def test_one_beat_does_not_bury_who_is_there(heartbeat: Shell) -> None:
    """Under a name that a node has, nothing is sent: it would supersede that node."""
    watcher = watching(heartbeat)
    heartbeat.start("send", "hand")
    wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
    code, sender = heartbeat.run("send", "hand", "--once")
    assert code == 1
    assert sender.said() == "heartbeat send: a node called hand is there already: not sent\n"
    heartbeat.run("send", "other", "--once")
    wait_for(lambda: watcher.objects(node="other"), "what came later is seen")
    assert len(watcher.objects(node="hand")) == 1


def test_it_waits_for_the_broker(valkey_private: Any, tmp_path: pathlib.Path) -> None:
    """A broker that is away is no error: one line says so, another one when it is back."""
    valkey_private.stop()
    with shell(valkey_private.url, tmp_path) as place:
        sender = place.start("send", "hand")
        watcher = place.start("watch", "--json")
        wait_for(lambda: "lost the broker" in sender.said(), "it says so", 30)
        wait_for(lambda: "lost the broker" in watcher.said(), "it says so, too", 30)
        assert sender.lines() == []
        valkey_private.start()
        wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
        wait_for(lambda: "is back at the broker" in sender.said(), "it says so", 30)
        wait_for(sender.lines, "it beats")
        assert len(sender.said().splitlines()) == 2


def test_on_rabbitmq(rabbitmq: Any, tmp_path: pathlib.Path) -> None:
    """The same on RabbitMQ: seen, killed, suspected, dead; and one beat."""
    with shell(rabbitmq.url, tmp_path) as place:
        watcher = watching(place)
        sender = place.start("send", "hand")
        wait_for(lambda: watcher.objects(node="hand", state="alive"), "it is seen", 30)
        assert place.run("status")[0] == 0
        sender.process.kill()
        wait_for(lambda: watcher.objects(node="hand", state="suspect"), "it is suspected", 30)
        wait_for(lambda: watcher.objects(node="hand", state="dead"), "its death is seen", 30)
        code, _ = place.run("send", "other", "--once")
        assert code == 0
        wait_for(lambda: watcher.objects(node="other", state="alive"), "it is seen")
