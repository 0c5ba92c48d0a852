"""Tables whose rows and columns are the finished classifiers of another table, measured again by a task of evaluation.

Each cell is a run of its own that starts from the weights which the other table's run left, so no training has another
key for it, and what that table has trained is not trained again. Every table `X` with classifiers has such a table
without a file, `X_robustness`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.planning.schema import Column, Row, Table

SUFFIX = "_robustness"
# Of that task; methods are ranked by the first.
METRICS = ("top1_corrupted", "top1", "top1_noise", "top1_blur", "top1_contrast", "ece", "nll")
CAPTIONS = (
    "Corrupted images: Gaussian noise, Gaussian blur and lost contrast at strengths 1, 3 and 5 of Hendrycks and "
    "Dietterich (2019; up to 64 px those for small images); accuracies are means over strengths, under corruption the "
    "mean of the three.",
    "ECE, in 15 bins of equal width, and the negative log-likelihood (in nats) are of the images as they are; of both "
    "lower is better, so that a gain below 0 is an improvement.",
)


def base_of(name: str) -> str | None:
    """The table that a name without a file would measure again, if it ends as such names do."""
    stem = name.removesuffix(SUFFIX)
    return stem if stem and stem != name else None


def document(name: str) -> dict[str, Any]:
    """What a table without a file says of itself."""
    return {"id": name, "again": {"of": base_of(name)}}


def expanded(content: Mapping[str, Any], base: "Table") -> dict[str, Any]:
    """A table's document with rows and columns of the table it measures again; what it says itself stays.

    Args:
        content: with `again`, as YAML has it.
        base: that table.
    """
    again = content["again"]
    rows = [row_again(row, base, again) for row in base.rows]
    return {
        "paper": content["id"] if base.paper == base.id else base.paper,  # a user's own is of none
        "title": f"{base.title}: robustness and calibration",
        "data": base.data,
        "strategy": base.strategy,
        "metrics": list(METRICS),
        "captions": list(CAPTIONS),
        **content,
        "rows": [row for row in rows if row["columns"]],
    }


def row_again(row: "Row", base: "Table", again: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the columns that train a classifier; what they start from is theirs now."""
    columns = base.columns if row.columns is None else row.columns
    held = row.model_dump(exclude_unset=True, exclude={"columns", "published", "metrics", "after", "starts_from"})
    kept = [each for each in columns if is_classifier(each, row, base)]
    return held | {"columns": [column_again(each, row, again) for each in kept]}


def is_classifier(column: "Column", row: "Row", base: "Table") -> bool:
    """Whether a column's run trains a model whose accuracy it reports."""
    metrics = column.metrics or row.metrics or base.metrics
    return column.task == "train" and column.trains and not column.quoted and "top1" in metrics


def column_again(column: "Column", row: "Row", again: Mapping[str, Any]) -> dict[str, Any]:
    """A column that measures what another one has trained."""
    trained = column.model_dump(exclude_unset=True, include=set(STAGE))
    if column.after is None and column.starts_from is None:
        trained |= row.model_dump(exclude_unset=True, include={"after", "starts_from"})
    told = column.model_dump(exclude_unset=True, include=set(TOLD))
    task = {"task": again.get("task", "robustness"), "task_options": again.get("task_options", {})}
    return told | task | {"trains": False, "teacher": False, "after": trained}


STAGE = ("method", "options", "data", "strategy", "trains", "task", "task_options", "teacher", "after", "starts_from")
TOLD = ("method", "options", "data", "label", "variant", "added", "gain_over")  # that both have
