"""Figures that need more than numbers: from the finished runs of a table of `kind: figure` to its pictures.

A figure's table says which runs it shows; its drawing, found here by the table's id, gets them as modules.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plan import Plan, PlannedRun
from experiments.store import Record, Store
from hkd.errors import UserError
from hkd.registry import load
from hkd.training.runtime import Runtime

DRAWINGS = {"hgkd_pictures": "experiments.figures:hgkd_pictures"}
SHOWN = 6  # images in a picture
PAINTERS = {"masked_pixels": "student", "mae": "MAE teacher"}  # methods that predict pixels, as columns name them


@dataclass(frozen=True)
class Finished:
    """What a drawing works from: the plan, and where its done runs are.

    runs: done runs by the label of their column (several seeds: the first).
    """

    plan: Plan
    store: Store
    runtime: Runtime
    runs: Mapping[str, PlannedRun]

    def step(self, run: PlannedRun) -> Any:
        """Student and method of a run, with their weights."""
        from hkd.training.restore import restore

        weights = {key: self.store.folder(key) / "student.safetensors" for key in run.needs}
        return restore(run.spec, weights | {i: Path(p) for i, p in run.files}, self.store.folder(run.key), self.runtime)

    def curves(self, label: str) -> list[dict[str, Any]]:
        """Lines of a run's curves."""
        path = self.store.folder(self.runs[label].key) / "curves.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def drawing(plan: Plan, records: Mapping[str, Record], store: Store, runtime: Runtime) -> Callable[[Path], None] | None:
    """What draws a table's pictures into a folder; None for tables without, or while none of its runs is done."""
    if plan.table not in DRAWINGS:
        return None
    runs: dict[str, PlannedRun] = {}
    for cell in plan.cells:
        done = [key for key in cell.runs if key in records and records[key].status == "done"]
        if done:
            runs.setdefault(cell.label, plan.runs[done[0]])
    finished = Finished(plan, store, runtime, runs)
    return (lambda folder: load(DRAWINGS[plan.table])(finished, folder)) if runs else None


def hgkd_pictures(finished: Finished, folder: Path) -> None:
    """Active sets, features, paintings and the queue's effective entries, with the figures behind them as JSON."""
    import torch

    from analysis import hgkd_pictures as draw
    from hkd.training.evaluate import open_data

    runs = finished.runs
    split = open_data(next(iter(runs.values())).spec.data, finished.runtime)[0].load("test", seed=0, select=False)
    if split.images is None:
        from hkd.data.loader import Loader

        loader = Loader(split, None, num_classes=0, seed=0, train=False, batch_size=SHOWN)
        images = next(loader.epoch(0)).x
    else:
        images = torch.from_numpy(split.images[:SHOWN]) / 255
    distilled = {label: finished.step(run) for label, run in runs.items() if run.spec.method.name == "hgkd"}
    done = {run.key for run in runs.values()} | {need for run in runs.values() for need in run.needs}
    painters = {
        PAINTERS[run.spec.method.name]: finished.step(run)
        for run in finished.plan.runs.values()
        if run.key in done and run.spec.method.name in PAINTERS
    }
    facts: dict[str, Any] = {"images": f"first {SHOWN} of the test split"}
    if distilled:
        facts["active"] = draw.draw_active_sets(next(iter(distilled.values())), images, folder / "active_sets.png")
        facts["cosine"] = draw.draw_features(distilled, images, folder / "features.png")
        queues = {label: finished.curves(label) for label in distilled}
        size = {step.method.config.queue_size for step in distilled.values()}
        if len(size) != 1:
            raise UserError(f"The runs of '{finished.plan.table}' have queues of different sizes: {sorted(size)}.")
        draw.draw_queue(queues, folder / "queue_entries.png", size=size.pop())
    if painters:
        draw.draw_paintings(painters, images, folder / "paintings.png")
    (folder / "pictures.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
