"""Command lines and environments of every command; what would train, download or look at others' files is left out."""

import contextlib
import io
import os
import random
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from experiments import cli, teachers
from experiments.commands import tables, weights
from experiments.commands.app import app
from experiments.planning import schema
from hkd.errors import UserError
from tests.robust.fuzz import Input, Kind

TABLES = ("scalekd_table1", "hybrid_table10", "hcd_schedule", "hybrid_fig4")
WORDS = (
    "", " ", "-", "--", "---", "-1", "0", "1", "2", "1.5", "1e9", "nan", "inf", "0x10", "٣", "+1", "10" * 40, "~",
    "~nouser", "/", "/dev/null", "/dev/zero", ".", "..", "%s", "{}", "$HOME", "'", '"', "\\", "\n", "a\nb", "\t", "\r",
    "\x1b[31m", "é", "🙂", "\udcff", "\ud800", "a" * 10_000, "null", "[]", "*", "true", "--help=", "--", "-h", "-S",
    "--override", "epochs=1", "profile=cifar", "@file", *TABLES, "smoke", "laptop", "paper", "Laptop", "digits", "kd",
    "swin_s", "resnet18=x.safetensors", "cpu", "cuda:99",
)  # fmt: skip
RIGHT = {"--profile": "laptop", "--seeds": "2", "--workers": "0", "--table": TABLES[0], "--device": "cpu"}
SLOW = (
    "experiments.proving.prove.prove",
    "experiments.analyse.run",
    "experiments.doctor.examine",
    "experiments.planning.rekey.rekey",
    "experiments.report.build.build",
    "experiments.results.overview.write_summary",
    "experiments.results.pages.write",
    "experiments.until.buy",
    "experiments.results.claims.check.check_all",
    "hkd.models.convert.legacy.convert",
    "hkd.models.convert.mim_checkpoints.convert_file",
)
PLACES = ("HKD_RUNS", "HKD_RESULTS", "HKD_WEIGHTS", "HKD_DATA", "HKD_SCHEDULER_FILE", "HKD_YES", "COLUMNS", "TERM",
          "NO_COLOR", "HOME", "TMPDIR", "PYTHONPATH")  # fmt: skip
VALUES = (
    "", " ", "/", "/proc/nowhere", "/proc/self/mem", "/dev/null", "/dev/null/x", "{folder}/file", "{folder}/file/x",
    "{folder}/circle", "{folder}/fifo", "{folder}/none", "{folder}/none/é 🙂", "~nouser/runs", "~", "relative", "..",
    "x" * 5000, "a\nb", "\udcff", "-1", "0", "nan", "true", "yes", "1e9", "tcp://127.0.0.1:1", "\x1b[31m", "$HOME",
)  # fmt: skip


@cache
def commands() -> dict[tuple[str, ...], list[str]]:
    """Every command's words, and the names of its options."""
    found: dict[tuple[str, ...], list[str]] = {}

    def visit(each: Any, words: tuple[str, ...]) -> None:
        for name in each:
            if name.startswith("-"):
                continue
            inner = each[name]
            visit(inner, (*words, name))
            if inner.default_command is not None:
                found[*words, name] = [option for argument in inner.assemble_argument_collection()
                                       for option in argument.names if option.startswith("--")]  # fmt: skip

    visit(app, ())
    return found


def a_command_line(rng: random.Random) -> list[str]:
    """A command with up to five odd words, values of its own options among them."""
    command = rng.choice([*commands(), ("runs",), ("weights",), ("nothing",), ()])
    line = [*command]
    if rng.random() < 0.6:
        line.append(rng.choice(TABLES))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        options = commands().get(command, [])
        if options and rng.random() < 0.7:
            name = rng.choice(options)
            value = rng.choice((rng.choice(WORDS), RIGHT.get(name, "1")))
            line += rng.choice(([name, value], [f"{name}={value}"], [name]))
        else:
            line.insert(rng.randint(0, len(line)), rng.choice(WORDS))
    return [word.replace("\0", "") for word in line]


def stop(*arguments: Any, **options: Any) -> Any:
    raise UserError("Stopped by the test.")


@contextlib.contextmanager
def nothing_starts(folder: Path, environment: dict[str, str]) -> Any:
    """Commands are parsed, checked and planned; what would take minutes or leave the machine is left out."""
    kept = {name: str(folder / name.lower()) for name in PLACES[:4]}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, kept | environment))
        for of, name in ((tables, "reproduce"), (tables, "serve"), (weights, "reachable"), (weights, "fetch_weights")):
            stack.enter_context(patch.object(of, name, stop))
        for name in SLOW:
            stack.enter_context(patch(name, stop))
        few = SimpleNamespace(**{**vars(schema), "table_ids": lambda: list(TABLES)})
        for module in (tables, teachers):
            stack.enter_context(patch.object(module, "schema", few))
        stack.enter_context(contextlib.chdir(folder))  # relative places are made here
        yield


def said_by(arguments: list[str], encoding: str) -> tuple[int, str]:
    """The exit code of a command, and what it says on stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with patch("sys.stdout", out), patch("sys.stderr", err):
        try:
            cli.main(arguments)
        except SystemExit as left:
            code = left.code or 0  # of help, none
    assert isinstance(err.buffer, io.BytesIO)
    said = err.buffer.getvalue().decode(encoding)
    assert type(code) is int, f"exit code {code!r}"
    return code, said


def judged(arguments: list[str], encoding: str) -> None:
    """Raises UserError with what was said where a command refuses, and AssertionError where it ends another way."""
    code, said = said_by(arguments, encoding)
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in said, said
    if code == 2:
        raise UserError(said.removesuffix("\n").replace("\n", "\n\n") or "\n")


def command_lines(rng: random.Random, folder: Path) -> Input:
    arguments, encoding = a_command_line(rng), rng.choice(("utf-8", "utf-8", "ascii", "latin-1"))

    def attempt() -> None:
        with nothing_starts(folder, {}):
            judged(arguments, encoding)

    return Input(f"{[word[:60] for word in arguments]} {encoding}", attempt)


ASKED = (["show", TABLES[0]], ["plan"], ["runs", "list"], ["runs", "show", "x"], ["run", TABLES[0], "--yes"],
         ["reference", "update", TABLES[0]], ["worker"], ["check"], ["claims", "--profile", "smoke"], ["teachers"],
         ["weights", "fetch", "swin_s"])  # fmt: skip


def environments(rng: random.Random, folder: Path) -> Input:
    (folder / "file").write_text("x")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "fifo")
    chosen = rng.sample(PLACES, rng.choice((1, 1, 2)))
    values = {name: rng.choice(VALUES).replace("{folder}", str(folder)) for name in chosen}
    arguments = rng.choice(ASKED)

    def attempt() -> None:
        with nothing_starts(folder, values):
            judged(arguments, "utf-8")

    return Input(f"{ {name: value[:60] for name, value in values.items()} } {arguments}", attempt)


KINDS: dict[str, Kind] = {"command_lines": command_lines, "environments": environments}
