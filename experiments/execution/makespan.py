"""How long runs would take on a cluster, simulated with the order that the scheduler has."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.execution.graph import Graph
from experiments.planning.plan import PlannedRun
from hkd.errors import UserError


@dataclass(frozen=True)
class Makespan:
    """A simulated plan; times in the unit of the runs' lengths.

    total: from the first start to the last end. idle: share of the GPUs' time until then in which they have no run, in
    [0, 1). path: the longest chain of runs that need one another, which no number of GPUs makes shorter. ends: of every
    run.
    """

    total: float
    idle: float
    path: tuple[str, ...]
    ends: Mapping[str, float]


def simulate(
    runs: Mapping[str, PlannedRun],
    length: Mapping[str, float],
    *,
    gpus: int,
    each: Mapping[str, int],
    order: Sequence[str] = (),
) -> Makespan:
    """What becomes of runs that start as soon as what they need is done and their GPUs are free.

    Where several could start, those are taken first that stand in front in `order`, and of these the one with the
    longest way to the end of the graph. The first one waits for its GPUs, and none overtakes it.

    Args:
        runs: by key, each after those it needs; needs outside of these count as done.
        length: how long each takes on its GPUs.
        gpus: of the cluster.
        each: how many of them a run takes.
        order: keys to prefer, first ones most; runs that are not in it come last.

    Raises:
        UserError: the cluster has fewer GPUs than one run takes.
    """
    most = max((each[key] for key in runs), default=0)
    if gpus < most:
        raise UserError(f"A run of this profile takes {most} GPUs, and --cluster has {gpus}: name at least {most}.")
    graph = Graph(runs, length)
    way = dict(graph.rank)
    farthest = 1.0 + max(way.values(), default=0.0)
    place = {key: number for number, key in enumerate(order)}
    graph.rank = {key: way[key] + farthest * (len(order) - place.get(key, len(order))) for key in runs}
    free, now, under_way, ends = gpus, 0.0, list[tuple[float, str]](), dict[str, float]()
    while len(ends) < len(runs):
        while (key := graph.next()) is not None:
            if each[key] > free:
                graph.ready.append(key)
                break
            heapq.heappush(under_way, (now + length[key], key))
            free -= each[key]
        now, key = heapq.heappop(under_way)
        ends[key] = now
        graph.done(key)
        free += each[key]
    busy = sum(length[key] * each[key] for key in runs)
    return Makespan(now, max(0.0, 1 - busy / (now * gpus)) if now else 0.0, longest(graph, way), ends)


def longest(graph: Graph, way: Mapping[str, float]) -> tuple[str, ...]:
    """The keys of the longest chain, from its start."""
    chain, left = list[str](), list(graph.runs)
    while left:
        chain.append(max(left, key=lambda key: way[key]))
        left = graph.dependents[chain[-1]]
    return tuple(chain)
