"""What drawings of figures work from: the finished runs of a table of `kind: figure`, as modules, and test images.

A figure's table says which runs it shows; its drawing (`experiments.drawings`) gets them and a folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.drawings import DRAWINGS
from experiments.planning import schema
from experiments.planning.plan import Plan, PlannedRun, roles_of
from experiments.planning.schema import Table
from experiments.records.committed import curves_in
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.registry import load, lookup
from hkd.training.job import Runtime

if TYPE_CHECKING:  # planning does without torch
    import numpy as np
    from torch import Tensor

    from analysis.figure_files import Number
    from hkd.data.base import Split

BATCH = 64  # images at a time
NAMES = {"deit_b16": "DeiT", "mae_b16": "MAE", "clip_b16": "CLIP", "dino_b16": "DINO"}  # of teachers in print


@dataclass(frozen=True)
class Images:
    """Images that a figure shows or measures, as batches that can be had again: centre crops, RGB in [0, 1].

    split: those of the figure. whole: how many there are to choose from.
    """

    split: "Split"
    whole: int

    @property
    def rows(self) -> "np.ndarray":
        """Where each image stands in its data set."""
        return self.split.rows

    @property
    def rule(self) -> str:
        """Which images, as a sentence, if they are evenly spaced."""
        if len(self.split) == self.whole:
            return f"All {self.whole} images of the test split, in its order."
        return f"{len(self.split)} of the {self.whole} images of the test split, evenly spaced in its order."

    def __iter__(self) -> "Iterator[Tensor]":
        import torch

        from hkd.data.loading.loader import Loader

        if self.split.images is not None:
            held = self.split.images
            yield from (torch.from_numpy(held[i : i + BATCH]) / 255 for i in range(0, len(held), BATCH))
            return
        loader = Loader(self.split, None, num_classes=0, seed=0, train=False, batch_size=BATCH)
        yield from (batch.x for batch in loader.epoch(0))


def chosen(split: "Split", places: Sequence[int]) -> "Split":
    """The images of a split at some places."""
    return replace(
        split,
        images=None if split.images is None else split.images[places],
        paths=None if split.paths is None else [split.paths[place] for place in places],
        labels=split.labels[places],
        rows=split.rows[places],
    )


def spaced(split: "Split", count: int) -> "Split":
    """At most `count` images of a split, evenly spaced: the first of a set sorted by class would be of few classes."""
    if len(split) <= count:
        return split
    return chosen(split, [place * len(split) // count for place in range(count)])


@dataclass(frozen=True)
class Finished:
    """What a drawing works from: the plan, and where its done runs are.

    runs: done runs by the label of their column (several seeds: the first). cells: by (row, method, variant), all done
    runs in the order of their seeds.
    """

    plan: Plan
    store: Store
    runtime: Runtime
    runs: Mapping[str, PlannedRun]
    cells: Mapping[tuple[str, str, str], tuple[PlannedRun, ...]] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The table's file."""
        found: Table = schema.read("table", "tables", self.plan.table, Table)
        return found

    @property
    def rows(self) -> dict[str, str]:
        """Labels of the table's rows by their names; of data that stood in they say so."""
        return {cell.row: cell.row_label[1] for cell in self.plan.cells}

    def label(self, cell: tuple[str, str, str]) -> str:
        """A column's label as printed."""
        return next(each.label for each in self.plan.cells if each.id == cell)

    def step(self, run: PlannedRun) -> Any:
        """Student and method of a run, with their weights."""
        from hkd.tasks.train import restore

        for name in ("student.safetensors", "adapters.safetensors"):
            self.file(run.key, name)
        return restore(run.spec, self.weights(run), self.store.folder(run.key), self.runtime)

    def weights(self, run: PlannedRun) -> dict[str, Path]:
        """Files of what a run needs, by the id of their weights."""
        made = {key: self.file(key, "student.safetensors") for key in run.needs}
        return made | {name: Path(path) for name, path in run.files}

    def network(self, run: PlannedRun) -> Any:
        """The network that a run measured: its student, or, of a linear probe, the frozen one that it was given."""
        if run.spec.task != "probe":
            return self.step(run).student
        from hkd.models.tap_model import TapModel
        from hkd.training.inputs import give_weights

        assert run.spec.init is not None
        model = TapModel(run.spec.student, 0)
        give_weights(model, run.spec.init, self.weights(run))
        return model.eval()

    def teachers(self) -> dict[str, tuple[PlannedRun, str]]:
        """Teachers by slug, in the order of the table: a done run that has it, and its role there."""
        found: dict[str, tuple[PlannedRun, str]] = {}
        for row in self.table.rows:
            for column in self.table.columns if row.columns is None else row.columns:
                runs = self.cells.get((row.row, column.method, column.variant), ())
                roles = row.teachers if column.teacher is True else roles_of(column.teacher)
                for role, slug in roles.items() if runs else ():
                    found.setdefault(slug, (runs[0], role))
        return found

    def curves(self, run: PlannedRun) -> list[dict[str, Any]]:
        """Lines of a run's curves.

        Raises:
            UserError: they are not there, or were altered.
        """
        path = self.file(run.key, "curves.jsonl")
        try:
            return curves_in(path)
        except (OSError, ValueError):
            raise UserError(f"{path} does not hold curves; delete {path.parent} to have the run done again.") from None

    def file(self, key: str, name: str) -> Path:
        """Where a run's file is, if one is there.

        Raises:
            Altered: it is not what the run wrote.
        """
        record = self.store.load(key)
        return (self.store.kept(record, name) if record else None) or self.store.folder(key) / name

    def test_split(self) -> "Split":
        """Test images of the first run's data."""
        from hkd.training.inputs import open_data

        first = next(iter(self.runs.values()))
        return open_data(first.spec.data, self.runtime)[0].load("test", seed=0, select=False)

    def images(self, count: int) -> Images:
        """At most `count` test images, evenly spaced."""
        split = self.test_split()
        return Images(spaced(split, count), len(split))

    def leave(
        self,
        folder: Path,
        images: Images,
        *,
        arrays: "Mapping[str, Mapping[str, np.ndarray]] | None" = None,
        numbers: "Mapping[str, Number] | None" = None,
    ) -> None:
        """Write arrays.npz and measures.json, each where there is something for it.

        Args:
            folder: where to.
            images: what was measured; their rows are among the arrays.
            arrays: by what was measured, then by field.
            numbers: by name.
        """
        from analysis.figure_files import save_arrays, save_measures

        if arrays is not None:
            flat = {f"{name}/{field}": array for name, each in arrays.items() for field, array in each.items()}
            save_arrays(flat | {"rows": images.rows}, folder / "arrays.npz")
        if numbers is not None:
            save_measures(numbers, folder / "measures.json", profile=self.plan.profile, images=images.rule)


def drawing(plan: Plan, records: Mapping[str, Record], store: Store, runtime: Runtime) -> Callable[[Path], None] | None:
    """What draws a table's pictures into a folder; None for tables without, or while none of its runs is done."""
    runs: dict[str, PlannedRun] = {}
    cells: dict[tuple[str, str, str], tuple[PlannedRun, ...]] = {}
    for cell in plan.cells:
        done = [key for key in cell.runs if key in records and records[key].status == "done"]
        if done:
            runs.setdefault(cell.label, plan.runs[done[0]])
            cells[cell.id] = tuple(plan.runs[key] for key in done)
    finished = Finished(plan, store, runtime, runs, cells)
    if not runs or finished.table.kind != "figure":
        return None
    path = lookup("drawing", finished.table.drawing or plan.table, DRAWINGS)
    return lambda folder: load(path)(finished, folder)
