"""``heartbeat-probe``: a worker's file tells whether it is alive, and nothing else does."""

import functools
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import HERE, Fleet, stopped, wait_for

from heartbeat_celery import _signs
from heartbeat_celery._settings import probe_dir_of
from heartbeat_celery._sign_writer import SignWriter
from heartbeat_core import Settings, SettingsError

PROBE = [
    sys.executable,
    "-c",
    "import sys; from heartbeat_celery._probe import main; sys.exit(main())",
]
HEARTBEAT = [sys.executable, "-c", "from heartbeat_celery.cli import main; main()", "probe"]


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker."""
    with Fleet(valkey.url, tmp_path) as fleet:
        fleet.client.flushdb()
        yield fleet


def probe(
    folder: pathlib.Path, *options: str, command: list[str] = PROBE, **environ: str
) -> tuple[int, str]:
    """Probe the workers whose folder for temporary files is this; give exit code and output."""
    done = subprocess.run(
        [*command, *options],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONWARNINGS": "ignore", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stdout + done.stderr).strip()


def directory_of(folder: pathlib.Path) -> pathlib.Path:
    """Give the directory of this user's files."""
    return pathlib.Path(_signs.directory_in(str(folder)))


def files(folder: pathlib.Path) -> list[str]:
    """Give the files that are there."""
    return sorted(path.name for path in directory_of(folder).glob("*"))


def wait_ready(fleet: Fleet) -> None:
    """Wait until a probe finds the only worker ready."""
    wait_for(lambda: probe(fleet.folder, "--ready")[0] == 0, "it is ready")


# -- real workers -------------------------------------------------------------------------------


def test_a_worker_in_a_long_task_is_alive(fleet: Fleet) -> None:
    """A solo worker whose only thread is in a task for longer than it may be silent is alive."""
    fleet.start_all(1, pool="solo")
    fleet.send("sleep", 1, 7.0)
    wait_for(fleet.running, "it runs")
    time.sleep(5)
    code, said = probe(fleet.folder, "--ready", "--max-age", "4")
    assert fleet.running()
    assert (code, said[:17]) == (0, "w1@here is ready:")
    assert probe(fleet.folder, "--max-age", "4")[1].startswith("w1@here is alive: it beat ")


def test_a_killed_worker_is_not_alive(fleet: Fleet) -> None:
    """That shows at once, whatever its age; the next worker cleans up after it."""
    (worker,) = fleet.start_all(1, pool="solo")
    wait_ready(fleet)
    worker.process.kill()
    wait_for(lambda: probe(fleet.folder)[0] == 1, "it is not alive, though it was not waited for")
    gone = f"w1@here is not alive: its process {worker.process.pid} is gone"
    assert probe(fleet.folder) == (1, gone)
    worker.process.wait()
    assert probe(fleet.folder, "--node", "w1")[1].endswith("is gone")
    fleet.workers.remove(worker)
    left = files(fleet.folder)
    fleet.start_all(1, pool="solo")
    wait_for(lambda: left[0] not in files(fleet.folder), "what it left is removed")
    assert probe(fleet.folder)[0] == 0


def test_a_stopped_worker_is_silent(fleet: Fleet) -> None:
    """It is alive as long as it may be silent, then not, and again when it goes on."""
    (worker,) = fleet.start_all(1, pool="solo")
    wait_ready(fleet)
    with stopped(worker):
        wait_for(lambda: probe(fleet.folder, "--max-age", "2")[0] == 1, "it is silent")
        code, said = probe(fleet.folder, "--max-age", "2")
        assert (code, said.startswith("w1@here is not alive: it has been silent for")) == (1, True)
        assert probe(fleet.folder)[0] == 0
    wait_for(lambda: probe(fleet.folder, "--max-age", "2")[0] == 0, "it is alive")


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_goodbye_removes_the_file(fleet: Fleet, pool: str) -> None:
    """A worker that was asked to end is alive while it drains, and leaves nothing."""
    (worker,) = fleet.start_all(1, pool=pool)
    wait_ready(fleet)
    fleet.send("sleep", 1, 4.0)
    wait_for(fleet.running, "it runs")
    worker.process.send_signal(signal.SIGTERM)
    wait_for(lambda: worker.lines("Warm shutdown"), "it drains")
    assert probe(fleet.folder)[0] == 0
    assert worker.process.wait(30) == 0
    assert files(fleet.folder) == []
    code, said = probe(fleet.folder)
    assert (code, said) == (1, f"no worker beats here: none in {directory_of(fleet.folder)}")


