"""The options that ``heartbeat`` and ``celery -A app heartbeat`` share."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ("PROBE", "of_a_sender")

F = TypeVar("F", bound=Callable[..., Any])

PROBE: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True},
}
"""So click leaves the options of ``probe`` to ``heartbeat-probe``, which does without click."""


def of_a_sender(command: F) -> F:
    """Give a command the node that it is about to be, and what that says of itself."""
    options: list[Callable[[F], F]] = [
        click.argument("node"),
        click.option("--once", is_flag=True, help="Send one beat, and no goodbye."),
        click.option(
            "--status",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_pairs,
            help="What the node says of itself. May be given several times.",
        ),
        click.option(
            "--stalled", is_flag=True, help="Say that the node lives, but its work stands still."
        ),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but what goes wrong."),
        click.option("--json", "as_json", is_flag=True, help="Print objects, one a line."),
    ]
    return functools.reduce(lambda given, option: option(given), reversed(options), command)


def _pairs(_context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> Any:
    """Read ``key=value``, where a value may be a number, true, false or null, else text."""
    import json  # noqa: PLC0415 - only if it is asked for

    status: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        status[name] = text if isinstance(value, dict | list) else value
    return status
