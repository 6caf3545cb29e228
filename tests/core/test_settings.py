"""Settings: their types, their order, and the three places they come from."""

import math
from typing import Any

import pytest

from heartbeat_core import HeartbeatError, Settings, SettingsError


def test_the_defaults_are_in_order() -> None:
    """Without a word, the settings are those of the documentation."""
    settings = Settings()
    assert settings.enabled is True
    assert (settings.frequency, settings.max_freq, settings.checks) == (1, 2, 3)
    assert (settings.min_freq, settings.expire, settings.discard_delay) == (4, 30, 60)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [("frequency", "max_freq"), ("max_freq", "min_freq"), ("min_freq", "expire")],
)
def test_a_wrong_order_names_both_and_the_order(lower: str, upper: str) -> None:
    """Two settings out of order are named with their values and the order that holds."""
    gaps = {"frequency": 1.0, "max_freq": 2.0, "min_freq": 3.0, "expire": 4.0}
    gaps[lower] = gaps[upper] + 0.5
    with pytest.raises(SettingsError) as caught:
        Settings(**gaps)  # type: ignore[arg-type]
    message = str(caught.value)
    assert f"{lower} ({gaps[lower]} s) must not exceed {upper} ({gaps[upper]} s)" in message
    assert "frequency <= max_freq <= min_freq <= expire" in message


def test_equal_gaps_are_in_order() -> None:
    """The order is not strict."""
    Settings(frequency=2.0, max_freq=2.0, min_freq=2.0, expire=2.0)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 0, -1.0, [1], 10**400])
@pytest.mark.parametrize("name", ["frequency", "expire", "discard_delay", "disconnect_interval"])
def test_seconds_are_positive_numbers(name: str, value: Any) -> None:
    """Whatever is not a finite number of seconds above 0 is refused by name and value."""
    with pytest.raises(SettingsError, match=name) as caught:
        Settings(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [True, 0, -1, 2.0, "3"])
def test_checks_are_whole(value: Any) -> None:
    """The number of checks is a whole number, 1 or more."""
    with pytest.raises(SettingsError, match="checks"):
        Settings(checks=value)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_enabled_is_true_or_false(value: Any) -> None:
    """A flag is a flag."""
    with pytest.raises(SettingsError, match="enabled"):
        Settings(enabled=value)


def test_an_error_is_what_a_caller_would_catch() -> None:
    """A wrong setting is a ``ValueError``, and one of this library's."""
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, HeartbeatError)


def test_looks_at_connections_are_no_rarer_than_beats_may_be() -> None:
    """A gap between looks that is longer than a normal silence is refused."""
    with pytest.raises(SettingsError, match="disconnect_interval"):
        Settings(disconnect_interval=2.5)


def test_all_three_sources_are_read() -> None:
    """An argument comes before the environment, and that before a mapping."""
    mapping = {"heartbeat_frequency": 0.5, "heartbeat_checks": 5, "CELERY_HEARTBEAT_EXPIRE": 40}
    environ = {"CELERY_HEARTBEAT_CHECKS": " 7 ", "CELERY_HEARTBEAT_MIN_FREQ": "6.5"}
    settings = Settings.load(mapping, environ, min_freq=5.0, max_freq=None)
    assert settings == Settings(frequency=0.5, checks=7, min_freq=5.0, expire=40)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("YES", True), ("on", True), ("0", False), ("off", False)],
)
def test_flags_in_the_environment(text: str, value: bool) -> None:
    """The environment may say a flag in any of the usual words."""
    assert Settings.load(environ={"CELERY_HEARTBEAT_ENABLED": text}).enabled is value


@pytest.mark.parametrize(
    ("name", "text"),
    [("ENABLED", "perhaps"), ("CHECKS", "2.5"), ("FREQUENCY", "fast"), ("EXPIRE", "nan")],
)
def test_words_that_are_no_values(name: str, text: str) -> None:
    """A variable that cannot be read is named with its text."""
    with pytest.raises(SettingsError, match=text) as caught:
        Settings.load(environ={f"CELERY_HEARTBEAT_{name}": text})
    assert name.lower() in str(caught.value).lower()


def test_a_mapping_holds_values_not_texts() -> None:
    """A text in a mapping is a mistake, not a number."""
    with pytest.raises(SettingsError, match="frequency"):
        Settings.load({"heartbeat_frequency": "1"})


@pytest.mark.parametrize("key", ["heartbeat_frequncy", "CELERY_HEARTBEAT_FREQUNCY"])
def test_a_spelling_mistake_names_what_was_meant(key: str) -> None:
    """A name under our prefix that is no setting is refused, with the nearest one."""
    with pytest.raises(SettingsError, match=f"{key}.*'frequency'"):
        Settings.load({key: 1.0})


def test_names_of_others_are_left_alone() -> None:
    """Other keys, and names that the caller knows, are no mistakes."""
    mapping = {"broker_heartbeat": 10, "heartbeat_namespace": "x", 7: 8}
    settings = Settings.load(mapping, known=("namespace",))  # type: ignore[arg-type]
    assert settings == Settings()


def test_an_unknown_argument_is_a_mistake_too() -> None:
    """A misspelt argument is named like any other."""
    with pytest.raises(SettingsError, match="no_such"):
        Settings.load(no_such=1)
