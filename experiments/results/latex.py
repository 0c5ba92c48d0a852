"""A table as LaTeX: booktabs, intervals in the cells, remarks as notes, and the facts of reproducibility checklists."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from experiments.planning.plan import Plan
from experiments.records.store import Record
from experiments.results.caption import caption, machine, metric_name, spans
from experiments.results.compare import Comparison
from experiments.results.render import TEXT_COLUMNS, laid_out, on_absent_rows

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "<": "$<$",
    ">": "$>$",
    "|": r"$|$",
}
NOTE = re.compile(r" \(([^()]*)\)")  # of a cell or a head: it goes below the table
GROUPED = re.compile(r"(?P<group>.+): (?P<column>published|replicated|measured|published gain|gain|verdict)")


def latex(plan: Plan, records: Mapping[str, Record], comparison: Comparison) -> str:
    """The table in the paper's layout, one `table` for each metric, and the checklist.

    Needs the packages booktabs, threeparttable and, with these texts, UTF-8 input.
    """
    parts = [r"% \usepackage{booktabs} \usepackage{threeparttable}"]
    unsaid = dict(plan.marks)
    sentences = [*filter(None, [plan.here]), *on_absent_rows(comparison), *caption(plan, records, comparison)]
    for metric in plan.metrics:
        results = comparison.readable(metric)
        if results:
            title = plan.title + (f", {metric_name(metric)}" if len(plan.metrics) > 1 else "")
            label = plan.table + (f"-{metric}" if len(plan.metrics) > 1 else "")
            parts.append(table(laid_out(results, unsaid), title, label, sentences if metric == plan.metrics[0] else ()))
    facts = "\n".join(rf"\item \textbf{{{escaped(name)}.}} {escaped(text)}" for name, text in checklist(plan, records))
    parts.append("\n".join((r"\paragraph{Reproducibility}", r"\begin{itemize}", facts, r"\end{itemize}")))
    return "\n\n".join(parts) + "\n"


def table(frame: pd.DataFrame, title: str, label: str, sentences: Sequence[str]) -> str:
    """One table environment.

    Args:
        frame: of texts, as `laid_out` gives them.
        title: of the caption.
        label: behind `tab:`.
        sentences: for the notes, behind those of the cells.
    """
    notes: dict[str, str] = {}  # text -> its letter

    def cell(text: str) -> str:
        marks = [notes.setdefault(note, letters(len(notes))) for note in NOTE.findall(text)]
        shown = signed(NOTE.sub("", text))
        return shown + (rf"\tnote{{{','.join(dict.fromkeys(marks))}}}" if marks else "")

    heads = [GROUPED.fullmatch(name) for name in frame]
    names = [head["column"] if head else name for head, name in zip(heads, frame, strict=True)]
    lines = [" & ".join(cell(str(value)) for value in row) + r" \\" for row in frame.itertuples(index=False)]
    top = [group_line([head["group"] if head else "" for head in heads], cell)] if any(heads) else []
    columns = "".join("l" if name.endswith(TEXT_COLUMNS) else "r" for name in frame)
    below = [rf"\item[{letter}] {escaped(note)}." for note, letter in notes.items()]
    below += [rf"\item {escaped(sentence)}" for sentence in sentences]
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(title)}}}",
            rf"\label{{tab:{label}}}",
            r"\begin{threeparttable}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *top,
            " & ".join(map(cell, names)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\begin{tablenotes}\footnotesize", *below, r"\end{tablenotes}"] if below else ()),
            r"\end{threeparttable}",
            r"\end{table}",
        )
    )


def group_line(groups: Sequence[str], cell: Callable[[str], str]) -> str:
    """The heads of groups of columns over these, with a rule below each."""
    texts, rules, place = [], [], 0
    while place < len(groups):
        end = place
        while end < len(groups) and groups[end] == groups[place]:
            end += 1
        text = cell(groups[place]) if groups[place] else ""
        texts.append(rf"\multicolumn{{{end - place}}}{{c}}{{{text}}}" if text else " & ".join([""] * (end - place)))
        rules += [rf"\cmidrule(lr){{{place + 1}-{end}}}"] if text else []
        place = end
    return " & ".join(texts) + r" \\" + "\n" + " ".join(rules)


def signed(text: str) -> str:
    """A text of a cell; a sign before a number is set as one."""
    return re.sub(r"(^|(?<=[\s\[]))([+-])(?=\d)", lambda found: f"${found[2]}$", escaped(text))


def escaped(text: str) -> str:
    """A text in which nothing is LaTeX's."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    found = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        found = chr(ord("a") + rest) + found
    return found


def checklist(plan: Plan, records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """What checklists of conferences ask of experiments: seeds, data, settings, compute, code; (name, sentence)."""
    specs = [plan.runs[key].spec for cell in plan.cells for key in cell.runs]
    used = [record for key in plan.runs if (record := records.get(key)) is not None and record.status == "done"]
    data = dict.fromkeys((spec.data.name, spec.data.fingerprint or "not known") for spec in specs)
    recipes = [spec.recipe for spec in specs if spec.recipe]
    wanted = dict.fromkeys(key for cell in plan.cells for key in cell.runs)
    missing = sum(1 for key in wanted if (record := records.get(key)) is None or record.status != "done")
    several = len(plan.seeds) > 1
    facts = [
        (
            "Seeds",
            f"{len(plan.seeds)} per cell ({spans(plan.seeds)}); a seed draws the student's initialisation, the "
            "labelled subset and the data order; "
            + (
                f"{missing} of {len(wanted)} runs are not reported: the table says which and why."
                if missing
                else "all runs are reported, none was selected."
            ),
        ),
        (
            "Error bars",
            "95 % intervals over seeds; gains are paired by seed; methods are in the notes of the table."
            if several
            else "None: there is one seed per cell.",
        ),
        ("Data", "; ".join(f"{name}, content fingerprint {mark[:16]}" for name, mark in data) + "."),
    ]
    if recipes:
        fields = {
            "optimiser": each(recipe.optimizer for recipe in recipes),
            "epochs": each(recipe.epochs for recipe in recipes),
            "global batch": each(recipe.batch_size for recipe in recipes),
            "learning rate": each(recipe.lr for recipe in recipes),
            "weight decay": each(recipe.weight_decay for recipe in recipes),
            "precision": each(recipe.precision for recipe in recipes),
        }
        chosen = plan.chosen or "How they were chosen is not recorded for this profile."
        facts.append(("Settings", "; ".join(f"{name} {value}" for name, value in fields.items()) + f". {chosen}"))
    facts.append(("Compute", " ".join(machine(used, teachers=True))))
    commits = each(record.environment["commit"][:12] for record in used if record.environment.get("commit"))
    facts.append(("Code", f"commit {commits or 'not recorded'}; profile {plan.profile}; hkd run {plan.table}."))
    return facts


def each(values: Iterable[object]) -> str:
    """Different values in their order, as a list."""
    return ", ".join(dict.fromkeys(map(str, values)))
