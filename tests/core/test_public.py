"""What the core shows, and what it needs."""

import pkgutil
import subprocess
import sys
import types

import heartbeat_core

NO_BROKER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"amqp", "billiard", "celery", "kombu", "redis"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import heartbeat_core
print(heartbeat_core.Settings().frequency)
"""


def test_all_is_sorted_and_complete() -> None:
    """Every public name is listed, in order, and every listed name is there."""
    public = {
        name
        for name, value in vars(heartbeat_core).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(heartbeat_core.__all__) == public
    key = [(not name.isupper(), name) for name in heartbeat_core.__all__]
    assert key == sorted(key)


def test_every_module_behind_the_package_is_private() -> None:
    """There is one way to each public name."""
    names = [module.name for module in pkgutil.iter_modules(heartbeat_core.__path__)]
    assert [name for name in names if not name.startswith("_")] == []


def test_no_broker_is_needed() -> None:
    """The core imports where no broker's package can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", NO_BROKER], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1.0\n"
