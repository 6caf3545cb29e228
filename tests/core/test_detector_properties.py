"""The detector against an oracle that is slow and obviously right, and against chance."""

import pathlib
import random
import sys

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

sys.path[:0] = [str(pathlib.Path(__file__).parent)]

from world import World

from heartbeat_core import TRANSITIONS, Incarnation, Kind, Settings, State

NODES = st.sampled_from("abcde")
NUMBERS = st.integers(1, 3)


class Oracle:
    """Keeps everything that was ever heard, and finds the silence by looking through it all."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.echoes = [world.now]
        self.beats: dict[str, list[tuple[float, int, int]]] = {}
        self.gone: dict[str, tuple[int, float]] = {}

    def heard(self, node: str, number: int, sequence: int) -> None:
        """Note a beat that counts: neither smaller, nor repeated, nor of the dead or the left."""
        life = self.life(node)
        state = self._world.states().get(node)
        if number <= self.gone.get(node, (0, 0.0))[0]:
            return
        if life is not None and (
            number < life
            or (number == life and (state is State.DEAD or sequence <= self._last(node, number)))
        ):
            return
        self.beats.setdefault(node, []).append((self._world.now, number, sequence))

    def said_goodbye(self, node: str, number: int) -> None:
        """Note a goodbye that counts: neither of a smaller life, nor of a dead one."""
        if number <= self.gone.get(node, (0, 0.0))[0]:
            return
        life = self.life(node)
        if life is not None:
            if number < life:
                return
            if number == life:
                if self._world.states()[node] is State.DEAD:
                    return
                self.beats.pop(node)
        self.gone[node] = number, self._world.now + self._world.settings.discard_delay

    def life(self, node: str) -> int | None:
        """Give the largest incarnation that was heard."""
        return max((number for _, number, _ in self.beats.get(node, ())), default=None)

    def _last(self, node: str, number: int) -> int:
        return max((s for _, n, s in self.beats[node] if n == number), default=0)

    def silence(self, node: str) -> float:
        """Count the time since the last beat, but only the gaps in which an echo came soon."""
        last = max(at for at, number, _ in self.beats[node] if number == self.life(node))
        limit = max(self._world.settings.max_freq, 1.5 * self._world.settings.frequency)
        start = last
        for before, after in zip(self.echoes, self.echoes[1:], strict=False):
            if after - before > limit:
                start = max(start, after)
        return max(0.0, self.echoes[-1] - start)


class DetectorMachine(RuleBasedStateMachine):
    """Any order of beats, goodbyes, looks, pauses and judgements."""

    def __init__(self) -> None:
        super().__init__()
        self.dead: set[Incarnation] = set()
        self.seen = 0

    @initialize(
        checks=st.integers(1, 4),
        min_freq=st.sampled_from([2.0, 4.0, 4.5]),
        expire=st.sampled_from([4.5, 30.0]),
    )
    def begin(self, checks: int, min_freq: float, expire: float) -> None:
        """Begin with some settings."""
        self.world = World(
            Settings(checks=checks, min_freq=min_freq, expire=expire, discard_delay=20.0)
        )
        self.oracle = Oracle(self.world)

    @rule(node=NODES, number=NUMBERS, skip=st.integers(-1, 2), stalled=st.booleans())
    def beat(self, node: str, number: int, skip: int, stalled: bool) -> None:
        """A beat comes, perhaps one of before, perhaps with some lost between."""
        incarnation = Incarnation(node, number)
        sequence = max(1, self.world._sequences.get(incarnation, 0) + skip)
        self.world._sequences[incarnation] = sequence
        self.oracle.heard(node, number, sequence)
        self.world.beat(node, number, sequence=sequence, stalled=stalled)

    @rule(node=NODES, number=NUMBERS)
    def obituary(self, node: str, number: int) -> None:
        """Another observer has buried somebody, whether or not it is known here."""
        self.world.beat(node, number, sequence=1, kind=Kind.OBITUARY)

    @rule(node=NODES, number=NUMBERS)
    def goodbye(self, node: str, number: int) -> None:
        """Somebody leaves, whether or not it was there."""
        self.oracle.said_goodbye(node, number)
        self.world.beat(node, number, sequence=1, kind=Kind.GOODBYE)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0]))
    def hear(self, seconds: float) -> None:
        """Time passes, and the observer hears itself at its end."""
        self.world.now += seconds
        self.world.echo()
        self.oracle.echoes.append(self.world.now)

    @rule(seconds=st.sampled_from([0.5, 3.0, 40.0]))
    def pause(self, seconds: float) -> None:
        """Time passes without an echo."""
        self.world.now += seconds

    @rule(connected=st.sets(NODES))
    def look(self, connected: set[str]) -> None:
        """The broker says who is connected."""
        self.world.connections(*connected)

    @rule()
    def reconnect(self) -> None:
        """The observer's own connection was lost."""
        self.world.session += 1

    @rule()
    def judge(self) -> None:
        """The detector judges; whom it buries is whom it named before, at its deadline or later.

        Just judged, no node is alive or suspect that is silent for too long.
        """
        dying = set(self.world.detector.dying())
        deadline = self.world.detector.next_deadline()
        transitions = self.world.check()
        assert dying == {each.incarnation for each in transitions if each.state is State.DEAD}
        assert not transitions or (deadline is not None and deadline <= self.world.now + 1e-6)
        limits = {
            State.ALIVE: self.world.settings.max_freq,
            State.SUSPECT: self.world.settings.expire,
            State.DEAD: float("inf"),
        }
        for view in self.world.detector.nodes():
            assert view.silence <= limits[view.state]
        for node, (number, until) in list(self.oracle.gone.items()):
            if self.world.now >= until:
                del self.oracle.gone[node]
                self._forget(Incarnation(node, number))

    def _forget(self, latest: Incarnation) -> None:
        """Let go of a node's former lives: the tombstone of the latest spoke for all."""
        self.dead -= {
            each for each in self.dead if each.node == latest.node and each.number <= latest.number
        }

    @invariant()
    def transitions_are_in_the_table(self) -> None:
        """Each change is in the table, follows the one before, and no dead life comes back."""
        for each in self.world.seen[self.seen :]:
            assert TRANSITIONS[each.previous, each.cause] is each.state
            assert each.incarnation not in self.dead or each.state is None
            if each.state is State.DEAD:
                self.dead.add(each.incarnation)
            if each.state is None and each.cause.name == "DISCARDED":
                self.oracle.beats.pop(each.node, None)
                self._forget(each.incarnation)
        self.seen = len(self.world.seen)

    @invariant()
    def silence_is_what_the_oracle_says(self) -> None:
        """The silence of each living node is the oracle's, and its incarnation the largest."""
        for view in self.world.detector.nodes():
            if view.state is State.DEAD:
                continue
            node = view.incarnation.node
            assert view.incarnation.number == self.oracle.life(node)
            assert view.silence == pytest.approx(self.oracle.silence(node))

    @invariant()
    def nobody_is_buried_before_its_time(self) -> None:
        """A death by checks has had its checks, and a closed connection or ``min_freq``."""
        settings = self.world.settings
        for each in self.world.seen[-5:]:
            if each.state is State.DEAD and each.cause.name == "CHECKS_FAILED":
                assert each.checks_failed >= settings.checks
                assert each.disconnected_for is not None or each.silence >= settings.min_freq


