"""Who holds the seats on RabbitMQ, when their holders end or stand still."""

import secrets
import signal
from typing import Any

import anyio
import pytest

import heartbeat_kombu._seats as seats
from heartbeat_core import Incarnation
from heartbeat_kombu import AmqpTransport

pytestmark = pytest.mark.anyio

A, B = Incarnation("a", 1), Incarnation("b", 1)

CONTEND = """
import sys, anyio
from heartbeat_core import Incarnation
from heartbeat_kombu import AmqpTransport

async def main(url, namespace):
    transport = AmqpTransport(url, namespace=namespace)
    async with transport.contend(Incarnation("child", 1), 1) as answers:
        async for seated in answers:
            if seated:
                print("ready", flush=True)

anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def namespace() -> str:
    """A namespace that nobody has used."""
    return f"test-{secrets.token_hex(4)}"


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGKILL, 5), (signal.SIGSTOP, 20)], ids=["ends", "stands still"]
)
async def test_the_seat_of_a_process_that_fails_is_taken(
    rabbitmq: Any, namespace: str, run: Any, number: int, seconds: float
) -> None:
    """If it ends another has it at once; if it stands still, when its connection is given up."""
    transport = AmqpTransport(rabbitmq.url, namespace=namespace)
    child = await anyio.to_thread.run_sync(run, CONTEND, rabbitmq.url, namespace)
    async with transport.contend(A, 1) as answers:
        assert await anext(answers) is False
        with anyio.move_on_after(0.2) as waited:
            await anext(answers)
        assert waited.cancelled_caught
    async with transport.contend(A, 1) as answers:
        assert await anext(answers) is False
        child.send_signal(number)
        with anyio.fail_after(seconds):
            assert await anext(answers) is True
    await transport.aclose()


async def test_a_token_is_not_held_for_long(
    rabbitmq: Any, namespace: str, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """It is renewed, since brokers close a channel that keeps a message; nobody else gets it."""
    monkeypatch.setattr(seats, "HEARTBEAT", 1)
    monkeypatch.setattr(seats, "RENEWAL", 0.1)
    one, other = (AmqpTransport(rabbitmq.url, namespace=namespace) for _ in "ab")
    async with one.contend(A, 2) as mine, other.contend(B, 2) as its:
        assert await anext(mine) is await anext(its) is True
        (holder,) = one._readers
        first = holder._token  # type: ignore[attr-defined]
        await until(lambda: holder._token > first + 2)  # type: ignore[attr-defined]
        with anyio.move_on_after(0.5):
            async with anyio.create_task_group() as tasks:
                for answers in (mine, its):
                    tasks.start_soon(never, answers)
    for each in (one, other):
        await each.aclose()


async def never(answers: Any) -> None:
    """Nothing changes."""
    pytest.fail(f"a seat became {await anext(answers)}")
