"""``heartbeat-probe``: whether a worker of this machine is alive, asked without its broker."""

import json
import os
import sys
from collections.abc import Sequence

from heartbeat_celery._signs import Sign, directory_in, signs_in

__all__ = ("main",)

ALIVE, NOT_ALIVE, USAGE_ERROR = 0, 1, 2

OFF = {"0", "false", "no", "off"}


class UsageError(Exception):
    """It was not said which worker is meant."""


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "heartbeat-probe",
    namespace: str | None = None,
    parent: str | None = None,
    enabled: bool = True,
) -> int:
    """Probe a worker, say in one line how it is, and give the exit code.

    Args:
        arguments: What stands on the command line.
        program: The command's name.
        namespace: The fleet, if no option says so.
        parent: In which folder the directory of the files is, if no option says so.
        enabled: Whether workers have a heartbeat at all.
    """
    import argparse  # noqa: PLC0415 - the worker needs the rest alone

    given = os.environ.get
    parser = argparse.ArgumentParser(
        prog=program,
        description="Tell whether a worker of this machine is alive, by the file that its "
        "heartbeat writes once a beat. No broker is asked.",
        epilog="Exits with 0 if it is, with 1 if it is not, with 2 if it was called wrongly.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="the worker's name, with or without its host; by default the only one here",
    )
    parser.add_argument(
        "--namespace",
        metavar="TEXT",
        default=given("CELERY_HEARTBEAT_NAMESPACE") or namespace,
        help="the worker's fleet, if there are several here",
    )
    parser.add_argument(
        "--dir",
        metavar="PATH",
        default=given("CELERY_HEARTBEAT_PROBE_DIR") or parent,
        help="what heartbeat_probe_dir is for the worker (CELERY_HEARTBEAT_PROBE_DIR)",
    )
    parser.add_argument(
        "--ready",
        action="store_true",
        help="ask besides whether the broker knows it now; for readiness, not for liveness",
    )
    parser.add_argument(
        "--max-age",
        type=float,
        metavar="SECONDS",
        help="so long may it be silent; by default its setting expire, which is 30",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(arguments)
    if options.max_age is not None and not options.max_age > 0:
        parser.error("argument --max-age: must be more than 0")
    if not enabled or given("CELERY_HEARTBEAT_ENABLED", "").strip().lower() in OFF:
        # Who switches the heartbeat off does not want all workers to be restarted for it.
        return _say(ALIVE, "the heartbeat is switched off", as_json=options.json)
    try:
        directory = directory_in(options.dir)
        sign = _the_one(signs_in(directory), options.node, options.namespace)
    except UsageError as exc:
        sys.stderr.write(f"{program}: {exc}\n")
        return USAGE_ERROR
    except OSError as exc:
        return _say(NOT_ALIVE, f"cannot look: {exc}", as_json=options.json)
    if sign is None:
        who = f"no worker {options.node}" if options.node else "no worker"
        return _say(NOT_ALIVE, f"{who} beats here: none in {directory}", as_json=options.json)
    max_age = options.max_age or sign.expire
    code, line = _judge(sign, max_age, ready=options.ready)
    return _say(code, line, sign, max_age, as_json=options.json)


def _judge(sign: Sign, max_age: float, *, ready: bool) -> tuple[int, str]:
    why_not = sign.why_not_alive(max_age)
    if why_not is not None:
        return NOT_ALIVE, f"{sign.node} is not alive: {why_not}"
    if ready and not sign.joined:
        return NOT_ALIVE, f"{sign.node} is not ready: the broker does not know it, or is away"
    return ALIVE, f"{sign.node} is {'ready' if ready else 'alive'}: it beat {sign.age:.1f} s ago"


def _the_one(signs: Sequence[Sign], node: str | None, namespace: str | None) -> Sign | None:
    """Find the worker that is meant: of those that run, the only one.

    If none does, it is the last of those that were killed.

    Raises:
        UsageError: Several are.
    """
    meant = [
        sign
        for sign in signs
        if namespace in {None, sign.namespace}
        and node in {None, sign.node, sign.node.partition("@")[0]}
    ]
    running = [sign for sign in meant if sign.runs]
    if len(running) > 1:
        names = ", ".join(sorted(f"{sign.node} ({sign.namespace})" for sign in running))
        raise UsageError(f"several workers beat here; say which (--node, --namespace): {names}")
    return max(running or meant, key=lambda sign: sign.wall, default=None)


def _say(
    code: int, line: str, sign: Sign | None = None, max_age: float = 0.0, *, as_json: bool
) -> int:
    """Print what was found, and pass on the exit code."""
    if as_json:
        known = (
            None
            if sign is None
            else {
                "node": sign.node,
                "namespace": sign.namespace,
                "incarnation": sign.incarnation,
                "pid": sign.pid,
                "age_s": round(sign.age, 3),
                "max_age_s": max_age,
                "joined": sign.joined,
                "stalled": sign.stalled,
            }
        )
        line = json.dumps({"ok": code == ALIVE, "why": line, "worker": known})
    # A name that a terminal cannot show is no reason to fail, and none to write what it obeys.
    shown = line if line.isprintable() else ascii(line)
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")
    sys.stdout.write(f"{shown}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
