"""``celery -A app heartbeat``, on real workers and a real broker."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from fleet import HERE, Fleet, wait_for

COMMAND = [sys.executable, "-m", "celery", "-A", "fleet_app", "heartbeat"]
DEAD_LETTERS = "heartbeat.fleet.dead-letters"


@pytest.fixture
def fleet(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """No worker yet, on an empty broker."""
    with Fleet(valkey.url, tmp_path) as fleet:
        fleet.client.flushdb()
        yield fleet


def environ_for(fleet: Fleet, broker: str | None = None) -> dict[str, str]:
    """Give the environment in which the command finds the workers' app."""
    return {
        **os.environ,
        "FLEET_BROKER": broker or fleet.url,
        "FLEET_CONF": json.dumps(fleet.conf),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
    }


@contextlib.contextmanager
def started(fleet: Fleet, *words: str) -> Iterator[tuple["subprocess.Popen[bytes]", pathlib.Path]]:
    """Start the command; give it, and where its output and its errors go."""
    said = fleet.folder / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, *words], env=environ_for(fleet), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def command(fleet: Fleet, *words: str, broker: str | None = None) -> tuple[int, str, str]:
    """Run the command; give its exit code, its output and its errors."""
    result = subprocess.run(
        [*COMMAND, *words],
        env=environ_for(fleet, broker),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.returncode, result.stdout, result.stderr


def test_the_fleet_is_found_by_the_apps_own_settings(fleet: Fleet) -> None:
    """Its broker, its prefix and its namespace are those of the workers."""
    fleet.conf["broker_transport_options"] = {"global_keyprefix": "ours:"}
    assert command(fleet, "status", "--wait", "0.2")[0] == 4
    fleet.start_all(2, pool="solo")
    code, out, _ = command(fleet, "status", "--json")
    assert (code, {each["node"] for each in json.loads(out)}) == (0, {"w1@here", "w2@here"})
    code, out, _ = command(fleet, "watch", "--for", "3", "--json")
    assert code == 0
    assert {json.loads(line)["node"] for line in out.splitlines()} == {"w1@here", "w2@here"}


def test_workers_are_heard_by_their_events_too(fleet: Fleet) -> None:
    """With ``--events`` workers are found that know nothing of the heartbeat."""
    fleet.environ["FLEET_HEARTBEAT"] = "0"
    fleet.start_all(1, pool="solo")
    assert command(fleet, "status", "--wait", "1")[0] == 4
    code, out, _ = command(fleet, "status", "--events", "--wait", "3", "--json")
    assert (code, [each["node"] for each in json.loads(out)]) == (0, ["w1@here"])


def nodes(fleet: Fleet) -> dict[str, str]:
    """Give who is there, and how."""
    _, out, _ = command(fleet, "status", "--wait", "0.2", "--json")
    return {each["node"]: each["state"] for each in json.loads(out)}


def test_a_node_beats_by_hand_in_the_apps_fleet(fleet: Fleet) -> None:
    """A node beats beside the workers, by the app's settings, until it is asked to end."""
    fleet.conf["broker_transport_options"] = {"global_keyprefix": "ours:"}
    fleet.conf["heartbeat_frequency"] = 0.5
    (worker,) = fleet.start_all(1, pool="solo")
    with started(fleet, "send", "hand", "--status", "tasks=3", "--json") as (sender, said):
        wait_for(said.read_text, "it says so", 30)
        assert json.loads(said.read_text())["event"] == "beats"
        wait_for(lambda: worker.lines("hand unknown -> alive"), "the worker sees it")
        assert nodes(fleet) == {"w1@here": "alive", "hand": "alive"}
        code, _, err = command(fleet, "send", "hand", "--once")
        assert (code, "a node called hand is there already" in err) == (1, True)
        sender.send_signal(signal.SIGTERM)
        assert sender.wait(20) == 0
    wait_for(lambda: worker.lines("hand said goodbye"), "the worker hears it")
    code, out, _ = command(fleet, "send", "other", "--once")
    assert (code, "sent once" in out) == (0, True)
    wait_for(lambda: worker.lines("other alive -> suspect"), "the worker misses it")


def test_who_beats_by_hand_waits_for_the_broker(
    valkey_private: Any, tmp_path: pathlib.Path
) -> None:
    """A broker that is away is waited for, but for one beat."""
    with Fleet(valkey_private.url, tmp_path) as fleet:
        valkey_private.stop()
        code, _, err = command(fleet, "send", "hand", "--once")
        assert (code, "the broker cannot be reached" in err) == (3, True)
        with started(fleet, "send", "hand") as (sender, said):
            wait_for(lambda: "does not reach the broker yet" in said.read_text(), "it says so", 40)
            valkey_private.start()
            wait_for(lambda: "beats every 1 s" in said.read_text(), "it beats", 30)
            assert sender.poll() is None
            assert said.read_text().count("\n") == 2


def test_on_rabbitmq_a_node_beats_by_hand(fleet: Fleet, rabbitmq: Any) -> None:
    """It needs no worker that beats there."""
    code, out, err = command(fleet, "send", "hand", "--once", broker=rabbitmq.url)
    assert (code, "sent once" in out, err) == (0, True, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["send", ""], "a node's name has 1 to 255 printable characters"),
        (["send", "hand", "--status", "x"], "'x' is not of the form KEY=VALUE"),
        (["probe", "--x"], "celery heartbeat probe: error: unrecognized arguments: --x"),
    ],
)
def test_what_is_called_wrongly_is_said_at_once(fleet: Fleet, words: list[str], said: str) -> None:
    """Before anything connects."""
    code, out, err = command(fleet, *words, broker="redis://127.0.0.1:1/0")
    assert (code, out) == (2, "")
    assert said in err


