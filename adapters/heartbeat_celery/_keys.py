"""Where everything stands in the broker."""

from typing import Any

import attrs

from heartbeat_core import Incarnation

__all__ = ("Keys",)

PRIORITY = "\x06\x16"
"""Stands in the name of a list between its queue and a priority."""


@attrs.frozen
class Keys:
    """Where claims and Kombu's own records stand in the broker.

    Attributes:
        prefix: Kombu's ``global_keyprefix``.
        namespace: The fleet.
        unacked: Kombu's hash of unacknowledged messages, prefix included.
        unacked_index: Kombu's sorted set of the times at which they were taken.
        visibility_timeout: After so many seconds Kombu takes a message for abandoned.
    """

    prefix: str
    namespace: str
    unacked: str
    unacked_index: str
    visibility_timeout: float = 3600.0

    @classmethod
    def of_channel(cls, channel: Any, namespace: str) -> "Keys":
        """Read off a Kombu channel where it keeps its records."""
        prefix = channel.global_keyprefix
        return cls(
            prefix=prefix,
            namespace=namespace,
            unacked=f"{prefix}{channel.unacked_key}",
            unacked_index=f"{prefix}{channel.unacked_index_key}",
            visibility_timeout=channel.visibility_timeout,
        )

    @property
    def renew_every(self) -> float:
        """How often what is held must be renewed, in seconds."""
        return min(60.0, max(0.5, self.visibility_timeout / 4))

    @property
    def holders(self) -> str:
        """The set of the incarnations that may have claims."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:holders"

    def claims(self, incarnation: Incarnation) -> str:
        """The hash of what an incarnation holds."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:claims:{incarnation}"

    def waits(self, incarnation: Incarnation) -> str:
        """The set of the lists for which an incarnation waits."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:waits:{incarnation}"

    def moved(self, incarnation: Incarnation, list_: str) -> str:
        """The list to which a message of another is moved for an incarnation that waits."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:moved:{incarnation}:{list_}"

    def running(self, incarnation: Incarnation) -> str:
        """The hash of what an incarnation has acknowledged, and still runs."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:running:{incarnation}"

    @property
    def verdicts(self) -> str:
        """The list of what has to be told of tasks, and that nobody tells yet."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:verdicts"

    def taken_verdicts(self, incarnation: Incarnation) -> str:
        """The list of what an incarnation is about to tell."""
        return f"{self.verdicts}:{incarnation}"

    @property
    def dead_letters(self) -> str:
        """The list of the messages that are not given back any more; Kombu's queue of that name."""
        return f"{self.prefix}heartbeat.{self.namespace}.dead-letters"

    def queue_of(self, list_: str) -> str:
        """Give the queue to which a list belongs: it may be the list of one priority."""
        return list_.removeprefix(self.prefix).partition(PRIORITY)[0]

    def fence(self, incarnation: Incarnation) -> str:
        """What says that an incarnation is dead."""
        return f"{self.prefix}heartbeat:{{{self.namespace}}}:fence:{incarnation}"

    def of(self, incarnation: Incarnation) -> list[str]:
        """Give the keys of the scripts, in their order."""
        return [
            self.unacked,
            self.unacked_index,
            self.claims(incarnation),
            self.holders,
            self.fence(incarnation),
            self.waits(incarnation),
        ]
