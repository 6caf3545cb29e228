"""RabbitMQ's management API: by it a connection is closed whose process does not do it itself.

It is asked for the consumers of one queue only, so that it costs the same however many connections
there are; and it closes nothing but those.
"""

import base64
import json
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import attrs

from heartbeat_core import HeartbeatError, SettingsError

__all__ = ("Management", "ManagementError")

TIMEOUT = 5.0
"""So many seconds one answer may take."""

LARGEST = 1 << 20
"""So many bytes of an answer are read."""


class ManagementError(HeartbeatError):
    """It refuses, or does not answer. The message names no credentials."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Credentials go where they were meant to, and nowhere else."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


@attrs.frozen
class Management:
    """The management API of a broker. Its methods block.

    Attributes:
        url: Where it is, without credentials.
        virtual_host: The virtual host.
    """

    url: str
    virtual_host: str
    _authorization: str = attrs.field(repr=False)

    @classmethod
    def at(cls, url: str, *, virtual_host: str, user: str, password: str) -> "Management":
        """Read where it is.

        Args:
            url: ``https://user:password@host:15671``; a path may follow, where there is a prefix.
            virtual_host: The virtual host of the fleet.
            user: Who asks, if the URL does not say it.
            password: Their password.

        Raises:
            SettingsError: It is no such URL. The message does not repeat it.
        """
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise SettingsError(
                "heartbeat_management_url must be like https://user:password@host:15671"
            )
        if parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        where = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
        return cls(where, virtual_host, f"Basic {token}")

    def close_consumers(self, queue: str, reason: str) -> set[str]:
        """Close the connections that consume a queue.

        Args:
            queue: The queue's name.
            reason: Stands in the broker's log.

        Returns:
            The names of those that are closed, or are being closed by others.

        Raises:
            ManagementError: It could not be asked, or may not close one.
        """
        closed = set()
        for name in self._consumers(queue):
            status = self._ask("DELETE", f"/connections/{quote(name, safe='')}", reason)[0]
            # Of one that somebody else closes it says 404, or 500.
            if status not in {200, 204, 404, 500}:
                raise ManagementError(f"{self.url} does not close a connection: {_said(status)}")
            closed.add(name)
        return closed

    def _consumers(self, queue: str) -> set[str]:
        path = f"/queues/{quote(self.virtual_host, safe='')}/{quote(queue, safe='')}"
        columns = "consumer_details.channel_details.connection_name"
        status, body = self._ask("GET", f"{path}?columns={columns}")
        if status == 404:
            return set()
        if status != 200:
            raise ManagementError(f"{self.url} does not tell of a queue: {_said(status)}")
        try:
            details = json.loads(body).get("consumer_details", ())
            # Of a channel that has only just been opened it does not know the connection yet.
            known = [found for each in details if (found := each.get("channel_details"))]
            return {str(each["connection_name"]) for each in known}
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            raise ManagementError(f"{self.url} is no management API of RabbitMQ's") from exc

    def _ask(self, method: str, path: str, reason: str = "") -> tuple[int, bytes]:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            f"{self.url}/api{path}", method=method
        )
        request.add_header("Authorization", self._authorization)
        if reason:
            request.add_header("X-Reason", reason)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        opener = urllib.request.build_opener(_NoRedirects, tls)
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return answer.status, answer.read(LARGEST)
        except urllib.error.HTTPError as exc:
            exc.close()
            return exc.code, b""
        except (OSError, HTTPException, ValueError) as exc:
            why = getattr(exc, "reason", None) or exc
            raise ManagementError(f"{self.url} does not answer: {why}") from exc


def _said(status: int) -> str:
    words = {
        401: "401, the user or the password is wrong",
        403: "403, the user needs the tag management",
    }
    return words.get(status, str(status))
