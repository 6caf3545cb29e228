"""What can go wrong, as types: whose fault it is shows in the class."""

__all__ = ("BeatError", "HeartbeatError", "SettingsError", "TransportError")


class HeartbeatError(Exception):
    """The root of every error that this library raises."""


class SettingsError(HeartbeatError, ValueError):
    """A setting is of the wrong type, out of range or out of order.

    The message names the setting, its value and what would be right.
    """


class BeatError(HeartbeatError, ValueError):
    """Bytes that are not a beat: the peer's fault, never the caller's.

    Attributes:
        reason: One word for a counter, such as ``"malformed"`` or ``"version"``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} beat: {detail}")
        self.reason = reason


class TransportError(HeartbeatError, ConnectionError):
    """The broker could not be reached, went away or refused a command.

    The broker client's own exception is attached as ``__cause__``. Credentials are never part
    of the message.
    """
