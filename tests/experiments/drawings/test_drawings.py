"""Drawings of figure tables from finished runs: files that are there, names that claims read, seeds that count."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import style
from experiments.drawings import DRAWINGS, hybrid_attention_maps, hybrid_heads, scalekd_spectra
from experiments.drawings.base import Finished, Images, drawing, spaced
from experiments.planning import schema
from experiments.planning.plan import Cell, Plan, PlannedRun
from experiments.planning.plan import plan as planned
from experiments.planning.schema import Table
from experiments.records.store import Record, Store
from experiments.results.claims import documents as claims
from hkd.contract.checks import few_digits
from hkd.data.base import PathList, Split
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.registry import load
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.training.job import Job, Runtime

RUNTIME = Runtime(accelerator="cpu")
OPTIONS = {"depth": 4, "decoder_width": 32, "decoder_heads": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds of two columns of Hybrid Distill's Figure 2, of one epoch."""
    columns = {"c_none": {}, "c_attn2": {"decoder": "attn2"}}
    return figure_of(Store(tmp_path_factory.mktemp("runs")), columns, seeds=(0, 1))


def figure_of(store, columns, seeds):
    """Columns of Hybrid Distill's Figure 2 (options by variant), of one epoch."""
    runs, cells = {}, {}
    weights = Weights(kind="random", id="3")
    for variant, options in columns.items():
        for seed in seeds:
            spec = RunSpec(
                task="pretrain",
                data=DataSpec(name="digits_unlabelled", options={"n_train": 20}),
                student=ZOO["hybrid_b16_mini"],
                method=MethodSpec(name="hybrid", options={**OPTIONS, "targets": "c", **options}),
                recipe=Recipe(epochs=1, batch_size=10),
                teachers={"features": TeacherSpec(model=ZOO["mae_b16_mini"], weights=weights, classes=0)},
                seed=seed,
            )
            key = f"{variant}-{seed}"
            with pytest.MonkeyPatch.context() as patch:
                few_digits(patch)
                pretrain(Job(spec, {}, store.folder(key), RUNTIME, lambda news: None))
            runs[key] = PlannedRun(key=key, spec=spec)
        cells["vit_b", "hybrid", variant] = tuple(runs[f"{variant}-{seed}"] for seed in seeds)
    names = {"c_none": "direct, no decoder", "c_attn2": "2 attention layers"}
    plan = Plan(
        table="hybrid_fig2",
        title="Hybrid Distill Figure 2: head distance",
        paper="hybrid",
        profile="laptop",
        by_value=False,
        metrics=("heldout_loss",),
        seeds=seeds,
        cells=tuple(
            Cell(row=row, teacher="", student="hybrid_b16", method=method, variant=variant, metric="heldout_loss",
                 label=names[variant], row_label=("", "ViT-B"))
            for row, method, variant in cells
        ),
        runs=runs,
    )  # fmt: skip
    shown = {names[variant]: each[0] for (_, _, variant), each in cells.items()}
    return Finished(plan, store, RUNTIME, shown, cells)


@pytest.mark.slow
@pytest.mark.long
def test_a_figure_of_attention_leaves_pictures_arrays_and_numbers_with_seeds(finished, tmp_path):
    hybrid_heads.draw(finished, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "distance.png", "distance.svg", "nmi.png", "nmi.svg", "layers.csv", "arrays.npz", "measures.json",
    }  # fmt: skip
    document = json.loads((tmp_path / "measures.json").read_text())
    assert document["profile"] == "laptop"
    assert document["images"].startswith("All 510 images of the test split")
    values = document["values"]
    assert {name.split("/")[1] for name in values} == {"deit_b16", "c_none", "c_attn2", "c_attn2_decoder", "random"}
    assert set(values["nmi/c_none/late"]["seeds"]) == {"0", "1"}
    assert values["nmi/deit_b16/late"]["seeds"] == {}
    needed = [
        claim.statistic
        for claim in claims.load_claims("hybrid").claims
        if isinstance(claim.statistic, claims.Value) and claim.statistic.figure == "hybrid_fig2"
    ]
    names = {name for each in needed for name in (each.value, each.minus) if "masked" not in str(name)}
    assert names
    assert names <= values.keys()


def test_attention_maps_show_teacher_and_student(tmp_path):
    one = figure_of(Store(tmp_path / "runs"), {"c_none": {}}, seeds=(0,))
    (tmp_path / "figure").mkdir()
    hybrid_attention_maps.draw(one, tmp_path / "figure")
    assert {path.name for path in (tmp_path / "figure").iterdir()} == {"maps.png", "maps.svg", "arrays.npz"}


