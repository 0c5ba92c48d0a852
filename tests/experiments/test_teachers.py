"""The manifest of teachers agrees with the zoo and with published values, and measured accuracies come from runs."""

from pathlib import Path

import pytest

from experiments import teachers
from experiments.planning import schema
from experiments.planning.plan import plan
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO

# By our own tables, under names of their own; at `paper` their files are those of the teachers that they are.
TRAINED_HERE = {"cnn_r50", "cae_mim_b16"}


def test_every_teacher_of_every_profile_has_its_weights_source_and_licence():
    known = schema.load_manifest().teachers
    for name in schema.names("profiles"):
        mapped = schema.load_profile(name).teachers.items()
        files = {Path(mapping.weights).stem for _, mapping in mapped if mapping.weights}
        slugs = {teacher.partition("@")[0] for teacher, mapping in mapped if not mapping.random}
        assert all(known[slug].weights and known[slug].licence for slug in files | slugs - TRAINED_HERE)


def test_weights_are_those_that_the_zoo_names():
    for name, entry in schema.load_manifest().teachers.items():
        if name in ZOO and entry.weights and ZOO[name].pretrained:
            assert ZOO[name].pretrained == entry.weights


def test_accuracies_on_cifar_are_the_published_ones():
    rows = schema.load_published("ofakd").table("cifar100_teachers").rows
    printed = {row.values["top1"] for row in rows}
    entries = {name: entry for name, entry in schema.load_manifest().teachers.items() if name.endswith("@cifar100")}
    assert {entry.published for entry in entries.values()} == printed - {92.44}  # of a second checkpoint of ViT-S


def test_an_accuracy_has_a_source():
    assert all((e.published is None) == (e.source is None) for e in schema.load_manifest().teachers.values())


def test_what_a_run_measured_stands_beside_what_was_published(tmp_path):
    store = Store(tmp_path)
    key = plan("hcd_cifar100_core", "laptop", 1).teachers["swin_t_ofa@cifar100"]
    store.write(Record(key=key, label="", status="done", spec={}, metrics={"top1": 77.5}))
    found = {facts.name: facts for facts in teachers.teachers("laptop", store)}
    assert found["swin_t_ofa@cifar100"].measured == ("top1", 77.5)
    assert found["swin_t_ofa@cifar100"].entry.published == 89.26
    assert found["swin_t_ofa@cifar100"].entry.licence == "MIT"
    assert found["dino_b16"].measured is None
    assert found["swin_t_ofa"].made == "recipe teacher"


def test_a_profile_with_few_models_lists_only_their_teachers(tmp_path):
    names = {facts.name for facts in teachers.teachers("smoke", Store(tmp_path))}
    assert "vit_s16_ofa@cifar100" in names
    assert "swin_t_ofa@cifar100" not in names


@pytest.fixture
def own_manifest(tmp_path, monkeypatch):
    """A private copy of the manifest."""
    path = tmp_path / "manifests" / "teachers.yaml"
    path.parent.mkdir()
    path.write_text((schema.HERE / "manifests" / "teachers.yaml").read_text())
    monkeypatch.setattr(schema, "HERE", tmp_path)
    for cached in (schema.read, schema.document):
        cached.cache_clear()
    yield path
    for cached in (schema.read, schema.document):
        cached.cache_clear()


AB = "ab" * 32  # a SHA-256


def test_fetched_weights_leave_their_hash_in_the_manifest_and_nothing_else_changes(own_manifest):
    before = own_manifest.read_text()
    assert teachers.record_sha256("swin_t_ofa", AB)
    assert own_manifest.read_text() == before.replace("sha256: null", f"sha256: {AB}", 1)
    assert schema.load_manifest().teachers["swin_t_ofa"].sha256 == AB
    assert teachers.record_sha256("swin_t_ofa", AB)
    assert not teachers.record_sha256("swin_t_ofa", "cd" * 32)


@pytest.mark.parametrize("text", ["", "teachers: [", "- x", "teachers: {swin_s: {weights: [1]}}"])
def test_fetched_weights_find_a_manifest_of_something_else(own_manifest, text):
    own_manifest.write_text(text)
    with pytest.raises(UserError, match=r"manifests/teachers.yaml:1"):
        teachers.record_sha256("swin_t_ofa", AB)
    assert own_manifest.read_text() == text


def test_a_mistake_in_the_manifest_names_line_and_nearest_key(own_manifest):
    own_manifest.write_text(own_manifest.read_text().replace("licence: MIT", "license: MIT", 1))
    with pytest.raises(
        UserError, match=r"manifests/teachers.yaml:\d+: .*unknown key 'license'. Did you mean 'licence'"
    ):
        schema.load_manifest()


def test_the_command_prints_both_accuracies(capsys, tmp_path, monkeypatch):
    from experiments import cli

    monkeypatch.setenv("HKD_RUNS", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["teachers", "--profile", "smoke"])
    assert ended.value.code == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("vit_s16_ofa@cifar100"))
    assert "92.04" in line
    assert "Apache-2.0" in line
    assert "not yet" in line
