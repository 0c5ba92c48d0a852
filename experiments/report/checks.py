"""Claims on what the report has read already, so that no table is planned twice."""

from experiments import places
from experiments.records.store import Store
from experiments.report.gather import Entry, Findings
from experiments.results import regression
from experiments.results.claims.check import COMMITTED, RUNS, Checked, Measured, Profile, by_row, check
from experiments.results.claims.documents import load_claims, papers
from hkd.errors import UserError


def checked_claims(findings: Findings) -> tuple[list[Checked], list[str]]:
    """Every claim at every profile that is shown, and a sentence for each file or figure that could not be read."""
    found, problems = [], []
    for name in findings.profiles:
        level = Profile(name, Store(places.runs()), places.results(), places.references())
        level.tables = {entry.name: measured(entry) for entry in findings.at(name)}
        for paper in papers():
            try:
                claims = load_claims(paper).claims
            except UserError as error:
                problems.append(str(error))
                continue
            for claim in claims:
                try:
                    found.append(check(claim, paper, level))
                except UserError as error:
                    problems.append(str(error))
    return found, list(dict.fromkeys(problems))


def measured(entry: Entry) -> Measured:
    """An entry's values as claims want them."""
    if entry.plan is None or not entry.records:
        return Measured({}, "")
    kinds = ((RUNS, entry.own), (COMMITTED, entry.records.keys() - entry.own))
    basis = " and ".join(kind for kind, keys in kinds if keys)
    return Measured(by_row(regression.measured_values(entry.plan, entry.records).cells), basis)
