"""Tables, profiles and methods of the user's own, in a working folder outside the checkout."""

import shutil
import sys

import pytest

from experiments import cli, places
from experiments.planning import keys, own, schema
from experiments.planning.asked import planned
from experiments.planning.refusals import refused_cells
from hkd import outside
from hkd.errors import UserError

TABLE = """\
title: Mine
data: digits
columns:
  - {method: supervised, label: No teacher, teacher: false}
  - {method: "my_method:Mine", label: Mine, gain_over: supervised}
rows:
  - {row: swin_s-resnet50, teacher: swin_s, student: resnet50, label: [Swin-S, ResNet-50]}
profile:
  extends: laptop
  seeds: 1
  data: {digits: {name: digits, options: {n_train: 20, test_copies: 1}, teacher_options: {n_train: 20}}}
  recipes: {teacher: {epochs: 1, batch_size: 20}}
  override: {epochs: 1, batch_size: 20, warmup_epochs: 0.0}
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A working folder with a table and a method, and nothing remembered of it afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("HKD_RUNS", "HKD_RESULTS", "HKD_DATA", outside.FOLDERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HKD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.yaml").write_text(TABLE)
    (tmp_path / "my_method.py").write_text((schema.HERE / "starters" / "method.py").read_text())
    forget()
    yield tmp_path
    forget()
    monkeypatch.delenv(outside.FOLDERS, raising=False)


def forget():
    """Let another test have files of the same names."""
    own.OWN.clear()
    for cached in (schema.read, schema.document):
        cached.cache_clear()
    keys.forget()
    for name in ("my_method", "my_parts"):
        sys.modules.pop(name, None)


def hkd(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, arguments)])
    return ended.value.code


def key_of(column, table="mine.yaml"):
    """The key of a column's first run, planned anew."""
    forget()
    plan = planned(table)
    return next(cell.runs[0] for cell in plan.cells if cell.label == column)


@pytest.mark.usefixtures("scratch")
def test_a_table_is_known_by_its_file_and_planned_at_its_own_profile():
    plan = planned("mine.yaml")
    assert (plan.table, plan.profile, plan.title, len(plan.runs)) == ("mine", "mine", "Mine", 3)
    assert places.tables(plan.profile) == places.Path.cwd() / "results" / "mine"
    assert planned("mine.yaml", "laptop", 1).profile == "laptop"


def test_the_source_of_a_method_is_in_the_key_and_that_of_what_it_imports(scratch):
    first, baseline = key_of("Mine"), key_of("No teacher")
    text = (scratch / "my_method.py").read_text()
    (scratch / "my_method.py").write_text(f"# a comment\n{text}")
    assert key_of("Mine") == first
    (scratch / "my_method.py").write_text(text.replace("/ 2", "/ 3"))
    second = key_of("Mine")
    assert second != first
    (scratch / "my_method.py").write_text(text + "\nfrom my_parts import part\n")
    (scratch / "my_parts.py").write_text("part = 1\n")
    third = key_of("Mine")
    (scratch / "my_parts.py").write_text("part = 2\n")
    assert len({first, second, third, key_of("Mine")}) == 4
    assert key_of("No teacher") == baseline


def test_libraries_and_the_standard_library_are_no_part_of_a_method(scratch):
    (scratch / "my_parts.py").write_text("import json, numpy, timm.layers\nfrom hkd.options import options\n")
    from experiments.planning.code import own_code

    closure = own_code().closure(["my_parts"])
    assert {"my_parts", "hkd.options"} <= closure
    assert not {name for name in closure if name.split(".")[0] in {"json", "numpy", "timm"}}


