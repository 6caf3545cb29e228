"""For those who write transports, and for tests of what uses the core.

:class:`ManualClock` drives a detector, :class:`MemoryNetwork` is a broker with faults, and
:class:`TransportConformance` holds a transport to what ``heartbeat_core.Transport`` promises.
:func:`simulate` runs a whole fleet through a :class:`Scenario`, with :mod:`faults` and with
:mod:`models` of delay and loss; ``python -m heartbeat_core.testing`` draws scenarios from seeds.
Nothing here needs pytest.
"""

from heartbeat_core.testing._clock import ManualClock
from heartbeat_core.testing._conformance import TransportConformance
from heartbeat_core.testing._network import MemoryNetwork
from heartbeat_core.testing._promises import BrokenPromise
from heartbeat_core.testing._scenario import Scenario, draw
from heartbeat_core.testing._simulator import Report, simulate

__all__ = (
    "BrokenPromise",
    "ManualClock",
    "MemoryNetwork",
    "Report",
    "Scenario",
    "TransportConformance",
    "draw",
    "simulate",
)
