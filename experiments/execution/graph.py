"""Which run may start next: one whose needs are done, with the longest way to the end of the graph."""

from collections.abc import Mapping
from graphlib import TopologicalSorter

from experiments.planning.plan import PlannedRun


class Graph:
    """The runs to do, ordered by what they need and by how much waits for them.

    Attributes:
        ready: keys that can start now, in the plan's order.
        rank: length of the longest way from the start of a run to the end of the graph.

    Args:
        runs: the runs to do, by key, each after those it needs; needs outside of these count as done.
        length: how long each takes, in any one unit.
    """

    def __init__(self, runs: Mapping[str, PlannedRun], length: Mapping[str, float]):
        self.runs = dict(runs)
        needs = {key: [need for need in run.needs if need in runs] for key, run in runs.items()}
        self.dependents: dict[str, list[str]] = {key: [] for key in runs}
        for key, keys in needs.items():
            for need in dict.fromkeys(keys):
                self.dependents[need].append(key)
        self.rank: dict[str, float] = {}
        for key in reversed(list(runs)):  # dependents come after what they need, so their ranks are known
            self.rank[key] = length[key] + max((self.rank[other] for other in self.dependents[key]), default=0.0)
        self._sorter = TopologicalSorter(needs)
        self._sorter.prepare()
        self.ready = list(self._sorter.get_ready())

    def next(self) -> str | None:
        """Take the run to start now, or None while all that is left waits for others."""
        if not self.ready:
            return None
        key = max(self.ready, key=lambda key: self.rank[key])  # the first of equals: the plan's order
        self.ready.remove(key)
        return key

    def done(self, key: str) -> None:
        """A run has what its dependents need."""
        self._sorter.done(key)
        self.ready += self._sorter.get_ready()

    def drop(self, key: str) -> None:
        """A run will not be started."""
        if key in self.ready:
            self.ready.remove(key)

    def unreachable(self, key: str) -> list[str]:
        """Every run that needs, directly or not, one that has no result; in the plan's order."""
        lost, front = set(), [key]
        while front:
            for other in self.dependents[front.pop()]:
                if other not in lost:
                    lost.add(other)
                    front.append(other)
        return [other for other in self.runs if other in lost]
