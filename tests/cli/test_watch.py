"""``heartbeat watch`` and ``heartbeat status``: what they tell, and with which exit codes."""

import contextlib
import datetime as dt
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from command import MAIN, Run, Shell
from fleet import wait_for

KEYS = {
    "at",
    "cause",
    "checks_failed",
    "disconnected_for_s",
    "incarnation",
    "namespace",
    "node",
    "previous",
    "reason",
    "silence_s",
    "state",
}


def beating(place: Shell, *nodes: str, **environ: str) -> list[Run]:
    """Start nodes, and wait until they beat."""
    senders = [place.start("send", node, **environ) for node in nodes]
    for sender in senders:
        wait_for(sender.lines, "it beats", 30)
    return senders


def test_who_is_there_comes_first(heartbeat: Shell) -> None:
    """A watcher that comes later prints who is there, an object a line, with all of its keys."""
    beating(heartbeat, "a", "b")
    watcher = heartbeat.start("watch", "--json")
    wait_for(lambda: len(watcher.objects(state="alive")) == 2, "it knows both", 30)
    assert {each["node"] for each in watcher.objects()} == {"a", "b"}
    for each in watcher.objects():
        assert each.keys() == KEYS
        assert each["namespace"] == heartbeat.namespace
        age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(each["at"])
        assert abs(age.total_seconds()) < 60
    assert watcher.end(signal.SIGTERM) == 0
    assert watcher.said() == ""


def test_lines_for_people(heartbeat: Shell) -> None:
    """Where there is no terminal, it prints a line a transition."""
    watcher = heartbeat.start("watch")
    heartbeat.start("send", "hand")
    (line,) = wait_for(watcher.lines, "a line", 30)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d\d\d  hand  unknown -> alive \(first beat\): hand beats", line
    )


def test_a_watcher_is_no_node(heartbeat: Shell) -> None:
    """Nobody sees a watcher: not another one, and no table."""
    first = heartbeat.start("watch", "--json")
    second = heartbeat.start("watch", "--json")
    beating(heartbeat, "a")
    for watcher in (first, second):
        wait_for(lambda watcher=watcher: watcher.objects(node="a"), "it watches", 30)
    code, table = heartbeat.run("status", "--json")
    assert code == 0
    assert [each["node"] for each in json.loads(table.lines()[0])] == ["a"]
    assert first.end(signal.SIGTERM) == 0
    time.sleep(1)
    assert {each["node"] for each in second.objects()} == {"a"}


def test_for_a_time(heartbeat: Shell) -> None:
    """It ends by itself when it is told for how long."""
    began = time.monotonic()
    code, watcher = heartbeat.run("watch", "--for", "1.5")
    assert (code, watcher.lines(), watcher.said()) == (0, [], "")
    assert time.monotonic() - began >= 1.5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells only with the next line")
def test_a_closed_pipe_ends_it(heartbeat: Shell) -> None:
    """Once nobody reads any more it ends quietly, though nothing else happens."""
    beating(heartbeat, "a")
    environ = {
        **os.environ,
        "HEARTBEAT_BROKER_URL": heartbeat.url,
        "CELERY_HEARTBEAT_NAMESPACE": heartbeat.namespace,
    }
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        assert json.loads(watcher.stdout.readline())["node"] == "a"
        watcher.stdout.close()
        assert watcher.wait(20) == 0
        assert watcher.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("command", [["watch", "--json"], ["status"]])
def test_what_cannot_be_written(heartbeat: Shell, command: list[str]) -> None:
    """A full disk is one line, and exits with 2."""
    beating(heartbeat, "a")
    before = "import sys; sys.stdout = open('/dev/full', 'w'); "
    code, run = heartbeat.run(*command, before=before)
    assert code == 2
    assert run.said() == f"heartbeat {command[0]}: cannot write: No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich")
