"""Names runs anew whose keys are of the time when a key held digests of the whole code (before hkd/numerics.lock).

A record says which spec was run; its old key says by which code. The old key is computed again by the last code that
made such keys. Where it is the record's, the run is one of that code, which by definition computes version 1 of every
unit, so that its key of today follows from the spec alone. All other records are left alone.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from experiments import places
from experiments.planning.keys import key_of
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.spec import RunSpec
from hkd.units import units_of

COMMIT = "382e715ad72d5fe910c1ad504c0a5844868d6f8c"  # the last one whose keys held digests of the whole code
FIRST = 1  # the version of every unit that its code computes
# Run by the old code: a list of specs in, the list of their keys out, None for what is no spec of that time.
OLD_KEYS = """
import json, sys
from pydantic import TypeAdapter
from experiments.keys import run_key
from hkd.spec import RunSpec

def key(spec):
    try:
        return run_key(decode(spec))
    except ValueError:
        return None

decode = TypeAdapter(RunSpec).validate_python
print(json.dumps([key(spec) for spec in json.load(sys.stdin)]))
"""
decode = TypeAdapter(RunSpec).validate_python


@dataclass(kw_only=True)
class Counts:
    """How many records: renamed now; already: had been; foreign: not of the old code on a CPU, or of a teacher that is
    not; taken: in use, or with a folder under their new key.
    """

    renamed: int = 0
    already: int = 0
    foreign: int = 0
    taken: int = 0

    def sentence(self) -> str:
        """The counts on one line."""
        return (
            f"{self.renamed} runs renamed; {self.already} had been before; left alone: {self.foreign} that are not of "
            f"commit {COMMIT[:7]} on a CPU, {self.taken} in use or there under both keys"
        )


def rekey(store: Store, old_keys: Callable[[Sequence[dict[str, Any]]], list[str | None]] | None = None) -> Counts:
    """Give the runs of a store their keys of today; runs of older keys stay what they are, with a former key.

    May be stopped at any point and called again: a record is rewritten first, its folder renamed second, and a folder
    in between is finished by the next call.

    Args:
        store: of the runs; nobody else should be computing the same ones.
        old_keys: of specs; None: by the code of `COMMIT`.

    Raises:
        UserError: the clone lacks that commit, or a record is not what was written.
    """
    if not store.root.is_dir():
        return Counts()
    with FileLock(store.root / ".rekey.lock"):
        return Renaming(store, old_keys or keys_by_old_code).carry_out()


class Renaming:
    """The state of one call: all records by the name of their folder, and old keys with what became of them."""

    def __init__(self, store: Store, old_keys: Callable[[Sequence[dict[str, Any]]], list[str | None]]):
        self.store, self.counts = store, Counts()
        self.records = {name: record for name in [*store.keys()] if (record := store.read(name)) is not None}
        self.new: dict[str, str | None] = {
            record.former_key: record.key for record in self.records.values() if record.former_key is not None
        }
        asked = [name for name, record in self.records.items() if record.former_key is None]
        found = old_keys([self.records[name].spec for name in asked]) if asked else []
        self.accepted = {name for name, key in zip(asked, found, strict=True) if key == name and self.on_cpu(name)}

    def on_cpu(self, name: str) -> bool:
        """Whether a run was computed on a CPU: of other devices nothing was proved. Refusals have no environment."""
        return self.records[name].environment.get("device", "cpu") == "cpu"

    def carry_out(self) -> Counts:
        """Rename all that can be."""
        for name, record in self.records.items():
            if record.former_key is not None and record.key == name:
                self.counts.already += 1
            elif record.former_key == name or self.new_key(name) is not None:
                self.rename(name)
            else:
                self.counts.foreign += 1
        return self.counts

    def new_key(self, name: str) -> str | None:
        """The key of a run of the old code, after those of the runs that it starts from; None for other runs."""
        if name not in self.new:
            self.new[name] = None
            if name in self.accepted:
                spec = self.renewed(self.records[name].spec)
                self.new[name] = None if spec is None else first_key(spec)
        return self.new[name]

    def renewed(self, spec: Mapping[str, Any]) -> dict[str, Any] | None:
        """A spec with the keys of today; None if it names a run whose key is not known."""
        found = copy.deepcopy(dict(spec))
        for weights in run_weights(found):
            weights["id"] = self.new_key(weights["id"])
        return None if any(weights["id"] is None for weights in run_weights(found)) else found

    def rename(self, name: str) -> None:
        """Rewrite a record, unless that has been done, and rename its folder."""
        try:
            with self.store.lock(name).acquire(timeout=0):
                record = self.store.read(name)
                assert record is not None
                key = record.key if record.former_key else self.new_key(name)
                assert key is not None
                if self.store.folder(key).exists():
                    if record.former_key is not None:  # a call that was stopped here, then a run under the new key
                        self.store.write(self.under_old_key(record))
                    self.counts.taken += 1
                    return
                if record.former_key is None:
                    self.store.write(self.under_new_key(record, key), name)
                os.rename(self.store.folder(name), self.store.folder(key))
                self.counts.renamed += 1
        except Timeout:
            self.counts.taken += 1

    def under_new_key(self, record: Record, key: str) -> Record:
        """The record as it would have been written today."""
        spec = self.renewed(record.spec)
        assert spec is not None
        return replace(record, key=key, spec=spec, former_key=record.key)

    def under_old_key(self, record: Record) -> Record:
        """The record as it was."""
        former, spec = {key: name for name, key in self.new.items()}, copy.deepcopy(record.spec)
        for weights in run_weights(spec):
            weights["id"] = former.get(weights["id"], weights["id"])
        assert record.former_key is not None
        return replace(record, key=record.former_key, spec=spec, former_key=None)


def run_weights(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weights in a stored spec that are of other runs: of teachers and those that it starts from."""
    named = [*(teacher["weights"] for teacher in spec["teachers"].values()), spec["init"]]
    return [weights for weights in named if weights is not None and weights["kind"] == "run"]


def first_key(spec: Mapping[str, Any]) -> str | None:
    """The key of a run whose units all compute their first version; None if it is no spec of today."""
    try:
        decoded = decode(spec)
        return key_of(decoded, dict.fromkeys(units_of(decoded), FIRST))
    except (ValidationError, UserError):
        return None


def keys_by_old_code(specs: Sequence[dict[str, Any]]) -> list[str | None]:
    """Keys as the code of `COMMIT` makes them.

    Raises:
        UserError: the clone lacks that commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.zip"
        extract_code(archive)
        with zipfile.ZipFile(archive) as code:
            code.extractall(folder)
        asked = subprocess.run(
            [sys.executable, "-c", OLD_KEYS],
            input=json.dumps(specs),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
        )
        if asked.returncode != 0:
            last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"The code of commit {COMMIT[:7]} cannot compute keys here: {last}")
        keys: list[str | None] = json.loads(asked.stdout)
        return keys


def extract_code(archive: Path) -> None:
    """Write the code of `COMMIT` to a zip file."""
    command = ["git", "-C", str(places.repository()), "archive", "--format=zip", "-o", str(archive), COMMIT]
    try:
        done = subprocess.run([*command, "hkd", "experiments"], capture_output=True).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        raise UserError(
            f"Old keys are computed by the code of commit {COMMIT[:7]}, which git does not find here; "
            "call this in a clone of the repository with its whole history."
        )
