"""What users do with DVC, in a temporary clone: how many runs each step trains, and that nothing finished is lost."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
TABLE = "scalekd_table3"
METRICS = f"results/smoke/{TABLE}/metrics.json"
LIMIT = 300.0  # seconds for one command
PICTURES = ("active_sets", "features", "paintings", "queue_entries")
RUNS = 13  # smoke: one teacher, and two pairs x three methods x two seeds
CRASH = """
import os as _os


def _crash_if_asked() -> None:
    asked = _os.environ["HKD_TEST_CRASH"]
    try:
        _os.rename(asked, asked + ".taken")  # by the first run that comes here: one of all
    except FileNotFoundError:
        return
    raise RuntimeError("asked to crash")
"""

pytestmark = pytest.mark.timeout(900)


class Clone:
    """A repository at the smoke profile, with its own runs: made of the working tree, or of another clone's start."""

    def __init__(self, folder, origin=None):
        self.folder = folder
        if origin is None:
            for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
                if (ROOT / name).is_file():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, folder / name)
            git(folder, "init", "-q")
        else:
            git(origin, "clone", "-q", "--branch", "start", str(origin), str(folder))
        git(folder, "config", "user.name", "tester")
        git(folder, "config", "user.email", "tester@example.org")
        git(folder, "config", "advice.detachedHead", "false")
        if origin is None:
            self.params(profile="smoke")
            self.commit("start")
            git(folder, "tag", "start")
        scripts = str(Path(sys.executable).parent)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HKD_", "GIT_", "DVC_", "PYTEST"))},
            "PATH": scripts + os.pathsep + os.environ["PATH"],
            "HKD_TEST_CRASH": str(folder / ".git" / "crash"),
        }

    def commit(self, message):
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", message)

    def params(self, **changes):
        path = self.folder / "params.yaml"
        text = path.read_text()
        for key, value in changes.items():
            text, found = re.subn(rf"^( *){key}: \S+", rf"\g<1>{key}: {value}", text, flags=re.M)
            assert found == 1, f"params.yaml has no {key}"
        path.write_text(text)

    def edit(self, name, change):
        path = self.folder / name
        old = path.read_text()
        new = change(old)
        assert new != old
        path.write_text(new)

    def dvc(self, *arguments, fails=False):
        """What a DVC command says on both channels."""
        done = self.run("dvc", *arguments)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def asked(self, *arguments):
        """What a DVC command answers on its standard output."""
        done = self.run("dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *command):
        """Run a command to its end; if that takes too long, nothing of it is left behind."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=self.folder, env=self.env, start_new_session=True, **pipes) as process:
            try:
                out, err = process.communicate(timeout=LIMIT)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def seeds(self):
        """Seeds of the smoke table as the clone has it now."""
        return {json.loads(path.read_text())["spec"]["seed"] for path in self.records().values()}

    def repro(self, fails=False):
        """Reproduce the table; the number of runs that were executed."""
        output = self.dvc("repro", TABLE, fails=fails)
        found = re.search(r"(\d+) of \d+ runs executed", output)
        assert found, output
        return int(found[1])

    def files(self):
        results = self.folder / "results" / "smoke" / TABLE
        return {path.name: path.read_bytes() for path in results.iterdir()}

    def table(self):
        """table.csv as dicts."""
        return list(csv.DictReader(self.files()["table.csv"].decode().splitlines()))

    def metrics(self):
        """metrics.json, its names joined by dots as DVC joins them."""
        return dict(flat(json.loads(self.files()["metrics.json"])))

    def records(self):
        return {path.parent.name: path for path in (self.folder / "results" / "runs").glob("*/record.json")}

    def statuses(self):
        return {key: json.loads(path.read_text())["status"] for key, path in self.records().items()}

    def labels(self, keys):
        return sorted(json.loads(self.records()[key].read_text())["label"] for key in keys)


def git(folder, *arguments):
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def flat(tree, prefix=""):
    """(dotted name, value) of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def accuracies(names):
    """The metrics that are mean accuracies of a pair: three per pair of the smoke profile."""
    return sorted(name for name in names if re.search(r"pairs\.[^.]+\.(baseline|kd|scalekd)$", name))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which the table was reproduced once and committed; `first` holds the files of that table."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    assert made.repro() == RUNS
    made.first = made.files()
    made.commit("first table")
    return made


@pytest.mark.slow
@pytest.mark.long
def test_a_second_repro_did_not_change_anything(clone):
    assert "didn't change" in clone.dvc("repro", TABLE)
    assert clone.files() == clone.first


@pytest.mark.slow
@pytest.mark.long
def test_a_comment_trains_nothing_and_writes_equal_bytes(clone):
    clone.edit("hkd/methods/kd.py", lambda text: text + "# a comment\n")
    assert clone.repro() == 0
    assert clone.files() == clone.first


@pytest.mark.slow
@pytest.mark.long
def test_a_new_method_file_trains_nothing(clone):
    (clone.folder / "hkd/methods/toy.py").write_text('"""A method nobody uses yet."""\n\nCONSTANT = 1\n')
    assert clone.repro() == 0
    assert clone.files() == clone.first


@pytest.mark.slow
@pytest.mark.long
def test_a_constant_in_kd_trains_the_kd_runs_only(clone):
    before = set(clone.records())
    clone.edit("hkd/methods/kd.py", lambda text: text + "\nEXTRA = 1\n")
    assert clone.repro() == 4
    labels = clone.labels(set(clone.records()) - before)
    assert len(labels) == 4
    assert all(label.startswith("kd-") for label in labels)


@pytest.mark.long
def test_one_more_seed_trains_that_seed_only_and_metrics_diff_has_numbers_of_both_revisions(clone):
    clone.commit("two seeds")
    before, old = set(clone.records()), clone.metrics()
    clone.params(seeds=3)
    assert clone.repro() == 6  # what two seeds had, half as much again
    assert all(label.endswith(" seed 2") for label in clone.labels(set(clone.records()) - before))

    changes = json.loads(clone.asked("metrics", "diff", "HEAD", "--all", "--json"))[METRICS]
    new = clone.metrics()
    assert len(accuracies(changes)) == 6
    for name in accuracies(changes):
        assert changes[name]["old"] == pytest.approx(old[name], abs=1e-3)
        assert changes[name]["new"] == pytest.approx(new[name], abs=1e-3)
    clone.commit("three seeds")


@pytest.mark.long
def test_a_crashed_run_fails_the_stage_writes_the_table_and_the_next_repro_runs_just_it(clone):
    start = "        config = self.config\n"
    clone.edit("hkd/methods/kd.py", lambda text: text.replace(start, f"        _crash_if_asked()\n{start}", 1) + CRASH)
    before = set(clone.records())
    flag = Path(clone.env["HKD_TEST_CRASH"])
    flag.touch()
    output = clone.dvc("repro", TABLE, fails=True)
    assert not flag.exists()
    assert "asked to crash" in output
    fresh = {key: status for key, status in clone.statuses().items() if key not in before}
    assert f"{len(fresh)} of " in output
    assert sorted(fresh.values()) == ["done"] * (len(fresh) - 1) + ["failed"]
    assert len(fresh) == 2 * len(clone.seeds())  # kd on both pairs
    assert {line["status"] for line in clone.table()} == {"done", "partial", "not in this profile"}
    assert clone.run("hkd", "show", TABLE).returncode == 0

    crashed = next(key for key, status in fresh.items() if status == "failed")
    others = {path: path.read_bytes() for key, path in clone.records().items() if key != crashed}
    assert clone.repro() == 1
    assert clone.statuses()[crashed] == "done"
    assert {path: path.read_bytes() for path in others} == others
    assert {line["status"] for line in clone.table()} == {"done", "not in this profile"}


@pytest.mark.long
def test_hkd_run_exits_1_when_a_run_crashed_and_0_when_it_was_brought(clone):
    clone.edit("hkd/methods/kd.py", lambda text: text + "\nANOTHER = 1\n")
    Path(clone.env["HKD_TEST_CRASH"]).touch()
    assert clone.run("hkd", "run", TABLE).returncode == 1
    done = clone.run("hkd", "run", TABLE)
    assert done.returncode == 0
    assert "1 of 19 runs executed" in done.stdout


@pytest.mark.long
def test_experiments_show_the_numbers_of_both_revisions(clone):
    clone.dvc("repro", TABLE)
    clone.commit("before the experiment")
    old = clone.metrics()
    clone.dvc("exp", "run", "-S", "recipe.epochs=1", "-n", "short", TABLE)
    new = clone.metrics()
    assert new != old

    shown = list(csv.DictReader(clone.asked("exp", "show", "--csv").splitlines()))
    by_name = {line["Experiment"]: line for line in shown if line["Experiment"]}
    branch = git(clone.folder, "branch", "--show-current").strip()
    main = next(line for line in shown if line["rev"] == branch or line["Experiment"] == branch)
    for line, values in ((main, old), (by_name["short"], new)):
        columns = {name: value for name, value in line.items() if name and value}
        assert len(accuracies(columns)) == 6
        for name in accuracies(columns):
            assert float(columns[name]) == pytest.approx(values[name.rpartition(":")[2]], abs=1e-3)

    changes = json.loads(clone.asked("exp", "diff", "HEAD", "short", "--all", "--json"))["metrics"][METRICS]
    assert len(accuracies(changes)) == 6
    for name in accuracies(changes):
        assert changes[name]["old"] == pytest.approx(old[name], abs=1e-3)
        assert changes[name]["new"] == pytest.approx(new[name], abs=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_kill_9_in_mid_run_keeps_finished_runs_and_the_next_repro_does_the_rest_to_the_same_table(clone, tmp_path):
    other = Clone(tmp_path / "clone", origin=clone.folder)
    process = subprocess.Popen(
        ["dvc", "repro", TABLE], cwd=other.folder, env=other.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    began = time.monotonic()
    while len(other.records()) < 4:
        assert process.poll() is None
        assert time.monotonic() - began < 120, "waited too long"
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    driver = next(child for child in started if child.cmdline()[-2:] == ["run", TABLE])
    driver.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(started, timeout=60)  # workers notice that their driver is gone
    assert not alive

    finished = {path: path.read_bytes() for path in other.records().values()}
    assert 4 <= len(finished) < RUNS
    assert other.repro() == RUNS - len(finished)
    assert {path: path.read_bytes() for path in finished} == finished
    assert other.files()["table.csv"] == clone.first["table.csv"]
    assert set(other.records()) <= set(clone.records())  # a run is named the same everywhere


@pytest.mark.long
def test_a_figure_trains_its_chain_draws_its_pictures_and_then_nothing_more(clone):
    output = clone.dvc("repro", "hgkd_pictures")
    count = 2 + 2 * len(clone.seeds())  # the teacher and its probe; H-GKD and the pixel control
    assert f"{count} of {count} runs executed" in output, output
    drawn = clone.folder / "results" / "smoke" / "hgkd_pictures"
    pictures = {name: (drawn / f"{name}.png").read_bytes() for name in PICTURES}
    assert json.loads((drawn / "pictures.json").read_text())["active"]["stage_4"] == 6 / 16
    clone.edit("hkd/methods/hgkd.py", lambda text: text + "# a comment\n")
    assert f"0 of {count} runs executed" in clone.dvc("repro", "hgkd_pictures")
    assert {name: (drawn / f"{name}.png").read_bytes() for name in PICTURES} == pictures
