"""From findings to pages: what each template is given."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.planning import schema
from experiments.report import svg, words
from experiments.report.checks import checked_claims
from experiments.report.facts import (
    about,
    anchor,
    axis,
    cell_view,
    common_part,
    cost_lines,
    environments,
    flat_spec,
    going_on,
    interval_text,
    listing,
    marked_pair,
    models,
    once,
    own_runs,
    profile_facts,
    ranks,
    refusals,
    row_section,
    subject,
)
from experiments.report.gather import Entry, Findings
from experiments.report.pictures import pictures
from experiments.report.sets import compared_sets
from experiments.report.svg import number
from experiments.results.caption import LOSSES, caption, heading, listed, metric_name
from experiments.results.claims.check import Checked
from experiments.results.claims.documents import Difference, Value
from experiments.results.claims.report import sample
from experiments.results.compare import CellResult
from experiments.results.pages import HEADLINE
from experiments.results.render import pooled_shown
from experiments.results.verdicts import SMALLEST_GAIN
from experiments.teachers import how_made

FOLDER = Path(__file__).parent
NAVIGATION = (
    ("index.html", "Overview"),
    ("claims.html", "Claims"),
    ("teachers.html", "Teachers"),
    ("figures.html", "Figures"),
    ("compare.html", "Compare"),
    ("about.html", "How to read this"),
)
EXACT = 4  # digits of numbers that are copied, as in table.csv


def environment() -> Environment:
    """Jinja with autoescape, the filters that templates use, and the macros under their names."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": printed,
        "exact": exact,
        "tone": tone,
        "mark": mark,
    }
    for file in ("macros.html", "cells.html"):
        module = found.get_template(file).module
        found.globals |= {name: part for name, part in vars(module).items() if callable(part)}
    return found


def printed(value: float, digits: int = 1, signed: bool = False) -> str:
    """A number as pages print it."""
    return number(value, digits, signed=signed)


def tone(name: str) -> str:
    """The class of a word's colour."""
    return words.word(name).tone


def mark(name: str) -> str:
    """The sign before a word."""
    return words.word(name).mark


def exact(value: float) -> str:
    """A number as it is copied and sorted by: as table.csv has it; "" for nan."""
    return "" if math.isnan(value) else repr(round(float(value), EXACT)).removesuffix(".0")


@dataclass(frozen=True)
class Page:
    """A page to be written: its file below the report's folder, template and what the template is given."""

    file: str
    template: str
    facts: Mapping[str, Any]


