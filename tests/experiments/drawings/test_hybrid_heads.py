"""Attention of students, decoders and teachers: numbers by layer, the random control, pictures equal in every byte."""

import json

import numpy as np
import pytest
import torch

from analysis.figure_files import Number, csv_text, save_arrays, save_measures
from analysis.looking.model import untrained
from analysis.measures.attention_distance import attention_distance, grid_distances
from experiments.drawings.hybrid_attention_maps import maps_figure, query_maps
from experiments.drawings.hybrid_heads import (
    Panel,
    arrays,
    attention_of,
    decoder_attention,
    heads_figure,
    layer_table,
    numbers,
    places,
)
from hkd.contract.checks import few_digits
from hkd.models.cards.zoo import ZOO
from hkd.models.families.base import split_heads
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.tasks.train import restore
from hkd.training.job import Job, Runtime

CARD = ZOO["hybrid_b16_mini"]
RUNTIME = Runtime(accelerator="cpu")


def spec(**options):
    weights = Weights(kind="random", id="3")
    return RunSpec(
        task="pretrain",
        data=DataSpec(name="digits_unlabelled", options={"n_train": 20}),
        student=CARD,
        method=MethodSpec(name="hybrid", options={"depth": 4, "decoder_width": 32, "decoder_heads": 4, **options}),
        recipe=Recipe(epochs=1, batch_size=10),
        teachers={"features": TeacherSpec(model=ZOO["mae_b16_mini"], weights=weights, classes=0)},
    )


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """One epoch of a student with a decoder of two attention layers."""
    each, folder = spec(targets="c", decoder="attn2"), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        pretrain(Job(each, {}, folder, RUNTIME, lambda news: None))
    return restore(each, {}, folder, RUNTIME)


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def panels(step, images):
    student = attention_of(step.student, [images])
    other = attention_of(step.student, [images[:3]])
    teacher = attention_of(step.method.teachers["features"], [images])
    return [
        Panel("deit_b16", "DeiT (teacher)", "teacher", {0: teacher}),
        Panel("c_attn2", "2 attention layers", "student", {0: student, 1: other}),
        Panel("c_attn2_decoder", "its decoder", "decoder", {0: decoder_attention(step, [images])}),
    ]


def test_late_layers_are_the_two_before_the_last():
    assert places(12)["late"] == [9, 10]
    assert places(4) == {"1": [0], "2": [1], "3": [2], "4": [3], "late": [1, 2], "last": [3], "all": [0, 1, 2, 3]}


def test_a_random_model_looks_everywhere_alike(images):
    found = attention_of(untrained(CARD), [images])
    side = CARD.kwargs["img_size"] // CARD.kwargs["patch_size"]
    uniform = grid_distances((side, side), torch.float64, torch.device("cpu")).mean().item()
    np.testing.assert_allclose(found.distance.layer, uniform * 224 / side, rtol=0.06)
    assert np.all(found.nmi.layer < 0.1)


def test_decoder_layers_are_those_of_its_own_attention(step, images):
    head, grid = step.method.head, step.method.grid
    with torch.no_grad():
        x = head.embed(step.student(images).tokens) + head.positions
        block = head.blocks[0]
        q, k, _ = split_heads(block.attn, block.attn.qkv(block.norm1(x)))
        maps = (q @ k.transpose(-2, -1) * block.attn.scale)[..., head.prefix :, head.prefix :].softmax(dim=-1)
    expected = attention_distance(maps, (grid, grid)).mean(dim=0) * 224 / grid
    found = decoder_attention(step, [images])
    np.testing.assert_allclose(found.distance.mean[0], expected, rtol=1e-5)
    assert found.distance.mean.shape == (2, 4)


def test_a_student_without_decoder_has_no_decoder_attention(step, images):
    step.method.head, head = torch.nn.Identity(), step.method.head
    assert decoder_attention(step, [images]) is None
    step.method.head = head


def test_numbers_have_seeds_for_students_only(panels):
    found = numbers(panels)
    student, teacher = found["distance/c_attn2/last"], found["distance/deit_b16/last"]
    assert set(student.seeds) == {0, 1}
    assert student.seeds[0] == student.value
    assert teacher.seeds == {}
    assert (teacher.images, teacher.half > 0) == (6, True)
    result = panels[1].shown.distance
    assert found["distance_spread/c_attn2/late"].value == pytest.approx(np.ptp(result.mean[1:3], axis=1).mean())
    assert found["nmi/c_attn2/all"].value == pytest.approx(panels[1].shown.nmi.layer.mean())


def test_every_layer_of_every_model_is_a_line(panels):
    lines = layer_table(panels).splitlines()
    assert len(lines) == 1 + 4 + 4 + 2
    assert lines[0].startswith("model,layer,distance,distance_half,distance_spread")
    model, layer, distance = lines[1].split(",")[:3]
    assert (model, layer) == (panels[0].label, "1")
    assert float(distance) == pytest.approx(panels[0].shown.distance.layer[0], rel=1e-4)


def test_csv_has_numbers_of_five_digits():
    assert csv_text(("a", "b"), [["x", 1.23456789]]) == "a,b\nx,1.2346\n"


def test_pictures_and_arrays_are_equal_byte_for_byte(panels, step, images, tmp_path):
    maps = {"MAE": query_maps(step.student, images[:2])}
    for name in ("one", "two"):
        for measure in ("distance", "nmi"):
            path = tmp_path / f"{name}_{measure}"
            heads_figure(panels, panels[0].shown, measure, path, title="Head distance", caption="Two sentences. Three.")
        maps_figure(images[:2], maps, tmp_path / f"{name}_maps", title="Maps", caption="A sentence.")
        flat = {f"{model}/{field}": array for model, each in arrays(panels).items() for field, array in each.items()}
        save_arrays(flat, tmp_path / f"{name}_arrays.npz")
    written = sorted(path.name for path in tmp_path.glob("one_*"))
    assert written == [
        "one_arrays.npz", "one_distance.png", "one_distance.svg", "one_maps.png", "one_maps.svg", "one_nmi.png",
        "one_nmi.svg",
    ]  # fmt: skip
    for name in written:
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("one", "two")).read_bytes()
    with np.load(tmp_path / "one_arrays.npz") as found:
        np.testing.assert_array_equal(found["nmi/c_attn2/mean"], panels[1].shown.nmi.mean)


def test_maps_of_a_query_sum_to_one(step, images):
    maps = query_maps(step.student, images[:2]).maps
    assert sorted(maps) == [2, 4]
    for found in maps.values():
        np.testing.assert_allclose(found.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_what_is_not_finite_is_null_in_the_numbers(tmp_path):
    save_measures({"nmi/a/last": Number(0.5, float("nan"), 3)}, tmp_path / "m.json", profile="laptop", images="Three.")
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["values"]["nmi/a/last"] == {"value": 0.5, "half": None, "images": 3, "seeds": {}}