@pytest.mark.slow
@pytest.mark.long
def test_pictures_say_under_their_heading_what_stood_in(finished, tmp_path, monkeypatch):
    headings = []
    monkeypatch.setattr(style, "write_texts", lambda figure, heading, lines: headings.append(heading))
    told = replace(finished, plan=replace(finished.plan, here="Stand-in for X: digits; miniature models."))
    hybrid_heads.draw(told, tmp_path)
    hybrid_attention_maps.draw(told, tmp_path)
    assert [" ".join(heading.plain) for heading in headings] == 3 * ["Stand-in for X: digits; miniature models."]
    assert " ".join(headings[0].bold) == "Hybrid Distill Figure 2: Head distance by layer"


def test_images_are_evenly_spaced_over_a_split_that_is_sorted_by_class(tmp_path):
    labels = np.repeat(np.arange(5), 4)
    held = Split(np.arange(20 * 12, dtype=np.uint8).reshape(20, 3, 2, 2), None, labels, np.arange(20) + 7)
    files = Split(None, PathList(tmp_path, [f"{i}.png" for i in range(20)]), labels, np.arange(20) + 7, image_size=2)
    for split in (held, files):
        assert spaced(split, 20) is split
        chosen = spaced(split, 5)
        assert chosen.rows.tolist() == [7, 11, 15, 19, 23]
        assert chosen.labels.tolist() == [0, 1, 2, 3, 4]
    assert (spaced(held, 5).images == held.images[::4]).all()
    assert [path.name for path in spaced(files, 5).paths] == ["0.png", "4.png", "8.png", "12.png", "16.png"]
    images = Images(spaced(held, 5), len(held))
    assert images.rule == "5 of the 20 images of the test split, evenly spaced in its order."
    assert torch.cat(list(images)).mul(255).round().byte().numpy().tolist() == held.images[::4].tolist()


def test_spectra_stand_beside_those_of_random_weights(tmp_path, monkeypatch):
    trained = TapModel(ZOO["swin_s_mini"], 0).eval()
    spec = RunSpec(
        task="evaluate",
        data=DataSpec(name="digits"),
        student=ZOO["swin_s_mini"],
        method=MethodSpec(name="supervised"),
        recipe=Recipe(epochs=1, batch_size=10),
    )
    run = PlannedRun(key="k", spec=spec)
    monkeypatch.setattr(Finished, "network", lambda self, run: trained)
    plan = Plan(table="scalekd_fig5", title="T", paper="scalekd", profile="laptop", by_value=False, metrics=("top1",),
                seeds=(0,), cells=planned("scalekd_fig5", "laptop").cells, runs={"k": run})  # fmt: skip
    made = Finished(plan, Store(tmp_path / "runs"), RUNTIME, {"Swin-S": run}, {("swin_s", "supervised", ""): (run,)})
    folder = tmp_path / "drawn"
    folder.mkdir()
    scalekd_spectra.draw(made, folder)
    values = json.loads((folder / "measures.json").read_text())["values"]
    assert {"dct_energy/swin_s", "dct_energy/random_swin_s"} <= values.keys()
    lines = (folder / "shares.csv").read_text().splitlines()
    assert lines[0] == "teacher,share,half"
    assert [line.split(",")[0] for line in lines[1:]] == ["swin_s", "random_swin_s"]


def test_every_figure_table_has_a_drawing_and_every_drawing_a_table():
    tables = [schema.load_table(name) for name in schema.table_ids()]
    assert {table.drawing or table.id for table in tables if table.kind == "figure"} == DRAWINGS.keys()
    assert all(table.kind == "figure" for table in tables if table.drawing)
    assert all(callable(load(path)) for path in DRAWINGS.values())


def test_a_figure_is_drawn_once_one_of_its_runs_is_done_and_a_table_never(finished):
    plan = finished.plan
    records = {key: Record(key=key, label="", status="done", spec={}) for key in plan.runs}
    cells = tuple(
        replace(cell, runs=tuple(key for key in plan.runs if key.startswith(f"{cell.variant}-"))) for cell in plan.cells
    )
    plan = replace(plan, cells=cells)
    assert drawing(plan, {}, finished.store, RUNTIME) is None
    assert callable(drawing(plan, records, finished.store, RUNTIME))
    assert drawing(replace(plan, table="hybrid_table3"), records, finished.store, RUNTIME) is None


def test_numbers_in_claims_have_names_that_their_figures_can_give():
    for paper in claims.papers():
        for claim in claims.load_claims(paper).claims:
            if isinstance(claim.statistic, claims.Value) and claim.statistic.figure.startswith("hybrid"):
                table = schema.read("table", "tables", claim.statistic.figure, Table)
                columns = claims.columns_of(table)
                slugs = {slug for column in columns for slug in column.teacher.values()} | {"random"}
                names = slugs | {column.variant for column in columns}
                for name in (claim.statistic.value, claim.statistic.minus):
                    if isinstance(name, str):
                        measure, model, place = name.split("/")
                        assert measure in {"distance", "distance_spread", "nmi", "nmi_spread"}
                        assert model.removesuffix("_decoder") in names, claim.id
                        assert place in {"late", "last", "all"}
