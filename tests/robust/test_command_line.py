"""Hostile arguments, environments and files given to `hkd`: always an exit code and a sentence, never a traceback."""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cli
from experiments import places as places_module
from experiments.commands import tables as commands
from experiments.execution.pools import awaited, connected
from experiments.planning import schema
from experiments.planning.plan import Cell
from experiments.records.store import Record, Store
from experiments.reproduce import described
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.tasks import TASKS
from tests.experiments.fake_tasks import fake_plan, fake_run

ROOT = Path(__file__).parents[2]
TABLE, PROFILE = "scalekd_table3", "smoke"
PLACES = ("HKD_RUNS", "HKD_RESULTS", "HKD_WEIGHTS", "HKD_DATA")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in PLACES:
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.fixture
def fake_table(monkeypatch):
    """The only table is one of a fake run, which takes no time."""
    monkeypatch.setitem(METHODS, "fake", "tests.experiments.fake_tasks:FakeMethod")
    monkeypatch.setitem(TASKS, "fake", "tests.experiments.fake_tasks:task")
    run = fake_run("one")
    cell = Cell(
        row="one", teacher="", student="student", method="fake", variant="", metric="top1", label="Fake",
        row_label=("", "one"), runs=("one",),
    )  # fmt: skip
    plan = replace(fake_plan(run), cells=(cell,))
    monkeypatch.setattr(commands, "planned", lambda table, profile=None, seeds=None, **rest: plan)
    monkeypatch.setattr("experiments.drawings.base.drawing", lambda *arguments: None)  # it has no file
    return plan


