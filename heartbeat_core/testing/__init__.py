"""For those who write transports, and for tests of what uses the core.

:class:`ManualClock` drives a detector, :class:`MemoryNetwork` is a broker with faults, and
:class:`TransportConformance` holds a transport to what ``heartbeat_core.Transport`` promises.
Nothing here needs pytest.
"""

from heartbeat_core.testing._clock import ManualClock
from heartbeat_core.testing._conformance import TransportConformance
from heartbeat_core.testing._network import MemoryNetwork

__all__ = ("ManualClock", "MemoryNetwork", "TransportConformance")
