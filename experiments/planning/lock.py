"""hkd/numerics.lock: which code is proved to compute what, so that an edit that moves no digit keeps every key.

One line a unit: its name, its version, and the digests of its code (experiments/planning/code.py) that are proved to
compute that version, each with the kinds of device on which that was shown. A line that begins with `!` says which
lines of a file, changed since a commit, no canary ran when code was listed (-7: line 7 of that commit, since removed),
and why that was accepted.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import hkd
from experiments.documents import content
from hkd.errors import UserError
from hkd.files import atomic_write

PATH = Path(hkd.__file__).with_name("numerics.lock")
MOST = 2**24  # bytes
PROOF = r"[0-9a-f]{16}=[a-z0-9_-]+(?:,[a-z0-9_-]+)*"
LINE = re.compile(rf"(?P<unit>[a-z0-9_./-]+) +(?P<version>[1-9][0-9]{{0,3}}) *(?P<proofs>(?: {PROOF})*)")
RESTORE = "restore it with `git checkout -- hkd/numerics.lock`."
HEAD = """\
# What every unit of the library computes: its version, and the digests of the code that is proved to compute it.
# Written by `hkd numerics prove`, never by hand. A run's key holds the version where its code is listed, or the digest.
# unit  version  digest=kinds of device it was proved on
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One unit: proved maps a digest of its code to the kinds of device on which it was shown to compute `version`."""

    version: int = 1
    proved: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def holds(self, digest: str, kind: str) -> bool:
        """Whether this code is proved on this kind of device."""
        return kind in self.proved.get(digest, ())

    def adding(self, digest: str, kind: str) -> "Entry":
        """With one more proof; digests that no kind needs any more are dropped."""
        kept = {old: tuple(k for k in kinds if k != kind) for old, kinds in self.proved.items()}
        kept[digest] = tuple(sorted({*kept.get(digest, ()), kind}))
        return replace(self, proved={old: kinds for old, kinds in kept.items() if kinds})


@dataclass(frozen=True, kw_only=True)
class Lock:
    """All entries by unit, and the notes on changed lines that no canary ran: (base of the proof, lines, reason)."""

    entries: dict[str, Entry] = field(default_factory=dict)
    unreached: tuple[tuple[str, str, str], ...] = ()

    def write(self, path: Path = PATH) -> None:
        """Store the lock, atomically, in one order."""
        width = max((len(unit) for unit in self.entries), default=0)
        lines = [
            f"{unit:<{width}}  {entry.version:>2}  "
            + " ".join(f"{digest}={','.join(kinds)}" for digest, kinds in entry.proved.items())
            for unit, entry in sorted(self.entries.items())
        ]
        notes = sorted({f"! {base} {lines} {reason}" for base, lines, reason in self.unreached})
        with atomic_write(path) as temporary:
            temporary.write_text(HEAD + "\n".join([*lines, *notes]) + "\n", encoding="utf-8")


def read_lock(path: Path = PATH) -> Lock:
    """The lock as it was written; an empty one where there is no file.

    Raises:
        UserError: it cannot be read, or a line is none of the lock's.
    """
    if not os.path.lexists(path):
        return Lock()
    entries: dict[str, Entry] = {}
    unreached = []
    try:
        text = content(path, MOST).decode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{path} cannot be read ({why}); {RESTORE}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("! "):
                _, base, lines, reason = line.split(" ", 3)
                unreached.append((base, lines, reason))
            else:
                found = LINE.fullmatch(line)
                if found is None or found["unit"] in entries:
                    raise ValueError("no line of the lock")
                proofs = (proof.split("=") for proof in found["proofs"].split())
                proved = {digest: tuple(kinds.split(",")) for digest, kinds in proofs}
                entries[found["unit"]] = Entry(version=int(found["version"]), proved=proved)
        except ValueError:
            raise UserError(f"{path}:{number}: not a line of the lock; {RESTORE}") from None
    return Lock(entries=entries, unreached=tuple(unreached))
