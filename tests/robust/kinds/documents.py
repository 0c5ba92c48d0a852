"""YAML files: tables, profiles, published values, claims, manifests and params.yaml, changed in every way."""

import contextlib
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ruamel.yaml import YAML

from experiments import places
from experiments.planning import schema, standins
from experiments.planning.plan import Plan, plan
from experiments.planning.schema import load_params
from experiments.records.store import Store
from experiments.reproduce import compared, runtime_for
from experiments.results.claims import check, documents
from experiments.results.claims.report import markdown
from hkd.errors import UserError
from tests.hkd.test_options import CLASSES, assert_inside
from tests.robust.damage import changed, damaged, retyped
from tests.robust.fuzz import Input, Kind

FOLDERS = ("tables", "profiles", "published", "claims", "manifests")
SMALL = ("scalekd_table1", "hybrid_table10", "hybrid_fig4", "hcd_schedule", "hgkd_open_questions", "scalekd_fig6")
PROFILES = ("smoke", "laptop", "laptop", "paper", "cifar")
SCALARS = (
    "~", "null", "true", "yes", "0", "-1", "1.5", "1e400", "-1e400", ".nan", ".inf", "0x7fffffffffffffffff", "1_000",
    "12:30:45", "2026-11-29", "2026-13-77", "2026-11-29T00:00:00Z", "!!python/object/apply:os.system [echo]",
    "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp x", "!!int x",
    "!!float x", "!!str", "!unknown x", "&a [*a]", "&b {x: *b}", "*nowhere", "|", ">", "|9", "'", '"', '"\\ud800"',
    '"\\0"', '"\\x1b[31m"', "[", "]", "{", "}", "[[[[[]]]]]", "{a: }", "? a", "- a", "<<: *a", "{<<: {a: 1}}",
    "{<<: 1}", "{<<: [1]}", "&c {<<: *c}", "{a: 1, a: 2}", "{[1]: 2}", "{{a: 1}: 2}", "{~: 1}", "{1: 2}", "%YAML 1.1",
    "---", "...", "#", "\t", "@", "`", "1" * 500, "1" * 5000, "x" * 5000, "é🙂", "../../etc/passwd", "supervised",
    "swin_l", "laptop", "top1", "[1, 2]", "{a: b}",
)  # fmt: skip
BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
WHOLES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "null": lambda text: b"~",
    "a list at the top": lambda text: b"- a\n- b\n",
    "a text at the top": lambda text: b"hello",
    "a number at the top": lambda text: b"1e400",
    "a bomb of aliases": lambda text: BOMB.encode(),
    "a bomb that is merged": lambda text: re.sub(r"\[(.*), (.*)\]", r"{<<: [\1, \2]}", BOMB[17:]).encode(),
    "itself": lambda text: b"&a\n- *a\n",
    "deep brackets": lambda text: b"[" * 100_000,
    "deep closed brackets": lambda text: b"[" * 100_000 + b"]" * 100_000,
    "deep braces": lambda text: b"{a: " * 30_000,
    "deep brackets with quoted ends": lambda text: b"['[]]', " * 30_000,
    "deep dashes": lambda text: b"- " * 30_000 + b"a",
    "deep question marks": lambda text: b"? " * 30_000 + b"a",
    "deep indentation": lambda text: b"".join(b" " * i + b"a:\n" for i in range(700)),
    "10 MB": lambda text: b"a: b\n" * 2_000_000,
    "10 MB on one line": lambda text: b"a: '" + b"x" * 10_000_000 + b"'",
    "many keys": lambda text: b"".join(b"k%d: 1\n" % i for i in range(20_000)),
    "many anchors": lambda text: b"".join(b"- &a%d x\n" % i for i in range(20_000)),
    "NUL": lambda text: b"\0" * 100,
    "a NUL in the middle": lambda text: text[: len(text) // 2] + b"\0" + text[len(text) // 2 :],
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "Latin-1": lambda text: text + "\nnote: é\n".encode("latin-1"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "two byte order marks": lambda text: b"\xef\xbb\xbf" * 2 + text,
    "twice": lambda text: text + b"\n" + text,
    "two documents": lambda text: text + b"\n---\n" + text,
    "Windows lines": lambda text: text.replace(b"\n", b"\r\n"),
    "Mac lines": lambda text: text.replace(b"\n", b"\r"),
    "unit separators": lambda text: text.replace(b"\n", "\u2028".encode()),
    "tabs": lambda text: text.replace(b"  ", b"\t"),
    "a directive": lambda text: b"%YAML 9.9\n---\n" + text,
    "a tag at the top": lambda text: b"--- !!python/object:os.environ\n" + text,
    "extends itself": lambda text: text + b"\nextends: laptop\n",
    "extends nothing": lambda text: text + b"\nextends: nobody\n",
    "extends a path": lambda text: text + b"\nextends: ../published/scalekd\n",
    "extends a list": lambda text: text + b"\nextends: [laptop]\n",
}
ELSE = ("folder", "fifo", "dangling link", "link to itself", "link to zeros", "link to memory", "unreadable", "socket")


# -- a folder of documents, one of which is hostile ---------------------------------------------------------------


real_parsed, REAL = schema.parsed, schema.HERE


@cache
def parsed_before(path: Path, shown: str) -> Any:
    """A committed document, parsed once for all inputs."""
    return real_parsed(path, shown)


def parsed(path: Path, shown: str) -> Any:
    """As `schema.parsed`; a link to a committed document is that document."""
    target = REAL / path.parent.name / path.name
    known = path.is_symlink() and os.readlink(path) == str(target)
    return parsed_before(target, shown) if known else real_parsed(path, shown)


def copied(folder: Path) -> Path:
    """A folder as experiments/ with links to all its YAML files."""
    for name in FOLDERS:
        (folder / "experiments" / name).mkdir(parents=True)
        for path in (REAL / name).glob("*.yaml"):
            (folder / "experiments" / name / path.name).symlink_to(path)
    return folder / "experiments"


@contextlib.contextmanager
def used(here: Path) -> Iterator[None]:
    """The YAML files of `here` are those of the suite, and nothing was run."""
    forget()
    store = {name: str(here.parent / name.lower()) for name in ("HKD_RUNS", "HKD_RESULTS", "HKD_WEIGHTS", "HKD_DATA")}
    with (
        patch.object(schema, "HERE", here),
        patch.object(schema, "parsed", parsed),
        patch.dict(os.environ, store),
        patch.object(places, "references", lambda: here / "none"),
    ):
        try:
            yield
        finally:
            forget()


def forget() -> None:
    """What was read before is not known any more."""
    for cached in (schema.read, schema.document, documents.load_claims):
        cached.cache_clear()


def put(rng: random.Random, path: Path, original: bytes) -> str:
    """Something hostile in the place of a file; what it is."""
    path.unlink(missing_ok=True)
    how = rng.choices(("values", "bytes", "line", "lines", "whole", "else"), (14, 3, 4, 1, 2, 1))[0]
    if how == "values":
        document, shown = schema.plain(parsed_text(original.decode())), []
        for _ in range(rng.choice((1, 1, 1, 2))):
            document, each = rng.choice((changed, retyped, retyped))(rng, document)
            shown.append(each)
            if "deepen" in each:
                break
        path.write_bytes(as_yaml(document).encode("utf-8", "surrogatepass"))
        return ", ".join(shown)
    if how == "bytes":
        content, shown_bytes = damaged(rng, original)
        path.write_bytes(content)
        return shown_bytes
    if how in {"line", "lines"}:
        lines = original.decode().split("\n")
        for _ in range(1 if how == "line" else min(3, len(lines) - 1)):
            at = rng.randrange(len(lines))
            what = rng.choice(("scalar", "scalar", "scalar", "indent", "double", "swap", "drop"))
            lines[at:] = new = [*other_line(rng, lines[at], what), *lines[at + 1 :]]
        path.write_text("\n".join(lines), encoding="utf-8")
        return f"{how} {at + 1}: {''.join(new[:1])[:60]!r}"
    if how == "whole":
        name = rng.choice(list(WHOLES))
        path.write_bytes(WHOLES[name](original))
        return name
    return put_other(rng.choice(ELSE), path, original)


def other_line(rng: random.Random, line: str, what: str) -> list[str]:
    """A line with another value, at another depth, twice, moved or gone."""
    if what == "scalar":
        key, colon, _ = line.partition(":")
        return [f"{key}{colon} {rng.choice(SCALARS)}" if colon else line + rng.choice(SCALARS)]
    if what == "indent":
        return [rng.choice((" ", "  ", "\t", "        ")) + line]
    return {"double": [line, line], "swap": [line[::-1]], "drop": []}[what]


def put_other(kind: str, path: Path, original: bytes) -> str:
    """What is no file, or none of ours to read."""
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.write_bytes(original)
        path.chmod(0)
    elif kind == "socket":
        import socket

        with contextlib.suppress(OSError):  # a path may be too long for one
            socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to({"link to itself": path.name, "link to zeros": "/dev/zero", "link to memory": "/proc/self/mem"}
                        .get(kind, "nowhere"))  # fmt: skip
    return kind


@cache
def parsed_text(text: str) -> Any:
    """A committed document, with the values that YAML gives."""
    return YAML(typ="rt").load(text)


def as_yaml(value: Any) -> str:
    """A nested value as YAML of one line, however deep and odd it is."""
    parts: list[str] = []
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Text):
            parts.append(item)
        elif isinstance(item, dict):
            inner = [part for key, each in item.items() for part in (_Text(f"{scalar(key)}: "), each, _Text(", "))]
            waiting += [_Text("}"), *reversed(inner), _Text("{")]
        elif isinstance(item, list):
            inner = [part for each in item for part in (each, _Text(", "))]
            waiting += [_Text("]"), *reversed(inner), _Text("[")]
        else:
            parts.append(scalar(item))
    return "".join(parts)


