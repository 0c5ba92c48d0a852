"""Teacher outputs of fixed views: the same as on line, computed once, kept for other runs where that is safe."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import hkd.training.cache as cache_module
from hkd.data.base import Split
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Taps, Want
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights
from hkd.training.cache import Cached, Online, flatten, make_teachers, unflatten

CARD = ZOO["swin_t_mini"]
RECIPE = Recipe(epochs=4, batch_size=4, shift=2, flip=True, views=2)
WANT = Want(stages=(3,), attention=(0,))
TEACHERS = {"teacher": TeacherSpec(model=CARD, weights=Weights(kind="run", id="k"))}
SPEC = RunSpec(
    task="train",
    data=DataSpec(name="digits"),
    student=CARD,
    method=MethodSpec(name="kd"),
    recipe=RECIPE,
    teachers=TEACHERS,
)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Teacher(CARD, 10)


@pytest.fixture
def split():
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 3, 32, 32), generator=rng, dtype=torch.uint8).numpy()
    labels = torch.arange(10).numpy()
    return Split(images=images, paths=None, labels=labels, rows=labels)


def loader_of(split, recipe=RECIPE, **options):
    return Loader(split, recipe, num_classes=10, seed=0, **options)


def make(teacher, loader, *, cache_dir=None, spec=SPEC, want=WANT):
    return make_teachers(
        {"teacher": teacher},
        {"teacher": want},
        loader,
        spec=spec,
        fingerprint="f",
        cache_dir=cache_dir,
        device=torch.device("cpu"),
        precision=nullcontext,
    )


def counted(teacher, monkeypatch):
    """Counts the images that the teacher looks at."""
    seen = []
    forward = type(teacher).forward

    def counting(self, x, want=WANT, **kwargs):
        seen.append(len(x))
        return forward(self, x, want, **kwargs)

    monkeypatch.setattr(type(teacher), "forward", counting)
    return seen


def assert_equal(one, other):
    first, second = (flatten(taps, len(taps.logits)) for taps in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_cached_outputs_are_those_of_the_teacher_on_every_batch(teacher, split):
    loader = loader_of(split)
    teachers = make(teacher, loader)
    assert isinstance(teachers.sources["teacher"], Cached)
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            assert_equal(teachers(batch)["teacher"], teacher(batch.x, WANT))


def test_every_view_is_computed_once_before_training(teacher, split, monkeypatch):
    seen = counted(teacher, monkeypatch)
    loader = loader_of(split)
    teachers = make(teacher, loader)
    assert sum(seen) == 2 * 10
    for batch in loader.epoch(0):
        teachers(batch)
    assert sum(seen) == 2 * 10


def test_only_the_wanted_taps_are_kept(teacher, split):
    source = make(teacher, loader_of(split), want=Want()).sources["teacher"]
    assert set(source.tables) == {"logits", "pooled", "final"}


def test_of_a_teacher_without_taps_the_logits_are_kept_and_no_more(split):
    card = ModelCard(name="theirs", family="own", arch="torchvision.models:squeezenet1_1", image_size=32)
    theirs = Teacher(card, 10)
    loader = loader_of(split)
    teachers = make(theirs, loader, want=Want())
    source = teachers.sources["teacher"]
    assert set(source.tables) == {"logits"}
    batch = next(iter(loader.epoch(0)))
    torch.testing.assert_close(teachers(batch)["teacher"].logits, theirs(batch.x).logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="reads 'pooled' of the theirs, whose taps nobody told"):
        _ = teachers(batch)["teacher"].pooled


def test_a_model_of_other_classes_than_it_was_asked_for_is_refused(tmp_path, monkeypatch):
    (tmp_path / "seven.py").write_text(
        "import torch\ndef make(num_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 7, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    card = ModelCard(name="seven", family="own", arch="seven:make", image_size=32)
    assert TapModel(card, 7).info.classes == 7
    with pytest.raises(UserError, match="The model seven was asked for 2 classes and gives 7 logits"):
        TapModel(card, 2)


def test_without_fixed_views_the_teacher_looks_at_every_batch(teacher, split):
    fresh = replace(RECIPE, views=None)
    loader = loader_of(split, fresh)
    teachers = make(teacher, loader, spec=replace(SPEC, recipe=fresh))
    assert isinstance(teachers.sources["teacher"], Online)
    batch = next(iter(loader.epoch(0)))
    assert_equal(teachers(batch)["teacher"], teacher(batch.x, WANT))


def test_a_stochastic_teacher_is_never_cached(teacher, split):
    nn.Module.train(teacher)
    assert isinstance(make(teacher, loader_of(split)).sources["teacher"], Online)


def test_outputs_beyond_the_memory_limit_stay_on_line(teacher, split, monkeypatch):
    monkeypatch.setattr(cache_module, "MEMORY_LIMIT", 1000)
    assert isinstance(make(teacher, loader_of(split)).sources["teacher"], Online)


def test_tables_are_kept_on_disk_and_used_by_the_next_run(teacher, split, tmp_path, monkeypatch):
    seen = counted(teacher, monkeypatch)
    first = make(teacher, loader_of(split), cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    second = make(teacher, loader_of(split), cache_dir=tmp_path / "cache")
    assert sum(seen) == 2 * 10
    tables = [teachers.sources["teacher"].tables for teachers in (first, second)]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recipe": replace(RECIPE, views=3)},
        {"recipe": replace(RECIPE, shift=1)},
        {"evaluate_on": "val"},
        {"data": DataSpec(name="digits", options={"n_train": 10})},
        {"teachers": {"teacher": replace(TEACHERS["teacher"], weights=Weights(kind="run", id="other"))}},
    ],
)
def test_whatever_changes_the_outputs_changes_the_file(teacher, split, tmp_path, change):
    make(teacher, loader_of(split), cache_dir=tmp_path)
    spec = replace(SPEC, **change)
    make(teacher, loader_of(split, spec.recipe), cache_dir=tmp_path, spec=spec)
    assert len(list(tmp_path.iterdir())) == 2


def test_outputs_of_a_weights_file_are_not_kept_because_no_code_is_in_its_name(teacher, split, tmp_path):
    teachers = {"teacher": TeacherSpec(model=CARD, weights=Weights(kind="file", id="0" * 64))}
    make(teacher, loader_of(split), cache_dir=tmp_path, spec=replace(SPEC, teachers=teachers))
    assert not list(tmp_path.iterdir())


def test_tables_too_large_for_the_disk_stay_in_memory(teacher, split, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "FILE_LIMIT", 1000)
    assert isinstance(make(teacher, loader_of(split), cache_dir=tmp_path).sources["teacher"], Cached)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_computed_again(teacher, split, tmp_path, caplog):
    first = make(teacher, loader_of(split), cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    second = make(teacher, loader_of(split), cache_dir=tmp_path)
    assert "computed again" in caplog.text
    tables = [teachers.sources["teacher"].tables for teachers in (first, second)]
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])
    assert path.stat().st_size > 500


def test_windows_of_one_image_stay_together():
    taps = Taps(torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3, 4, 1, 1), attention={1: torch.randn(12, 5, 4)})
    flat = flatten(taps, 3)
    assert flat["attention.1"].shape == (3, 4, 5, 4)
    assert torch.equal(unflatten(flat).attention[1], taps.attention[1])


def test_taps_of_blocks_are_kept_too():
    qkv = (torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4))
    nothing = torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3, 4, 1, 1)
    kept = unflatten(flatten(Taps(*nothing, qkv={2: qkv}, outputs={0: torch.ones(3, 5, 8)}), 3))
    assert all(torch.equal(a, b) for a, b in zip(kept.qkv[2], qkv, strict=True))
    assert torch.equal(kept.outputs[0], torch.ones(3, 5, 8))