TestDetector = DetectorMachine.TestCase
TestDetector.settings = hypothesis_settings(stateful_step_count=60)


BOUND_OF_SILENCE = 4.0 + 1.0 + 1.0
"""A silence is a death at ``min_freq``; one check and one echo may each be a second away."""

BOUND_OF_CONNECTIONS = 0.3 + 3 * 0.1 + 0.1
"""The broker notices within 0.3 s; then three looks, the first of which may be 0.1 s away."""


@pytest.mark.parametrize("seed", range(200))
def test_chance(seed: int) -> None:
    """Whatever is lost, crashes or falls silent: no false death, and every crash is found in time.

    Twenty nodes beat to one observer for two minutes. One beat in a hundred is lost, the broker
    goes away, the observer pauses, some nodes crash.
    """
    chance = random.Random(seed)
    world = World()
    names = [f"n{number:02}" for number in range(20)]
    phase = {name: chance.randrange(10) for name in names}
    crashed: dict[str, float] = {}
    found: dict[str, float] = {}
    outages = [world.now]
    start = world.now
    for tick in range(1200):
        world.now = start + tick * 0.1
        if world.now > outages[-1] and chance.random() < 0.004:
            outages.append(world.now + chance.choice([0.5, 3.0, 10.0]))
        deaf = world.now < outages[-1]
        if chance.random() < 0.003 and len(crashed) < 5 and len(world.states()) == len(names):
            crashed.setdefault(chance.choice(names), world.now)
        for name in names:
            due = (tick + phase[name]) % 10 == 0
            if due and name not in crashed and not deaf and chance.random() > 0.01:
                world.beat(name)
        if tick % 10 == 0 and not deaf:
            world.echo()
        for each in world.check():
            if each.state is State.DEAD:
                assert each.node in crashed, f"seed {seed}: {each.node} died falsely: {each}"
                found[each.node] = world.now
        for name, at in crashed.items():
            # Each outage starts the count again, a second after its end at the latest.
            counted = world.now - max(at, outages[-1] + 1.0)
            assert name in found or counted <= BOUND_OF_SILENCE, (
                f"seed {seed}: {name} was not found in time"
            )


