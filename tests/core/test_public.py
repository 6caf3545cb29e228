"""What the core shows, and what it needs."""

import pkgutil
import subprocess
import sys
import types

import pytest

import heartbeat_core
import heartbeat_core.testing

REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import heartbeat_core
import heartbeat_core.testing
print(heartbeat_core.Settings().frequency)
"""


@pytest.mark.parametrize("package", [heartbeat_core, heartbeat_core.testing])
def test_all_is_sorted_and_complete(package: types.ModuleType) -> None:
    """Every public name is listed, in order, and every listed name is there."""
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(package.__all__) == public
    key = [(not name.isupper(), name) for name in package.__all__]
    assert key == sorted(key)


@pytest.mark.parametrize(
    ("package", "public"),
    [(heartbeat_core, ["testing"]), (heartbeat_core.testing, ["faults", "models"])],
)
def test_every_module_behind_a_package_is_private(
    package: types.ModuleType, public: list[str]
) -> None:
    """There is one way to each public name."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    assert [name for name in names if not name.startswith("_")] == public


def test_who_wants_no_tests_does_not_load_their_tools() -> None:
    """The core does not import its subpackage for tests."""
    code = "import sys, heartbeat_core; print('heartbeat_core.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "refused", [{"amqp", "billiard", "celery", "kombu", "redis"}, {"_pytest", "pytest", "trio"}]
)
def test_no_broker_and_no_test_runner_is_needed(refused: set[str]) -> None:
    """The core, and what it offers for tests, import where these packages cannot be imported."""
    code = REFUSING.replace("{REFUSED}", repr(refused))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"
