"""What the tests of the Redis transport share."""

import pathlib
import sys
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


@pytest.fixture
def server(valkey: Any) -> Any:
    """An empty server."""
    with valkey.client() as client:
        client.flushdb()
    return valkey
