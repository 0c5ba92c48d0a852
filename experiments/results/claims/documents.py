"""Claims as data: experiments/claims/<paper>.yaml, read strictly."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from experiments.documents import Document
from experiments.planning import schema
from experiments.planning.schema import Column, Slug, Table
from experiments.results.stats import Estimate
from hkd.errors import UserError
from hkd.options import Number, Switch
from hkd.registry import nearest

FOLDER = "claims"
VERDICTS = ("holds", "fails", "undecided", "untested")


class Difference(Document):
    """A column of a table minus another one of the same row, in points, averaged over rows for each seed.

    column, over: `method/variant`, `method`, or a variant's name alone where it is the only one. No column: the only
        one that has the metric. Of several in `over` the test must hold for each, and the difference nearest to not
        holding is shown; none: the value itself.
    rows: None: all rows that have the columns. against: rows whose value (of the difference, where there is one: do
        gains grow?) is subtracted from the mean over `rows`; the test must hold for each, or, if pooled, for their
        mean. against_column: their column, where it is another one.
    metric: None: the table's first.
    """

    kind: Literal["difference"]
    table: Slug
    column: str | None = None
    over: str | tuple[str, ...] = ()
    rows: tuple[Slug, ...] | None = None
    against: tuple[Slug, ...] = ()
    against_column: str | None = None
    pooled: Switch = False
    metric: str | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """Columns that are subtracted."""
        return (self.over,) if isinstance(self.over, str) else self.over

    @property
    def comparisons(self) -> list[tuple[str, tuple[str, ...]]]:
        """Every (other column, rows against which) that must hold; an empty one where there is none."""
        groups = [self.against] if self.pooled or not self.against else [(row,) for row in self.against]
        return [(over, group) for over in self.others or ("",) for group in groups]


class Correlation(Document):
    """Spearman's rank correlation, over rows and for each seed, of a column's difference with a number of the row.

    order: row -> the number (a teacher's parameters, say), at least three. column, over, metric: as in `Difference`.
    """

    kind: Literal["correlation"]
    table: Slug
    column: str | None = None
    over: str | None = None
    order: dict[Slug, Number]
    metric: str | None = None


class Value(Document):
    """A number that a figure measured, minus another number of it or a constant.

    value, minus: names in the figure's measures.json, such as `distance_spread/MAE/late`.
    """

    kind: Literal["value"]
    figure: Slug
    value: str
    minus: str | Number = 0.0


class Expect(Document):
    """Where the statistic must lie: above or below a number, or at most so far from zero. One of them."""

    above: Number | None = None
    below: Number | None = None
    within: Number | None = None

    @model_validator(mode="after")
    def one(self) -> "Expect":
        if sum(value is not None for value in (self.above, self.below, self.within)) != 1:
            raise ValueError("give one of above, below and within.")
        if self.within is not None and self.within <= 0:
            raise ValueError("within must be above 0.")
        return self

    @property
    def text(self) -> str:
        """`> 0`, `< 0` or `± 0.5`."""
        if self.within is not None:
            return f"± {self.within:g}"
        return f"> {self.above:g}" if self.above is not None else f"< {self.below:g}"

    def room(self, low: float, high: float) -> tuple[float, float]:
        """How far inside (positive) or outside an interval's worst and best point lie."""
        if self.within is not None:
            nearest_zero = max(low, -high, 0.0)
            return self.within - max(abs(low), abs(high)), self.within - nearest_zero
        if self.above is not None:
            return low - self.above, high - self.above
        assert self.below is not None
        return self.below - high, self.below - low

    def verdict(self, estimate: Estimate) -> str:
        """The verdict on an estimate."""
        if estimate.n == 0:
            return "untested"
        if math.isnan(estimate.low):
            return "undecided"
        worst, best = self.room(estimate.low, estimate.high)
        return "holds" if worst > 0 else "fails" if best < 0 else "undecided"


class Claim(Document):
    """One sentence of a paper, in our words, and how it is tested."""

    id: Slug
    sentence: str
    source: str
    statistic: Annotated[Difference | Correlation | Value, Field(discriminator="kind")]
    expect: Expect = Expect(above=0.0)
    note: str | None = None


class Claims(Document):
    """All claims of one paper. awaited: tables that claims name and that no file describes yet; they are untested."""

    paper: Slug
    awaited: tuple[Slug, ...] = ()
    claims: tuple[Claim, ...]


def papers() -> list[str]:
    """Papers that have claims."""
    return schema.names(FOLDER)


@cache
def load_claims(paper: str) -> Claims:
    """experiments/claims/<paper>.yaml, with every name in it checked.

    Raises:
        UserError: a mistake, in one sentence with its place and the nearest name that would be right.
    """
    if paper not in papers():
        raise UserError(f"Unknown paper '{paper}'.{nearest(paper, papers())} Known: {', '.join(papers())}.")
    try:
        found = TypeAdapter(Claims).validate_python(schema.contents(FOLDER, paper))
    except ValidationError as error:
        first = error.errors()[0]
        kinds = ("difference", "correlation", "value")  # tags of the union, which are no keys of the file
        loc = tuple(
            part for i, part in enumerate(first["loc"]) if not (part in kinds and first["loc"][i - 1] == "statistic")
        )
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key '{loc[-1]}'.{nearest(str(loc[-1]), known_keys())}"
        raise schema.complaint(FOLDER, paper, loc, message) from None
    if found.paper != paper:
        raise UserError(f"{schema.where(FOLDER, paper)}: paper is '{found.paper}', but the file is named '{paper}'.")
    ids = [claim.id for claim in found.claims]
    for i, claim in enumerate(found.claims):
        if claim.id in ids[:i]:
            raise schema.complaint(FOLDER, paper, ("claims", i, "id"), f"claim '{claim.id}' appears twice.")
        check_names(found, i, claim)
    return found


def known_keys() -> list[str]:
    """Every key that a claim can have."""
    kinds: tuple[type[Document], ...] = (Claims, Claim, Difference, Correlation, Value, Expect)
    return sorted({field for kind in kinds for field in kind.model_fields})


def check_names(claims: Claims, index: int, claim: Claim) -> None:
    """Refuse tables, rows, columns and metrics that lead nowhere; of numbers in figures only the figure is known."""
    statistic, at = claim.statistic, ("claims", index, "statistic")

    def checked(key: str, kind: str, name: str, known: Iterable[str]) -> None:
        schema.checked(FOLDER, claims.paper, (*at, key), kind, name, list(known))

    if isinstance(statistic, Value):
        checked("figure", "figure", statistic.figure, [*schema.table_ids(), *claims.awaited])
        return
    checked("table", "table", statistic.table, [*schema.table_ids(), *claims.awaited])
    if statistic.table not in schema.table_ids():
        return
    table: Table = schema.read("table", "tables", statistic.table, Table)
    rows = [row.row for row in table.rows]
    metrics = {metric for column in columns_of(table) for metric in column.metrics or ()}
    metric = statistic.metric or table.metrics[0]
    checked("metric", f"metric of '{table.id}'", metric, sorted(metrics))
    uses: list[tuple[str, str | None, Sequence[str | None]]]  # key, column, rows that must have it
    if isinstance(statistic, Correlation):
        ours: Sequence[str | None] = tuple(statistic.order)
        uses = [("column", statistic.column, ours), *([("over", statistic.over, ours)] if statistic.over else [])]
        named: Mapping[str, Sequence[str]] = {"order": tuple(statistic.order)}
        if len(statistic.order) < 3:
            raise schema.complaint(FOLDER, claims.paper, (*at, "order"), "an order takes at least three rows.")
    else:
        ours = statistic.rows or (None,)
        uses = [("column", statistic.column, ours), *(("over", over, ours) for over in statistic.others)]
        if statistic.against_column:
            uses.append(("against_column", statistic.against_column, statistic.against))
        named = {"rows": statistic.rows or (), "against": statistic.against}
    for key, names in named.items():
        for name in names:
            checked(key, f"row of '{table.id}'", name, rows)
    for key, column, needed in uses:
        for row in needed:
            columns = columns_of(table, row)
            if resolve(column, columns, metric) is None:
                known = [column_name(each) for each in columns]
                where = f" in row '{row}'" if row else ""
                what = f"'{column}' names" if column else f"left out, with metric '{metric}', it means"
                raise schema.complaint(
                    FOLDER,
                    claims.paper,
                    (*at, key),
                    f"{what} no column, or several, of '{table.id}'{where}.{nearest(column or '', known)}",
                )


def columns_of(table: Table, row: str | None = None) -> list[Column]:
    """Columns of one row, or of all, each with the metrics that it has there."""
    return [
        column.model_copy(update={"metrics": column.metrics or each.metrics or table.metrics})
        for each in table.rows
        if row in (None, each.row)
        for column in (table.columns if each.columns is None else each.columns)
    ]


def column_name(column: Column) -> str:
    """`method/variant`, or the method alone."""
    return f"{column.method}/{column.variant}".removesuffix("/")


def resolve(name: str | None, columns: Sequence[Column], metric: str) -> tuple[str, str] | None:
    """(method, variant) that a name stands for among columns; no name: the only one with the metric.

    None where there is none, or several.
    """
    ids = dict.fromkeys((each.method, each.variant) for each in columns if name or metric in (each.metrics or ()))
    exact = [each for each in ids if name in (None, "/".join(filter(None, each)))]
    found = exact or [each for each in ids if each[1] == name]
    return found[0] if len(found) == 1 else None
