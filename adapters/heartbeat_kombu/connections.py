"""Connections to a broker of Kombu's, for adapters that have more to say there than beats.

`heartbeat_celery` builds on it. Other transports need none of it, and any version may change it.
"""

from heartbeat_kombu._calls import Calls
from heartbeat_kombu._line import BACKLOG, Broker, Line
from heartbeat_kombu._names import name_of
from heartbeat_kombu._reader import Mailbox, Reader

__all__ = ("BACKLOG", "Broker", "Calls", "Line", "Mailbox", "Reader", "name_of")