def dead_letter(fleet: Fleet, number: int) -> str:
    """Make a dead letter of a task; give the task's id."""
    fleet.send("sleep", 1, 0.0, first=number)
    message = json.loads(fleet.client.rpop("celery"))  # type: ignore[arg-type]
    message["headers"] |= {
        "heartbeat_recoveries": 3,
        "heartbeat_dead_letter": {
            "reason": "it killed 4 workers",
            "queue": "celery",
            "recoveries": 3,
            "owner": "w1@here#1",
            "at": 1_800_000_000.0,
        },
    }
    fleet.client.lpush(DEAD_LETTERS, json.dumps(message))
    return str(message["headers"]["id"])


def test_dead_letters_are_listed_shown_and_requeued(fleet: Fleet) -> None:
    """One goes back by its task's id, all of them at a word, and they are then as new."""
    one, other, third = (dead_letter(fleet, number) for number in range(3))
    code, out, _ = command(fleet, "dead-letters", "list", "--json")
    assert (code, [each["task_id"] for each in json.loads(out)]) == (0, [one, other, third])
    code, out, _ = command(fleet, "dead-letters", "list")
    assert f"{one}  sleep  celery: it killed 4 workers" in out
    assert "3 dead letters" in out
    code, out, _ = command(fleet, "dead-letters", "show", other)
    assert json.loads(out)["message"]["headers"]["id"] == other
    assert command(fleet, "dead-letters", "requeue", other)[0] == 0
    (back,) = fleet.client.lrange("celery", 0, -1)
    headers = json.loads(back)["headers"]
    assert headers["id"] == other
    assert not {"heartbeat_recoveries", "heartbeat_dead_letter"} & headers.keys()
    assert command(fleet, "dead-letters", "requeue", other)[0] == 1
    assert command(fleet, "dead-letters", "requeue")[0] == 2
    assert command(fleet, "dead-letters", "requeue", "--all")[0] == 0
    assert fleet.client.llen("celery") == 3
    assert fleet.client.llen(DEAD_LETTERS) == 0


def test_dead_letters_are_deleted_only_if_one_says_so(fleet: Fleet) -> None:
    """Without a yes they stay."""
    dead_letter(fleet, 0)
    assert command(fleet, "dead-letters", "purge")[0] == 1
    assert fleet.client.llen(DEAD_LETTERS) == 1
    code, out, _ = command(fleet, "dead-letters", "purge", "--yes")
    assert (code, out.strip()) == (0, "1 dead letters are deleted")
    assert fleet.client.llen(DEAD_LETTERS) == 0


@pytest.mark.parametrize(
    ("broker", "code", "said"),
    [
        ("redis://user:secret@127.0.0.1:1/0", 3, "cannot be reached"),
        ("memory://", 2, "is not Redis, Valkey or RabbitMQ: try --events"),
    ],
)
def test_what_is_wrong_is_one_line(fleet: Fleet, broker: str, code: int, said: str) -> None:
    """A broker that is away or of another kind is said in one line, without the password."""
    found, out, err = command(fleet, "status", broker=broker)
    assert (found, out) == (code, "")
    assert said in err
    assert "secret" not in err
    assert "Traceback" not in err
