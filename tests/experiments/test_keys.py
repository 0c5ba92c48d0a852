"""Run keys: what changes them and, as important, what does not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import hkd.spec
from experiments import places
from experiments.planning import code, keys
from experiments.planning.code import Code
from experiments.planning.lock import Entry, Lock
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.units import units, units_of


def spec(method="kd", options=None, **changes):
    """A run of the given method on miniature models."""
    base = RunSpec(
        task="train",
        data=DataSpec(name="digits", options={"n_train": 100}, fingerprint="f"),
        student=ZOO["resnet50_mini"],
        method=MethodSpec(name=method, options=options or {}),
        recipe=Recipe(epochs=2, batch_size=10),
        teachers={"teacher": TeacherSpec(model=ZOO["swin_l_mini"], weights=Weights(kind="run", id="t"))},
    )
    return replace(base, **changes)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A private copy of hkd's sources that a test may edit; call the result to get a key computed from it."""
    copy = tmp_path / "hkd"
    shutil.copytree(Path(hkd.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    class Library:
        path = copy

        def key(self, method="kd", kind="cpu"):
            keys.forget()
            monkeypatch.setattr(code, "_own", Code(tmp_path))
            return keys.run_key(spec(method), kind)

        def edit(self, name, old, new):
            text = (copy / name).read_text()
            assert old in text, f"{old!r} is no longer in {name}"
            (copy / name).write_text(text.replace(old, new))

    yield Library()
    monkeypatch.undo()
    keys.forget()


def test_a_key_is_16_hex_digits_and_repeats():
    assert keys.run_key(spec()) == keys.run_key(spec())
    assert len(keys.run_key(spec())) == 16
    int(keys.run_key(spec()), 16)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"student": ZOO["convnext_t_mini"]},
        {"recipe": Recipe(epochs=3, batch_size=10)},
        {"data": DataSpec(name="digits", options={"n_train": 100}, fingerprint="g")},
        {"options": {"tau": 2.0}},
        {"evaluate_on": "val"},
        {"teachers": {"teacher": TeacherSpec(model=ZOO["swin_l_mini"], weights=Weights(kind="run", id="u"))}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_determines_a_result_changes_the_key(change):
    assert keys.run_key(spec(**change)) != keys.run_key(spec())


def test_a_field_at_its_default_is_no_part_of_the_key_so_that_fields_can_be_added():
    identity = keys.spec_identity(spec())
    assert "init" not in identity
    assert identity["recipe"] == {"epochs": 2, "batch_size": 10}
    assert identity["student"]["kwargs"] == ZOO["resnet50_mini"].kwargs


def test_defaults_are_for_ever_because_old_records_rely_on_them():
    defaults = {
        "Recipe": {
            "optimizer": "adamw", "lr": 1e-3, "lr_batch": None, "momentum": 0.9, "betas": None, "weight_decay": 0.05,
            "decay_1d": False, "layer_decay": None, "schedule": "cosine", "milestones": (), "min_lr": 0.0,
            "warmup_epochs": 0.0, "warmup_lr": 0.0, "clip_grad": None, "loss": "ce", "label_smoothing": 0.0,
            "mixup": 0.0, "cutmix": 0.0, "crop": "none", "crop_scale": (0.08, 1.0), "flip": False, "shift": 0,
            "randaugment": None, "erasing": 0.0, "views": None, "ema_decay": None, "drop_path": None,
            "precision": "32-true", "validate_every": None,
        },
        "ModelCard": {
            "kwargs": {}, "image_size": 224, "stages": (1, 2, 3, 4), "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225), "channels_last": False,
        },
        "RunSpec": {
            "recipe": None, "teachers": {}, "init": None, "seed": 0, "evaluate_on": "test", "task_options": {},
        },
        "TeacherSpec": {"classes": None},
        "DataSpec": {"options": {}, "fingerprint": None},
        "MethodSpec": {"options": {}},
    }  # fmt: skip
    for name, known in defaults.items():
        now = dict(keys.defaults(getattr(hkd.spec, name)))
        assert {field: now[field] for field in known} == known


def test_what_only_describes_a_model_does_not_change_the_key():
    renamed = replace(ZOO["resnet50_mini"], name="other", params_m=1.0, gmacs=2.0, pretrained="x.y")
    assert keys.run_key(spec(student=renamed)) == keys.run_key(spec())


def test_a_comment_a_docstring_and_layout_change_no_key(library):
    before = library.key()
    path = library.path / "methods" / "kd.py"
    text = path.read_text()
    path.write_text('"""Another first line."""\n# a comment\n\n\n' + text[text.index('"""', 3) + 3 :])
    assert library.key() == before


def test_a_constant_in_kd_changes_kd_and_its_importers_only(library):
    before = {method: library.key(method) for method in ("supervised", "kd", "fd", "scalekd")}
    path = library.path / "methods" / "kd.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    changed = {method for method in before if library.key(method) != before[method]}
    importers = {method for method in before if "hkd.methods.kd" in code.own_code().closure([f"hkd.methods.{method}"])}
    assert changed == importers
    assert "kd" in changed
    assert "supervised" not in changed


def test_a_new_method_changes_no_key(library):
    before = [library.key(method) for method in ("kd", "scalekd")]
    (library.path / "methods" / "toy.py").write_text("class Toy(Method):\n    pass\n")
    assert [library.key(method) for method in ("kd", "scalekd")] == before


def test_the_loop_is_part_of_every_run(library):
    before = library.key("supervised")
    path = library.path / "training" / "loop.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    assert library.key("supervised") != before


def test_no_run_depends_on_a_registry_or_on_the_zoo():
    modules = code.own_code().closure(units_of(spec("scalekd")).values())
    assert "hkd.models.cards.zoo" not in modules
    assert not {name for name in modules if name.endswith("__init__")}
    assert {
        "hkd.methods.scalekd",
        "hkd.models.families.swin",
        "hkd.models.families.resnet",
        "hkd.data.digits",
    } <= modules


def test_the_loop_imports_no_method_no_family_and_no_data_set():
    modules = code.own_code().closure([units()["task/train"]])
    named = {
        "hkd.methods.kd",
        "hkd.methods.scalekd",
        "hkd.models.families.swin",
        "hkd.models.families.resnet",
        "hkd.data.digits",
    }
    assert not named & modules


def test_code_that_the_lock_lists_has_a_version_in_the_key_and_other_code_its_digest(library, monkeypatch):
    unlisted = library.key()
    library.edit("methods/kd.py", "tau**2", "tau * tau")
    edited = library.key()
    assert edited != unlisted
    with monkeypatch.context() as patch:
        digest = code.own_code().digest(["hkd.methods.kd"])
        old = keys.lock().entries["method/kd"]
        entries = {**keys.lock().entries, "method/kd": old.adding(digest, "cpu")}
        patch.setattr(keys, "lock", lambda: Lock(entries=entries))
        keys.computed.cache_clear()
        assert keys.run_key(spec("kd")) == unlisted, "proved to compute the same: the same key"
        raised = {**entries, "method/kd": Entry(version=old.version + 1, proved={digest: ("cpu",)})}
        patch.setattr(keys, "lock", lambda: Lock(entries=raised))
        keys.computed.cache_clear()
        assert keys.run_key(spec("kd")) not in (unlisted, edited)


def test_a_proof_on_one_kind_of_device_says_nothing_of_another(library):
    assert library.key(kind="cuda") != library.key(kind="cpu")
    assert library.key(kind="cpu-ddp") != library.key(kind="cpu")
    before = library.key(kind="cuda")
    path = library.path / "methods" / "kd.py"
    path.write_text("# a comment\n" + path.read_text())
    assert library.key(kind="cuda") == before


# -- what was read is kept for the next command -----------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "hkd"
    monkeypatch.setenv("HKD_CACHE", str(folder))
    return folder


def digest_of_a_method():
    return Code(Path(hkd.__file__).parent.parent).digest(["hkd.methods.scalekd"])


def test_sources_are_read_once_for_all_commands(cache, monkeypatch):
    first = digest_of_a_method()
    assert [path.name.startswith("code-") for path in cache.iterdir()] == [True]
    monkeypatch.setattr(code.ast, "parse", None)  # would fail
    assert digest_of_a_method() == first


def test_the_cache_is_in_the_folder_of_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("HKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.cache() == tmp_path / "hkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.cache() == tmp_path / ".cache" / "hkd"
