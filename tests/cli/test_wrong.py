"""Whatever is wrong is named in one line, without credentials, and shows in the exit code."""

import pathlib
import subprocess
import sys
from typing import Any

import pytest
from command import Shell, shell
from fleet import wait_for

COMMANDS = [["status"], ["watch", "--for", "3"], ["send", "hand", "--once"]]


def expect(said: str, word: str) -> None:
    """Hold what was said to be one line with a word in it, and nothing secret."""
    last = said.splitlines()[-1]
    assert word in last
    assert "secret" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("url", "code", "word"),
    [
        ("redis://user:secret@127.0.0.1:1/0", 3, "the broker cannot be reached"),
        ("rediss://:secret@127.0.0.1:1/0", 3, "the broker cannot be reached"),
        ("amqp://user:secret@127.0.0.1:1//", 3, "the broker cannot be reached"),
        ("foo://user:secret@localhost", 2, "foo:// is no broker that Kombu knows"),
        ("redis://user:secret@localhost:secret/0", 2, "the URL is not one of"),
        ("user:secret@localhost", 2, "a broker's URL begins like redis:// or amqp://"),
        ("", 2, "Missing option '--broker'"),
    ],
)
def test_brokers(
    tmp_path: pathlib.Path, command: list[str], url: str, code: int, word: str
) -> None:
    """A wrong URL exits with 2; a broker that is not there, with 3."""
    with shell(url, tmp_path) as place:
        exited, run = place.run(*command, CELERY_BROKER_URL="")
        assert exited == code
        assert run.lines() == []
        expect(run.said(), word)


@pytest.mark.parametrize("command", [*COMMANDS, ["send", "hand"]])
def test_a_wrong_password(valkey: Any, tmp_path: pathlib.Path, command: list[str]) -> None:
    """It is told what is wrong with it, and nowhere what it is; a steady beat goes on trying."""
    url = valkey.url.replace("redis://", "redis://user:secret@")
    with shell(url, tmp_path) as place:
        run = place.start(*command)
        wait_for(run.said, "it says so", 30)
        if command != ["send", "hand"]:
            assert run.process.wait(20) == 3
            expect(run.said(), "the broker cannot be reached")
        assert "AuthenticationError" in run.said() or "WRONGPASS" in run.said()
        assert "secret" not in run.said() + run.out.read_text()


@pytest.mark.parametrize(
    ("arguments", "environ", "word"),
    [
        (["send", ""], {}, "a node's name has 1 to 255 printable characters"),
        (["send", "a\x1b[31m"], {}, "a node's name has 1 to 255 printable characters"),
        (["send", "a", "--status", "x"], {}, "'x' is not of the form KEY=VALUE"),
        (["send", "a", "--status", "x=" + 2000 * "y"], {}, "at most 2048"),
        (["send", "a", "--status", "x=NaN"], {}, "a status holds plain values only"),
        (["status", "--frequency", "9"], {}, "frequency (9.0 s) must not exceed max_freq (2.0 s)"),
        (["status", "--frequency", "x"], {}, "'x' is not a valid float"),
        (["status", "--shards", "0"], {}, "heartbeat_shards (0) must be a whole number from 1"),
        (["status", "--namespace", "a b"], {}, "heartbeat_namespace ('a b') must be 1 to 64"),
        (["watch", "--for", "0"], {}, "0.0 is not in the range x>0"),
        (["watch"], {"CHECKS": "none"}, "CELERY_HEARTBEAT_CHECKS ('none') must be a whole number"),
        (["watch"], {"FREQUENSY": "1"}, "CELERY_HEARTBEAT_FREQUENSY is not a setting: did you"),
        (["watch"], {"SHARDS": "x"}, "(env var: 'CELERY_HEARTBEAT_SHARDS'): 'x' is not a valid"),
    ],
)
def test_options(
    tmp_path: pathlib.Path, arguments: list[str], environ: dict[str, str], word: str
) -> None:
    """A wrong option or setting exits with 2 before anything connects."""
    with shell("redis://user:secret@127.0.0.1:1/0", tmp_path) as place:
        code, run = place.run(
            *arguments, **{f"CELERY_HEARTBEAT_{name}": value for name, value in environ.items()}
        )
        assert code == 2
        assert run.lines() == []
        expect(run.said(), word)


def test_a_key_prefix_is_for_redis(tmp_path: pathlib.Path) -> None:
    """On another broker it would have no effect, so it is refused."""
    with shell("amqp://user:secret@127.0.0.1:1//", tmp_path) as place:
        code, run = place.run("status", "--key-prefix", "app:")
        assert code == 2
        expect(run.said(), "a key prefix is for Redis, and amqp:// is not")


@pytest.mark.parametrize(
    ("missing", "url", "word"),
    [
        ("redis", "redis://localhost", "pip install 'heartbeat-core[redis]'"),
        ("kombu", "amqp://localhost", "pip install 'heartbeat-core[kombu]'"),
        ("click", "redis://localhost", "pip install 'heartbeat-core[cli]'"),
    ],
)
def test_what_is_not_installed(tmp_path: pathlib.Path, missing: str, url: str, word: str) -> None:
    """A package that is missing is named, with what to install."""
    with shell(url, tmp_path) as place:
        before = f"import sys; sys.modules[{missing!r}] = None; "
        code, run = place.run("status", before=before)
        assert code == (1 if missing == "click" else 2)
        expect(run.said(), word)


def test_it_needs_neither_celery_nor_kombu_nor_rich(heartbeat: Shell) -> None:
    """On Redis, redis-py and click are enough."""
    before = "import sys; sys.modules.update(dict.fromkeys(('celery', 'kombu', 'rich'))); "
    watcher = heartbeat.start("watch", "--json", before=before)
    sender = heartbeat.start("send", "hand", before=before)
    wait_for(lambda: watcher.objects(node="hand"), "it is seen", 30)
    code, table = heartbeat.run("status", before=before)
    assert (code, len(table.lines("hand"))) == (0, 1)
    assert sender.said() + watcher.said() + table.said() == ""


def test_on_rabbitmq_it_needs_no_redis(rabbitmq: Any, tmp_path: pathlib.Path) -> None:
    """On RabbitMQ, kombu and click are enough."""
    before = "import sys; sys.modules.update(dict.fromkeys(('celery', 'redis', 'rich'))); "
    with shell(rabbitmq.url, tmp_path) as place:
        code, run = place.run("send", "hand", "--once", before=before)
        assert (code, run.said()) == (0, "")


WITHOUT_CELERY = "import sys; sys.modules['celery'] = None\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"{WITHOUT_CELERY}import heartbeat_celery", ""),
        (
            f"{WITHOUT_CELERY}from heartbeat_celery import install",
            "heartbeat_celery needs celery: pip install 'heartbeat-core[celery]'",
        ),
        ("import heartbeat_celery; heartbeat_celery.installs", "has no attribute 'installs'"),
        ("import heartbeat_celery, sys; sys.exit('celery' in sys.modules)", ""),
        ("import heartbeat_celery; heartbeat_celery.install.__call__", ""),
    ],
)
def test_the_package_without_celery(code: str, said: str) -> None:
    """Celery is imported when an app wants its heartbeat, and its absence is named then."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not said)
    assert said in done.stderr
