"""A detector with hands: short words for what comes in, on a clock that the test advances."""

from collections.abc import Iterable

from heartbeat_core import (
    Beat,
    Connections,
    Detector,
    Incarnation,
    Kind,
    Settings,
    State,
    Transition,
)

ME = Incarnation("me", 1)


class World:
    """One observer, whose own beats come back every second unless it is said to be deaf."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.detector = Detector(self.settings, ME)
        self.now = 1000.0
        self.seen: list[Transition] = []
        self.session = 1
        self._sequences: dict[Incarnation, int] = {}
        self.echo()

    def echo(self) -> None:
        """Hear oneself."""
        self._take(ME, Kind.BEAT, None, 0.0)

    def beat(
        self,
        node: str,
        number: int = 1,
        *,
        sequence: int | None = None,
        kind: Kind = Kind.BEAT,
        clock: float = 0.0,
        sent: float | None = None,
        gap: float = 1.0,
        stalled: bool = False,
    ) -> list[Transition]:
        """Hear a node, whose clock is so many seconds ahead."""
        return self._take(Incarnation(node, number), kind, sequence, clock, sent, gap, stalled)

    def _take(
        self,
        incarnation: Incarnation,
        kind: Kind,
        sequence: int | None,
        clock: float,
        sent: float | None = None,
        gap: float = 1.0,
        stalled: bool = False,
    ) -> list[Transition]:
        if sequence is None:
            sequence = self._sequences[incarnation] = self._sequences.get(incarnation, 0) + 1
        beat = Beat(
            incarnation=incarnation,
            sequence=sequence,
            sent=(self.now if sent is None else sent) + clock,
            gap=gap,
            kind=kind,
            stalled=stalled,
        )
        return self._note(self.detector.observe(beat, self.now))

    def pass_time(self, seconds: float, *, deaf: bool = False, step: float = 0.1) -> None:
        """Let time pass, hearing oneself at every step, and judge at each."""
        for _ in range(round(seconds / step)):
            self.now = round(self.now + step, 6)
            if not deaf:
                self.echo()
            self.check()

    def check(self) -> list[Transition]:
        """Judge."""
        return self._note(self.detector.check(self.now))

    def connections(self, *connected: str, asked: str = "") -> list[Transition]:
        """Learn which nodes, named by their first letters, are connected."""
        living = {each.node: each for each in self.detector.living()}
        names = set(asked.split()) or set(living)
        return self._note(
            self.detector.connections(
                Connections(
                    session=self.session,
                    asked=frozenset(living[name] for name in names if name in living),
                    connected=frozenset(living[name] for name in connected if name in living),
                ),
                self.now,
            )
        )

    def look(self, seconds: float, *connected: str) -> None:
        """Let time pass, looking at the connections at every tenth of a second."""
        for _ in range(round(seconds / 0.1)):
            self.now = round(self.now + 0.1, 6)
            self.echo()
            self.connections(*connected)
            self.check()

    def _note(self, transitions: Iterable[Transition]) -> list[Transition]:
        noted = list(transitions)
        self.seen += noted
        return noted

    def states(self) -> dict[str, State]:
        """Give the table of nodes."""
        return {view.incarnation.node: view.state for view in self.detector.nodes()}

    def causes(self, node: str) -> list[str]:
        """Give why a node changed, in order."""
        return [each.cause.name for each in self.seen if each.node == node]
