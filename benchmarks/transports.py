"""What each transport is good for: how soon a death is known over it, and what it costs.

Real processes on real private servers, all on one machine. For each transport it prints a row of

* the time from SIGKILL and from SIGSTOP of a node to SUSPECT and to DEAD, at an observer in another
  process (medians and the longest; SIGSTOP to DEAD once),
* the bytes on the wire a beat, there and back,
* the share of one core that an observer takes at so many nodes that beat each second, and a node
  that only beats,
* the time that the server spends on looking for connections, in a second, for 100 nodes.

    python benchmarks/transports.py --transports redis amqp --kills 20 --nodes 1000
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import attrs

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / "tests")]

from crowds import CROWDS
from proxy import Proxy
from servers import RabbitServer, RedisServer, ServerError, valkey_binary

from heartbeat_core import Heartbeat, Settings, State, Transition, Transport

NAMESPACE = "bench"
NAME = "celery@worker-12.example.internal"


@attrs.define
class Kind:
    """One transport, on its server.

    Attributes:
        server: Makes the server.
        url: Gives its address, at a port.
        transport: Makes a transport.
    """

    server: Callable[[pathlib.Path], Any]
    url: Callable[[int], str]
    transport: Callable[[str], Transport]


def _redis(url: str) -> Transport:
    from heartbeat_redis import RedisTransport  # noqa: PLC0415

    return RedisTransport(url, namespace=NAMESPACE)


def _amqp(url: str) -> Transport:
    from heartbeat_kombu import AmqpTransport  # noqa: PLC0415

    return AmqpTransport(url, namespace=NAMESPACE)


def _kombu(url: str) -> Transport:
    from heartbeat_kombu import KombuTransport  # noqa: PLC0415

    return KombuTransport(url, namespace=NAMESPACE)


def _redis_url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def _valkey(folder: pathlib.Path) -> RedisServer:
    return RedisServer(valkey_binary(), folder)


KINDS = {
    "redis": Kind(_valkey, _redis_url, _redis),
    "amqp": Kind(RabbitServer, lambda port: f"amqp://guest:guest@127.0.0.1:{port}//", _amqp),
    "kombu on redis": Kind(_valkey, _redis_url, _kombu),
}

# -- processes of their own ---------------------------------------------------------------------


async def node(kind: Kind, url: str, name: str) -> None:
    """Be a node that only beats; tell what share of a core that takes."""
    async with Heartbeat(name, kind.transport(url), observe=False) as heartbeat:
        await heartbeat.wait_joined()
        await anyio.sleep(3)
        while True:
            began, cpu = time.monotonic(), time.process_time()
            await anyio.sleep(20)
            share = (time.process_time() - cpu) / (time.monotonic() - began)
            print(json.dumps({"share": share}), flush=True)


async def observer(kind: Kind, url: str, nodes: int, seconds: float) -> None:
    """Observe so many nodes; tell what share of a core that takes, once all are there."""
    async with Heartbeat(None, kind.transport(url)) as heartbeat:
        await heartbeat.wait_joined()
        await anyio.sleep(10)
        if len(heartbeat.nodes()) < nodes:
            raise SystemExit(f"of {nodes} nodes {len(heartbeat.nodes())} came")
        transitions = heartbeat.transitions()
        beats, began, cpu = _beats(heartbeat), time.monotonic(), time.process_time()
        await anyio.sleep(seconds)
        lasted = time.monotonic() - began
        found = {
            "share": round((time.process_time() - cpu) / lasted, 4),
            "beats_per_s": round((_beats(heartbeat) - beats) / lasted),
            "wrong": [each.reason for each in transitions.rest()][:3],
        }
        print(json.dumps(found), flush=True)


def _beats(heartbeat: Heartbeat) -> int:
    """Count the beats that an observer has heard."""
    return sum(each.sequence for each in heartbeat._detector._records.values())


@contextlib.contextmanager
def child(role: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run this file in a role of its own; end it by its id."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--role", role, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Read what a child tells."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a child ended with {process.wait()}")
    return dict(json.loads(line))


# -- measures -----------------------------------------------------------------------------------


async def detect(name: str, kind: Kind, url: str, kills: int, stops: int) -> dict[str, Any]:
    """Kill and stop nodes; give how long it took until that was known."""
    measures = ("kill_suspect", "kill_dead", "stop_suspect", "stop_dead")
    found: dict[str, list[float]] = {measure: [] for measure in measures}
    async with Heartbeat(None, kind.transport(url)) as heartbeat:
        await heartbeat.wait_joined()
        transitions = heartbeat.transitions()

        async def until(name: str, state: State) -> Transition:
            async for transition in transitions:
                if transition.node == name and transition.state is state:
                    return transition
            raise AssertionError

        for number in range(kills + stops):
            victim = f"victim-{number}"
            with child("node", name, url, victim) as process, anyio.fail_after(60):
                await until(victim, State.ALIVE)
                await anyio.sleep(1.0 + random.random())
                began = anyio.current_time()
                if number < kills:
                    process.kill()
                    found["kill_suspect"].append((await until(victim, State.SUSPECT)).at - began)
                    found["kill_dead"].append((await until(victim, State.DEAD)).at - began)
                    continue
                process.send_signal(signal.SIGSTOP)
                found["stop_suspect"].append((await until(victim, State.SUSPECT)).at - began)
                if number == kills:
                    # The others would take as long.
                    found["stop_dead"].append((await until(victim, State.DEAD)).at - began)
    return {
        key: {"median_s": round(statistics.median(times), 3), "max_s": round(max(times), 3)}
        for key, times in found.items()
        if times
    }


async def wire(kind: Kind, port: int, beats: int = 30) -> float:
    """Give the bytes a beat, there and back, of a node that only beats."""
    with Proxy(port) as proxy:
        settings = Settings(frequency=0.2)
        async with Heartbeat(
            NAME, kind.transport(kind.url(proxy.port)), settings=settings, observe=False
        ) as heartbeat:
            await heartbeat.wait_joined()
            await anyio.sleep(2)
            sequence, count = heartbeat._sequence, proxy.up + proxy.down
            await anyio.sleep(beats * settings.frequency)
            return (proxy.up + proxy.down - count) / (heartbeat._sequence - sequence)


def cost(name: str, url: str, nodes: int, seconds: float, server: Any) -> dict[str, Any]:
    """Let an observer judge a crowd."""
    with child("crowd", name, url, nodes) as crowd_process:
        answer(crowd_process)
        before = _spent(server)
        with child("observer", name, url, nodes, seconds) as process:
            found = answer(process)
        after = _spent(server)
    found["server_s"] = round(after - before, 2)
    return found


def looks(kind: Kind, name: str, url: str, nodes: int) -> float | None:
    """Give the milliseconds a second that a Redis server looks for the connections of 100 nodes."""
    if name != "redis":
        return None
    import redis  # noqa: PLC0415

    async def look() -> float:
        from heartbeat_core import Incarnation  # noqa: PLC0415

        transport: Any = kind.transport(url)
        many = frozenset(Incarnation(f"n{number}", 1) for number in range(nodes))
        with redis.Redis.from_url(url) as client:
            async with transport.attend(Incarnation("looker", 1)):
                await transport.connections(many)
                before = _usec(client)
                for _ in range(50):
                    await transport.connections(many)
                spent = _usec(client) - before
        await transport.aclose()
        return spent / 50 * 10 / 1000 / (nodes / 100)

    return anyio.run(look)


def _usec(client: Any) -> float:
    stats = client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {}).get("usec", 0))


def _spent(server: Any) -> float:
    """Give the seconds of processor time that a server has taken, with what it started (Linux)."""
    spent, pid = 0, server._process.pid
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if pid in {int(stat.parent.name), int(fields[2])}:
                spent += int(fields[11]) + int(fields[12])
    return spent / os.sysconf("SC_CLK_TCK")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Give the row of one transport."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        server = kind.server(pathlib.Path(folder))
        server.start()
        try:
            url = kind.url(server.port)
            row: dict[str, Any] = {"transport": name}
            row |= anyio.run(detect, name, kind, url, options.kills, options.stops)
            row["bytes_per_beat"] = round(anyio.run(wire, kind, server.port), 1)
            with child("node", name, url, NAME) as process:
                row["node_share"] = round(answer(process)["share"], 5)
            row["observer_share"] = {}
            for nodes in options.nodes if name in CROWDS else ():
                row["observer_share"][nodes] = cost(name, url, nodes, options.seconds, server)
            row["looks_ms_per_s_per_100"] = looks(kind, name, url, 1000)
            return row
        finally:
            server.stop()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Give the rows as one table."""
    heads = (
        *("transport", "kill to SUSPECT", "kill to DEAD", "stop to SUSPECT", "stop to DEAD"),
        *(
            "bytes a beat",
            "observer, share of a core",
            "node that only beats",
            "looks, ms/s per 100 nodes",
        ),
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        spans = [
            f"{row[key]['median_s']} s (max {row[key]['max_s']})" if key in row else "-"
            for key in ("kill_suspect", "kill_dead", "stop_suspect", "stop_dead")
        ]
        shares = ", ".join(
            f"{nodes}: {found['share']:.1%}" for nodes, found in row["observer_share"].items()
        )
        looks = row["looks_ms_per_s_per_100"]
        lines.append(
            f"| {row['transport']} | {' | '.join(spans)} | {row['bytes_per_beat']} | "
            f"{shares or '-'} | {row['node_share']:.2%} | "
            f"{'-' if looks is None else round(looks, 2)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transports", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.transports:
        try:
            rows.append(measure(name, options))
        except ServerError as exc:
            print(f"{name} is left out: {exc}", file=sys.stderr)
            continue
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows) if options.json else table(rows))


def play(role: str, name: str, url: str, *arguments: str) -> None:
    """Be one of the child processes."""
    kind = KINDS[name]
    if role == "node":
        anyio.run(node, kind, url, arguments[0])
    elif role == "observer":
        anyio.run(observer, kind, url, int(arguments[0]), float(arguments[1]))
    else:
        CROWDS[name](url, NAMESPACE, int(arguments[0])).run()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        play(*sys.argv[2:])
    else:
        main()
