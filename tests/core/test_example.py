"""The service of the docs, in a real server."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from servers import free_port

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The service, at some port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "service:app"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**os.environ, "NODE": "prices-1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.wait()


def get(url: str) -> object:
    """Ask the service, as soon as it is there."""
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        except urllib.error.URLError as exc:
            if isinstance(exc, urllib.error.HTTPError) or time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="ends the server by a signal")
def test_the_service_beats_with_its_server(
    server: tuple[str, "subprocess.Popen[bytes]"], tmp_path: pathlib.Path
) -> None:
    """It answers who is there while the server runs, and says goodbye when it stops."""
    url, process = server
    assert get(f"{url}/nodes") == {"prices-1": "alive"}
    assert get(f"{url}/healthz") == {"ok": True}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/nonsense")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    log = (tmp_path / "log").read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