@pytest.fixture
def hkd(capsys):
    """Calls the command; its exit code and the lines on stderr, none of which is of a traceback."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main([*arguments])
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines)
        return left.value.code, lines

    return call


def refused(answer, *parts):
    """The answer is exit code 2 and one sentence with these parts."""
    code, lines = answer
    assert (code, len(lines)) == (2, 1), answer
    assert all(part in lines[0] for part in parts), lines
    return True


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", TABLE, "--workers", "-1"), "--workers"),
        (("run", TABLE, "--workers", "1.5"), "'1.5' is no whole number"),
        (("run", TABLE, "--workers", "0x2"), "'0x2' is no whole number"),
        (("run", TABLE, "--workers", "many"), "'many' is no whole number"),
        (("run", TABLE, "--workers", "٣"), "is no whole number"),
        (("run", TABLE, "--workers", ""), "'' is no whole number"),
        (("show", TABLE, "--seeds", "0"), "seeds must be at least 1"),
        (("show", TABLE, "--seeds", "-3"), "seeds must be at least 1"),
        (("show", TABLE, "--seeds", "1000000000"), "at most 1000"),
        (("show", TABLE, "--seeds", "nan"), "'nan' is no whole number"),
        (("show", TABLE, "--profile", ""), "Unknown profile ''"),
        (("run", TABLE, "--profile", ""), "Unknown profile ''"),
        (("tables", "--profile", ""), "Unknown profile ''"),
        (("teachers", "--profile", ""), "Unknown profile ''"),
        (("claims", "--profile", ""), "Unknown profile ''"),
        (("show", ""), "Unknown table ''"),
        (("show", "../published/scalekd"), "Unknown table"),
        (("show", "/etc/passwd"), "Unknown table"),
        (("show", TABLE, "--profile", "laptop/../laptop"), "Unknown profile"),
        (("run", TABLE, "--data", "~nouser/x"), "--data is ~nouser/x, where no folder can be"),
        (("run", TABLE, "--data", "params.yaml"), "--data is params.yaml, where no folder can be"),
        (("runs", "show", ""), "Unknown run ''"),
        (("runs", "show", "../.."), "Unknown run"),
    ],
)
def test_an_argument_that_cannot_be_is_one_sentence(hkd, arguments, says):
    assert refused(hkd(*arguments), says)


# --- the environment


@pytest.mark.parametrize("name", PLACES[:2])
@pytest.mark.parametrize(
    "value", ["{file}", "{file}/below", "~nouser/runs", "/dev/null", "/dev/null/x", "{circle}/x", "x" * 5000]
)
def test_a_place_where_no_folder_can_be_is_one_sentence(hkd, places, monkeypatch, fake_table, name, value):
    (places / "file").write_text("")
    (places / "circle").symlink_to(places / "circle")
    monkeypatch.setenv(name, value.format(file=places / "file", circle=places / "circle"))
    assert refused(hkd("run", "fake_table", "--workers", "0"), f"{name} is ", "give the path of a folder")


@pytest.mark.parametrize("name", PLACES[:2])
def test_a_place_that_the_system_does_not_give_is_one_sentence(hkd, monkeypatch, fake_table, name):
    monkeypatch.setenv(name, "/proc/nowhere")
    assert refused(hkd("run", "fake_table", "--workers", "0"), "Cannot write to /proc/nowhere")


def test_an_unset_place_is_the_default(monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", "")
    assert places_module.results() == places_module.repository() / "results"


def test_claims_on_results_that_cannot_be_written_are_one_sentence(hkd, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", "/proc/nowhere")
    monkeypatch.setattr("experiments.results.claims.check.everywhere", list)
    assert refused(hkd("claims"), "Cannot write /proc/nowhere/claims", "set HKD_RESULTS")


def test_letters_that_a_terminal_cannot_show_stand_in_no_ones_way(places):
    """An ASCII locale: what is read, written and printed has other letters all the same."""
    stored(places, label="Größe → 🙂")
    script = (
        "from pathlib import Path; from experiments import cli; from experiments.planning import schema\n"
        f"path = Path({str(places / 'params.yaml')!r})\n"
        "path.write_bytes(b'profile: smoke # Gr\\xc3\\xb6\\xc3\\x9fe')\n"
        "assert schema.load_params(path).profile == 'smoke'\n"
        "cli.main(['runs', 'list'])"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT, env=os.environ | ascii_only)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"Gr??e ? ?" in ran.stdout


# --- schedulers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a scheduler file"),
        ("[]", "is not a scheduler file"),
        ('{"id": 1}', "is not a scheduler file"),
        ("[" * 100_000, "is not a scheduler file"),
        ('{"address": "nonsense"}', "does not answer at nonsense"),
        ('{"address": "xyz://host:1"}', "does not answer at xyz://host:1"),
        ('{"address": "tcp://127.0.0.1:99999"}', "does not answer"),
        ('{"address": "tcp://127.0.0.1:1"}', "does not answer at tcp://127.0.0.1:1; start it again"),
        (None, "There is no scheduler file"),
    ],
)
def test_a_scheduler_file_of_something_else_is_one_sentence(hkd, places, monkeypatch, fake_table, text, says):
    path = places / "scheduler.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr("experiments.execution.pools.ANSWER_S", 0.5)
    assert refused(hkd("run", "fake_table", "--scheduler-file", str(path)), says)


def test_dask_is_not_asked_to_reach_an_address_at_which_nobody_is(places, monkeypatch):
    """It tries again and again for twice its time limit."""
    monkeypatch.setattr("distributed.Client", None)
    (places / "scheduler.json").write_text('{"address": "tcp://127.0.0.1:1"}')
    with pytest.raises(UserError, match="does not answer at tcp://127"):
        connected(places / "scheduler.json")


def test_a_folder_for_a_scheduler_file_is_one_sentence(hkd, places, fake_table):
    assert refused(hkd("run", "fake_table", "--scheduler-file", str(places)), "cannot be read (Is a directory)")


def test_something_else_that_listens_at_a_schedulers_address_is_one_sentence(places, monkeypatch, capfd):
    monkeypatch.setattr("experiments.execution.pools.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = places / "scheduler.json"
        path.write_text(json.dumps({"address": f"tcp://127.0.0.1:{server.getsockname()[1]}"}))
        with pytest.raises(UserError, match="does not answer"):
            connected(path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a scheduler file"),
        ('{"id": 1}', "is not a scheduler file"),
        ('{"address": "tcp://127.0.0.1:1"}', "does not answer at tcp://127.0.0.1:1; start it again"),
        ('{"address": "tcp://127.0.0.1:99999"}', "does not answer"),
    ],
)
def test_a_worker_of_no_scheduler_is_one_sentence(hkd, places, monkeypatch, text, says):
    path = places / "scheduler.json"
    path.write_text(text)
    monkeypatch.setattr("experiments.execution.pools.ANSWER_S", 0.5)
    monkeypatch.setattr("experiments.execution.pools.WRITTEN_S", 0.2)
    assert refused(hkd("worker", "--scheduler-file", str(path)), says)


def test_a_worker_reads_a_scheduler_file_once_it_is_whole(places):
    path = places / "scheduler.json"
    path.write_text("{")
    writing = threading.Timer(0.3, path.write_text, ['{"address": "tcp://127.0.0.1:1"}'])
    writing.start()
    assert awaited(path) == "tcp://127.0.0.1:1"


# --- output


@pytest.mark.parametrize("command", [("tables",), ("plan", TABLE, "--profile", PROFILE)])
def test_output_that_goes_to_a_full_disk_is_one_sentence(places, command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.cli", *command],
            cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert refused((done.returncode, done.stderr.splitlines()), "What the output is sent to", "No space left on device")


# --- records


def stored(places, **fields):
    store = Store(places / "hkd_runs")
    facts = {"key": "one", "label": "fake one", "status": "done", "spec": {}, "metrics": {"top1": 50.0}}
    store.write(Record(**facts | fields))
    return store.folder("one") / "record.json"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0" * 100, b'{"digest": NaN}', None],
    ids=["empty", "brace", "null", "deep", "deep keys", "not utf-8", "nul", "nan", "folder"],
)
def test_something_else_in_a_records_place_is_one_sentence(hkd, places, fake_table, content):
    path = stored(places)
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for command in (("run", "fake_table", "--workers", "0"), ("show", "fake_table"), ("runs", "list")):
        assert refused(hkd(*command), str(path))


def test_a_flipped_bit_anywhere_in_a_record_is_told_or_moves_nothing(places, hkd, fake_table):
    path, draw = stored(places), random.Random(15)
    whole = path.read_bytes()
    code, before = hkd("show", "fake_table")
    assert code == 0
    for at in draw.sample(range(len(whole)), 30):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        answer = hkd("show", "fake_table")
        assert answer == (0, before) or refused(answer, str(path))


# --- params.yaml


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"profile: laptop\nseeds: 1 # \xe9\n", "params.yaml:2: not UTF-8"),
        (b"profile: lap\0top\n", "params.yaml:1: not valid YAML: it has a character that no text has"),
        (b"profile: [laptop\n", "not valid YAML"),
        (b"recipe:\n  lr: .nan\n", "params.yaml:2: recipe.lr: nan is no text, truth value or finite number"),
        (b"recipe:\n  lr: -.inf\n", "params.yaml:2: recipe.lr: -inf is no text"),
        (b"recipe:\n  lr: 2026-11-29\n", "params.yaml:2: recipe.lr: 2026-11-29 is no text"),
        (b"recipe:\n  lr: 2026-13-77\n", "params.yaml"),
        (b"profile: 2026-11-29\n", "params.yaml:1: profile: 2026-11-29 is no text"),
        (b"profile: !!binary aGk=\n", "params.yaml:1: profile: b'hi' is no text"),
        (b"seeds: 0\n", "params.yaml:1: seeds: "),
        (b"seeds: 1.5\n", "params.yaml:1: seeds: "),
        (b"seeds: yes please\n", "params.yaml:1: seeds: "),
        (b'profile: "a\\eb"\n', "params.yaml:1: profile: a text has the character U+001B, which cannot be printed"),
        (b"[" * 1_000, "params.yaml"),
        (b"- laptop\n", "params.yaml:1: keys are expected"),
    ],
)
def test_a_params_file_that_cannot_be_is_one_sentence_with_its_place(tmp_path, content, says):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as found:
        schema.load_params(path)
    assert says in str(found.value)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("leads", ["nowhere", "."])
def test_what_is_no_params_file_is_not_taken_for_none(tmp_path, leads):
    (tmp_path / "params.yaml").symlink_to(leads)
    with pytest.raises(UserError, match=r"params\.yaml cannot be read"):
        schema.load_params(tmp_path / "params.yaml")


def test_a_name_of_several_lines_is_told_on_one(hkd):
    assert refused(hkd("show", TABLE, "--profile", "a\nb"), "Unknown profile 'a\\nb'.")
    assert str(UserError("Unknown profile 'a\nb'.")) == "Unknown profile 'a\\nb'."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"pid": 12, "host": "laptop"}', "process 12 on laptop"),
        (b'{"pid": 12, "host": "a\\n\\u001bb"}', "process 12 on ab"),
        (b'["pid"]', "another process"),
        (b"[" * 100_000, "another process"),
        (b"\xff", "another process"),
        (b"", "another process"),
    ],
)
def test_who_holds_a_table_is_told_as_far_as_it_is_known(tmp_path, content, said):
    (tmp_path / "holder.json").write_bytes(content)
    assert described(tmp_path / "holder.json") == said


def test_a_byte_order_mark_is_no_part_of_a_params_file(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfprofile: smoke\n")
    assert schema.load_params(tmp_path / "params.yaml").profile == "smoke"


def test_a_profile_of_no_devices_is_refused():
    with pytest.raises(UserError, match="devices"):
        schema.validated(schema.Machine, {"devices": 0}, lambda loc, message: UserError(f"{loc}: {message}"))


# --- all at once

WORDS = (
    "", " ", "-", "--", "---", "-1", "0", "1.5", "1e9", "nan", "inf", "10" * 40, "~", "~nouser", "/", "/dev/null", ".",
    "..", "%s", "{}", "$HOME", "'", '"', "\\", "\n", "\t", "\x1b[31m", "é", "🙂", "\udcff", "a" * 10_000, "null", "[]",
    "*", "true", "--help=", "--profile", "--seeds", "--workers", "--no-wait", "--scheduler-file", "--data", "--device",
    "--table", TABLE, "laptop", "hcd_cifar100", "digits", "kd", "--images", "--limit", "--batch-size", "swin_s",
)  # fmt: skip
COMMANDS = (
    ("tables",), ("plan",), ("show",), ("check",), ("runs", "list"), ("runs", "show"), ("runs",), ("weights",),
    ("reference", "update"), ("weights", "convert"), ("numerics", "prove", "--table"), ("run", "--profile"),
    ("worker",), (),
)  # fmt: skip


def hostile(seed, count):
    """Command lines of a command and up to four words; the same for a seed."""
    draw = random.Random(seed)
    for _ in itertools.repeat(None, count):
        yield (*draw.choice(COMMANDS), *draw.choices(WORDS, k=draw.randrange(1, 5)))


@contextmanager
def nothing_starts(monkeypatch):
    """Commands are parsed and checked; what would take minutes after that is left out."""
    with monkeypatch.context() as patched:
        patched.setattr(commands, "reproduce", stop)
        patched.setattr(commands, "serve", stop)
        patched.setattr("experiments.proving.prove.prove", stop)
        patched.setattr(commands.schema, "table_ids", lambda: [TABLE, "hcd_cifar100"])
        yield


def stop(*arguments, **options):
    raise UserError("Stopped by the test.")


def check_hostile(hkd, monkeypatch, seed, count):
    with nothing_starts(monkeypatch):
        for arguments in hostile(seed, count):
            code, lines = hkd(*arguments)
            assert code in (0, 1, 2), arguments
            assert code != 2 or len(lines) == 1, (arguments, lines)


def test_hostile_command_lines_end_with_a_code_and_a_sentence(hkd, monkeypatch):
    check_hostile(hkd, monkeypatch, seed=15, count=60)


@pytest.mark.slow
@pytest.mark.long
def test_very_many_hostile_command_lines_do(hkd, monkeypatch):
    check_hostile(hkd, monkeypatch, seed=16, count=3000)


def test_a_working_folder_that_is_gone_and_a_closed_output_end_in_no_traceback(tmp_path):
    command = f"exec {sys.executable} -c 'from experiments.cli import main; main()' tables"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HKD_RUNS": str(tmp_path / "runs")}
    for script, code in (
        (f"mkdir {tmp_path}/x; cd {tmp_path}/x; rmdir {tmp_path}/x; {command}", 2),
        (f"{command} >&-", 0),
    ):
        ran = subprocess.run(["sh", "-c", script], capture_output=True, cwd=ROOT, env=environment, text=True)
        assert ran.returncode == code
        assert "Traceback" not in ran.stderr