class Site:
    """All pages of the report.

    Args:
        findings: what is shown.
        folder: of the report, into which pictures are written.
        live: seconds after which pages load themselves again; None: never.
    """

    def __init__(self, findings: Findings, folder: Path, live: int | None = None):
        self.findings, self.folder, self.live = findings, folder, live
        self.pictures: list[str] = []  # that the page of figures shows, below the folder
        self.templates = environment()
        self.profiles = {name: profile_facts(name) for name in findings.profiles}

    def text(self, page: Page) -> str:
        """A page as HTML."""
        shared = {
            "root": "../" * page.file.count("/"),
            "current": page.file,
            "navigation": NAVIGATION,
            "live": self.live,
        }
        return self.templates.get_template(page.template).render(**shared, **page.facts)

    def pages(self) -> Iterator[Page]:
        """Every page but that of the comparison of two sets."""
        yield self.index()
        for entry in self.findings.entries:
            yield from self.table_pages(entry)
        yield self.claims()
        yield from (self.method(name) for name in self.methods)
        yield self.teachers()
        yield self.figures()
        yield self.about()

    def table_pages(self, entry: Entry) -> Iterator[Page]:
        """The page of a table and those of its rows."""
        yield self.table(entry)
        for row in entry.rows:
            yield self.row(entry, row)

    # -- the overview --------------------------------------------------------------------------------------------------

    def index(self) -> Page:
        """Papers and tables with their verdicts."""
        main = self.findings.at(self.findings.main)
        papers = list(dict.fromkeys(entry.paper for entry in self.findings.entries))
        lines = [
            self.line(entry)
            for entry in sorted(self.findings.entries, key=lambda e: (papers.index(e.paper), e.kind == "figure"))
        ]
        for before, line in zip([None, *lines], lines, strict=False):
            line["first"] = before is None or before["paper"] != line["paper"]
        keys = dict.fromkeys(entry.paper for entry in main)
        counts: Counter[str] = Counter(result.verdict for result in once(main) if result.verdict)
        columns = {"paper": (0, "paper"), "kind": (2, "kind"), "verdict": (3, "leading"), "profile": (8, "profile")}
        choices = {name: (at, sorted({str(line[of]) for line in lines})) for name, (at, of) in columns.items()}
        return Page(
            "index.html",
            "index.html",
            {
                "sentence": self.sentence(main, counts),
                "counts": words.in_order(counts),
                "profiles": list(self.profiles.values()),
                "astray": self.findings.astray,
                "papers": [self.paper(key, [entry for entry in main if entry.paper == key]) for key in keys],
                "lines": lines,
                "choices": choices,
                "methods": [{"name": name, "about": about(name)} for name in self.methods],
            },
        )

    def sentence(self, entries: Sequence[Entry], counts: Mapping[str, int]) -> str:
        """How much was measured, and how much of it was judged."""
        cells = once(entries)
        measured = sum(1 for result in cells if result.measured.n)
        if not measured:
            return f"Nothing was measured at profile {self.findings.main} yet: the pages show what could be."
        judged = sum(counts.values())
        said = ", ".join(f"{count} {name}" for name, count in words.in_order(dict(counts)).items())
        return (
            f"At profile {self.findings.main}, {measured} of {len(cells)} cells of {len(entries)} tables and figures "
            f"were measured; {judged} could be compared with a paper: {said}. Cells that several tables print are "
            "counted once."
        )

    def paper(self, key: str, entries: Sequence[Entry]) -> dict[str, str]:
        """A paper, and what came out: the sentence that the README has, else the pooled effect of its method."""
        facts: dict[str, Any] = {}
        if key in schema.names("published"):
            facts = schema.load_published(key).paper
        own = [(entry, gain) for entry in entries for gain in self.headline(entry)]
        effect = Markup("no gain is pooled over its pairs")
        found = [entry for entry in entries if entry.finding]
        chosen = next((entry for entry in found if entry.name == HEADLINE.get(key)), None)
        if told := chosen or next(iter(found), None):
            effect = Markup('{} (<a href="t/{}.html">{}</a>)').format(told.finding, told.page, told.title)
        if own and chosen is None:
            entry, gain = max(own, key=lambda each: len(each[1].pooled.rows))
            estimate = gain.pooled.estimate
            effect = Markup('{} over {} pairs, <a href="t/{}.html">{}</a>').format(
                interval_text(estimate, "points"), len(gain.pooled.rows), entry.page, entry.title
            )
        venue = " ".join(str(facts[name]) for name in ("venue", "year") if name in facts)
        return {"title": str(facts.get("title", key)), "venue": venue or key, "effect": effect}

    @staticmethod
    def headline(entry: Entry) -> list[Any]:
        """The pooled gain of the paper's own method over its baseline, in the first metric that has one."""
        if entry.comparison is None:
            return []
        found = [
            gain
            for gain in entry.comparison.pooled
            if (gain.method, gain.variant, gain.over) == (entry.paper, "", "") and gain.pooled.rows
        ]
        return found[:1]

    def line(self, entry: Entry) -> dict[str, Any]:
        """A table on the overview."""
        counts = words.in_order(Counter(result.verdict for result in entry.cells if result.verdict))
        own = self.headline(entry)
        estimate = own[0].pooled.estimate if own else None
        nothing = "not read" if entry.problem else "no published gain to compare with" if entry.measured else "not run"
        return {
            "paper": entry.paper,
            "kind": entry.kind,
            "profile": entry.profile,
            "page": entry.page,
            "title": entry.title,
            "finding": entry.finding,
            "problem": entry.problem,
            "counts": counts,
            "bar": svg.bar(counts),
            "judged": sum(counts.values()),
            "leading": max(counts, key=lambda name: counts[name]) if counts else nothing,
            "nothing": nothing,
            "estimate": estimate,
            "gain": "" if estimate is None else exact(estimate.mean),
            "runs": len(entry.records),
            "asked": len(entry.plan.runs) if entry.plan else 0,
            "own": len(entry.own),
            "spent": entry.spent,
        }

    # -- tables --------------------------------------------------------------------------------------------------------

    def table(self, entry: Entry) -> Page:
        """A table: finding, counts, cells by metric, pooled gains, ranks, cost, protocol."""
        facts: dict[str, Any] = {"entry": entry, "profile": self.profiles[entry.profile], "several": False}
        facts |= {"sections": [], "pooled": [], "ranks": [], "cost": [], "protocol": [], "notes": [], "absent": {}}
        facts["counts"] = words.in_order(Counter(result.verdict for result in entry.cells if result.verdict))
        facts["here"] = entry.plan.here if entry.plan else ""
        facts["claims"] = [self.claim_line(each) for each in self.claims_on(entry)]
        if entry.plan and entry.comparison:
            plan = entry.plan
            facts["several"] = len(plan.metrics) > 1
            facts["notes"] = [line for line in (models(entry), own_runs(entry), going_on(entry)) if line]
            facts["sections"] = [self.section(entry, metric) for metric in plan.metrics]
            facts["absent"] = entry.comparison.absent_rows()
            facts |= self.pooled(entry)
            facts |= ranks(entry)
            facts["cost"] = cost_lines(entry)
            facts["protocol"] = caption(plan, entry.records, entry.comparison)
        return Page(f"t/{entry.page}.html", "table.html", facts)

    def section(self, entry: Entry, metric: str) -> dict[str, Any]:
        """The cells of one metric."""
        assert entry.comparison is not None
        results = entry.comparison.readable(metric)
        limit = axis(results)
        views, before, several = [], "", len({result.cell.row for result in results}) < len(results)
        for result in results:
            href = f"../c/{entry.page}/{result.cell.row}.html#{anchor(result.cell)}"
            view = cell_view(entry, result, limit, href)
            view.id = f"{result.cell.row}.{anchor(result.cell)}"
            view.place = ("again" if result.cell.row == before else "first") if several else ""
            before = result.cell.row
            views.append(view)
        columns = {"verdict": (6, "word"), "method": (1, "label"), "pair": (0, "pair")}
        choices = {n: (at, list(dict.fromkeys(getattr(view, of) for view in views))) for n, (at, of) in columns.items()}
        unit = "loss" if metric in LOSSES else "percent, gains in points"
        return {
            "metric": metric,
            "name": metric_name(metric),
            "views": views,
            "limit": svg.scale(limit),
            "choices": choices,
            "caption": f"{metric_name(metric).capitalize()}, {unit}: published beside measured",
        }

    def pooled(self, entry: Entry) -> dict[str, Any]:
        """Pooled gains, with one axis for all."""
        assert entry.plan is not None
        assert entry.comparison is not None
        labels = {(result.cell.method, result.cell.variant): heading(result.cell) for result in entry.cells}
        gains = pooled_shown(entry.plan, entry.comparison)
        estimates = [gain.pooled.estimate.shown for gain in gains]
        limit = svg.symmetric([*(e.mean for e in estimates), *(gain.published for gain in gains)])
        lines = [
            {
                "method": labels[gain.method, gain.variant],
                "over": labels[gain.over, ""] if gain.over else "baseline",
                "metric": metric_name(gain.metric),
                "estimate": gain.pooled.estimate,
                "strip": svg.strip(
                    estimate.mean,
                    estimate.low,
                    estimate.high,
                    limit=limit,
                    tone="measured",
                    published=gain.published if entry.plan.by_value else math.nan,
                    label=interval_text(estimate, "points"),
                ),
                "pairs": len(gain.pooled.rows),
                "left_out": listed(gain.pooled.left_out),
                "spread": gain.pooled.spread,
                "published": gain.published,
            }
            for gain, estimate in zip(gains, estimates, strict=True)
        ]
        return {"pooled": lines, "pooled_scale": svg.scale(limit)}

    # -- rows: every cell with its runs --------------------------------------------------------------------------------

    def row(self, entry: Entry, row: str) -> Page:
        """The cells of one row, each with its runs."""
        results = entry.rows[row]
        limit = axis(results)
        views = []
        for result in results:
            view = cell_view(entry, result, limit, f"#{anchor(result.cell)}")
            view.several = len({each.cell.metric for each in results}) > 1
            views.append(view)
        groups: dict[tuple[str, str], list[CellResult]] = {}
        for result in results:
            groups.setdefault((result.cell.method, result.cell.variant), []).append(result)
        assert entry.plan is not None
        specs = {which: flat_spec(entry, group[0]) for which, group in groups.items()}
        common = common_part([spec for spec in specs.values() if spec])
        facts = {
            "entry": entry,
            "profile": self.profiles[entry.profile],
            "here": entry.plan.here,
            "pair": marked_pair(results[0].cell, entry),
            "views": views,
            "limit": svg.scale(limit),
            "sections": [row_section(entry, group, specs[which], common) for which, group in groups.items()],
            "common": listing(common),
            "environments": environments(
                entry.records[key] for r in results for key in r.cell.runs if key in entry.records
            ),
        }
        return Page(f"c/{entry.page}/{row}.html", "row.html", facts)

    # -- claims --------------------------------------------------------------------------------------------------------

    @cached_property
    def checked(self) -> tuple[list[Checked], list[str]]:
        """All claims at all profiles that are shown, and why some could not be read."""
        return checked_claims(self.findings)

    def claims_on(self, entry: Entry) -> list[Checked]:
        """Claims on a table or figure at its profile."""
        return [each for each in self.shown_claims(entry.profile) if subject(each.claim) == entry.name]

    def shown_claims(self, profile: str) -> list[Checked]:
        """All claims at the main profile; at another one those that were tested."""
        here = [each for each in self.checked[0] if each.profile == profile]
        return [each for each in here if profile == self.findings.main or each.verdict != "untested"]

    def claim_id(self, each: Checked) -> str:
        """The id of a claim on its page."""
        return each.claim.id + ("" if each.profile == self.findings.main else f"-{each.profile}")

    def claim_line(self, each: Checked) -> dict[str, str]:
        """A claim where another page mentions it."""
        return {"id": self.claim_id(each), "sentence": each.claim.sentence, "verdict": each.verdict}

    def claims(self) -> Page:
        """Every sentence of every paper, with its effect and the rows behind it."""
        parts = []
        for profile, facts in self.profiles.items():
            shown = self.shown_claims(profile)
            papers = [
                {
                    "title": str(schema.load_published(paper).paper.get("title", paper)),
                    "claims": [self.claim(each) for each in shown if each.paper == paper],
                }
                for paper in dict.fromkeys(each.paper for each in shown)
            ]
            if shown:
                counts = words.in_order(Counter(each.verdict for each in shown))
                parts.append({"profile": facts, "counts": counts, "papers": papers})
        return Page("claims.html", "claims.html", {"parts": parts, "problems": self.checked[1]})

    def claim(self, each: Checked) -> dict[str, Any]:
        """One sentence."""
        entry = next((e for e in self.findings.at(each.profile) if e.name == subject(each.claim)), None)
        estimate = each.estimate
        drawn = estimate.n > 0
        shown = estimate.shown
        limit = svg.symmetric([shown.mean, shown.low, shown.high], least=0.01) if drawn else 1.0
        rows = []
        if entry is not None and isinstance(each.claim.statistic, Difference):
            rows = [(row, f"c/{entry.page}/{row}.html") for row in each.rows if row in entry.rows]
        return {
            "id": self.claim_id(each),
            "verdict": each.verdict,
            "sentence": each.claim.sentence,
            "estimate": estimate,
            "digits": 1 if drawn and abs(estimate.mean) >= 10 else 2,
            "expected": each.claim.expect.text,
            "sample": sample(each),
            "reason": each.reason.rstrip("."),
            "source": each.claim.source.rstrip("."),
            "note": (each.claim.note or "").rstrip("."),
            "table": entry.page if entry else "",
            "rows": rows,
            "strip": svg.strip(
                shown.mean,
                shown.low,
                shown.high,
                limit=limit,
                tone="measured",
                label=f"{interval_text(estimate, '', 2)}, on an axis from {number(-limit)} to {number(limit)}; "
                f"expected {each.claim.expect.text}",
            )
            if drawn
            else "",
        }

    # -- methods, teachers, figures, how to read it --------------------------------------------------------------------

    @cached_property
    def methods(self) -> list[str]:
        """Methods that have a cell at the main profile, by name."""
        return sorted({r.cell.method for entry in self.findings.at(self.findings.main) for r in entry.cells})

    def method(self, name: str) -> Page:
        """A method over all tables of the main profile."""
        facts: dict[str, list[Any]] = {"ranks": [], "cost": [], "gains": [], "refused": []}
        for entry in self.findings.at(self.findings.main):
            results = [result for result in entry.cells if result.cell.method == name]
            link = {"page": entry.page, "title": entry.title}
            labels = dict.fromkeys(result.cell.label for result in results)
            ranked = dict(ranks(entry)["ranks"]) if results else {}
            facts["ranks"] += [
                {**link, "label": label, "rank": ranked[label], "of": len(ranked)}
                for label in labels
                if label in ranked
            ]
            for line in cost_lines(entry) if results else ():
                if line["method"] == name and not line["variant"] and name != "supervised":
                    facts["cost"].append({**link, **line})
            measured = [result for result in results if result.gain.n]
            limit = axis(measured)
            for result in measured:
                view = cell_view(
                    entry, result, limit, f"../c/{entry.page}/{result.cell.row}.html#{anchor(result.cell)}"
                )
                view.title, view.verdict = entry.title, result.verdict
                facts["gains"].append(view)
            facts["refused"] += [{**link, **each} for each in refusals(results)]
        facts["cost"] = [line for line in facts["cost"] if not math.isnan(line["step"])]
        shared = {"name": name, "about": about(name), "profile": self.profiles[self.findings.main]}
        return Page(f"m/{name}.html", "method.html", {**shared, **facts})

    def teachers(self) -> Page:
        """Teachers of the profiles that are shown."""
        parts = [{"profile": facts, "teachers": self.teachers_of(name)} for name, facts in self.profiles.items()]
        return Page("teachers.html", "teachers.html", {"parts": [part for part in parts if part["teachers"]]})

    def teachers_of(self, profile: str) -> list[dict[str, Any]]:
        """What is known of each teacher that some table at a profile has."""
        chosen, manifest, names = schema.load_profile(profile), schema.load_manifest().teachers, schema.load_names()
        keys: dict[str, tuple[str, Entry]] = {}
        students: dict[str, dict[str, None]] = {}
        for entry in self.findings.at(profile):
            for at, key in entry.plan.teachers.items() if entry.plan else ():
                name = at if at in chosen.teachers else at.partition("@")[0]
                if name not in keys or key in entry.records:
                    keys[name] = key, entry
            for result in entry.cells:
                for slug in filter(None, result.cell.teacher.split("+")):
                    students.setdefault(slug, {})[names.models.get(result.cell.student, result.cell.student)] = None
        lines = []
        for name, mapping in chosen.teachers.items():
            if name not in keys:
                continue
            slug, (key, entry) = name.partition("@")[0], keys[name]
            assert entry.plan is not None
            spec, record = entry.plan.runs[key].spec, entry.records.get(key)
            known, origin = manifest.get(name), manifest.get(slug)
            values = record.metrics if record is not None and record.status == "done" else {}
            metric = next((each for each in ("top1", *values) if each in values), "")
            identity = known or origin
            weights = [origin.weights, origin.licence] if origin else []
            hashed = identity.sha256 or (origin.sha256 if origin else None) if identity else None
            lines.append(
                {
                    "name": name,
                    "meant": names.models.get(slug, slug),
                    "used": spec.student.name,
                    "parameters": names.parameters.get(spec.student.name, spec.student.params_m or math.nan),
                    "made": how_made(mapping),
                    "published": known.published if known and known.published is not None else math.nan,
                    "source": known.source if known and known.source else "",
                    "value": values.get(metric, math.nan),
                    "metric": f"{metric_name(metric)}{' of a linear probe' if mapping.probe else ''}" if metric else "",
                    "weights": "; ".join(filter(None, [*weights, hashed])) or "made here alone",
                    "students": ", ".join(students.get(slug, {})),
                }
            )
        return lines

    def figures(self) -> Page:
        """Pictures beside the sentences that papers write under theirs."""
        found = []
        for entry in self.findings.entries:
            shown = pictures(entry, self.folder)
            self.pictures += [picture["file"] for picture in shown if picture["file"]]
            if entry.kind == "figure" or shown:
                claims = [
                    self.claim_line(each) for each in self.claims_on(entry) if isinstance(each.claim.statistic, Value)
                ]
                found.append(
                    {"name": entry.name, "page": entry.page, "title": entry.title, "claims": claims, "pictures": shown}
                )
        return Page("figures.html", "figures.html", {"figures": found, "profile": self.profiles[self.findings.main]})

    def comparison(self, against: Path | None) -> Page:
        """Two sets of results; against: as for `compared_sets`."""
        facts = compared_sets(self.findings, against)
        return Page("compare.html", "compare.html", {**facts, "profile": self.profiles[self.findings.main]})

    def about(self) -> Page:
        """The glossary and the statistics."""
        seen: set[str] = {result.verdict for entry in self.findings.entries for result in entry.cells}
        seen |= {result.status for entry in self.findings.entries for result in entry.cells}
        seen |= {each.verdict for each in self.checked[0]}
        seen |= {record.status for entry in self.findings.entries for record in entry.records.values()}
        shown = [(name, word.meaning) for name, word in words.WORDS.items() if name in seen]
        facts = {"profiles": list(self.profiles.values()), "words": shown, "smallest": SMALLEST_GAIN}
        return Page("about.html", "about.html", facts)
