"""What is simulated: a fleet, its network, and what happens to it; written by hand or drawn."""

import random
from collections.abc import Callable

import attrs

from heartbeat_core._beat import Incarnation
from heartbeat_core._detector import Detector
from heartbeat_core._settings import Settings
from heartbeat_core.testing import faults as happening
from heartbeat_core.testing import models
from heartbeat_core.testing.models import SECOND, microseconds

__all__ = ("Scenario", "draw")

HOUR = 3600 * SECOND


@attrs.frozen(kw_only=True)
class Scenario:
    """A fleet, its network, and what happens to it. A value: running it changes nothing in it.

    Attributes:
        seed: Of everything that is left to chance.
        settings: Of all nodes.
        nodes: How many there are: ``n0``, ``n1`` and so on.
        observers: How many of them observe: the first ones.
        presence: Whether the broker knows who has a connection, and there are inboxes.
        last_beats: Whether the broker keeps the last beat of each node.
        delay: How long a message takes, each way.
        up_loss: What gets lost on the way to the broker.
        down_loss: What gets lost on the way back.
        twice: So many messages out of a million are delivered twice.
        overtaken: So many out of a million are delivered up to three seconds late.
        sloppy: So many nodes out of a thousand promise, and keep, twice the gap.
        drift: So many microseconds in a second a clock may be wrong.
        faults: What happens.
        seconds: For how long it is simulated at least, until it has to settle.
        detector: Makes the detectors.
    """

    seed: int = 0
    settings: Settings = attrs.field(factory=Settings)
    nodes: int = 3
    observers: int = 1
    presence: bool = False
    last_beats: bool = False
    delay: models.Delay = attrs.field(factory=models.Constant)
    up_loss: models.Loss = attrs.field(factory=models.Never)
    down_loss: models.Loss = attrs.field(factory=models.Never)
    twice: int = 0
    overtaken: int = 0
    sloppy: int = 0
    drift: int = 0
    faults: tuple[happening.Fault, ...] = ()
    seconds: float = 0.0
    detector: Callable[[Settings, Incarnation], Detector] = attrs.field(
        default=Detector, repr=False
    )

    @property
    def healed_at(self) -> int:
        """When the last fault is over, in microseconds."""
        return max([microseconds(self.seconds), *(each.at + each.lasts for each in self.faults)])

    @property
    def settling(self) -> int:
        """How long it may take after that until all agree.

        The dead are buried at ``expire`` at the latest. Who was buried alive comes back with its
        next beat where it has an inbox; where it has none it is met again when it is forgotten.
        Some seconds more are for beats that are lost, for retries, and for a second death of who
        was met again by an old beat.
        """
        settings = self.settings
        forgotten = 0.0 if self.presence else settings.discard_delay
        return microseconds(2 * settings.expire + forgotten + 10 * settings.max_freq + 20)


def draw(seed: int) -> Scenario:
    """Draw a scenario from a seed: mostly small and short, now and then hundreds of nodes."""
    chance = random.Random(seed)  # noqa: S311 - it is to replay
    size = chance.randrange(100)
    if size < 2:
        nodes, length = 100 + chance.randrange(200), 10
    elif size < 12:
        nodes, length = 9 + chance.randrange(24), 20
    else:
        nodes, length = 2 + chance.randrange(7), 20 + chance.randrange(30)
    settings = _settings(chance)
    scale = settings.frequency
    observers = min(nodes, 1 + chance.randrange(3))
    delay = _delay(chance, microseconds(scale))
    up_loss, down_loss = _loss(chance)
    happens: list[happening.Fault] = []
    for _ in range(1 + chance.randrange(5)):
        at = microseconds(scale * 5) + chance.randrange(microseconds(scale * length))
        happens += _fault(chance, at, nodes, settings)
    if chance.randrange(4) == 0:
        happens += _restarts(chance, nodes, settings, length)
    return Scenario(
        seed=seed,
        settings=settings,
        nodes=nodes,
        observers=observers,
        presence=bool(chance.randrange(2)),
        last_beats=bool(chance.randrange(2)),
        delay=delay,
        up_loss=up_loss,
        down_loss=down_loss,
        twice=chance.randrange(2) * 20_000,
        overtaken=chance.randrange(2) * 2_000,
        sloppy=chance.randrange(2) * 200,
        drift=chance.randrange(2) * 300,
        faults=tuple(sorted(happens, key=lambda each: each.at)),
        seconds=scale * (length + 5),
    )


