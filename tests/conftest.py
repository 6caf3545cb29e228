"""What all tests share: real servers."""

import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import settings as hypothesis_settings

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent / "celery")]


for _name, _examples in (("dev", 50), ("ci", 500), ("nightly", 20_000)):
    hypothesis_settings.register_profile(_name, max_examples=_examples, deadline=None)
hypothesis_settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
)


def missing(why: str) -> NoReturn:
    """Fail where a test must run, and skip on a laptop."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A Valkey server for all tests; each empties it first."""
    yield from _valkey(tmp_path_factory.mktemp("valkey"))


@pytest.fixture
def valkey_private(tmp_path: pathlib.Path) -> Iterator[object]:
    """A Valkey server that the test may stop, kill and freeze."""
    yield from _valkey(tmp_path)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A RabbitMQ node, where it is installed."""
    from servers import RabbitServer, ServerError

    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
    except ServerError as exc:
        # Not everybody has one: only the packages that pip installs are taken for granted.
        pytest.skip(str(exc))
    yield server
    server.stop()


def _valkey(folder: pathlib.Path) -> Iterator[object]:
    from servers import RedisServer, ServerError, valkey_binary

    try:
        server = RedisServer(valkey_binary(), folder)
        server.start()
    except ServerError as exc:
        missing(str(exc))
    yield server
    server.stop()
