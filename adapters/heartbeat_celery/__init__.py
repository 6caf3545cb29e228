"""Heartbeats for Celery workers: who is dead is known, and what it held is handed over.

Two lines in an app::

    import heartbeat_celery

    heartbeat_celery.install(app)

Celery is imported when what needs it is asked for: the command ``heartbeat`` does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heartbeat_celery._events import EventsTransport
    from heartbeat_celery._install import install

__all__ = ("EventsTransport", "install")

_HOMES = {"EventsTransport": "heartbeat_celery._events", "install": "heartbeat_celery._install"}


def __getattr__(name: str) -> Any:
    """Import what is public when it is first asked for.

    Raises:
        ImportError: Celery is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import celery  # noqa: F401, PLC0415 - heavy
    except ImportError as exc:
        raise ImportError(
            "heartbeat_celery needs celery: pip install 'heartbeat-core[celery]'", name=exc.name
        ) from exc
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
