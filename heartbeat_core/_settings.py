"""The seven settings, their order, and the three places they come from."""

import difflib
import itertools
import sys
from collections.abc import Collection, Mapping
from typing import Any, Self

import attrs

from heartbeat_core._errors import SettingsError

__all__ = ("Settings",)

ENVIRONMENT_PREFIX = "CELERY_HEARTBEAT_"
MAPPING_PREFIX = "heartbeat_"

DETECTORS = ("checks", "phi")
LARGEST_PHI = 100.0

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _boolean(_instance: object, attribute: "attrs.Attribute[bool]", value: object) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{attribute.name} ({value!r}) must be true or false")


def _count(_instance: object, attribute: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{attribute.name} ({value!r}) must be a whole number, 1 or more")


def _seconds(_instance: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= sys.float_info.max
    ):
        raise SettingsError(f"{attribute.name} ({value!r}) must be a number of seconds above 0")


def _judge(_instance: object, attribute: "attrs.Attribute[str]", value: object) -> None:
    if value not in DETECTORS:
        raise SettingsError(f"{attribute.name} ({value!r}) must be one of {', '.join(DETECTORS)}")


def _level(_instance: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= LARGEST_PHI
    ):
        raise SettingsError(
            f"{attribute.name} ({value!r}) must be a number above 0, at most {LARGEST_PHI:g}"
        )


@attrs.frozen(kw_only=True)
class Settings:
    """How often a node beats and how its silence is judged.

    A frequency is written as the gap between two beats, so the lowest frequency is the longest
    gap: ``frequency <= max_freq <= min_freq <= expire``. A value object; safe to share between
    threads.

    Attributes:
        enabled: Whether there is a heartbeat at all. Off: no thread, no connection, no cost.
        frequency: The planned gap between two beats, in seconds.
        max_freq: The longest gap that is still normal, in seconds. A longer silence makes a
            node SUSPECT.
        checks: How many failed checks make a suspect DEAD. The first fails at suspicion.
        min_freq: In seconds. A node that beats at least this often is never declared dead by
            silent checks alone.
        expire: The life of a beat, in seconds. A node that is silent for so long is DEAD,
            whatever else speaks for it.
        discard_delay: For how many seconds after a death late beats of the dead incarnation are
            discarded and its tombstone is kept.
        disconnect_interval: The gap between two looks at the connections of the nodes, and so
            between two checks of a node whose connection is gone, in seconds.
        detector: How silence is judged: ``"checks"`` by the gaps above, or ``"phi"`` by the gaps
            that were observed (phi accrual); then ``checks`` counts closed connections only.
        phi_suspect: The phi at which a node is SUSPECT, if ``detector`` is ``"phi"``: 3 stands for
            a silence that one beat in a thousand leaves.
        phi_dead: The phi at which a node is DEAD, but not before ``min_freq``.
        observers: How many nodes of a namespace judge the others, at most, where the transport
            can tell whose turn it is; whoever they are. The same for all nodes.

    Raises:
        SettingsError: A value is of the wrong type or out of order.
    """

    enabled: bool = attrs.field(default=True, validator=_boolean)
    frequency: float = attrs.field(default=1.0, validator=_seconds)
    max_freq: float = attrs.field(default=2.0, validator=_seconds)
    checks: int = attrs.field(default=3, validator=_count)
    min_freq: float = attrs.field(default=4.0, validator=_seconds)
    expire: float = attrs.field(default=30.0, validator=_seconds)
    discard_delay: float = attrs.field(default=60.0, validator=_seconds)
    disconnect_interval: float = attrs.field(default=0.1, validator=_seconds)
    detector: str = attrs.field(default="checks", validator=_judge)
    phi_suspect: float = attrs.field(default=3.0, validator=_level)
    phi_dead: float = attrs.field(default=8.0, validator=_level)
    observers: int = attrs.field(default=3, validator=_count)

    def __attrs_post_init__(self) -> None:
        """Hold the order of the four gaps."""
        order = ("frequency", "max_freq", "min_freq", "expire")
        for lower, upper in itertools.pairwise(order):
            low, high = getattr(self, lower), getattr(self, upper)
            if low > high:
                raise SettingsError(
                    f"{lower} ({low} s) must not exceed {upper} ({high} s): "
                    f"raise {upper} or lower {lower} (the order is {' <= '.join(order)})"
                )
        if self.disconnect_interval > self.max_freq:
            raise SettingsError(
                f"disconnect_interval ({self.disconnect_interval} s) must not exceed "
                f"max_freq ({self.max_freq} s): raise max_freq or lower disconnect_interval"
            )
        if self.phi_suspect > self.phi_dead:
            raise SettingsError(
                f"phi_suspect ({self.phi_suspect}) must not exceed phi_dead ({self.phi_dead}): "
                "raise phi_dead or lower phi_suspect"
            )

    @classmethod
    def load(
        cls,
        mapping: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        known: Collection[str] = (),
        **arguments: Any,
    ) -> Self:
        """Gather the settings from arguments, the environment and a mapping, in this order.

        Args:
            mapping: Such as Celery's ``app.conf``. A setting stands in it as
                ``heartbeat_frequency`` or as ``CELERY_HEARTBEAT_FREQUENCY``; its value has its
                final type. Other keys are left alone.
            environ: Such as ``os.environ``, read for ``CELERY_HEARTBEAT_FREQUENCY`` and so on.
            known: Names, without prefix, that somebody else reads under the same prefixes, and
                that are therefore no spelling mistakes.
            **arguments: Settings by name. ``None`` stands for "not given".

        Raises:
            SettingsError: A value is of the wrong type or out of order, or a name under one of
                our prefixes is not a setting. The message names it.
        """
        names = [field.name for field in attrs.fields(cls)]
        found: dict[str, Any] = {}
        for source in (mapping or {}), (environ or {}):
            for key in list(source):
                name = _name_of(key)
                if name is None or name in known:
                    continue
                _must_be_known(key, name, [*names, *known])
                value: Any = source[key]
                found[name] = _parse(cls, key, name, value) if source is environ else value
        for name, value in arguments.items():
            _must_be_known(name, name, names)
            if value is not None:
                found[name] = value
        return cls(**found)


def _name_of(key: object) -> str | None:
    """Tell which setting a key of a mapping or of the environment names, if any."""
    if not isinstance(key, str):
        return None
    for prefix in (MAPPING_PREFIX, ENVIRONMENT_PREFIX):
        if key.startswith(prefix):
            return key.removeprefix(prefix).lower()
    return None


def _must_be_known(key: str, name: str, names: Collection[str]) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(names)}"
    raise SettingsError(f"{key} is not a setting: {meant}")


def _parse(cls: type[Settings], key: str, name: str, text: str) -> bool | int | float | str:
    """Turn the text of an environment variable into the type of its setting."""
    kind = getattr(attrs.fields(cls), name).type
    word = text.strip().lower()
    if kind is bool:
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise SettingsError(f"{key} ({text!r}) must be true or false")
    if kind is str:
        return word
    try:
        return int(word) if kind is int else float(word)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{key} ({text!r}) must be {wanted}") from None
