"""What the tests of the command line share."""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent)]


@pytest.fixture
def heartbeat(valkey: Any, tmp_path: pathlib.Path) -> Iterator[Any]:
    """A place to run the command, on Valkey, in a namespace of its own."""
    from command import shell

    with shell(valkey.url, tmp_path) as place:
        yield place