def test_without_its_broker_a_worker_is_alive_and_not_ready(
    valkey_private: Any, tmp_path: pathlib.Path
) -> None:
    """An outage is no reason to restart a fleet, before it has joined as little as after it."""
    with Fleet(valkey_private.url, tmp_path) as fleet:
        valkey_private.stop()
        fleet.start("w1", pool="solo")
        wait_for(lambda: probe(tmp_path)[0] == 0, "it is alive without a broker", 60)
        assert probe(tmp_path, "--ready")[0] == 1
        valkey_private.start()
        wait_ready(fleet)
        valkey_private.stop()
        wait_for(lambda: probe(tmp_path, "--ready")[0] == 1, "it is not ready")
        code, said = probe(tmp_path, "--ready", "--json")
        assert (code, json.loads(said)["worker"]["joined"]) == (1, False)
        assert "is not ready: the broker does not know it" in said
        code, said = probe(tmp_path, "--json")
        assert (code, json.loads(said)["ok"]) == (0, True)
        valkey_private.start()
        wait_ready(fleet)


def test_of_two_workers_one_is_named(fleet: Fleet) -> None:
    """Who does not say which is told which there are; the host may be left out."""
    one, _ = fleet.start_all(2, pool="solo")
    wait_for(lambda: len(files(fleet.folder)) == 2, "both write")
    code, said = probe(fleet.folder)
    assert code == 2
    assert said == (
        "heartbeat-probe: several workers beat here; say which (--node, --namespace): "
        "w1@here (fleet), w2@here (fleet)"
    )
    for name in ("w1", "w1@here"):
        assert probe(fleet.folder, "--node", name, "--namespace", "fleet")[0] == 0
    assert probe(fleet.folder, "--node", "w3")[0] == 1
    assert probe(fleet.folder, "--namespace", "other")[0] == 1
    one.process.kill()
    wait_for(lambda: probe(fleet.folder, "--node", "w1")[0] == 1, "it is gone")
    assert probe(fleet.folder)[1].startswith("w2@here is alive")


