"""What stands beside the core's settings under the prefix ``heartbeat_``; it needs no Celery."""

from collections.abc import Mapping
from typing import Any

from heartbeat_core import SettingsError

__all__ = ("ADAPTER_SETTINGS", "namespace_of", "shards_of")

ADAPTER_SETTINGS = ("namespace", "shards")

MOST_SHARDS = 1024


def namespace_of(conf: Mapping[str, Any], environ: Mapping[str, str], main: str | None) -> str:
    """Give the namespace of an app: as it is set, else the app's name, else ``celery``.

    Raises:
        SettingsError: It is not 1 to 64 printable characters without spaces and braces.
    """
    namespace = _setting("namespace", conf, environ)
    if namespace is None:
        namespace = main or "celery"
    good = isinstance(namespace, str) and namespace.isprintable() and 0 < len(namespace) <= 64
    if not good or set(namespace) & set(" {}"):
        raise SettingsError(
            f"heartbeat_namespace ({namespace!r}) must be 1 to 64 printable characters without "
            "spaces and braces"
        )
    return str(namespace)


def shards_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Tell into how many shards the fleet of an app is split: one, if nothing is set.

    Raises:
        SettingsError: It is not a whole number from 1 to 1024.
    """
    shards = _setting("shards", conf, environ)
    if isinstance(shards, str) and shards.isdecimal():
        shards = int(shards)
    if shards is None:
        return 1
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MOST_SHARDS:
        raise SettingsError(
            f"heartbeat_shards ({shards!r}) must be a whole number from 1 to {MOST_SHARDS}"
        )
    return shards


def _setting(name: str, conf: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Give a setting that is none of the core's; ``None`` if it is not set anywhere."""
    upper = f"CELERY_HEARTBEAT_{name.upper()}"
    if environ.get(upper):
        return environ[upper]
    value = conf.get(f"heartbeat_{name}")
    return conf.get(upper) if value is None else value
