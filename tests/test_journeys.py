"""What users do with DVC, in a temporary clone: how many runs each step trains, and that nothing finished is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = "scalekd_table3"
RUNS = 13  # smoke: one teacher, and two pairs x three methods x two seeds
CRASH = """
import os as _os
from pathlib import Path as _Path


def _crash_if_asked() -> None:
    if _Path(_os.environ.get("HKD_TEST_CRASH", "/nonexistent")).exists():
        raise RuntimeError("asked to crash")
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Clone:
    """A checkout of the working tree at the smoke profile, with its own store of runs."""

    def __init__(self, folder):
        self.folder = folder
        names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.params(profile="smoke")
        git(folder, "init", "-q")
        self.commit("start")
        scripts = str(Path(sys.executable).parent)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HKD_", "GIT_"))},
            "PATH": scripts + os.pathsep + os.environ["PATH"],
            "HKD_TEST_CRASH": str(folder / "crash"),
        }

    def commit(self, message):
        git(self.folder, "add", "-A")
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        git(self.folder, *who, "commit", "-q", "--allow-empty", "-m", message)

    def params(self, **changes):
        path = self.folder / "params.yaml"
        text = path.read_text()
        for key, value in changes.items():
            text = re.sub(rf"^( *){key}: \S+", rf"\g<1>{key}: {value}", text, flags=re.M)
        path.write_text(text)

    def edit(self, name, change):
        path = self.folder / name
        path.write_text(change(path.read_text()))

    def dvc(self, *arguments, code=0):
        done = subprocess.run(
            ["dvc", *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code if code is not None else True, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, **expected):
        """Reproduce the table; the number of runs that were executed."""
        output = self.dvc("repro", TABLE, **expected)
        found = re.search(r"(\d+) of \d+ runs executed", output)
        assert found, output
        return int(found[1])

    def files(self):
        results = self.folder / "results" / TABLE
        return {path.name: path.read_bytes() for path in results.iterdir()}

    def records(self):
        return sorted((self.folder / "results" / "runs").glob("*/record.json"))


def git(folder, *arguments):
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which the table was reproduced once, committed."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    assert made.repro() == RUNS
    made.commit("first table")
    return made


def test_a_second_repro_did_not_change_anything(clone):
    assert "didn't change" in clone.dvc("repro", TABLE)


def test_a_comment_trains_nothing_and_writes_equal_bytes(clone):
    before = clone.files()
    clone.edit("hkd/methods/kd.py", lambda text: text + "# a comment\n")
    assert clone.repro() == 0
    assert clone.files() == before


def test_a_new_method_file_trains_nothing(clone):
    (clone.folder / "hkd/methods/toy.py").write_text('"""A method nobody uses yet."""\n')
    assert clone.repro() == 0


def test_a_constant_in_kd_trains_the_kd_runs_only(clone):
    clone.edit("hkd/methods/kd.py", lambda text: text + "\nEXTRA = 1\n")
    assert clone.repro() == 4
    labels = [json.loads(path.read_text())["label"] for path in sorted(clone.records(), key=os.path.getmtime)[-4:]]
    assert all(label.startswith("kd-") for label in labels)


def test_one_more_seed_trains_that_seed_only_and_both_revisions_show_numbers(clone):
    clone.commit("two seeds")
    clone.params(seeds=3)
    assert clone.repro() == 6
    shown = json.loads(clone.dvc("metrics", "diff", "HEAD", "--json").split("\n")[0])
    changes = shown[f"results/{TABLE}/metrics.json"]
    assert any(
        isinstance(v.get("old"), (int, float)) and isinstance(v.get("new"), (int, float)) for v in changes.values()
    )
    clone.commit("three seeds")


def test_a_crashed_run_exits_1_writes_the_table_and_the_next_repro_runs_just_it(clone):
    def crashing(text):
        return text.replace("    def forward(", "    def forward(", 1) + CRASH

    clone.edit("hkd/methods/kd.py", crashing)
    clone.edit(
        "hkd/methods/kd.py",
        lambda text: text.replace(
            "        config = self.config\n", "        _crash_if_asked()\n        config = self.config\n", 1
        ),
    )
    (clone.folder / "crash").touch()
    output = clone.dvc("repro", TABLE, code=None)
    assert "asked to crash" in output
    assert clone.dvc("repro", TABLE, code=255)  # DVC's own code for a failed stage
    assert "failed" in (clone.folder / "results" / TABLE / "table.csv").read_text()
    (clone.folder / "crash").unlink()
    assert clone.repro() == 6


def test_experiments_can_be_run_shown_and_compared(clone):
    clone.commit("before the experiment")
    clone.dvc("exp", "run", "-S", "recipe.lr=0.01", "-n", "lr", TABLE)
    shown = clone.dvc("exp", "show", "--csv")
    rows = [line for line in shown.splitlines() if "lr" in line or "main" in line or "master" in line]
    assert rows
    assert re.search(r"\d+\.\d+", "".join(rows))
    assert re.search(r"\d+\.\d+", clone.dvc("exp", "diff", "HEAD", "lr"))
    git(clone.folder, "checkout", "-q", ".")


def test_kill_9_in_mid_run_keeps_finished_runs_and_the_next_repro_does_the_rest(tmp_path):
    whole = Clone(tmp_path)
    whole.params(epochs=30)
    process = subprocess.Popen(
        ["dvc", "repro", TABLE], cwd=tmp_path, env=whole.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.time() + 300
    while len(whole.records()) < 4 and time.time() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)  # workers notice that their scheduler is gone
    finished = {path: path.read_bytes() for path in whole.records()}
    assert 4 <= len(finished) < RUNS
    for lock in (tmp_path / ".dvc" / "tmp").glob("*lock*"):
        lock.unlink()  # DVC's own: it asks for this after a kill
    assert whole.repro() == RUNS - len(finished)
    assert {path: path.read_bytes() for path in finished} == finished
