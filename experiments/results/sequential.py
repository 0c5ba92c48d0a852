"""Buying decisions with seeds: looks at planned numbers of seeds, with one error of 5 % over all of them.

Sources: Lan & DeMets 1983 for spending (Pocock's form here), Armitage, McPherson & Rowe 1969 for the recursive
integration, Jennison & Turnbull 2000 (chapters 3, 7 and 9) for nominal levels through Student's t and for repeated
confidence intervals.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError
from scipy import optimize, stats

from experiments.documents import Document
from experiments.results.stats import LEVEL
from hkd.errors import UserError
from hkd.files import atomic_write

LOOKS = (5, 8, 12, 18, 27)  # seeds at which a table is looked at
ERROR = 1 - LEVEL  # over all looks
GRID = 96  # points of the integration between the boundaries of a look


class Design(Document):
    """Numbers of seeds at which a table is looked at, fixed before the first look, and how many looks were taken.

    margins: points, by metric, inside which an effect is none that matters; fixed as well. Stored with the table.
    """

    looks: tuple[Annotated[int, Field(ge=2)], ...] = LOOKS
    taken: Annotated[int, Field(ge=0)] = 0
    margins: dict[str, float] = {}

    @property
    def levels(self) -> tuple[float, ...]:
        """Two-sided nominal level of each look."""
        return nominal_levels(self.looks)

    @property
    def seeds(self) -> int:
        """Seeds of the latest look, or of the first one where none was taken."""
        return self.looks[max(self.taken, 1) - 1]


def design(max_seeds: int | None = None) -> Design:
    """The looks up to a number of seeds.

    Raises:
        UserError: not one look is left.
    """
    looks = tuple(look for look in LOOKS if max_seeds is None or look <= max_seeds)
    if not looks:
        raise UserError(
            f"--max-seeds is {max_seeds}, below the first look at {LOOKS[0]} seeds; "
            f"give at least {LOOKS[0]} (looks are at {', '.join(map(str, LOOKS))})."
        )
    return Design(looks=looks)


def path_of(folder: Path, table: str) -> Path:
    """Where the looks at a table stand: beside its folder, which DVC empties, or beside its committed records."""
    return folder / f"{table}.looks.json"


def store(looks: Design, path: Path) -> None:
    """Write which looks were taken, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(looks.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}); make it writable, or free some space.") from None


def stored(*paths: Path) -> Design | None:
    """The looks that were taken at a table, from the first of these files that is there; None without one.

    Raises:
        UserError: the file is not what was written.
    """
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        found = Design.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise UserError(f"{path} does not say which looks were taken ({first}); restore it.") from None
    if list(found.looks) != sorted(set(found.looks)) or not 0 < found.taken <= len(found.looks):
        raise UserError(f"{path} does not say which looks were taken (of {list(found.looks)}); restore it.")
    return found


def spent(share: float) -> float:
    """Error that may be spent once this share of the information is in (Lan & DeMets' form of Pocock's boundary)."""
    return ERROR * math.log(1 + (math.e - 1) * min(share, 1.0))


@cache
def nominal_levels(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Two-sided p value below which a mean is decided at each look, so that all looks together err in 5 %.

    By recursive integration for normal means: the density of the sum at a look is carried on from where the one before
    it did not stop. The levels go through Student's t afterwards (`boundary`).

    Args:
        looks: growing numbers of seeds.
    """
    shares = [look / looks[-1] for look in looks]
    levels: list[float] = []
    sums, density = np.zeros(1), np.ones(1)  # of the sum where the look before went on: points, and their weights
    before = 0.0  # share of the information then
    for share in shares:
        step = math.sqrt(share - before)
        error = spent(share) - spent(before)

        def excess(c: float, at: float = math.sqrt(share), step: float = step, error: float = error) -> float:
            up, down = stats.norm.sf((c * at - sums) / step), stats.norm.cdf((-c * at - sums) / step)  # noqa: B023
            return float((density * (up + down)).sum()) - error  # noqa: B023

        c = float(optimize.brentq(excess, 0.0, 12.0, xtol=1e-10))
        points, weights = grid(c * math.sqrt(share))
        density = weights * ((density * stats.norm.pdf((points[:, None] - sums) / step)).sum(axis=1) / step)
        sums, before = points, share
        levels.append(float(2 * stats.norm.sf(c)))
    return tuple(levels)


def grid(half: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of [-half, half] and their weights for Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(GRID)
    return half * nodes, half * weights


def boundary(level: float, df: float) -> float:
    """|t| beyond which a mean is decided at a look of this nominal level."""
    return float(stats.t.isf(level / 2, df))


def simulated_error(
    looks: Sequence[int] = LOOKS, tables: int = 20_000, seed: int = 0, effect: float = 0.0
) -> tuple[float, float]:
    """Share of simulated cells that are decided at some look with plain t, and their mean number of seeds.

    Args:
        looks: growing numbers of seeds.
        tables: how many cells, each of its own normal gains of variance 1.
        seed: of the simulation.
        effect: mean of the gains, in standard deviations; 0 gives the error.
    """
    rng = np.random.default_rng(seed)
    gains = rng.normal(effect, 1.0, (tables, looks[-1]))
    is_open, used = np.ones(tables, bool), np.full(tables, looks[-1])
    for n, level in zip(looks, nominal_levels(tuple(looks)), strict=True):
        held = gains[:, :n]
        t = held.mean(axis=1) / (held.std(axis=1, ddof=1) / math.sqrt(n))
        stops = is_open & (np.abs(t) > boundary(level, n - 1))
        used[stops] = n
        is_open &= ~stops
    return float(1 - is_open.mean()), float(used.mean())
