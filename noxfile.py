"""Everything that is checked, built and shown. ``nox`` runs it all, the core's tests last."""

import pathlib
import shutil

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "docs", "lowest", "demo", "tests", "core_tests"]

MACHINE = (
    "_beat",
    "_detector",
    "_errors",
    "_gone",
    "_hearing",
    "_judges",
    "_looks",
    "_record",
    "_settings",
    "_silence",
    "_states",
    "_wheel",
)
MACHINE_TESTS = (
    "beat",
    "detector*",
    "hearing",
    "judges",
    "settings",
    "states",
    "triggers",
    "wheel",
)
TESTS = pathlib.Path("tests/core")
PROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """Give the packages of a dependency group."""
    return nox.project.dependency_groups(PROJECT, name)


def install_wheel(session: nox.Session, extra: str = "") -> None:
    """Build the wheel, and install just that: a file left out of it fails a test."""
    session.install("build")
    folder = pathlib.Path(session.create_tmp())
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), silent=True)
    (wheel,) = folder.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}{extra}")
    # Keeps the working copy out of sight.
    session.env["PYTHONSAFEPATH"] = "1"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling, and the direction of imports."""
    session.install("-e", ".[all]", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Types, by two checkers."""
    session.install("-e", ".[all]", *group("typing"))
    session.run("mypy")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """The docs, without a warning; what they show is run."""
    session.install("-e", ".[all]", *group("docs"))
    out = pathlib.Path(session.create_tmp())
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", str(out / "html"))
    session.run("sphinx-build", "-W", "-q", "-b", "doctest", "docs", str(out / "doctest"))


@nox.session
def core_tests(session: nox.Session) -> None:
    """The core, with no broker package installed; every branch of the machine is taken."""
    install_wheel(session)
    session.install(*group("tests"))
    session.run("pytest", "tests/core", "-n", "2", *session.posargs)
    machine = sorted(str(path) for each in MACHINE_TESTS for path in TESTS.glob(f"test_{each}.py"))
    session.run("coverage", "run", "-m", "pytest", "-q", *machine)
    include = ",".join(f"*/heartbeat_core/{name}.py" for name in MACHINE)
    session.run("coverage", "report", f"--include={include}", "--fail-under=100", "-m")
    session.run("python", "-m", "heartbeat_core.testing", "--seeds", "1000", "--jobs", "2")


@nox.session
def mutants(session: nox.Session) -> None:
    """Changes each threshold of the machine by one, and lists what no test has noticed."""
    session.install("-e", ".", *group("tests"), *group("mutants"))
    folder = pathlib.Path(session.create_tmp()).resolve()
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree("heartbeat_core", copy / "heartbeat_core")
    shutil.copytree("tests", copy / "tests")
    shutil.copy("pyproject.toml", copy)
    session.chdir(copy)
    session.env["PYTHONPATH"] = str(copy)
    config = "tests/core/mutants.toml"
    session.run("cosmic-ray", "init", config, "mutants.sqlite")
    session.run("cr-filter-operators", "mutants.sqlite", config)
    session.run("cosmic-ray", "exec", config, "mutants.sqlite")
    session.run("cr-report", "--surviving-only", "--show-diff", "mutants.sqlite")


@nox.session
def nightly(session: nox.Session) -> None:
    """What takes hours: 20,000 seeds of the simulator, and of the property tests."""
    install_wheel(session)
    session.install(*group("tests"))
    session.run("python", "-m", "heartbeat_core.testing", "--seeds", "20000")
    session.env["HYPOTHESIS_PROFILE"] = "nightly"
    session.run("pytest", "tests/core/test_detector_properties.py", "tests/core/test_wheel.py")


@nox.session
def bench_core(session: nox.Session) -> None:
    """What the machine costs; ``-- --json`` prints one object."""
    install_wheel(session)
    session.install(*group("bench"))
    session.run("python", "benchmarks/core.py", *session.posargs)


@nox.session
def bench_transports(session: nox.Session) -> None:
    """How soon each transport tells of a death, and what it costs."""
    install_wheel(session, "[all]")
    session.run("python", "benchmarks/transports.py", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kills of workers under load; ``-- --kills 200 --broker rabbitmq --seed 1 --json``."""
    install_wheel(session, "[all]")
    session.run("python", "tests/celery/chaos.py", *session.posargs)


@nox.session
def cost(session: nox.Session) -> None:
    """What the adapter costs a worker and its broker (Linux); ``-- --rounds 5 --json``."""
    install_wheel(session, "[all]")
    session.run("python", "benchmarks/cost.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """No false alarm under full load, broker outages and a stuck worker; ``-- --minutes 60``."""
    install_wheel(session, "[all]")
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The adapters with the oldest Celery, kombu and redis-py that they work with."""
    install_wheel(session, "[all]")
    session.install(*group("tests"), "celery[redis]==5.5.0", "redis==5.2.1")
    picked = "claims or waiting or transport or elsewhere or reconnects or dropped"
    session.run("pytest", "tests/redis", "tests/celery", "tests/kombu", "-n", "4", "-k", picked)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job, as a user runs it: three workers, one is killed, nothing is lost."""
    install_wheel(session, "[demo]")
    session.run("heartbeat", "demo", *(session.posargs or ["--json"]))


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on real brokers, and then the core's; ``-- -m 'not slow'`` is quicker."""
    install_wheel(session, "[all]")
    session.install(*group("tests"))
    # Most of them wait for somebody most of the time.
    session.run("pytest", "--ignore", "tests/core", "-n", "4", *session.posargs)
    # Where no broker's package is installed, as the core promises; once, whoever asked for it.
    session.notify("core_tests")
