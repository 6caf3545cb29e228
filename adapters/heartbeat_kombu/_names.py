"""What exchanges and queues are called.

They begin with ``heartbeat.{namespace}``. Whatever could be mistaken for another name, or for a
pattern, is quoted as in URLs, and a colon, which is always quoted, stands between the parts. AMQP
allows 255 bytes, so a long part is cut, and a digest tells it from its like.
"""

import hashlib
from urllib.parse import quote

__all__ = ("name_of",)

LONGEST = 100
KEPT = 60


def name_of(namespace: str, *parts: str) -> str:
    """Give the name of something that belongs to a namespace."""
    return ":".join([f"heartbeat.{_quoted(namespace)}", *map(_quoted, parts)])


def _quoted(part: str) -> str:
    quoted = quote(part, safe="@#")
    if len(quoted) <= LONGEST:
        return quoted
    return f"{quoted[:KEPT]}!{hashlib.sha256(part.encode()).hexdigest()[:32]}"