class Network:
    """The connections of some nodes, which break by chance."""

    def __init__(self, world: World, names: list[str], chance: random.Random) -> None:
        self.names = names
        self.crashed: dict[str, float] = {}
        self.disturbed = world.now
        self._broken_until = dict.fromkeys(names, world.now)
        self._world = world
        self._chance = chance

    def pass_moment(self) -> None:
        """Let happen what may."""
        world, chance = self._world, self._chance
        living = [name for name in self.names if name not in self.crashed]
        name = chance.choice(living)
        if chance.random() < 0.005 and len(self.crashed) < 3:
            self.crashed[name] = world.now
            self._broken_until[name] = float("inf")
        elif chance.random() < 0.01 and world.now > self._broken_until[name] + 0.5:
            # Its connection breaks; it knows, and beats at once.
            self._broken_until[name] = world.now + chance.choice([0.05, 0.15])
            world.beat(name)
        if chance.random() < 0.003:
            self.disturbed = world.now + 2.0
            for name in chance.sample(living, k=max(4, len(living) - 1)):
                self._broken_until[name] = max(self._broken_until[name], world.now + 0.45)
        if chance.random() < 0.003:
            self.disturbed = world.now + 2.0
            world.session += 1

    def connected(self) -> list[str]:
        """Tell whom the broker holds for connected: it notices a crash 0.3 s late."""
        now = self._world.now
        return [
            name
            for name in self.names
            if now >= self._broken_until[name] or now < self.crashed.get(name, -1.0) + 0.3
        ]


@pytest.mark.parametrize("seed", range(100))
def test_chance_with_connections(seed: int) -> None:
    """Connections that break for a moment, one or all at once, kill nobody; crashes are found soon.

    Eight nodes beat to one observer for a minute, which looks at their connections. Some crash.
    Now and then the connection of one node breaks for up to 0.2 s, or those of most at once for
    half a second, or the observer's own with all that it knew.
    """
    chance = random.Random(seed)
    world = World()
    names = [f"n{number}" for number in range(8)]
    for name in names:
        world.beat(name)
    world.look(0.1, *names)
    phase = {name: chance.randrange(10) for name in names}
    network = Network(world, names, chance)
    found: dict[str, float] = {}
    start = world.now
    for tick in range(600):
        world.now = start + tick * 0.1
        network.pass_moment()
        for name in names:
            if (tick + phase[name]) % 10 == 0 and name not in network.crashed:
                world.beat(name)
        if tick % 10 == 0:
            world.echo()
        world.connections(*network.connected())
        for each in world.check():
            if each.state is State.DEAD:
                assert each.node in network.crashed, f"seed {seed}: {each} is false"
                found[each.node] = world.now
        for name, at in network.crashed.items():
            # While much is broken at once, or when it just was, silence decides.
            bound = BOUND_OF_CONNECTIONS if network.disturbed < at else BOUND_OF_SILENCE
            assert name in found or world.now - at <= bound + 1e-6, (
                f"seed {seed}: {name} was not found in time"
            )
