"""Claims as people and machines read them."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.planning import schema, standins
from experiments.results.claims.check import COMMITTED, Checked
from experiments.results.claims.documents import VERDICTS
from experiments.results.stats import Estimate
from hkd.errors import UserError
from hkd.files import atomic_write

COLUMNS = ("id", "paper", "profile", "sentence", "effect", "low", "high", "n", "over", "expected", "verdict", "rows",
           "basis", "reason", "source")  # fmt: skip


def lines(found: Iterable[Checked]) -> list[dict[str, Any]]:
    """One line per claim and profile, as claims.csv has them."""

    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.4f}"

    return [
        {
            "id": each.claim.id,
            "paper": each.paper,
            "profile": each.profile,
            "sentence": each.claim.sentence,
            "effect": number(each.estimate.mean),
            "low": number(each.estimate.low),
            "high": number(each.estimate.high),
            "n": each.estimate.n,
            "over": each.over if each.estimate.n else "",
            "expected": each.claim.expect.text,
            "verdict": each.verdict,
            "rows": len(each.rows),
            "basis": each.basis,
            "reason": each.reason,
            "source": each.claim.source,
        }
        for each in found
    ]


def interval(estimate: Estimate) -> str:
    """`+1.2 [0.3, 2.1]`, `+1.2 (n=2: 0.3 to 2.1)` where the interval would not inform, or what there is of it."""
    if not estimate.n:
        return ""
    digits = 1 if abs(estimate.mean) >= 10 else 2
    text = f"{estimate.mean:+.{digits}f}"
    if estimate.few:
        text += f" ({estimate.span(digits)})"
    elif not math.isnan(estimate.low):
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return text.replace("-", "−")


def markdown(found: Sequence[Checked]) -> str:
    """The claims as people read them: all of the first profile, of the others those that were tested."""
    blocks = ["# Claims"]
    for i, profile in enumerate(dict.fromkeys(each.profile for each in found)):
        here = [each for each in found if each.profile == profile]
        shown = here if i == 0 else [each for each in here if each.verdict != "untested"]
        blocks.append(f"## Profile {profile}: {summary(here)}")
        if stood_in := standins.of_profile(schema.load_profile(profile)):
            blocks.append(f"Claims are the papers'; the effects were measured here on stand-ins. {stood_in}")
        for paper in dict.fromkeys(each.paper for each in shown):
            rows = [
                "| claim | effect, 95 % interval | over | expected | verdict |\n| --- | --- | --- | --- | --- |",
                *(
                    f"| {each.claim.sentence} | {interval(each.estimate)} | {sample(each)} | {each.claim.expect.text} "
                    f"| {each.verdict}{f' ({each.reason})' if each.reason else ''} |"
                    for each in shown
                    if each.paper == paper
                ),
            ]
            blocks.append(f"### {paper}\n\n" + "\n".join(rows))
    blocks.append(
        "Effects are in points of the metric, or in the unit of the figure's number. No numeric curves are published "
        "for the figures: what the papers say of them in words is compared here. 'committed': not measured on this "
        "machine; 'runs and committed': not all of the table was."
    )
    return "\n\n".join(blocks) + "\n"


def sample(each: Checked) -> str:
    """`5 seeds, 11 rows, committed`."""
    if not each.estimate.n:
        return ""
    whole = f" of {len(each.rows) + each.missing}" if each.missing else ""
    rows = f", {len(each.rows)}{whole} rows" if len(each.rows) > 1 or whole else ""
    basis = f", {each.basis}" if COMMITTED in each.basis else ""
    return f"{each.estimate.n} {each.over}{rows}{basis}"


def summary(found: Iterable[Checked]) -> str:
    """`holds 12, fails 3, ...`, verdicts that occur, in their order."""
    counted = Counter(each.verdict for each in found)
    return ", ".join(f"{verdict} {counted[verdict]}" for verdict in VERDICTS if counted[verdict])


def write(found: Sequence[Checked], folder: Path) -> None:
    """claims.csv, claims.md and metrics.json.

    Raises:
        UserError: the folder cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(found))
    metrics: dict[str, dict[str, dict[str, int]]] = {}
    for each in found:
        counts = metrics.setdefault(each.profile, {}).setdefault(each.paper, dict.fromkeys(VERDICTS, 0))
        counts[each.verdict] += 1
    texts = {
        "claims.csv": table.getvalue(),
        "claims.md": markdown(found),
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write {folder} ({error.strerror}); make it writable, free some space, or set HKD_RESULTS."
        ) from None
