"""What the user of a RabbitMQ may do is little, and is what the docs say."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from heartbeat_core import Cause, Heartbeat, Incarnation, TransportError
from heartbeat_kombu import AmqpTransport

pytestmark = pytest.mark.anyio

OURS = r"^(heartbeat\..*|amq\.gen.*)$"
WRITTEN = r"^(heartbeat\..*|amq\.gen.*|amq\.default)$"


@pytest.fixture
def anyio_backend() -> str:
    """One event loop."""
    return "asyncio"


@asynccontextmanager
async def user(server: Any, name: str, *permissions: str) -> AsyncIterator[str]:
    """Make a user with some permissions; give its URL."""

    def control(*words: str) -> None:
        server.control(*words)

    await anyio.to_thread.run_sync(control, "add_user", name, "secret-word")
    if permissions:
        await anyio.to_thread.run_sync(control, "set_permissions", name, *permissions)
    try:
        yield f"amqp://{name}:secret-word@127.0.0.1:{server.port}//"
    finally:
        await anyio.to_thread.run_sync(control, "delete_user", name)


async def until(what: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(20):
        while not what():
            await anyio.sleep(0.01)


async def test_what_the_docs_say_is_enough(rabbitmq: Any) -> None:
    """With those permissions nodes beat, observe, are present, and say goodbye."""
    async with (
        user(rabbitmq, "modest", OURS, WRITTEN, OURS) as url,
        Heartbeat("a", AmqpTransport(url, namespace="modest")) as a,
    ):
        transitions = a.transitions()
        async with Heartbeat("b", AmqpTransport(url, namespace="modest")):
            await until(lambda: any(view.connected for view in a.nodes()))
            assert a.observing
        await until(lambda: len(a.nodes()) == 1)
        causes = [each.cause for each in transitions.rest()]
        assert causes == [Cause.FIRST_BEAT, Cause.GOODBYE]


async def test_without_permission_the_error_says_so(rabbitmq: Any) -> None:
    """What is refused is named, the password is not."""
    async with user(rabbitmq, "nobody", "^$", "^$", "^$") as url:
        transport = AmqpTransport(url)
        with pytest.raises(TransportError, match="refused") as caught:
            await transport.publish(b"1", sender=Incarnation("a", 1), ttl=1)
        assert "heartbeat.default" in str(caught.value)
        assert "secret-word" not in str(caught.value)
        await transport.aclose()
    async with user(rabbitmq, "stranger") as url:
        transport = AmqpTransport(url)
        with pytest.raises(TransportError) as caught:
            await transport.publish(b"1", sender=Incarnation("a", 1), ttl=1)
        assert "secret-word" not in str(caught.value)
        await transport.aclose()
