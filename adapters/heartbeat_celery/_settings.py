"""What stands beside the core's settings under the prefix ``heartbeat_``; it needs no Celery."""

import pathlib
from collections.abc import Mapping
from typing import Any

import attrs

from heartbeat_core import SettingsError

__all__ = (
    "ADAPTER_SETTINGS",
    "ON_LOST_OF_TASKS",
    "RecoverySettings",
    "management_url_of",
    "namespace_of",
    "probe_dir_of",
    "restarts_on_stall",
    "shards_of",
)

ADAPTER_SETTINGS = (
    "management_url",
    "max_recoveries",
    "namespace",
    "on_fenced",
    "on_lost",
    "on_stall",
    "probe_dir",
    "shards",
)

ON_LOST = ("fail", "ignore")
"""What may become of tasks that were acknowledged early and are gone with their worker."""

ON_LOST_OF_TASKS = (*ON_LOST, "rerun")
"""The same, as a task may ask for it."""

ON_FENCED = ("report", "terminate")
"""What may become of tasks that a worker runs on when it learns that others run them."""
ON_STALL = ("report", "restart")
"""What may become of a worker that lives and does no work."""

MOST_SHARDS = 1024
MOST_RECOVERIES = 1_000_000


@attrs.frozen(kw_only=True)
class RecoverySettings:
    """What becomes of what the dead held.

    Attributes:
        max_recoveries: How many of its owners a message may outlive.
        on_lost: What becomes of a task that was acknowledged early, unless it says otherwise
            itself: ``"fail"``, its result is a failure, or ``"ignore"``.
        on_fenced: What becomes of what this worker runs on when it learns that it was declared
            dead: ``"report"``, it is named in the log, or ``"terminate"``.
    """

    max_recoveries: int = 3
    on_lost: str = "fail"
    on_fenced: str = "report"

    @classmethod
    def load(cls, conf: Mapping[str, Any], environ: Mapping[str, str]) -> "RecoverySettings":
        """Gather them from the environment and an app's configuration.

        Raises:
            SettingsError: One is not what it must be. The message names it.
        """
        default = cls()
        most = _count("max_recoveries", conf, environ, range(MOST_RECOVERIES + 1))
        on_lost = _setting("on_lost", conf, environ)
        if on_lost not in (None, *ON_LOST):
            raise SettingsError(
                f"heartbeat_on_lost ({on_lost!r}) must be 'fail' or 'ignore'; 'rerun' is for tasks "
                "that ask for it"
            )
        on_fenced = _setting("on_fenced", conf, environ)
        if on_fenced not in (None, *ON_FENCED):
            raise SettingsError(
                f"heartbeat_on_fenced ({on_fenced!r}) must be 'report' or 'terminate'"
            )
        return cls(
            max_recoveries=default.max_recoveries if most is None else most,
            on_lost=on_lost or default.on_lost,
            on_fenced=on_fenced or default.on_fenced,
        )


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


def probe_dir_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """Give the folder in which workers have their files for probes; ``None`` if nothing is set.

    Raises:
        SettingsError: It is not an absolute path.
    """
    folder = _setting("probe_dir", conf, environ)
    if folder is None:
        return None
    if not isinstance(folder, str | pathlib.PurePath) or not pathlib.Path(folder).is_absolute():
        raise SettingsError(f"heartbeat_probe_dir ({str(folder)!r}) must be an absolute path")
    return str(folder)


def management_url_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """Give the URL of RabbitMQ's management API; ``None`` if it is not set anywhere."""
    url = _setting("management_url", conf, environ)
    return None if url is None else str(url)


def shards_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Tell into how many shards the fleet of an app is split: one, if nothing is set.

    Raises:
        SettingsError: It is not a whole number from 1 to 1024.
    """
    return _count("shards", conf, environ, range(1, MOST_SHARDS + 1)) or 1


def restarts_on_stall(conf: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Tell whether a worker that hangs is begun anew, or only reported.

    Raises:
        SettingsError: It is neither ``"report"`` nor ``"restart"``.
    """
    on_stall = _setting("on_stall", conf, environ)
    if on_stall not in (None, *ON_STALL):
        raise SettingsError(f"heartbeat_on_stall ({on_stall!r}) must be 'report' or 'restart'")
    return bool(on_stall == "restart")


def _count(
    name: str, conf: Mapping[str, Any], environ: Mapping[str, str], allowed: range
) -> int | None:
    """Give a setting that is a whole number; ``None`` if it is not set anywhere."""
    value = _setting(name, conf, environ)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        raise SettingsError(
            f"heartbeat_{name} ({value!r}) must be a whole number from {allowed[0]} to "
            f"{allowed[-1]}"
        )
    return value


def _setting(name: str, conf: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Give a setting that is none of the core's; ``None`` if it is not set anywhere."""
    upper = f"CELERY_HEARTBEAT_{name.upper()}"
    if environ.get(upper):
        return environ[upper]
    value = conf.get(f"heartbeat_{name}")
    return conf.get(upper) if value is None else value
