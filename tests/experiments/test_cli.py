"""The `hkd` command, called in this process: on real tables where nothing runs, on a fake one where something does."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cli
from experiments.commands import costs, tables
from experiments.planning.asked import planned
from experiments.planning.plan import Cell
from experiments.records.store import Store
from experiments.reproduce import table_lock
from experiments.results.verdicts import BY_DIRECTION, BY_VALUE
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.tasks import TASKS
from tests.experiments.fake_tasks import fake_plan, fake_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("HKD_RUNS", "HKD_RESULTS", "HKD_WEIGHTS", "HKD_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.fixture
def fake_table(monkeypatch):
    """Makes a table of fake runs, one cell each, the only one there is."""
    monkeypatch.setitem(METHODS, "fake", "tests.experiments.fake_tasks:FakeMethod")
    monkeypatch.setitem(TASKS, "fake", "tests.experiments.fake_tasks:task")

    def make(*runs):
        cells = [
            Cell(
                row=run.key,
                teacher="",
                student="student",
                method="fake",
                variant="",
                metric="top1",
                label="Fake",
                row_label=("", run.key),
                runs=(run.key,),
            )
            for run in runs
        ]
        plan = replace(fake_plan(*runs), cells=tuple(cells))
        monkeypatch.setattr(tables, "planned", lambda table, profile=None, seeds=None, **rest: plan)
        monkeypatch.setattr("experiments.drawings.base.drawing", lambda *arguments: None)  # it has no file

    return make


def hkd(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments])
    return left.value.code


@pytest.mark.parametrize(
    ("recipe", "verdicts", "head"),
    [
        ("{epochs: null}", BY_VALUE, ""),
        ("{epochs: 1}", BY_DIRECTION, " (overridden: epochs 1)"),
    ],
)
def test_a_paper_table_of_overridden_recipes_says_so_and_is_not_judged_by_value(
    places, monkeypatch, capsys, synthetic, recipe, verdicts, head
):
    (places / "dvc.yaml").write_text("stages: {}\n")
    (places / "params.yaml").write_text(f"profile: paper\nseeds: 3\nrecipe: {recipe}\n")
    monkeypatch.chdir(places)
    store = Store(places / "hkd_runs")
    for record in synthetic.records(planned("scalekd_table3")).values():
        of_teacher = record.label.startswith(("teacher", "evaluate"))
        store.write(replace(record, metrics={"top1": 95.0}) if of_teacher else record)
    assert hkd("show", "scalekd_table3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"# ScaleKD Table 3: main results on 11 teacher-student pairs{head}"
    judged = {line.split("|")[-2].strip() for line in lines if line.startswith("| ") and "Mixer-S/16" in line}
    assert judged
    assert judged <= set(verdicts)
    rows = [line for line in lines if line.startswith("| ")]  # captions explain words of directions
    assert not any(f"| {word} " in line for line in rows for word in set(BY_VALUE + BY_DIRECTION) - set(verdicts))
    assert ("- Overridden in the recipes of profile paper: epochs 1." in lines) == bool(head)
    assert any("Compared by value" in line for line in lines) == (not head)
    assert any("Values of profile paper so overridden are not" in line for line in lines) == bool(head)


def test_tables_are_listed(capsys):
    assert hkd("tables") == 0
    assert "scalekd_table3" in capsys.readouterr().out


def test_a_plan_counts_runs_and_says_what_is_assumed(capsys):
    assert hkd("plan", "scalekd_table3", "--profile", "smoke") == 0
    output = capsys.readouterr().out
    assert re.match(r"scalekd_table3 \(smoke\): \d+ runs, \d+ left: .+, .+ MB\n", output)
    assert "teacher swin_l" in output
    assert "A100-class GPU" in output


def test_a_plan_of_a_table_that_a_profile_has_nothing_of_says_so_and_nothing_of_costs(capsys):
    assert hkd("plan", "hybrid_table10", "--profile", "cifar_subset") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hybrid_table10 (cifar_subset): nothing to run"
    assert lines[2] == "Nothing of this table is in profile cifar_subset."
    assert all(line.startswith("hybrid_table10: not in this profile: ") for line in lines[3:])


def test_a_plan_of_all_tables_counts_shared_runs_once(capsys):
    assert hkd("plan", "--profile", "laptop") == 0
    first = capsys.readouterr().out.splitlines()[0]
    said = r"\d+ tables \(laptop\), shared runs once: [\d,]+ runs, [\d,]+ left: .+ GPU-hours, .+ GB"
    assert re.fullmatch(said, first)


def test_planning_every_table_at_paper_scale_imports_no_torch():
    script = (
        "import sys; from experiments import cli\n"
        "try: cli.main(['plan', '--profile', 'paper'])\n"
        "except SystemExit: print([name for name in ('torch', 'distributed', 'pandas') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "scalekd_tabel3"), "Did you mean 'scalekd_table3'?"),
        (("plan", "scalekd_table3", "--profile", "laptp"), "Did you mean 'laptop'?"),
        (("show", "scalekd_table3", "--seeds", "0"), "seeds must be at least 1"),
        (("rnu", "scalekd_table3"), 'Did you mean "run"?'),
        (("run",), "requires an argument"),
        (("run", "scalekd_table3", "--override", "epohs=1"), "no option 'epohs'. Did you mean 'epochs'?"),
        (("run", "scalekd_table3", "--override", "epochs=none"), "epochs must be a whole number, got 'none'"),
        (("run", "scalekd_table3", "--override", "epochs"), "such as epochs=1"),
        (("run", "scalekd_table3", "--profle", "laptop"), "Did you mean --profile?"),
        (("weights", "fetch", "swim_s"), "Did you mean 'swin_s'?"),
        (("weights", "fetch", "swin_s_mini"), "has no published weights"),
        (("weights", "convert", "swim_s", "old.pth"), "Did you mean 'swin_s'?"),
        (("weights", "convert", "swin_s", "absent.pth"), "There is no weights file absent.pth"),
        (("weights", "convert", "swin_s", "old.pth", "--classes", "0"), "--classes is 0; it must be at least 1"),
        (("runs", "show", "0123"), "Unknown run '0123'"),
        (("reference", "update"), "Name the tables"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments, sentence, capsys):
    assert hkd(*arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_many_gpu_hours_are_not_started_without_being_asked(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert hkd("run", "scalekd_table3", "--profile", "paper") == 2
    assert "say --yes" in capsys.readouterr().err


def test_missing_data_is_one_sentence(capsys):
    assert hkd("run", "scalekd_table3", "--profile", "paper", "--yes") == 2
    assert "can start: " in capsys.readouterr().err


def test_run_prints_the_table_and_where_it_is(fake_table, capsys, places):
    fake_table(fake_run("a"))
    assert hkd("run", "fake_table", "--workers", "0") == 0
    output = capsys.readouterr().out
    assert "50.00" in output
    assert f"are in {places / 'hkd_results' / 'laptop' / 'fake_table'}" in output
    assert (places / "hkd_results" / "laptop" / "fake_table" / "table.csv").is_file()


def test_a_crashed_run_is_exit_code_1_after_the_table_is_written(fake_table, capsys, places):
    fake_table(fake_run("a"), fake_run("b", do="crash"))
    assert hkd("run", "fake_table", "--workers", "0") == 1
    assert "missing: fake b: RuntimeError: it broke" in capsys.readouterr().err
    assert "failed" in (places / "hkd_results" / "laptop" / "fake_table" / "table.csv").read_text()


def test_runs_without_data_leave_their_cells_empty_and_are_exit_code_1(fake_table, capsys, places):
    fake_table(fake_run("a"), fake_run("t", missing="no images in /data"), fake_run("s", teacher="t"))
    for _ in range(2):
        assert hkd("run", "fake_table", "--workers", "0") == 1
        captured = capsys.readouterr()
        assert "50.00" in captured.out
        assert captured.err.count("no images in /data") == 2
    assert (places / "hkd_results" / "laptop" / "fake_table" / "table.csv").read_text().count("not run") == 2


def test_batch_jobs_answer_by_environment_variables(fake_table, capsys, places, monkeypatch):
    fake_table(fake_run("a"))
    monkeypatch.setattr(costs, "EXPENSIVE", 0.0)
    monkeypatch.setenv("HKD_YES", "1")
    monkeypatch.setenv("HKD_SCHEDULER_FILE", str(places / "none.json"))
    assert hkd("run", "fake_table") == 2
    assert f"no scheduler file {places / 'none.json'}" in capsys.readouterr().err
    monkeypatch.delenv("HKD_YES")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert hkd("run", "fake_table") == 2
    said = capsys.readouterr().err.strip()
    question = "takes about 0 GPU-hours (`hkd plan fake_table --profile laptop` tells more); say --yes to start it."
    assert said == f"'fake_table' at profile 'laptop' {question}"
    assert hkd("run", "--help") in (None, 0)
    assert "HKD_SCHEDULER_FILE" in (shown := capsys.readouterr().out)
    assert "HKD_YES" in shown


def test_a_diverged_and_a_refused_run_are_exit_code_0(fake_table):
    fake_table(fake_run("a", do="diverge"), fake_run("b", do="refuse"))
    assert hkd("run", "fake_table", "--workers", "0") == 0


def test_a_table_from_records_alone_is_the_same_to_the_byte(fake_table, places):
    fake_table(fake_run("a"), fake_run("b"))
    hkd("run", "fake_table", "--workers", "0")
    folder = places / "hkd_results" / "laptop" / "fake_table"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    hkd("run", "fake_table", "--workers", "0")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_show_runs_nothing(fake_table, capsys, places):
    fake_table(fake_run("a"))
    assert hkd("show", "fake_table") == 0
    assert "not run" in capsys.readouterr().out
    assert not (places / "hkd_runs").exists()


def test_runs_are_listed_and_shown_by_the_beginning_of_their_key(fake_table, capsys):
    fake_table(fake_run("abcd"), fake_run("abxy"))
    hkd("run", "fake_table", "--workers", "0")
    capsys.readouterr()
    assert hkd("runs", "list") == 0
    assert "fake abcd" in capsys.readouterr().out
    assert hkd("runs", "show", "abc") == 0
    assert json.loads(capsys.readouterr().out)["key"] == "abcd"
    assert hkd("runs", "show", "ab") == 2


def test_a_record_edited_by_hand_is_one_sentence(fake_table, capsys, places):
    fake_table(fake_run("a"))
    hkd("run", "fake_table", "--workers", "0")
    path = Store(places / "hkd_runs").folder("a") / "record.json"
    path.write_text(path.read_text().replace("50.0", "99.0"))
    capsys.readouterr()
    assert hkd("run", "fake_table", "--workers", "0") == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_a_table_without_a_reference_is_untested(capsys, monkeypatch, places):
    monkeypatch.setattr("experiments.places.references", lambda: places / "reference")
    assert hkd("check") == 0
    assert "untested: there is no reference" in capsys.readouterr().out


def test_a_reference_is_saved_and_then_holds(fake_table, capsys, monkeypatch, places):
    monkeypatch.setattr("experiments.places.references", lambda: places / "reference")
    fake_table(fake_run("a"), fake_run("b"))
    hkd("run", "fake_table", "--workers", "0")
    assert hkd("reference", "update", "fake_table") == 0
    assert (places / "reference" / "laptop" / "fake_table.json.xz").is_file()
    assert "2 runs" in capsys.readouterr().out
    assert hkd("check", "fake_table") == 0
    assert "pass" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "show", "hcd_ablations"], cwd=ROOT, **pipes
    ) as command:
        command.stdout.close()
        assert command.stderr.read() == ""
    assert command.returncode == 141


def test_a_table_held_by_another_process_is_refused_or_waited_for(places):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom experiments.reproduce import table_lock\n"
            "with table_lock('laptop', 't', wait=True, on_wait=print):\n"
            "    print('held', flush=True); sys.stdin.readline()",
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=rf"'t' at profile 'laptop' is being made by process {holder.pid} on "),
        table_lock("laptop", "t", wait=False, on_wait=print),
    ):
        raise AssertionError("the table was free")
    told = []

    def let_go(sentence):
        told.append(sentence)
        holder.communicate("\n")

    with table_lock("smoke", "t", wait=False, on_wait=print):  # the same table at another profile is free
        pass
    with table_lock("laptop", "t", wait=True, on_wait=let_go):
        assert "waiting for it to end" in told[0]


def test_results_that_cannot_be_written_are_one_sentence(fake_table, capsys, monkeypatch, places):
    fake_table(fake_run("a"))
    (places / "file").touch()
    monkeypatch.setenv("HKD_RESULTS", str(places / "file" / "results"))
    assert hkd("run", "fake_table", "--workers", "0") == 2
    assert f"HKD_RESULTS is {places / 'file' / 'results'}, where no folder can be" in capsys.readouterr().err


def test_a_clone_is_run_by_its_own_code(tmp_path):
    """The installed command, called in another checkout, starts again with that checkout's code."""
    clone = tmp_path / "clone"
    (clone / "experiments").mkdir(parents=True)
    (clone / "experiments" / "__init__.py").touch()
    (clone / "experiments" / "cli.py").write_text("import sys; print('the clone', sys.argv[1:])")
    for name in ("dvc.yaml", "params.yaml"):
        (clone / name).touch()
    command = tmp_path / "hkd"
    command.write_text("from experiments import cli; cli.main()")
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, str(command), "tables"], cwd=clone, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "the clone ['tables']"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "1"), "cannot decide anything of one seed"),
        (("--margin", "0"), "--margin is 0 points"),
        (("--margin", "-1"), "--margin is -1 points"),
        (("--max-seeds", "4"), "below the first look at 5 seeds"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_decision_that_cannot_be_bought_is_refused_in_one_sentence(capsys, command, options, message):
    assert hkd(command, "scalekd_table9", "--until", "decided", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_table_without_gains_has_nothing_to_decide(capsys):
    assert hkd("run", "hybrid_fig1", "--until", "decided") == 2
    assert "has no gains" in capsys.readouterr().err


def test_a_forecast_says_seeds_by_row(capsys):
    assert hkd("plan", "scalekd_table9", "--until", "decided") == 0
    said = capsys.readouterr().out
    assert "looks at 5, 8, 12, 18, 27 seeds, 0 taken" in said
    assert "of 12 cells settled" in said


def test_looks_are_printed_with_their_boundaries_and_simulated_error(capsys):
    assert hkd("looks", "--max-seeds", "12") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["5", "8", "12"]
    error = float(next(line.split()[1] for line in lines if line.startswith("0 ")))
    assert 0.04 <= error <= 0.056