class _Text(str):
    """What is written as it stands."""


def scalar(value: Any) -> str:
    """A text, number or null as YAML."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if abs(value) > 2**64 else str(value)
    if isinstance(value, str):
        odd = any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in value)
        return json.dumps(value, ensure_ascii=odd)
    return json.dumps(value)


# -- what cannot be must not be accepted --------------------------------------------------------------------------


def check_plan(made: Plan) -> None:
    """Raises AssertionError for a plan that no user can have meant."""
    assert 1 <= len(made.seeds) <= 1000
    assert len(made.cells) <= 20_000
    for run in made.runs.values():
        method, data = run.spec.method, run.spec.data
        units = [("task", run.spec.task, run.spec.task_options), ("method", method.name, method.options)]
        units.append(("data", data.name, data.options))
        for kind, name, options in units:
            check_fields(CLASSES[f"{kind}/{name}"], options)
        if run.spec.recipe is not None:
            check_fields(CLASSES["recipe"], vars(run.spec.recipe))
        check_text(run.label)
        assert all(classes is None or 0 <= classes <= 10**6 for classes in
                   (teacher.classes for teacher in run.spec.teachers.values()))  # fmt: skip
        for _, path in run.files:
            inside = Path(os.path.normpath(path)).is_relative_to(places.weights())
            assert inside, f"a file outside the weights folder: {path}"
    for cell in made.cells:
        if cell.published is not None:
            value = cell.published.value
            assert type(value) is float
            assert abs(value) <= 1e6, f"published value {value}"
            check_text(cell.published.source)
        for text in (cell.label, *cell.row_label, cell.printed_label, cell.refused or ""):
            check_text(text)


def check_fields(kind: type, values: Any) -> None:
    """Every option is in the range that its class says."""
    made: Any = kind(**values)
    for item in made.__dataclass_fields__.values():
        assert_inside(item.type, getattr(made, item.name))


def check_text(text: str) -> None:
    """A text that any file and terminal can take."""
    text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text), f"a text with control characters: {text[:60]!r}"
    assert len(text) <= 20_000


def shown_as(made: Plan, folder: Path) -> None:
    """The table is printed, without records."""
    text = compared(made, Store(folder / "hkd_runs")).markdown()
    text.encode()
    made.heading.encode()


# -- kinds ---------------------------------------------------------------------------------------------------------


def of_folder(name: str, use: Callable[[random.Random, str, Path], None]) -> Kind:
    """A kind of hostile file in one of the folders; `use` does with it what the commands do."""

    def kind(rng: random.Random, folder: Path) -> Input:
        here, chosen = copied(folder), rng.choice(sorted(path.stem for path in (REAL / name).glob("*.yaml")))
        path = here / name / f"{chosen}.yaml"
        shown = put(rng, path, (REAL / name / f"{chosen}.yaml").read_bytes())

        def attempt() -> None:
            with used(here):
                use(rng, chosen, folder)

        return Input(f"{name}/{chosen}.yaml: {shown}", attempt)

    return kind


def use_table(rng: random.Random, name: str, folder: Path) -> None:
    schema.load_table(name)
    made = plan(name, rng.choice(PROFILES), 1)
    check_plan(made)
    shown_as(made, folder)


def use_profile(rng: random.Random, name: str, folder: Path) -> None:
    profile = schema.load_profile(name)
    standins.of_profile(profile).encode()
    runtime_for(name, rng.choice(SMALL))
    assert 1 <= profile.seeds <= 1000
    made = plan(rng.choice(SMALL), name, 1)
    check_plan(made)
    shown_as(made, folder)


def use_published(rng: random.Random, name: str, folder: Path) -> None:
    for table in schema.load_published(name).tables:
        for row in table.rows:
            assert all(value is None or abs(value) <= 1e6 for value in row.values.values())
    made = plan(rng.choice([each for each in SMALL if each.startswith(name)] or ["hcd_imagenet1k"]), "laptop", 1)
    check_plan(made)
    shown_as(made, folder)


def use_claims(rng: random.Random, name: str, folder: Path) -> None:
    claims = documents.load_claims(name).claims
    level = check.Profile("laptop", Store(folder / "hkd_runs"), folder / "hkd_results", folder / "none")
    found = [check.check(claim, name, level) for claim in claims]
    markdown(found).encode()
    for claim in claims:
        check_text(claim.sentence)
        limits = [claim.expect.above, claim.expect.below, claim.expect.within]
        assert all(limit is None or abs(limit) <= 1e6 for limit in limits)


def use_manifest(rng: random.Random, name: str, folder: Path) -> None:
    for slug, entry in schema.load_manifest().teachers.items():
        check_text(f"{slug} {entry.weights} {entry.licence} {entry.source}")
        assert entry.published is None or 0 <= entry.published <= 100
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    known = schema.load_names()
    assert all(0 < size <= 1e6 for size in known.parameters.values())
    for profile in ("smoke", "laptop", "paper"):
        check_text(standins.of_profile(schema.load_profile(profile)))
    made = plan(rng.choice(SMALL), "laptop", 1)
    check_plan(made)
    shown_as(made, folder)


def params_files(rng: random.Random, folder: Path) -> Input:
    here, path = copied(folder), folder / "params.yaml"
    full = b"profile: laptop\nseeds: 2\nrecipe:\n  epochs: 3\n  batch_size: 32\n  lr: 0.01\n  crop: none\n"
    original = rng.choice((full, (REAL.parent / "params.yaml").read_bytes()))
    shown = put(rng, path, original)

    def attempt() -> None:
        with used(here):
            params = load_params(path)
            if not path.is_file():
                raise AssertionError(f"defaults in the place of {shown}")
            made = plan(rng.choice(SMALL), params.profile, params.seeds, recipe=params.recipe)
            check_plan(made)
            check_text(made.title)

    return Input(f"params.yaml: {shown}", attempt)


def manifest_of_a_fetch(rng: random.Random, folder: Path) -> Input:
    """`hkd weights fetch` writes what it got into the manifest."""
    from experiments.teachers import record_sha256

    here = copied(folder)
    path = here / "manifests" / "teachers.yaml"
    shown = put(rng, path, (REAL / "manifests" / "teachers.yaml").read_bytes())

    def attempt() -> None:
        with used(here):
            record_sha256("swin_s", "0" * 64)
            raise UserError("Read.") if path.is_file() else AssertionError("nothing was read")

    return Input(f"manifests/teachers.yaml: {shown}", attempt)


KINDS: dict[str, Kind] = {
    "tables": of_folder("tables", use_table),
    "profiles": of_folder("profiles", use_profile),
    "published": of_folder("published", use_published),
    "claims": of_folder("claims", use_claims),
    "manifests": of_folder("manifests", use_manifest),
    "manifest_fetch": manifest_of_a_fetch,
    "params": params_files,
}
