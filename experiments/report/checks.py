"""Claims on what the report has read already, so that no table is planned twice."""

from experiments import places
from experiments.records.store import Store
from experiments.report.facts import subject
from experiments.report.gather import Entry, Findings
from experiments.results.claims.check import Checked, Measured, Profile, check, measured_of
from experiments.results.claims.documents import load_claims, papers
from experiments.until import looks_of
from hkd.errors import UserError


def checked_claims(findings: Findings) -> tuple[list[Checked], list[str]]:
    """Every claim on what is shown, at each of its profiles, and a sentence for each file that could not be read."""
    found, problems = [], []
    shown = {entry.name for entry in findings.entries}
    for name in findings.profiles:
        level = Profile(name, Store(places.runs()), places.results(), places.references())
        fixed = [entry for entry in findings.at(name) if entry.plan is None or looks_of(entry.plan) is None]
        level.tables = {entry.name: measured(entry) for entry in fixed}  # of bought seeds the fixed design is read
        for paper in papers():
            try:
                claims = load_claims(paper).claims
            except UserError as error:
                problems.append(str(error))
                continue
            for claim in claims:
                if subject(claim) not in shown:
                    continue
                try:
                    found.append(check(claim, paper, level))
                except UserError as error:
                    problems.append(str(error))
    return found, list(dict.fromkeys(problems))


def measured(entry: Entry) -> Measured:
    """An entry's values as claims want them."""
    if entry.plan is None or not entry.records:
        return Measured({}, "")
    return measured_of(entry.plan, entry.records, entry.own, entry.cells)
