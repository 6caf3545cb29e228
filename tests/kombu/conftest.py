"""What the tests of the Kombu adapter share."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from proxy import Proxy

Until = Callable[..., Any]
Run = Callable[..., Any]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


@pytest.fixture
def proxy(rabbitmq: Any) -> Iterator[Proxy]:
    """A network between the test and RabbitMQ."""
    with Proxy(rabbitmq.port) as proxy:
        yield proxy


@pytest.fixture
def private(tmp_path: pathlib.Path) -> Iterator[Any]:
    """A RabbitMQ node that the test may kill, freeze and configure."""
    from servers import RabbitServer, ServerError

    server = RabbitServer(tmp_path)
    try:
        server.start()
    except ServerError as exc:
        pytest.skip(str(exc))
    yield server
    server.stop()


@pytest.fixture
def run() -> Iterator[Run]:
    """Run a program, with arguments, until it says that it is ready; it ends with the test."""
    with ExitStack() as stack:

        def run(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
            child = subprocess.Popen(
                [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE
            )
            stack.callback(end, child)
            assert child.stdout is not None
            assert child.stdout.readline().strip() == b"ready"
            return child

        yield run


def end(child: "subprocess.Popen[bytes]") -> None:
    """End it, however it is."""
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


@pytest.fixture
def until() -> Until:
    """Wait until something is true, or an awaitable's answer is; give it."""

    async def until(what: Callable[[], Any], seconds: float = 20) -> Any:
        with anyio.fail_after(seconds):
            while True:
                answer = what()
                if hasattr(answer, "__await__"):
                    answer = await answer
                if answer:
                    return answer
                await anyio.sleep(0.01)

    return until
