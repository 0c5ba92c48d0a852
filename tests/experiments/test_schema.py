"""YAML files: all that are committed load, and every mistake is one sentence with its place and the nearest name."""

import os
import time
from dataclasses import replace

import pytest

from experiments.planning import schema
from experiments.planning.plan import plan
from hkd.errors import UserError
from hkd.spec import Recipe


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A private copy of the YAML folders; `files(folder, name, text)` writes one."""
    for folder in ("tables", "profiles", "published", "manifests"):
        (tmp_path / folder).mkdir()
        for path in (schema.HERE / folder).glob("*.yaml"):
            (tmp_path / folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(schema, "HERE", tmp_path)
    for cached in (schema.read, schema.document):
        cached.cache_clear()

    def change(folder, name, old, new):
        path = tmp_path / folder / f"{name}.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    yield change
    for cached in (schema.read, schema.document):
        cached.cache_clear()


@pytest.mark.parametrize("name", schema.table_ids())
def test_every_table_loads(name):
    assert schema.load_table(name).id == name


@pytest.mark.parametrize("name", schema.names("profiles"))
def test_every_profile_loads(name):
    assert schema.load_profile(name).name == name


@pytest.mark.parametrize("name", [name for name in schema.table_ids() if schema.load_table(name).published])
def test_every_printed_row_has_an_entry_and_every_entry_a_row(name):
    table = schema.load_table(name)
    printed = schema.load_published(table.paper).table(table.published)
    selected = [
        [i for i, row in enumerate(printed.rows) if row.matches(entry.published)]
        for entry in table.rows
        if entry.published is not None
    ]
    assert sorted(i for found in selected for i in found) == list(range(len(printed.rows)))
    assert all(len(found) == 1 for found in selected)


def test_a_profile_may_extend_another():
    smoke, laptop = schema.load_profile("smoke"), schema.load_profile("laptop")
    assert smoke.data == laptop.data
    assert smoke.recipes == laptop.recipes
    assert smoke.seeds == 2


def extending(files, content, base="cifar"):
    """A profile of these contents that extends another."""
    (schema.HERE / "profiles" / "small.yaml").write_text(f"name: small\nextends: {base}\ntitle: small\n{content}")
    return schema.load_profile("small"), schema.load_profile(base)


def test_one_changed_option_of_one_data_set_leaves_all_else_as_it_was(files):
    small, base = extending(files, "data: {imagenet1k: {options: {n_train: 10}}}")
    assert small.data["imagenet1k"] == base.data["imagenet1k"].model_copy(update={"options": {"n_train": 10}})
    assert {k: v for k, v in small.data.items() if k != "imagenet1k"} == {
        k: v for k, v in base.data.items() if k != "imagenet1k"
    }
    assert (small.recipes, small.teachers, small.models) == (base.recipes, base.teachers, base.models)


def test_what_a_recipe_does_not_say_anew_stays_and_a_new_one_has_only_what_it_says(files):
    small, base = extending(files, "recipes: {cnn: {epochs: 2, batch_size: 8}, short: {epochs: 3, batch_size: 8}}")
    assert small.recipes["cnn"] == replace(base.recipes["cnn"], epochs=2, batch_size=8)
    assert small.recipes["short"] == Recipe(epochs=3, batch_size=8)


def test_another_origin_of_a_teacher_and_another_data_set_are_others_in_whole(files):
    teacher, data = "swin_t_ofa@cifar100: {random: true}", "cars: {name: cifar100, stand_in: small images}"
    change = f"by_value: false\nteachers: {{{teacher}}}\ndata: {{{data}}}"
    small, _ = extending(files, change, base="paper")
    assert small.teachers["swin_t_ofa@cifar100"] == schema.TeacherMapping(random=True)
    assert (small.data["cars"].name, small.data["cars"].options) == ("cifar100", {})


def test_keys_that_stand_alone_take_nothing_from_the_extended_profile(files):
    small, _ = extending(files, "alone: [models, captions]\nmodels: {swin_l: swin_t_32px}")
    assert small.models == {"swin_l": "swin_t_32px"}
    files("profiles", "small", "models, captions", "modles")
    schema.read.cache_clear(), schema.document.cache_clear()
    with pytest.raises(UserError, match=r"small.yaml:4: alone.0: unknown key 'modles'. Did you mean 'models'"):
        schema.load_profile("small")


def test_the_paper_profile_maps_every_model_of_every_table():
    profile = schema.load_profile("paper")
    for name in schema.table_ids():
        for row in schema.load_table(name).rows:
            assert {row.student, *row.teachers.values()} <= set(profile.models)


@pytest.mark.parametrize(
    ("folder", "name", "old", "new", "sentence"),
    [
        ("tables", "scalekd_table3", "strategy: advanced", "strateg: advanced",
         r"tables/scalekd_table3.yaml:\d+: strateg: unknown key 'strateg'. Did you mean 'strategy'\?"),
        ("tables", "scalekd_table3", "method: kd,", "method: kdd,",
         r"scalekd_table3.yaml:13: columns.1.options: unknown method 'kdd'. Did you mean 'kd'\?"),
        ("tables", "scalekd_table3", "heads_s3: 16", "head_s3: 16",
         r"scalekd_table3.yaml:\d+: rows.0.settings.scalekd.head_s3: .*Did you mean 'heads_s3'\?"),
        ("tables", "scalekd_table3", "row: swin_l-resnet50", "row: swin_l-mobilenet_v1", "appears twice"),
        ("tables", "scalekd_table3", "row: swin_l-resnet50", "row: Swin.L", "row"),
        ("profiles", "laptop", "lr: 0.003", "lrr: 0.003",
         r"laptop.yaml:\d+: recipes.teacher.lrr: .*Did you mean 'lr'\?"),
        ("profiles", "laptop", "lr: 0.003", "lr: -1.0",
         r"laptop.yaml:\d+: recipes.teacher.lr: must be greater than 0, got -1\.0\.$"),
        ("profiles", "laptop", "seeds: 5", "seeds: !!python/name:os.system x", r"laptop.yaml:6: seeds: .* is no text"),
        ("profiles", "laptop", "by_value: false", "by_value: 0",
         r"laptop.yaml:\d+: by_value: must be true or false, got 0\.$"),
        ("profiles", "laptop", "title: ", 'title: "\\ud800" # ',
         r"laptop.yaml:\d+: title: a text has the character U\+D800, which cannot be printed\.$"),
        ("profiles", "paper", "weights: swin_s.safetensors", "weights: ../swin_s.safetensors",
         r"paper.yaml:\d+: teachers.swin_s.weights: must be a name below its root folder, got"),
        ("profiles", "paper", "weights: swin_s.safetensors", f"weights: {'x' * 256}",
         r"paper.yaml:\d+: teachers.swin_s.weights: must be a name below its root folder"),
        ("tables", "scalekd_table3", "title: ", 'title: "a\\0b" # ',
         r"scalekd_table3.yaml:\d+: title: a text has the character U\+0000, which cannot be printed\.$"),
        ("tables", "scalekd_table3", "title: ", "hint: 1\ntitle: ",
         r"scalekd_table3.yaml:\d+: hint: unknown key 'hint'\."),
        ("profiles", "laptop", "seeds: 5", "seeds: 1000000000",
         r"laptop.yaml:6: seeds: must be less than or equal to 1000, got 1000000000\.$"),
        ("profiles", "laptop", "options: {n_train: 100, test_copies: 2}", "options: {n_train: many, test_copies: 2}",
         r"laptop.yaml:\d+: data.imagenet1k.options.n_train: Data set 'digits': n_train must be a whole number, got"),
        ("profiles", "laptop", "teacher_options: {n_train: null}", "teacher_options: {n_trian: null}",
         r"laptop.yaml:\d+: data.imagenet1k.teacher_options.n_trian: Data set 'digits' has no option 'n_trian'"),
        ("profiles", "laptop", "options: {image_size: 32, codes: 64}", "options: {image_size: 32, codes: 1}",
         r"laptop.yaml:\d+: teachers.beit_b16.options.codes: Method 'beit': codes must be greater than or equal to 2"),
        ("profiles", "laptop", "loss: sqrt, auxiliary: 0.0", "loss: sqrt, auxiliary: x",
         r"laptop.yaml:\d+: tasks.segment.auxiliary: Task 'segment': auxiliary must be a number, got 'x'\.$"),
        ("profiles", "smoke", "override: {epochs: 3", "override: {epochs: 0",
         r"smoke.yaml:18: override.epochs: Recipe: epochs must be greater than or equal to 1, got 0\.$"),
        ("profiles", "paper", "devices: 8", "devices: 0",
         r"paper.yaml:\d+: machine.devices: must be greater than or equal to 1, got 0\.$"),
        ("tables", "hybrid_table10", "task_options: {cascade: true}", "task_options: {cascade: 1}",
         r"hybrid_table10.yaml:11: columns.\d.task_options.cascade: Task 'detect': cascade must be true or false"),
        ("tables", "scalekd_table3", "heads_s3: 16", "heads_s3: -8",
         r"scalekd_table3.yaml:\d+: rows.0.settings.scalekd.heads_s3: Method 'scalekd': heads_s3 must be greater than"),
        ("profiles", "laptop", "resnet50: resnet50_mini", "resnet50: resnet50_miny", r"Did you mean 'resnet50_mini'\?"),
        ("profiles", "laptop", "name: digits", "name: digit", r"data.imagenet1k.name: unknown data set 'digit'"),
        ("profiles", "laptop", "mobilenet_v1: cnn", "mobilenet_v1: cnnn",
         r"unknown recipe 'cnnn'. Did you mean 'cnn'\?"),
        ("profiles", "laptop", "swin_t_ofa@cifar100:", "swin_t_ofa@cifar10:",
         r"laptop.yaml:\d+: teachers.swin_t_ofa@cifar10: unknown data set 'cifar10'. Did you mean 'cifar100'\?"),
        ("tables", "hcd_ablations", "source: ofakd/", "source: ofakt/",
         r"hcd_ablations.yaml:12: columns.0.source: Unknown paper 'ofakt'. Did you mean 'ofakd'\?"),
        ("tables", "hcd_ablations", "source: ofakd/cifar100_students", "source: ofakd/cifar_students",
         r"hcd_ablations.yaml:12: columns.0.source: Unknown published table 'cifar_students'. Did you mean 'cifar100"),
        ("tables", "hcd_ablations", "published: top1", "published: top2",
         r"hcd_ablations.yaml:12: columns.0.published: unknown published value 'top2'. Did you mean 'top1'\?"),
        ("tables", "hcd_ablations", "select: {threshold: 0.25}", "select: {theshold: 0.25}",
         r"hcd_ablations.yaml:\d+: columns.14.select.theshold: no published row has theshold '0.25'"),
        ("tables", "hcd_imagenet1k", "select: {method: KD}", "select: {method: KDD}",
         r"hcd_imagenet1k.yaml:\d+: columns.1.select.method: no published row has method 'KDD'. Did you mean 'KD'\?"),
        ("tables", "hcd_imagenet1k", "student: ResNet18}", "student: ResNet19}",
         r"hcd_imagenet1k.yaml:\d+: rows.0.published.student: .* 'ResNet19'. Did you mean 'ResNet18'\?"),
        ("tables", "scalekd_table3", "{teacher: Swin-L, student: MobileNet-V1}", "{teacher: Swin-L}",
         r"scalekd_table3.yaml:\d+: rows.0.published: row 'swin_l-mobilenet_v1' selects 8 rows .*must select one"),
        ("tables", "scalekd_table3", "student: MobileNet-V1}", "student: MobileNet-V3}",
         r"scalekd_table3.yaml:\d+: rows.0.published: row 'swin_l-mobilenet_v1' selects no rows .*must select one"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_line_key_and_nearest_name(files, folder, name, old, new, sentence):
    files(folder, name, old, new)
    load = schema.load_table if folder == "tables" else schema.load_profile
    with pytest.raises(UserError, match=sentence) as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["pipe", "zeros", "folder", "nowhere"])
def test_what_is_no_file_is_not_read(files, place):
    path = schema.HERE / "tables" / "scalekd_table3.yaml"
    path.unlink()
    if place == "pipe":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if place == "zeros" else "nowhere")
    with pytest.raises(UserError, match=r"tables/scalekd_table3.yaml cannot be read \((it is no file|Is a|No such)"):
        schema.load_table("scalekd_table3")


BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a: b\n" * 2_000_000, BOMB, "&a [*a]", "<<: &a\n  <<: *a"],
    ids=["brackets", "braces", "dashes", "10 MB", "aliases", "itself", "merged with itself"],
)  # fmt: skip
def test_a_bomb_is_refused_within_two_seconds(tmp_path, text):
    (tmp_path / "bomb.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match=r"bomb\.yaml"):
        schema.validated(schema.Params, schema.plain(schema.parsed(tmp_path / "bomb.yaml", "bomb.yaml")), refused)
    assert time.process_time() - began < 2.0


def refused(loc, message):
    return UserError(f"bomb.yaml: {loc}: {message}")


@pytest.mark.parametrize("value", ["1e9", "2000000", ".nan", "'1.0'", "true"])
def test_a_published_value_that_cannot_be_is_refused(files, value):
    files("published", "scalekd", "values: {", f"values: {{odd: {value}, ")
    with pytest.raises(UserError, match=r"published/scalekd.yaml:\d+: tables\.\d+\.rows\.0\.values\.odd: "):
        schema.load_published("scalekd")


def test_two_values_of_equal_confidence_must_be_decided_by_the_table(files):
    files("published", "hcd", "stages: [1, 2]\n", "stages: [1]\n")
    with pytest.raises(UserError, match=r"columns.3.source: row 'swin_t-resnet18' selects 2 rows .*must select one"):
        schema.load_table("hcd_ablations")


def test_a_teacher_of_one_data_set_goes_before_the_one_of_all():
    profile = schema.load_profile("laptop")
    assert profile.teacher("swin_t_ofa", "cifar100") == profile.teachers["swin_t_ofa@cifar100"]
    assert profile.teacher("swin_t_ofa", "imagenet1k") == profile.teachers["swin_t_ofa"]
    assert profile.teacher("vit_s16_ofa", "imagenet1k") is None


def test_options_that_do_not_go_together_are_refused_where_they_meet(files):
    files("profiles", "laptop", "decoder_width: 64, decoder_heads: 4}  #", "decoder_width: 64, decoder_heads: 3}  #")
    schema.load_profile("laptop")  # what a table adds may make it right
    with pytest.raises(
        UserError, match=r"^Table 'hybrid_table1' at profile 'laptop', row .*decoder_heads, got 64 and 3"
    ):
        plan("hybrid_table1", "laptop", 1)


def test_broken_yaml_names_file_and_line(files):
    files("tables", "scalekd_table3", "id: scalekd_table3", "id: [scalekd_table3")
    with pytest.raises(UserError, match=r"scalekd_table3.yaml:\d+: not valid YAML"):
        schema.load_table("scalekd_table3")


@pytest.mark.parametrize(
    ("load", "name", "sentence"),
    [
        (schema.load_table, "scalekd_tabel3", "Unknown table 'scalekd_tabel3'. Did you mean 'scalekd_table3'"),
        (schema.load_profile, "lapto", "Unknown profile 'lapto'. Did you mean 'laptop'"),
    ],
)
def test_an_unknown_file_gets_the_nearest_name(load, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load(name)


def test_a_model_may_stand_on_other_data_and_takes_its_row_with_it():
    profile = schema.load_profile("laptop")
    other = profile.data["cifar100"].instead["deit_t"]
    assert profile.entry("cifar100", ("deit_t", "convnext_t_ofa")) == other
    assert profile.entry("cifar100", ("resnet18", "convnext_t_ofa")) == "cifar100"


def test_a_stand_in_for_data_that_does_not_exist_is_refused(files):
    files("profiles", "laptop", "instead: {deit_t: ", "instead: {deit_t: x")
    with pytest.raises(UserError, match=r"laptop.yaml:\d+: data.cifar100.instead.deit_t: unknown data set 'x"):
        schema.load_profile("laptop")


def test_a_drawing_that_does_not_exist_is_one_sentence_with_its_place(files):
    files("tables", "hybrid_fig1", "drawing: hybrid_heads", "drawing: hybrid_head")
    with pytest.raises(UserError, match=r"fig1.yaml:\d+: .*unknown drawing 'hybrid_head'. Did you mean 'hybrid_heads'"):
        schema.load_table("hybrid_fig1")
    files("tables", "hybrid_fig2", "drawing: hybrid_heads\n", "")
    with pytest.raises(UserError, match=r"fig2.yaml:\d+: .*unknown drawing 'hybrid_fig2'"):
        schema.load_table("hybrid_fig2")


@pytest.mark.usefixtures("files")
def test_a_profile_that_extends_itself_is_refused():
    for name, other in (("a", "b"), ("b", "a"), ("c", "c")):
        (schema.HERE / "profiles" / f"{name}.yaml").write_text(f"name: {name}\nextends: {other}\n")
    for name, chain in (("a", "'a' extends 'b' extends 'a'"), ("c", "'c' extends 'c'")):
        with pytest.raises(UserError, match=rf"profiles/{name}\.yaml:2: extends: {chain}: one of them"):
            schema.read_profile(name)