def test_relative_imports_and_packages_are_followed(scratch):
    from experiments.planning.code import own_code

    (scratch / "my_pkg").mkdir()
    for name, text in {"__init__": "", "a": "from . import b\nfrom .c import x", "b": "", "c": "x = 1"}.items():
        (scratch / "my_pkg" / f"{name}.py").write_text(text)
    outside.look_around()
    assert own_code().closure(["my_pkg.a"]) == {"my_pkg", "my_pkg.a", "my_pkg.b", "my_pkg.c"}
    assert "my_pkg" not in sys.modules  # read, not imported


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("data: digits\n", "data: digit\n", r"mine.yaml:2: data: unknown data set 'digit'. Did you mean 'digits'\?"),
        ("gain_over", "gain_ovr", r"mine.yaml:5: columns.1.gain_ovr: unknown key 'gain_ovr'. Did you mean 'gain_over'"),
        ("my_method:Mine", "my_method:Min", r"mine.yaml:5: columns.1.options: .* has no 'Min'"),
        ("method: supervised", "method: supervise", r"mine.yaml:4: .*unknown method 'supervise'. Did you mean"),
        ("extends: laptop", "extends: lapto", r"mine.yaml:9: profile.extends|Unknown profile 'lapto'"),
        ("epochs: 1,", "epochs: 0,", r"mine.yaml:1[12]: profile.(recipes.teacher.epochs|override.epochs): must be"),
        ("title: Mine", "title: [", r"mine.yaml:\d+: not valid YAML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(scratch, capsys, old, new, sentence):
    (scratch / "mine.yaml").write_text(TABLE.replace(old, new))
    assert hkd("plan", "mine.yaml") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(said)


def test_a_file_that_cannot_be_a_table_is_refused_by_its_name(scratch):
    shutil.copy("mine.yaml", "scalekd_table3.yaml")
    shutil.copy("mine.yaml", "My Table.yaml")
    (scratch / "a").mkdir()
    shutil.copy("mine.yaml", "a/mine.yaml")
    (scratch / "circle.yaml").symlink_to("circle.yaml")
    schema.load_table("mine.yaml")
    for name, sentence in {
        "nowhere.yaml": "There is no table file nowhere.yaml",
        "circle.yaml": "There is no table file circle.yaml",
        "~nobody-of-this-name/x.yaml": "this machine knows no home of ~nobody-of-this-name",
        "scalekd_table3.yaml": "'scalekd_table3' is a table of the suite itself",
        "My Table.yaml": "has the name of its file",
        "a/mine.yaml": "a/mine.yaml and mine.yaml would both be the table 'mine'",
    }.items():
        with pytest.raises(UserError, match=sentence):
            schema.load_table(name)


def test_a_broken_file_stops_no_other_table(scratch, capsys):
    (scratch / "broken.yaml").write_text("title: x\n")
    for command in ("plan", "tables", "check"):
        forget()
        assert hkd(command, "broken.yaml", "mine.yaml") == 2
        said = capsys.readouterr()
        assert "broken.yaml:" in said.err
        assert "mine" in said.out


def test_a_profile_and_its_cards_may_stand_beside_the_table(scratch):
    assert hkd("new", "profile", "my_profile") == 0
    text = TABLE[: TABLE.index("profile:")].replace("student: resnet50", "student: my_resnet")
    (scratch / "mine.yaml").write_text(text + "strategy: advanced\nprofile: my_profile.yaml\n")
    plan = planned("mine.yaml")
    run = plan.runs[plan.cells[0].runs[0]].spec
    assert (plan.profile, run.student.name, run.student.kwargs["layers"]) == (
        "my_profile",
        "small_resnet",
        [1, 1, 1, 1],
    )
    assert refused_cells(plan) == {}  # the model that `hkd new` proposes can be built


def test_what_new_writes_is_planned_and_never_written_twice(scratch, capsys):
    assert [hkd("new", kind, f"new_{kind}") for kind in ("table", "method", "profile")] == [0, 0, 0]
    assert len(planned("new_table.yaml").cells) == 3
    schema.load_profile("new_profile.yaml")
    from hkd.methods.base import method_of

    assert method_of("new_method:Mine").needs(None).teachers
    capsys.readouterr()
    for arguments, sentence in {
        ("table", "new_table"): "new_table.yaml is there already",
        ("table", "scalekd_table3"): "'scalekd_table3' is a table of the suite",
        ("profile", "laptop"): "'laptop' is a profile of the suite",
        ("method", "my-method"): "'my-method' cannot be the name of a method",
        ("method", "json"): "'json' is a module of Python",
        ("method", "torch"): "'torch' is a package here, which a file of that name would hide",
        ("method", "class"): "'class' is a word of Python",
    }.items():
        assert hkd("new", *arguments) == 2
        assert sentence in capsys.readouterr().err


def test_models_say_which_methods_teach_them(scratch, capsys, monkeypatch):
    monkeypatch.setattr("experiments.served.METHODS", {"kd": "", "simclr": ""})
    assert hkd("models", "resnet18_mini") == 0
    said = capsys.readouterr().out
    assert "resnet18_mini" in said
    assert "is taught by kd; not by simclr." in said
    assert hkd("models", "resnet19") == 2
    assert "No model is called something with 'resnet19'. Did you mean 'resnet18" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_with_a_method_of_the_users_own_is_run_shown_checked_and_reported(scratch, capsys):
    assert hkd("run", "mine.yaml", "--workers", 1) == 0
    folder = scratch / "results" / "mine" / "mine"
    assert (folder / "table.md").is_file()
    assert "3 of 3 runs executed" in capsys.readouterr().out
    assert hkd("run", "mine.yaml", "--workers", 0) == 0
    assert "0 of 3 runs executed" in capsys.readouterr().out
    assert hkd("reference", "update", "mine.yaml") == 0
    assert (scratch / "results" / "reference" / "mine").is_dir()
    for command in ("show", "check", "tables"):
        assert hkd(command, "mine.yaml") == 0
    assert hkd("report", "mine.yaml") == 0
    assert "Mine" in (scratch / "results" / "report" / "t" / "mine.html").read_text()