def _settings(chance: random.Random) -> Settings:
    detector = "phi" if chance.randrange(4) == 0 else "checks"
    if chance.randrange(2):
        expire = (30.0, 15.0, 10.0)[chance.randrange(3)]
        discard = (60.0, 20.0)[chance.randrange(2)]
        return Settings(detector=detector, expire=expire, discard_delay=discard)
    frequency = (0.2, 0.5, 1.0, 2.0)[chance.randrange(4)]
    max_freq = frequency * (1.5, 2.0, 3.0)[chance.randrange(3)]
    min_freq = frequency * (4.0, 5.0, 6.0)[chance.randrange(3)]
    return Settings(
        detector=detector,
        frequency=frequency,
        max_freq=max_freq,
        min_freq=min_freq,
        checks=1 + chance.randrange(5),
        expire=frequency * (12.0, 20.0, 30.0)[chance.randrange(3)],
        discard_delay=frequency * (20.0, 60.0)[chance.randrange(2)],
        disconnect_interval=frequency * (0.1, 0.2)[chance.randrange(2)],
    )


def _delay(chance: random.Random, frequency: int) -> models.Delay:
    """Draw a network: at once, in a local net, in a busy one, with a heavy tail, changing."""
    kinds: tuple[models.Delay, ...] = (
        models.Constant(),
        models.Constant(frequency // 1000),
        models.Uniform(200, frequency // 50),
        models.Tail(
            (
                (900, frequency // 500),
                (90, frequency // 50),
                (9, frequency // 5),
                (1, frequency),
            )
        ),
    )
    kind = chance.randrange(len(kinds) + 1)
    if kind < len(kinds):
        return kinds[kind]
    slower = models.Uniform(frequency // 20, frequency // 10)
    return models.DelayRegimes(
        ((0, kinds[2]), (15 * frequency, slower), (30 * frequency, kinds[1]))
    )


def _loss(chance: random.Random) -> tuple[models.Loss, models.Loss]:
    """Draw what is lost: nothing, up to one in a hundred, or bursts now and then."""
    kind = chance.randrange(6)
    if kind < 2:
        return models.Never(), models.Never()
    if kind == 2:
        return models.Independent(10_000), models.Never()
    if kind == 3:
        return models.Never(), models.Independent(10_000)
    if kind == 4:
        return models.Independent(5_000), models.Independent(5_000)
    return models.Never(), models.Bursts(begins=2_000, ends=700_000)


def _fault(chance: random.Random, at: int, nodes: int, settings: Settings) -> list[happening.Fault]:
    """Draw one thing that happens, and what heals it."""
    node = f"n{chance.randrange(nodes)}"
    frequency = microseconds(settings.frequency)
    # Anything from a blink to twice the life of a beat, short ones and long ones alike.
    length = frequency // 4 + chance.randrange(
        (frequency * 2, frequency * 8, microseconds(settings.expire * 2))[chance.randrange(3)]
    )
    noticed = (None, frequency, 5 * frequency)[chance.randrange(3)]
    holds, keeps = bool(chance.randrange(2)), bool(chance.randrange(4))
    kind = chance.randrange(14)
    if kind < 3:
        gone = (0, 0, frequency * 2, HOUR)[chance.randrange(4)]
        crash = happening.Crash(at, node, gone)
        return [crash] if kind else [crash, happening.Start(at + length, node)]
    if kind == 3:
        by = (HOUR, -HOUR)[chance.randrange(2)]
        again = happening.Start(at + length, node)
        return [happening.WallClock(at, node, by), happening.Crash(at, node), again]
    if kind == 4:
        return [happening.Pause(at, node, length, suspended=holds, keeps=keeps)]
    if kind == 5:
        observer = f"n{chance.randrange(2) % nodes}"
        return [happening.Pause(at, observer, max(length, 30 * frequency), keeps=keeps)]
    if kind == 6:
        gap = microseconds(settings.min_freq) * (40 + chance.randrange(45)) // 100
        return [happening.Slow(at, node, length, max(gap, frequency))]
    if kind == 7:
        return [happening.Cut(at, node, length, holds=holds, noticed=noticed)]
    if kind == 8:
        up = bool(chance.randrange(2))
        return [happening.Cut(at, node, length, up=up, down=not up, holds=holds, noticed=noticed)]
    if kind == 9:
        return [happening.Outage(at, length, stalls=holds, forgets=keeps)]
    if kind == 10:
        return [happening.Burst(at, node, 2)]
    if kind == 11:
        count = 1 + chance.randrange(nodes)
        first = chance.randrange(nodes)
        gone_at_once = tuple(f"n{(first + each) % nodes}" for each in range(count))
        return [happening.Disconnect(at, gone_at_once)]
    if kind == 12:
        return [happening.Leave(at, node), happening.Start(at + length, node)]
    return [happening.ClockDrift(at, node, chance.randrange(-500, 501))]


def _restarts(
    chance: random.Random, nodes: int, settings: Settings, length: int
) -> list[happening.Fault]:
    """Draw a storm of restarts: most of the fleet restarts within a few gaps."""
    frequency = microseconds(settings.frequency)
    at = frequency * (5 + chance.randrange(length))
    happens: list[happening.Fault] = []
    for number in range(nodes):
        if chance.randrange(3):
            ends = at + chance.randrange(3 * frequency)
            starts = ends + frequency // 10 + chance.randrange(3 * frequency)
            happens += [happening.Crash(ends, f"n{number}"), happening.Start(starts, f"n{number}")]
    return happens
