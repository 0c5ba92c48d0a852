"""Writes the report: a folder of static pages that is opened by a double click."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.planning.plan import Plan
from experiments.planning.schema import Table
from experiments.records.store import Store
from experiments.report import words
from experiments.report.gather import Entry, Findings, compared, gather, state
from experiments.report.pages import FOLDER, Site
from experiments.results.compare import Comparison
from experiments.results.render import write_csv
from hkd.errors import UserError
from hkd.files import atomic_write

LISTED = "hkd-report.txt"  # of the report's folder: what was written, so that the next one removes what is left over


@dataclass(frozen=True)
class Report:
    """What was written. start: the page to open. files: all, below the folder. size: in bytes."""

    start: Path
    files: tuple[str, ...]
    size: int
    findings: Findings


def build(
    folder: Path,
    store: Store,
    *,
    profile: str | None = None,
    tables: list[str] | None = None,
    against: Path | None = None,
    live: int | None = None,
) -> Report:
    """Write all pages; equal records give equal bytes.

    Args:
        folder: of the report; made if it is not there. Files of an earlier report that this one lacks are removed.
        store: records of this machine, which take precedence over committed ones.
        profile: the only one; None: that of params.yaml, and every other at which something was measured.
        tables: only these; None: all.
        against: folder of committed records that the comparison page compares with; None: those of this checkout.
        live: seconds after which pages load themselves again; None: never.

    Raises:
        UserError: an unknown profile, or a folder that cannot be written.
    """
    try:
        return written(folder, gather(store, profile=profile, tables=tables), against, live)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder} ({error.strerror}); make it writable, free some space, or name another: --output."
        ) from None


def build_one(folder: Path, store: Store, table: Table, plan: Plan) -> Report:
    """Write the pages of one table, which need not be one of this package.

    Args:
        folder, store: as for `build`.
        table: that is shown; it and its profile are known to `schema`.
        plan: of it, whose records are shown.

    Raises:
        UserError: the folder cannot be written.
    """
    entry = Entry(name=plan.table, page=plan.table, profile=plan.profile, table=table, **compared(plan, store))
    try:
        return written(folder, Findings(main=plan.profile, profiles=(plan.profile,), entries=(entry,)), None, None)
    except OSError as error:
        raise UserError(f"Cannot write {folder} ({error.strerror}); make it writable, or free some space.") from None


def written(folder: Path, findings: Findings, against: Path | None, live: int | None) -> Report:
    """Write the pages of findings."""
    folder.mkdir(parents=True, exist_ok=True)
    site, files = Site(findings, folder, live), []
    for name in ("report.css", "report.js"):
        text = (FOLDER / "static" / name).read_text(encoding="utf-8")
        files.append(put(folder, name, words.css() + text if name.endswith("css") else text))
    for page in site.pages():
        files.append(put(folder, page.file, site.text(page)))
    comparison = site.comparison(against)
    files.append(put(folder, comparison.file, site.text(comparison)))
    files += [write_cells(folder, entry) for entry in findings.entries if entry.comparison]
    files += site.pictures
    remove_left_over(folder, files)
    size = sum((folder / name).stat().st_size for name in files)
    return Report(start=folder / "index.html", files=tuple(files), size=size, findings=findings)


def put(folder: Path, name: str, text: str) -> str:
    """Write a file unless it has this text; its name."""
    path, content = folder / name, text.encode()
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return name


def write_cells(folder: Path, entry: Entry) -> str:
    """The cells of a table as its table.csv has them."""
    assert isinstance(entry.comparison, Comparison)
    name = f"t/{entry.page}.csv"
    with atomic_write(folder / name) as temporary:
        write_csv(entry.comparison.frame, temporary)
    return name


def remove_left_over(folder: Path, files: list[str]) -> None:
    """Remove what an earlier report wrote and this one did not, and list this one's files for the next."""
    listing = folder / LISTED
    earlier = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    for name in {*earlier} - {*files}:
        path = (folder / name).resolve()
        if folder.resolve() in path.parents and path.is_file():  # never outside, whatever the list says
            path.unlink()
            if path.parent != folder.resolve() and not any(path.parent.iterdir()):
                shutil.rmtree(path.parent)
    put(folder, LISTED, "\n".join(sorted(files)) + "\n")


# -- while runs go on ------------------------------------------------------------------------------------------------


def keep_live(
    folder: Path,
    store: Store,
    report: Report,
    every: int,
    *,
    tell: Callable[[list[str]], None],
    rounds: int | None = None,
) -> Findings:
    """Rewrite the pages of tables whose runs begin, go on or end, again and again.

    Args:
        folder, store: as for `build`.
        report: as it was built with `live=every`.
        every: seconds between two looks.
        tell: told the names of tables that were written again, after each look that found some.
        rounds: how many looks; None: for ever.

    Returns:
        What the pages show at the end.
    """
    findings, looked = report.findings, 0
    while rounds is None or looked < rounds:
        time.sleep(every)
        looked += 1
        changed = [e.page for e in findings.entries if e.plan is not None and state(e.plan, store) != e.left]
        if changed:
            entries = tuple(again(entry, store) if entry.page in changed else entry for entry in findings.entries)
            findings = replace(findings, entries=entries)
            site = Site(findings, folder, every)
            of_tables = (page for entry in entries if entry.page in changed for page in site.table_pages(entry))
            for page in (site.index(), *of_tables):
                put(folder, page.file, site.text(page))
            tell(changed)
    return findings


def again(entry: Entry, store: Store) -> Entry:
    """A table as its runs are now; as it was, with the reason, where a record cannot be read."""
    assert entry.plan is not None
    try:
        return replace(entry, problem="", **compared(entry.plan, store))
    except UserError as error:
        return replace(entry, problem=str(error), left=state(entry.plan, store))
