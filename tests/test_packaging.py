"""The distribution holds what the repository does."""

import importlib.metadata
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_package_is_in_the_wheel() -> None:
    """Whatever has a folder is named for the wheel, and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = [f"adapters/{path.parent.name}" for path in ROOT.glob("adapters/*/__init__.py")]
    assert sorted(named) == sorted(["heartbeat_core", *folders])


def test_every_file_is_installed() -> None:
    """No module and no typing marker is left out of what is installed."""
    installed = {str(path) for path in importlib.metadata.files("heartbeat-core") or ()}
    if any(path.endswith("_editable_impl_heartbeat_core.pth") for path in installed):
        return  # The working copy itself.
    for package in [ROOT / "heartbeat_core", *(ROOT / "adapters").glob("heartbeat_*")]:
        for path in [*package.rglob("*.py"), package / "py.typed"]:
            assert str(path.relative_to(package.parent)) in installed
