"""Pictures of H-GKD: active sets are the visible cells, colours have one basis, files are equal byte for byte."""

import numpy as np
import pytest
import torch

from analysis import style
from experiments.drawings.hgkd_pictures import (
    as_colours,
    draw_active_sets,
    draw_features,
    draw_paintings,
    draw_queue,
    hide,
)
from hkd.contract.checks import few_digits
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.tasks.train import restore
from hkd.training.job import Job, Runtime

RUNTIME = Runtime(accelerator="cpu")


def spec(method, options, student="sparse_resnet18_mini", taught=False):
    teachers = {}
    if taught:
        weights = Weights(kind="random", id="3")
        teachers["teacher"] = TeacherSpec(model=ZOO["mae_b16_mini"], weights=weights, classes=0)
    return RunSpec(
        task="pretrain",
        data=DataSpec(name="digits_unlabelled", options={"n_train": 20}),
        student=ZOO[student],
        method=MethodSpec(name=method, options=options),
        recipe=Recipe(epochs=1, batch_size=10),
        teachers=teachers,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One epoch each of H-GKD and the pixel control, as modules again."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, each in (
        ("hgkd", spec("hgkd", {"queue_size": 20, "width": 16}, taught=True)),
        ("pixels", spec("masked_pixels", {"image_size": 32, "width": 16})),
    ):
        with pytest.MonkeyPatch.context() as patch:
            few_digits(patch)
            pretrain(Job(each, {}, folder / name, RUNTIME, lambda news: None))
        found[name] = restore(each, {}, folder / name, RUNTIME)
    return found


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_active_sets_are_the_share_of_visible_cells_at_every_stage(tmp_path, finished, images):
    shares = draw_active_sets(finished["hgkd"], images, tmp_path / "a.png")
    assert shares == {f"stage_{stage}": 6 / 16 for stage in (1, 2, 3, 4)}


def test_pictures_are_equal_byte_for_byte(tmp_path, finished, images):
    for name in ("one", "two"):
        draw_active_sets(finished["hgkd"], images, tmp_path / f"{name}_a.png")
        agreement = draw_features({"MAE": finished["hgkd"]}, images, tmp_path / f"{name}_f.png")
        draw_paintings({"pixels": finished["pixels"]}, images, tmp_path / f"{name}_p.png")
        draw_queue({"MAE": [{"epoch": 1, "queue_entries": 3.0}]}, tmp_path / f"{name}_q.png", size=20)
    assert -1 <= agreement["MAE"] <= 1
    for kind in "afpq":
        assert (tmp_path / f"one_{kind}.png").read_bytes() == (tmp_path / f"two_{kind}.png").read_bytes()


def test_what_was_used_stands_under_the_heading(tmp_path, finished, images, monkeypatch):
    headings = []
    monkeypatch.setattr(style, "write_texts", lambda figure, heading, lines: headings.append(heading))
    setting = "Stand-in for X: digits."
    draw_active_sets(finished["hgkd"], images, tmp_path / "a.png", setting)
    draw_features({"MAE": finished["hgkd"]}, images, tmp_path / "f.png", setting)
    draw_paintings({"pixels": finished["pixels"]}, images, tmp_path / "p.png", setting)
    draw_queue({"MAE": [{"epoch": 1, "queue_entries": 3.0}]}, tmp_path / "q.png", size=20, setting=setting)
    assert [" ".join(heading.plain) for heading in headings] == 4 * [setting]


def test_equal_maps_have_equal_colours_and_colours_fill_their_range():
    maps = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    first, second = as_colours(maps, maps.clone())
    assert np.array_equal(first, second)
    assert first.shape == (2, 4, 4, 3)
    assert first.min() == 0
    assert first.max() == 1


def test_colours_are_the_leading_components_of_the_first_map_only():
    generator = torch.Generator().manual_seed(0)
    maps, other = (torch.randn(2, 8, 4, 4, generator=generator) for _ in range(2))
    assert np.array_equal(as_colours(maps, other)[0], as_colours(maps)[0])


def test_hidden_cells_are_grey_and_visible_ones_untouched(images):
    visible = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    visible[:, :, 1, 2] = True
    shown = hide(images, visible)
    assert torch.equal(shown[:, :, 8:16, 16:24], images[:, :, 8:16, 16:24])
    assert (shown[:, :, :8] == 0.5).all()


def test_a_restored_run_has_the_weights_that_were_left_and_is_in_evaluation_mode(finished):
    step = finished["hgkd"]
    assert not step.training
    assert int(step.method.queue.fill) == 20
