"""A web service whose processes watch each other: ``uvicorn service:app``.

Any ASGI server runs it. The heartbeat begins and ends with the server's lifespan; ``GET /nodes``
shows who is there, ``GET /healthz`` whether this process knows its fleet.
"""

import json
import os
import socket
from typing import Any

import anyio

from heartbeat_core import Heartbeat, MemoryTransport, Transport


def transport() -> Transport:
    """Reach the fleet through Redis where ``BROKER_URL`` says so; else be alone."""
    url = os.environ.get("BROKER_URL")
    if url is None:
        return MemoryTransport(namespace="prices")
    from heartbeat_redis import RedisTransport  # noqa: PLC0415 - not needed without a broker

    return RedisTransport(url, namespace="prices")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one connection, or live one life."""
    if scope["type"] == "lifespan":
        await live(scope, receive, send)
    elif scope["type"] == "http":
        await answer(scope["path"], scope["state"]["heartbeat"], send)


async def live(scope: Any, receive: Any, send: Any) -> None:
    """Beat from the server's start to its end."""
    await receive()
    name = os.environ.get("NODE", f"{socket.gethostname()}-{os.getpid()}")
    async with Heartbeat(name, transport()) as heartbeat, anyio.create_task_group() as tasks:
        scope["state"]["heartbeat"] = heartbeat
        tasks.start_soon(report, heartbeat)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        tasks.cancel_scope.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def report(heartbeat: Heartbeat) -> None:
    """Do what this service does when a peer dies."""
    async for transition in heartbeat.transitions():
        print(transition.node, transition.state, transition.reason, flush=True)


async def answer(path: str, heartbeat: Heartbeat, send: Any) -> None:
    """Show the fleet."""
    nodes = {view.incarnation.node: view.state.value for view in heartbeat.nodes()}
    status = {"/nodes": 200, "/healthz": 200}.get(path, 404)
    body = json.dumps(nodes if path == "/nodes" else {"ok": status == 200}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
