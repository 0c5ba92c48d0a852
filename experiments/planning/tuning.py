"""Loss weights that were tuned for a table, with their trials: experiments/tuning/<table>.yaml.

One rule for every method: its own weights are multiplied by one factor, and the factors tried are 10^(2u - 1) for the
quasi-random u of van der Corput's sequence (1/2, 1/4, 3/4, 1/8, ...): first the defaults themselves, then ever finer
between a tenth and ten times them. So any budget begins with the defaults, and equal budgets try equal factors. The
factor with the highest mean top-1 on validation rows is taken; of equal ones the first.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, Strict

from experiments.documents import Document, Finite
from experiments.planning import schema
from experiments.planning.declared import options_of
from experiments.planning.schema import Column, Slug
from hkd.errors import UserError
from hkd.options import NotNegative

FOLDER = "tuning"
MOST_TRIALS = 64  # per method and row: more say nothing that noise of a seed does not hide
ColumnName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_-]+)?$")]  # `method` or `method/variant`


class Tuned(Document):
    """One profile's trials. log: by column and row, top-1 in percent of each factor in the order tried (None: the run
    diverged). factors: taken, by column; what is not in it was not tuned.
    """

    trials: Annotated[int, Strict(), Field(ge=1, le=MOST_TRIALS)]
    seeds: Annotated[int, Strict(), Field(ge=1, le=100)]
    rows: Annotated[tuple[Slug, ...], Field(min_length=1)]
    factors: dict[ColumnName, Finite]
    log: dict[ColumnName, dict[Slug, tuple[Finite | None, ...]]]


class Tuning(Document):
    """A table's. weights: of each column that is tuned, its own weights and their defaults."""

    weights: dict[ColumnName, dict[str, NotNegative]]
    profiles: dict[Slug, Tuned] = {}


def factors(trials: int) -> list[float]:
    """The first factors of the sequence, four digits each.

    Raises:
        UserError: a budget of no trials, or of more than `MOST_TRIALS`.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UserError(f"A search budget is 1 to {MOST_TRIALS} trials a method, got {trials}; 1 tries the defaults.")
    from scipy.stats import qmc

    found = qmc.Halton(d=1, scramble=False).random(trials + 1)[1:, 0]  # the sequence begins with 0
    return [float(f"{10 ** (2 * u - 1):.4g}") for u in found]


def best(tried: Mapping[str, tuple[float | None, ...]], order: list[float]) -> float:
    """The factor taken: highest mean over rows, of equal ones the first; a run that diverged counts as 0."""
    means = [math.fsum(values[i] or 0.0 for values in tried.values()) for i in range(len(order))]
    return order[means.index(max(means))]


def load(table: str) -> Tuning | None:
    """experiments/tuning/<table>.yaml, or None where the table's weights are not tuned.

    Raises:
        UserError: a mistake, in one sentence with its place.
    """
    if table not in schema.names(FOLDER):
        return None
    found: Tuning = schema.read("tuning", FOLDER, table, Tuning)
    for column, weights in found.weights.items():
        method = column.partition("/")[0]
        schema.check_options(FOLDER, table, ("weights", column), "method", method, weights)
    for name, tuned in found.profiles.items():
        schema.checked(FOLDER, table, ("profiles", name), "profile", name, schema.names("profiles"))
        for column in (*tuned.factors, *tuned.log):
            schema.checked(FOLDER, table, ("profiles", name), "tuned column", column, found.weights)
    return found


def name_of(column: Column) -> str:
    """`method` or `method/variant`."""
    return f"{column.method}/{column.variant}".rstrip("/")


def scaled(weights: Mapping[str, float], factor: float) -> dict[str, Any]:
    """Options of these weights times a factor; none at 1, so that the runs are those of the defaults."""
    return {} if factor == 1 else {option: float(f"{value * factor:.6g}") for option, value in weights.items()}


def options(tuning: Tuning | None, profile: str, column: str) -> dict[str, Any]:
    """The tuned options of a column at a profile; none where nothing was tuned."""
    if tuning is None or profile not in tuning.profiles:
        return {}
    factor = tuning.profiles[profile].factors.get(column)
    return {} if factor is None else scaled(tuning.weights[column], factor)


def sentence(tuning: Tuning | None, profile: str, columns: Mapping[str, str]) -> str | None:
    """What a caption says of it.

    Args:
        tuning: of the table.
        profile: by name.
        columns: label of each column that learns from a teacher, by name.
    """
    if tuning is None:
        return None
    if profile not in tuning.profiles:
        return "No loss weight was tuned at this profile: all methods have their defaults."
    tuned = tuning.profiles[profile]
    order = factors(tuned.trials)
    tried = ", ".join(f"{factor:.3g}" for factor in order)
    moved = [f"{label} {tuned.factors[name]:.3g}" for name, label in columns.items() if tuned.factors.get(name, 1) != 1]
    left = [label for name, label in columns.items() if name not in tuned.factors]
    seeds = "one seed" if tuned.seeds == 1 else f"{tuned.seeds} seeds"
    rows = "one pair" if len(tuned.rows) == 1 else f"{len(tuned.rows)} pairs"
    text = (
        f"Each method's own loss weight was tuned by one rule with {tuned.trials} trials each: {tried} times the "
        f"default, on validation rows of {rows}, {seeds}. Moved: {', '.join(moved) or 'none'}"
    )
    taken = [tuned.factors.get(name, 1) for name in columns]
    ends = [factor for factor in taken if factor != 1 and factor in (min(order), max(order))]
    if ends:
        text += f" ({len(ends)} to an end of what was tried: the best may lie beyond)"
    return text + (f"; not tuned: {', '.join(left)}." if left else ".")


def check(tuning: Tuning, table: str) -> None:
    """Refuse weights whose stated default is not the method's.

    Raises:
        UserError: in one sentence with its place; a default of None follows from other things, and any number may
            stand for it.
    """
    for column, weights in tuning.weights.items():
        config = options_of("method", column.partition("/")[0])()
        for option, value in weights.items():
            default = getattr(config, option)
            if default is not None and default != value:
                raise schema.complaint(
                    FOLDER, table, ("weights", column, option), f"the default is {default:g}, not {value:g}."
                )
