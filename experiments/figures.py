"""Figures that need more than numbers: from the finished runs of a table of `kind: figure` to its pictures.

A figure's table says which runs it shows; its drawing, found here by the table's id, gets them as modules.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.planning import schema
from experiments.planning.plan import Plan, PlannedRun, roles_of
from experiments.planning.schema import Table
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.registry import load
from hkd.spec import DataSpec
from hkd.training.job import Runtime

if TYPE_CHECKING:  # planning does without torch
    from torch import Tensor

    from hkd.data.base import Split

DRAWINGS = {
    "hgkd_pictures": "experiments.figures:hgkd_pictures",
    **{f"hybrid_fig{number}": "experiments.figures:hybrid_heads" for number in range(1, 10)},
    "hybrid_attention_maps": "experiments.figures:hybrid_attention_maps",
    "hybrid_pictures": "experiments.figures:dense_pictures",
    "scalekd_fig2": "experiments.figures:scalekd_spectrum",
    "scalekd_fig5": "experiments.figures:scalekd_spectra",
    "scalekd_fig6": "experiments.figures:scalekd_scatter",
    "diagnostics": "experiments.diagnostics:draw",
}
SHOWN = 6  # images in a picture
BATCH = 64  # images at a time
SHOWN_DENSE = 4  # images in a picture of detections or segmentations
MEASURED = 1000  # images of attention figures
SPECTRUM = 1600  # images of spectra, as in ScaleKD's Figure 5
SAMPLES = 64_000  # of ScaleKD's Figure 6
QUERY = (0.5, 0.5)  # the marked patch of attention maps, as shares of the grid
NAMES = {"deit_b16": "DeiT", "mae_b16": "MAE", "clip_b16": "CLIP", "dino_b16": "DINO"}
PAINTERS = {"masked_pixels": "student", "mae": "MAE teacher"}  # methods that predict pixels, as columns name them


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

    def step(self, run: PlannedRun) -> Any:
        """Student and method of a run, with their weights."""
        from hkd.tasks.train import restore

        return restore(run.spec, self.weights(run), self.store.folder(run.key), self.runtime)

    def weights(self, run: PlannedRun) -> dict[str, Path]:
        """Files of what a run needs, by the id of their weights."""
        made = {key: self.store.folder(key) / "student.safetensors" for key in run.needs}
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

    def curves(self, label: str) -> list[dict[str, Any]]:
        """Lines of a run's curves."""
        path = self.store.folder(self.runs[label].key) / "curves.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def label(self, cell: tuple[str, str, str]) -> str:
        """A column's label as printed."""
        return next(each.label for each in self.plan.cells if each.id == cell)

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


@dataclass(frozen=True)
class Images:
    """Images that a figure measures, as batches that can be had again: centre crops, RGB in [0, 1].

    split: what is measured. whole: how many there are to choose from.
    """

    split: "Split"
    whole: int

    @property
    def rows(self) -> Any:
        """Where each image stands in its data set."""
        return self.split.rows

    @property
    def rule(self) -> str:
        """Which images, as a sentence."""
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


def test_images(data: DataSpec, runtime: Runtime, count: int) -> Images:
    """At most `count` test images, evenly spaced: the first ones of a set sorted by class would be of few classes."""
    from hkd.training.inputs import open_data

    split = open_data(data, runtime)[0].load("test", seed=0, select=False)
    return Images(spaced(split, count), len(split))