def test_a_live_table(heartbeat: Shell) -> None:
    """On a terminal it draws the table, and leaves the last one there."""
    import pty

    beating(heartbeat, "w[bold]1")
    master, slave = pty.openpty()
    environ = {
        **os.environ,
        "HEARTBEAT_BROKER_URL": heartbeat.url,
        "CELERY_HEARTBEAT_NAMESPACE": heartbeat.namespace,
        "TERM": "xterm",
    }
    watcher = subprocess.Popen(
        [sys.executable, "-c", MAIN, "watch"], stdout=slave, stderr=slave, env=environ
    )
    os.close(slave)
    shown = b""
    try:
        until = time.monotonic() + 30
        while b"1 alive" not in shown and time.monotonic() < until:
            shown += os.read(master, 65536)
        watcher.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # So a terminal says that nobody writes any more.
            while data := os.read(master, 65536):
                shown += data
        assert watcher.wait(20) == 0
    finally:
        watcher.kill()
        watcher.wait()
        os.close(master)
    assert f"{heartbeat.namespace}: 1 alive".encode() in shown
    assert b"w[bold]1" in shown
    assert b"ALIVE" in shown
    assert b"Traceback" not in shown


def test_shards(heartbeat: Shell) -> None:
    """A fleet that is split is watched as a whole; each node beats in its own shard."""
    heartbeat.environ["CELERY_HEARTBEAT_SHARDS"] = "3"
    nodes = ["a", "b", "c", "d"]
    watcher = heartbeat.start("watch", "--json")
    beating(heartbeat, *nodes)
    wait_for(lambda: len(watcher.objects(state="alive")) == 4, "all are seen", 30)
    shards = {each["node"]: each["namespace"] for each in watcher.objects()}
    assert len(set(shards.values())) > 1
    code, table = heartbeat.run("status", "--json")
    assert code == 0
    assert {each["node"]: each["namespace"] for each in json.loads(table.lines()[0])} == shards
    assert [each["node"] for each in json.loads(table.lines()[0])] == nodes


def test_status_of_a_fleet(heartbeat: Shell) -> None:
    """It exits with 4 for nobody, with 0 while all live, with 1 when one does not beat."""
    code, table = heartbeat.run("status")
    assert (code, table.lines(), table.said()) == (4, ["nobody beats"], "")
    (_, killed) = beating(heartbeat, "a", "b")
    code, table = heartbeat.run("status")
    assert code == 0
    assert [line.split()[:2] for line in table.lines()] == [
        ["NODE", "STATE"],
        ["a", "alive"],
        ["b", "alive"],
        ["2", "nodes:"],
    ]
    killed.process.kill()
    killed.process.wait()
    code, table = heartbeat.run("status", "--json")
    assert code == 1
    a, b = json.loads(table.lines()[0])
    assert (a["state"], a["connected"]) == ("alive", True)
    assert (b["state"], b["connected"]) == ("suspect", None)
    code, table = heartbeat.run("status", "--wait", "6")
    assert (code, table.lines("dead")[0].split()[:2]) == (1, ["b", "dead"])
    assert table.lines()[-1] == "2 nodes: 1 alive, 1 dead"


def test_what_a_node_says_of_itself(heartbeat: Shell) -> None:
    """A status is shown, but writes nothing to the terminal that is not plain text."""
    sender = heartbeat.start("send", "hand", "--status", "n=3", "--status", "s=\x1b[31mred")
    wait_for(sender.lines, "it beats", 30)
    _, table = heartbeat.run("status")
    assert table.lines(r"n=3 s=\x1b[31mred")
    _, table = heartbeat.run("status", "--json")
    assert json.loads(table.lines()[0])[0]["status"] == {"n": 3, "s": "\x1b[31mred"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_status_interrupted(heartbeat: Shell) -> None:
    """A status that was not waited for exits with 130, and prints nothing."""
    run = heartbeat.start("status", "--wait", "60", "--json")
    time.sleep(2)
    assert run.end(signal.SIGINT) == 130
    assert (run.lines(), run.said()) == ([], "")
