"""Lua scripts, and commands that reach the broker as they are."""

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs
import redis
from redis.exceptions import NoScriptError

__all__ = ("Client", "Script", "execute")

Client = Any
"""A ``redis.Redis``, or Kombu's variety of it. Its types differ from release to release."""

execute: Any = redis.Redis.execute_command
"""Sends a command with its keys as they are: Kombu's client would prefix the first one."""


@attrs.frozen
class Script:
    """A Lua script, run by its digest; loaded again whenever the server has lost it."""

    source: str
    digest: str = attrs.field(init=False)

    @digest.default
    def _digest(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Give the command that runs it."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def load(self, client: Client) -> None:
        """Make the script known to the server. Blocks."""
        execute(client, "SCRIPT LOAD", self.source)

    def run(self, client: Client, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run it. Blocks."""
        command = self.command(keys, arguments)
        try:
            return execute(client, *command)
        except NoScriptError:
            self.load(client)
            return execute(client, *command)
