"""`hkd rank`: which method to take for a kind of pair, and what it would cost."""

import math
import re
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.printed import is_wide, out
from experiments.execution.progress import clock
from experiments.grids import new_table
from hkd.errors import UserError
from hkd.registry import lookup
from hkd.units import KINDS as UNITS

if TYPE_CHECKING:
    from experiments.results.preference import Effect, Preference

UNITS_OF_TIME = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SEEDS = 3  # of the comparison that a budget is asked for: fewer decide nothing


@app.command
def rank(*, student: str, teacher: str | None = None, budget: str = "1h") -> int:
    """Say which method you would take for a kind of pair, from every record at hand, and what it would cost.

    Read are this machine's results and the committed records of every profile; nothing is run. Exit code 1 where they
    do not say.

    Args:
        student: kind of the student, `cnn`, `transformer` or `mlp`, or its family, such as `swin`.
        teacher: likewise; any when it is not given.
        budget: time of one core (or GPU) for three seeds of a method and of the student alone: `90s`, `20min`, `1h`.
    """
    from experiments.results.preference import FEWEST, KINDS, at_hand, gains_of, prefer

    seconds = seconds_of(budget)
    known = {**dict.fromkeys(KINDS), **dict.fromkeys(UNITS["family"])}
    for asked in (each for each in (student, teacher) if each is not None):
        lookup("kind or family", asked, known)
    what = f"{student} students" + (f" of {teacher} teachers" if teacher else "")
    gains = gains_of(at_hand(places.references(), places.results()), student, teacher)
    found, console = prefer(gains), out()
    pairs = {pair for each in gains.values() for pair in each}
    if not found.effects:
        held = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of {what}" if pairs else f"no pair of {what}"
        console.print(
            Text(f"I do not know: there are records of {held}, and {FEWEST} pairs of a method are the fewest.")
        )
        return 1
    costs = {
        name: median(times) if (times := finite(each.seconds for each in gains[name].values())) else math.nan
        for name in found.effects
    }
    console.print(Text(sentence(found, what)))
    chosen = found.taken or next(iter(found.effects))
    console.print(Text(cost_sentence(chosen, costs[chosen], budget, seconds)))
    wide = is_wide(console)
    columns = ("gain", "95 %", *(["new pair, 95 %"] if wide else []), "P(gain > 0)")
    shown = new_table("method", "pairs", *columns, "step x", "s/run")
    for name, each in found.effects.items():
        slower = finite(one.slower for one in gains[name].values())
        shown.add_row(
            name,
            str(each.mean.n),
            f"{each.mean.mean:+.1f}",
            f"{each.mean.low:+.1f} {each.mean.high:+.1f}",
            *([f"{each.new.low:+.1f} {each.new.high:+.1f}"] if wide else []),
            f"{each.chance:.2f}",
            f"{median(slower):.2f}" if slower else "",
            f"{costs[name]:.0f}" if costs[name] == costs[name] else "",
        )
    console.print(shown)
    if found.unknown:
        few = ", ".join(f"{name} ({count})" for name, count in found.unknown.items())
        console.print(Text(f"Too few pairs to say: {few}."))
    console.print(Text(READING, style="dim"))
    return int(found.taken is None)


READING = (
    "gain: mean over pairs of points above the student alone, random effects; new pair: where a pair that was not "
    "measured would lie, 95 %; step x: a step beside the student's alone; s/run: CPU seconds at these records' scale."
)


def sentence(found: "Preference", what: str) -> str:
    """Which method, and whether that is decided."""
    if found.taken is None:
        name, best = next(iter(found.effects.items()))
        return f"I do not know: no method is shown to help {what}; the first, {name}, has {said(best)}."
    order = list(found.effects)
    higher = order[: order.index(found.taken)]
    text = f"For {what}, take {found.taken}: {said(found.effects[found.taken])}"
    if higher:
        text += f"; {', '.join(higher)} came out higher, which too few pairs decide"
    lower = [name for name in found.rivals if name not in higher]
    if lower:
        return f"{text}; not shown to be worse: {', '.join(lower)}."
    return f"{text}." if higher else f"{text}, and it is shown to be the best."


def said(effect: "Effect") -> str:
    """`+1.2 points [+0.3, +2.1] over 8 pairs`."""
    mean = effect.mean
    return f"{mean.mean:+.1f} points [{mean.low:+.1f}, {mean.high:+.1f}] over {mean.n} pairs"


def cost_sentence(name: str, seconds: float, budget: str, most: float) -> str:
    """What a method would cost, whether the budget is enough, or that the records do not say.

    Args:
        name: of the method.
        seconds: of one of its runs; nan where the records do not say.
        budget: as it was given; most: in seconds.
    """
    if math.isnan(seconds):
        return f"What {name} costs is not in the records: they hold its values alone."
    needed = 2 * SEEDS * seconds
    enough = f"{budget} is enough" if needed <= most else f"{budget} is not enough"
    return (
        f"{SEEDS} seeds of {name} and of the student alone take at most {clock(needed)} of one core at the scale of "
        f"these records: {enough}."
    )


def finite(values: Iterable[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if not math.isnan(value)]


def seconds_of(text: str) -> float:
    """Seconds of a time as people write it.

    Raises:
        UserError: it is none, or not above 0.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|min|h|d)", text)
    if found is None:
        raise UserError(f"--budget '{text[:40]}' is no time; write 90s, 20min, 1h or 2d.")
    seconds = float(found[1]) * UNITS_OF_TIME[found[2]]
    if not seconds > 0:
        raise UserError(f"--budget must be above 0, got {text}.")
    return seconds