def test_the_directory_may_be_set(fleet: Fleet) -> None:
    """By a setting of the app's, or in the environment, where every probe finds it."""
    folder = fleet.folder / "elsewhere"
    folder.mkdir()
    fleet.conf["heartbeat_probe_dir"] = str(folder)
    fleet.start_all(1, pool="solo")
    wait_for(lambda: files(folder), "it writes there")
    assert probe(fleet.folder)[0] == 1
    assert probe(fleet.folder, CELERY_HEARTBEAT_PROBE_DIR=str(folder))[0] == 0
    assert probe(fleet.folder, "--dir", str(folder))[0] == 0
    assert probe(fleet.folder, "--dir", str(folder), command=HEARTBEAT)[0] == 0
    celery = [sys.executable, "-m", "celery", "-A", "fleet_app", "heartbeat", "probe"]
    environ = {
        "FLEET_BROKER": "redis://127.0.0.1:1/0",
        "FLEET_CONF": json.dumps(fleet.conf),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    code, said = probe(fleet.folder, "--ready", command=celery, **environ)
    assert (code, said[:17]) == (0, "w1@here is ready:")


def test_a_worker_does_without_its_file(fleet: Fleet) -> None:
    """One line says that it cannot be written, and tasks run on; nothing is written elsewhere."""
    elsewhere = fleet.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory_of(fleet.folder).symlink_to(elsewhere)
    (worker,) = fleet.start_all(1, pool="solo")
    wait_for(lambda: worker.lines("cannot write its file"), "it says so")
    fleet.send("sleep", 1, 2.5)
    fleet.wait_ended(1)
    assert len(worker.lines("cannot write its file")) == 1
    assert fleet.stop(worker) == 0
    assert list(elsewhere.iterdir()) == []
    code, said = probe(fleet.folder)
    assert (code, "is a link or a file" in said) == (1, True)


# -- the file -----------------------------------------------------------------------------------


def writer(folder: pathlib.Path, node: str = "w1@here", **options: Any) -> SignWriter:
    """Give what writes the file of a worker that would run in this process."""
    options.setdefault("settings", Settings(frequency=0.02))
    return SignWriter(node=node, namespace="ours", parent=str(folder), **options)


def write(folder: pathlib.Path, node: str = "w1@here", **options: Any) -> pathlib.Path:
    """Write the file of a worker in this process; give its path."""
    before = set(files(folder))
    one = writer(folder, node, **options)
    one._write(one._sign(None))
    (name,) = set(files(folder)) - before
    return directory_of(folder) / name


def change(path: pathlib.Path, **fields: Any) -> None:
    """Write something else into a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_any_name_has_a_file(tmp_path: pathlib.Path) -> None:
    """Long names, names of paths, and names that differ in their case alone are kept apart."""
    names = ["W1@here", "w1@here", "../../x", 'a:b*c?"<>|', "é" * 255]
    for name in names:
        path = write(tmp_path, name)
        assert path.name.isascii()
        assert len(path.name) < 40
    signs = _signs.signs_in(str(directory_of(tmp_path)))
    assert sorted(sign.node for sign in signs) == sorted(names)
    assert probe(tmp_path, "--node", "../../x")[0] == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "w1@here is alive: it beat"),
        ({"began": "1"}, "is gone"),
        ({"pid": 2**22 + 1}, "is gone"),
        ({"monotonic": time.monotonic() + 1e6}, "is gone"),
        ({"monotonic": time.monotonic() - 100.0}, "it has been silent for"),
        ({"stalled": True}, "its work stands still"),
        ({"began": None, "wall": time.time() - 7200.0}, "is gone"),
        ({"monotonic": "then"}, "no worker beats here"),
        ({"pid": None}, "no worker beats here"),
        ({"node": "a\x1b[31m"}, r"a\x1b[31m is alive"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_what_a_file_says_is_judged(
    tmp_path: pathlib.Path, fields: dict[str, Any], said: str
) -> None:
    """Another process with its number, another boot, an old time: none of them is a worker."""
    change(write(tmp_path), **fields)
    code, found = probe(tmp_path)
    assert said in found
    assert (code == 0) == ("is alive" in said)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0" * 100])
def test_what_is_no_sign_is_passed_over(tmp_path: pathlib.Path, text: str) -> None:
    """A file that cannot be read is nobody's."""
    write(tmp_path).write_text(text)
    assert probe(tmp_path)[0] == 1


def test_it_stays_small_and_private(tmp_path: pathlib.Path) -> None:
    """Nobody else may read or write it; what was killed leaves nothing for ever."""
    path = write(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    gone = 2**22 + 1
    left = [f"{gone}-0123456789abcdef.json", f"{gone}-0123456789abcdef.part"]
    for name in [*left, "notes.txt", "x-y.json"]:
        (path.parent / name).write_text(path.read_text().replace(str(os.getpid()), str(gone)))
    other = write(tmp_path, "w2@here")
    assert files(tmp_path) == sorted([path.name, other.name, "notes.txt", "x-y.json"])


def hostile_link(directory: pathlib.Path) -> str:
    """Put a link in its place."""
    (directory.parent / "x").mkdir(mode=0o700)
    directory.symlink_to(directory.parent / "x")
    return "is a link or a file"


def hostile_file(directory: pathlib.Path) -> str:
    """Put a file in its place."""
    directory.touch()
    return "is a link or a file"


def hostile_mode(directory: pathlib.Path) -> str:
    """Let others write."""
    directory.mkdir(mode=0o700)
    directory.chmod(0o770)
    return "others may use"


def hostile_owner(directory: pathlib.Path) -> str:
    """Let it be another user's."""
    if os.geteuid() != 0:
        pytest.skip("only root gives a directory away")
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    return "belongs to another user"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a folder for each user")
@pytest.mark.parametrize("hostile", [hostile_link, hostile_file, hostile_mode, hostile_owner])
def test_a_hostile_directory_is_refused(
    tmp_path: pathlib.Path, hostile: Callable[[pathlib.Path], str]
) -> None:
    """Neither the worker nor the probe uses what somebody else can change."""
    directory = directory_of(tmp_path)
    said = hostile(directory)
    one = writer(tmp_path)
    with pytest.raises(OSError, match=said):
        one._write(one._sign(None))
    code, found = probe(tmp_path)
    assert (code, said in found) == (1, True)
    assert not list(directory.glob("*"))


def keep_writing(one: SignWriter, act: Callable[[], Any]) -> None:
    """Write once a beat while something is done."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.keep_writing, lambda: None)
            await anyio.to_thread.run_sync(act)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_change_is_one_line(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """That it cannot be written is said once, and once that it can."""
    caplog.set_level(logging.INFO, "heartbeat_celery")
    folder = tmp_path / "later"
    one = writer(folder)

    def act() -> None:
        wait_for(lambda: "cannot write" in caplog.text, "it says so")
        time.sleep(0.2)
        folder.mkdir()
        wait_for(lambda: len(caplog.records) > 1, "it says so")
        time.sleep(0.2)

    keep_writing(one, act)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert len(files(folder)) == 1
    one.remove()
    assert files(folder) == []
    # What still ran when it was removed does not bring it back.
    one._write(one._sign(None))
    assert files(folder) == []


def test_whoever_cannot_tell_moves(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in what tells of stalls is logged once, and kills no worker."""

    def wrong() -> bool:
        raise RuntimeError("a bug")

    one = writer(tmp_path, stalled=wrong)
    keep_writing(one, functools.partial(time.sleep, 0.3))
    (record,) = caplog.records
    assert "cannot tell whether it is stalled" in record.getMessage()
    assert probe(tmp_path)[0] == 0
    path = write(tmp_path, "w2@here", stalled=lambda: True)
    assert json.loads(path.read_text())["stalled"] is True
    assert probe(tmp_path, "--node", "w2")[0] == 1


@pytest.mark.parametrize("folder", ["", "relative", 3])
def test_a_wrong_directory_is_a_wrong_setting(folder: object) -> None:
    """It is an absolute path, or the folder for temporary files."""
    with pytest.raises(SettingsError, match=r"heartbeat_probe_dir \(.*\) must be an absolute path"):
        probe_dir_of({"heartbeat_probe_dir": folder}, {})
    assert probe_dir_of({}, {"CELERY_HEARTBEAT_PROBE_DIR": "/run/x"}) == "/run/x"
    assert probe_dir_of({"heartbeat_probe_dir": pathlib.Path("/run/x")}, {}) == "/run/x"
    assert probe_dir_of({}, {}) is None


DOCS = HERE.parents[1] / "docs" / "how-to" / "kubernetes.md"
SHOWN = re.findall(r'(?:command|test): (\[.*"heartbeat-probe".*\])', DOCS.read_text())


@pytest.mark.parametrize("shown", sorted(set(SHOWN)))
def test_the_docs_show_what_works(tmp_path: pathlib.Path, shown: str) -> None:
    """Each command of the how-to is one, and probes what is asked for."""
    words = [word for word in json.loads(shown) if word not in {"CMD", "heartbeat-probe"}]
    write(tmp_path, "one@here")
    code, said = probe(tmp_path, *words)
    assert code == (1 if "--ready" in words else 0)
    assert said.startswith("one@here is ")


# -- the command --------------------------------------------------------------------------------


def test_it_imports_little(tmp_path: pathlib.Path) -> None:
    """It starts fast: neither Celery nor anything else that is installed is imported."""
    write(tmp_path)
    code = (
        "import sys; before = set(sys.modules); from heartbeat_celery._probe import main; "
        "assert main() == 0; print(*sorted({each.partition('.')[0] for each in "
        "set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found, said = probe(tmp_path, command=[sys.executable, "-c", code])
    assert (found, said.splitlines()[-1]) == (0, "heartbeat_celery")


@pytest.mark.parametrize("command", [PROBE, HEARTBEAT])
@pytest.mark.parametrize("option", ["--max-age=0", "--max-age=nan", "--max-age=x", "--x", "x"])
def test_what_is_wrong_exits_with_2(
    tmp_path: pathlib.Path, command: list[str], option: str
) -> None:
    """A wrong option is named, and no worker is called dead for it."""
    code, said = probe(tmp_path, option, command=command)
    name = "heartbeat-probe" if command is PROBE else "heartbeat probe"
    assert (code, f"{name}: error:" in said) == (2, True)


def test_switched_off_it_restarts_nobody(tmp_path: pathlib.Path) -> None:
    """Without heartbeats nothing is known, and nothing is wrong."""
    assert probe(tmp_path, CELERY_HEARTBEAT_ENABLED="False") == (
        0,
        "the heartbeat is switched off",
    )
    assert probe(tmp_path, CELERY_HEARTBEAT_ENABLED="true")[0] == 1


def test_json_tells_all(tmp_path: pathlib.Path) -> None:
    """A program reads what it is told; of a worker that is not there it is told nothing."""
    code, said = probe(tmp_path, "--json")
    assert (code, json.loads(said)["worker"]) == (1, None)
    write(tmp_path)
    code, said = probe(tmp_path, "--json", "--max-age", "60")
    found = json.loads(said)
    age = found["worker"].pop("age_s")
    assert 0 <= age < 60
    assert found == {
        "ok": True,
        "why": found["why"],
        "worker": {
            "node": "w1@here",
            "namespace": "ours",
            "incarnation": None,
            "pid": os.getpid(),
            "max_age_s": 60.0,
            "joined": False,
            "stalled": False,
        },
    }
