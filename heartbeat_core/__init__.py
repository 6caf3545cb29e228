"""A failure detector for Python services: who is alive, who is suspected, who is dead.

The machine (:class:`Settings`, :class:`Beat`, :class:`Detector`) does no I/O and reads no
clock; :class:`Heartbeat` is the runtime around it.
"""

from heartbeat_core._beat import Beat, Incarnation, Kind, Status, decode, encode
from heartbeat_core._blocking import BlockingHeartbeat
from heartbeat_core._detector import Detector
from heartbeat_core._errors import BeatError, HeartbeatError, SettingsError, TransportError
from heartbeat_core._fork import in_thread, no_fork, run_loop
from heartbeat_core._looks import Connections
from heartbeat_core._memory import MemoryBroker, MemoryTransport
from heartbeat_core._record import NodeView
from heartbeat_core._runtime import Heartbeat
from heartbeat_core._settings import Settings
from heartbeat_core._shards import all_shards, shard_of
from heartbeat_core._states import TRANSITIONS, Cause, State, Transition, next_state
from heartbeat_core._transport import LastBeats, Presence, Seats, Transport

__all__ = (
    "TRANSITIONS",
    "Beat",
    "BeatError",
    "BlockingHeartbeat",
    "Cause",
    "Connections",
    "Detector",
    "Heartbeat",
    "HeartbeatError",
    "Incarnation",
    "Kind",
    "LastBeats",
    "MemoryBroker",
    "MemoryTransport",
    "NodeView",
    "Presence",
    "Seats",
    "Settings",
    "SettingsError",
    "State",
    "Status",
    "Transition",
    "Transport",
    "TransportError",
    "all_shards",
    "decode",
    "encode",
    "in_thread",
    "next_state",
    "no_fork",
    "run_loop",
    "shard_of",
)
