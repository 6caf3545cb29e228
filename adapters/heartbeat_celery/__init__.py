"""Heartbeats for Celery workers: who is dead is known, and what it held is handed over.

Two lines in an app::

    import heartbeat_celery

    heartbeat_celery.install(app)
"""

try:
    import celery  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "heartbeat_celery needs celery: pip install 'heartbeat-core[celery]'", name=exc.name
    ) from exc

from heartbeat_celery._install import install

__all__ = ("install",)