def spaced(split: "Split", count: int) -> "Split":
    """At most `count` images of a split, evenly spaced in its order."""
    if len(split) <= count:
        return split
    chosen = [place * len(split) // count for place in range(count)]
    return replace(
        split,
        images=None if split.images is None else split.images[chosen],
        paths=None if split.paths is None else [split.paths[place] for place in chosen],
        labels=split.labels[chosen],
        rows=split.rows[chosen],
    )


def drawing(plan: Plan, records: Mapping[str, Record], store: Store, runtime: Runtime) -> Callable[[Path], None] | None:
    """What draws a table's pictures into a folder; None for tables without, or while none of its runs is done."""
    if plan.table not in DRAWINGS:
        return None
    runs: dict[str, PlannedRun] = {}
    cells: dict[tuple[str, str, str], tuple[PlannedRun, ...]] = {}
    for cell in plan.cells:
        done = [key for key in cell.runs if key in records and records[key].status == "done"]
        if done:
            runs.setdefault(cell.label, plan.runs[done[0]])
            cells[cell.id] = tuple(plan.runs[key] for key in done)
    finished = Finished(plan, store, runtime, runs, cells)
    return (lambda folder: load(DRAWINGS[plan.table])(finished, folder)) if runs else None


def hgkd_pictures(finished: Finished, folder: Path) -> None:
    """Active sets, features, paintings and the queue's effective entries, with the figures behind them as JSON."""
    import torch

    from analysis import hgkd_pictures as draw
    from hkd.training.inputs import open_data

    runs, here = finished.runs, finished.plan.here
    split = open_data(next(iter(runs.values())).spec.data, finished.runtime)[0].load("test", seed=0, select=False)
    if split.images is None:
        from hkd.data.loading.loader import Loader

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
        facts["active"] = draw.draw_active_sets(
            next(iter(distilled.values())), images, folder / "active_sets.png", here
        )
        facts["cosine"] = draw.draw_features(distilled, images, folder / "features.png", here)
        queues = {label: finished.curves(label) for label in distilled}
        size = {step.method.config.queue_size for step in distilled.values()}
        if len(size) != 1:
            raise UserError(f"The runs of '{finished.plan.table}' have queues of different sizes: {sorted(size)}.")
        draw.draw_queue(queues, folder / "queue_entries.png", size=size.pop(), setting=here)
    if painters:
        draw.draw_paintings(painters, images, folder / "paintings.png", here)
    (folder / "pictures.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def hybrid_heads(finished: Finished, folder: Path) -> None:
    """Head distance and NMI by layer of a table's students (all seeds), their decoders and their teachers."""
    from analysis import hybrid_figures as draw
    from analysis.figure_files import save_arrays, save_measures

    plan, first = finished.plan, next(iter(finished.runs.values()))
    images = test_images(first.spec.data, finished.runtime, MEASURED)
    panels = []
    for slug, (run, role) in finished.teachers().items():
        teacher = finished.step(run).method.teachers[role]
        measured = {0: draw.attention_of(teacher, images)}
        panels.append(draw.Panel(slug, f"{NAMES.get(slug, slug)} (teacher)", "teacher", measured))
    for cell, runs in finished.cells.items():
        students, decoders = {}, {}
        for run in runs:
            step = finished.step(run)
            students[run.spec.seed] = draw.attention_of(step.student, images)
            if (decoder := draw.decoder_attention(step, images)) is not None:
                decoders[run.spec.seed] = decoder
        label, name = finished.label(cell), cell[2]
        panels.append(draw.Panel(name, label, "hybrid" if name.startswith("hybrid") else "student", students))
        if decoders:
            panels.append(draw.Panel(f"{name}_decoder", f"the decoder of {label}", "decoder", decoders))
    cards = [run.spec.student for run in finished.runs.values()]
    random = draw.control(cards[0], images)
    shown = [*panels, draw.Panel("random", "random weights", "teacher", {0: random})]
    seeds = len(plan.seeds)
    caption = (
        f"Profile {plan.profile}; {len(images.rows)} test images; a dot per head, bars: their mean; dashed: random "
        f"weights. {'The first of ' + str(seeds) + ' seeds is' if seeds > 1 else 'One seed is'} drawn."
    )
    for measure in ("distance", "nmi"):
        heads = "Head distance" if measure == "distance" else "NMI of attention"
        title = f"{plan.title.partition(':')[0]}: {heads} by layer\n{plan.here}"
        draw.heads_figure(panels, random, measure, folder / measure, title=title, caption=caption)
    (folder / "layers.csv").write_text(draw.layer_table(shown))
    save_arrays(draw.arrays(shown) | {"rows": images.rows}, folder / "arrays.npz")
    save_measures(draw.numbers(shown), folder / "measures.json", profile=plan.profile, images=images.rule)


def hybrid_attention_maps(finished: Finished, folder: Path) -> None:
    """What one patch attends to, in teachers and student."""
    import torch

    from analysis import hybrid_figures as draw
    from analysis.figure_files import save_arrays

    plan, first = finished.plan, next(iter(finished.runs.values()))
    chosen = test_images(first.spec.data, finished.runtime, SHOWN)
    images = torch.cat(list(chosen))
    models = {
        NAMES.get(slug, slug): finished.step(run).method.teachers[role]
        for slug, (run, role) in finished.teachers().items()
    }
    models |= {label: finished.step(run).student for label, run in finished.runs.items()}
    maps = {label: draw.query_maps(model, images, QUERY) for label, model in models.items()}
    draw.maps_figure(
        images,
        maps,
        QUERY,
        folder / "maps",
        title=f"What the marked patch attends to\n{plan.here}",
        caption=f"Profile {plan.profile}; mean over heads; one colour range for all maps. Images: "
        f"{len(images)} of the test split, evenly spaced.",
    )
    arrays = {f"{label}/layer_{layer}": found for label, layers in maps.items() for layer, found in layers.items()}
    save_arrays(arrays | {"rows": chosen.rows}, folder / "arrays.npz")


def spectra(finished: Finished) -> tuple[dict[str, Any], dict[str, Any], dict[str, str], Images]:
    """Spectra of a table's teachers, of the same networks with random weights, and labels, by slug; the images."""
    from analysis.measure import measure
    from analysis.model import untrained

    first = next(iter(finished.cells.values()))[0]
    images = test_images(first.spec.data, finished.runtime, SPECTRUM)
    labels = {row.row: row.label[1] for row in finished.table.rows}
    found, controls = {}, {}
    for cell, runs in finished.cells.items():
        network = finished.network(runs[0])
        found[cell[0]] = measure(network, images, "dct")["dct"]
        controls[cell[0]] = measure(untrained(network.card), images, "dct")["dct"]
    return found, controls, labels, images


def told_controls(controls: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """What the zero frequency has in networks with random weights, as a sentence."""
    shares = (f"{labels[slug]} {100 * each.share_energy:.0f} %" for slug, each in controls.items())
    return f"With random weights: {', '.join(shares)}."


def random_names(controls: Mapping[str, Any]) -> dict[str, Any]:
    """Controls by the names that their numbers have."""
    return {f"random_{slug}": each for slug, each in controls.items()}


def scalekd_spectrum(finished: Finished, folder: Path) -> None:
    """One teacher's spectrum, over channels and by channel."""
    from analysis import scalekd_figures as draw

    found, controls, labels, images = spectra(finished)
    slug, result = next(iter(found.items()))
    draw.spectrum_figure(
        result,
        folder / "spectrum",
        title=f"Frequencies in the features of {labels[slug]}\n{finished.plan.here}",
        caption=f"Profile {finished.plan.profile}; last features, {len(images.rows)} test images; mean |DCT|, "
        f"unscaled. The zero frequency has {100 * result.share_energy:.0f} % of the energy (orthonormal form). "
        + told_controls(controls, labels),
    )
    every = found | random_names(controls)
    draw.leave(every, folder, profile=finished.plan.profile, images=images.rule, rows=images.rows)


def scalekd_spectra(finished: Finished, folder: Path) -> None:
    """The spectra of several teachers side by side."""
    from analysis import scalekd_figures as draw

    found, controls, labels, images = spectra(finished)
    draw.spectra_figure(
        {labels[slug]: result for slug, result in found.items()},
        folder / "spectra",
        title=f"Frequencies in teachers' features\n{finished.plan.here}",
        caption=f"Profile {finished.plan.profile}; last features, {len(images.rows)} test images; mean |DCT| over "
        "channels, unscaled; orange: the zero frequency, with its share of the energy (orthonormal form). "
        + told_controls(controls, labels),
    )
    every = found | random_names(controls)
    draw.leave(every, folder, profile=finished.plan.profile, images=images.rule, rows=images.rows)


def scalekd_scatter(finished: Finished, folder: Path) -> None:
    """Alternative components of students with and without DFM, as points and as distances."""
    from analysis import scalekd_figures as draw
    from analysis.figure_files import Number, csv_text, save_arrays, save_measures

    plan, first = finished.plan, next(iter(finished.runs.values()))
    images = test_images(first.spec.data, finished.runtime, SAMPLES)
    found, values = {}, {}
    for cell, runs in finished.cells.items():
        results = {run.spec.seed: draw.scatter_of(finished.step(run), images) for run in runs}
        first_result = next(iter(results.values()))
        found[cell[2]] = (finished.label(cell), first_result)
        for name, of in draw.STATISTICS.items():
            half = first_result.mean_half if name == "norm_mean" else float("nan")
            by_seed = {seed: of(result) for seed, result in results.items()}
            values[f"{name}/{cell[2]}"] = Number(of(first_result), half, len(images.rows), by_seed)
    draw.scatter_figure(
        dict(found.values()),
        folder / "scatter",
        title=f"Alternative components: student minus teacher\n{plan.here}",
        caption=f"Profile {plan.profile}; one fixed random projection of the differences of {len(images.rows)} test "
        f"images, whose origin is agreement; each panel draws a tenth of them, up to the 99.8 % quantile of all. The "
        f"first of {len(plan.seeds)} seeds.",
    )
    arrays = {f"{name}/{field}": array for name, (_, each) in found.items() for field, array in each.arrays().items()}
    save_arrays(arrays | {"rows": images.rows}, folder / "arrays.npz")
    distances = ([label, result.mean, result.mean_half] for label, result in found.values())
    (folder / "distances.csv").write_text(csv_text(("student", "distance", "half"), distances))
    save_measures(values, folder / "measures.json", profile=plan.profile, images=images.rule)


def dense_pictures(finished: Finished, folder: Path) -> None:
    """What detectors and segmenters found on the first test images, beside the truth; from the files of their runs."""
    import torch

    from analysis import dense_pictures as draw
    from hkd.tasks.detect import read_detections
    from hkd.tasks.segment import BACKGROUND, PREDICTIONS, predicted_maps
    from hkd.training.inputs import open_data

    rows = {row.row: row.label[1] for row in finished.table.rows}
    for task in ("detect", "segment"):
        runs = {rows[cell[0]]: each[0] for cell, each in finished.cells.items() if each[0].spec.task == task}
        if not runs:
            continue
        first = next(iter(runs.values()))
        data: Any = open_data(first.spec.data, finished.runtime)[0]
        split = data.load_dense("test", seed=0, select=False)
        shown = range(min(SHOWN_DENSE, len(split)))
        images = [torch.from_numpy(split.image(i)) / 255 for i in shown]
        texts: dict[str, str] = {
            "title": finished.plan.heading,
            "caption": f"Profile {finished.plan.profile}, seed {first.spec.seed}; the first {len(shown)} test images.",
        }
        folders = {label: finished.store.folder(run.key) for label, run in runs.items()}
        if task == "detect":
            found = {"truth": [vars(split.objects[i]) for i in shown]}
            found |= {
                label: [each._asdict() for each in islice(read_detections(at), len(shown))]
                for label, at in folders.items()
            }
            texts["caption"] += " Of each model as many of its surest detections as there are objects."
            parts = ("boxes", "labels", "masks", "scores")
            tensors = {
                label: [{name: torch.from_numpy(each[name]) for name in parts if name in each} for each in objects]
                for label, objects in found.items()
            }
            draw.draw_detections(images, tensors, split.object_names, folder / "detections.png", **texts)
        else:
            names = split.map_names
            maps = {"truth": [torch.from_numpy(split.maps[i]).long() for i in shown]}
            for label, at in folders.items():
                predicted = predicted_maps(at / PREDICTIONS)
                maps[label] = [torch.from_numpy(predicted[int(split.rows[i])]).long() for i in shown]
            background = names.index(BACKGROUND) if BACKGROUND in names else None
            draw.draw_segmentations(images, maps, folder / "segmentations.png", background=background, **texts)
