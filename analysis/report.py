"""What an analysis found, as a table, as arrays and as figures."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from analysis.measures.base import all_measures, measure_called
from analysis.style import house_style, save
from hkd.files import atomic_write

COLUMNS = (
    "model",
    "measure",
    "layer",
    "name",
    "head",
    "frequency",
    "quantity",
    "unit",
    "value",
    "low",
    "high",
    "images",
)


@dataclass
class Analysis:
    """Measures of one model.

    model: its name. size: (height, width) of its images in px. images: how many were measured. results: by measure.
    refused: reason by measure that this model does not have. about: facts for the record.
    """

    model: str
    size: tuple[int, int]
    images: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """All numbers but spectra by channel, a line each, with 95 % intervals over images (nan for one image).

        Columns: model, measure, layer (1-based; 0 is the embedding), name of the layer, head (1-based), frequency (in
        units of pi), quantity, unit, value, low, high, images.
        """
        ends = {"model": self.model, "images": self.images}
        lines = [
            ends | {"measure": name} | row
            for name, result in self.results.items()
            for row in measure_called(name).rows(result)
        ]
        return pd.DataFrame(lines, columns=[*COLUMNS]).astype({"layer": "Int64", "head": "Int64"})

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of all measures, by `<measure>.<field>`."""
        return {
            f"{name}.{key}": value for name, result in self.results.items() for key, value in result.arrays().items()
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write table, arrays, figures and the record to a folder; see `write`."""
        return write([self], Path(folder))


def write(analyses: Sequence[Analysis], folder: Path, record: dict[str, Any] | None = None) -> list[Path]:
    """Write what several models gave.

    table.csv: every number with its interval. table.md: the same by layer, for reading. <model>.npz: raw arrays.
    <measure>.png and .svg: figures of all models. analysis.json: how it was made.

    Args:
        analyses: of different names.
        folder: made if it is not there; files of these names are replaced.
        record: more facts for analysis.json, such as the list of images.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ValueError: two models of one name.
    """
    names = [slug(analysis.model) for analysis in analyses]
    if len(set(names)) < len(names):
        raise ValueError(f"Each model of an analysis needs a name of its own, also as that of a file; got {names}.")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "table.csv", folder / "table.md"]
    with atomic_write(files[0]) as temporary:
        pd.concat([analysis.table() for analysis in analyses]).to_csv(temporary, index=False)
    with atomic_write(files[1]) as temporary:
        temporary.write_text(markdown(analyses), encoding="utf-8")
    for name, analysis in zip(names, analyses, strict=True):
        files.append(folder / f"{name}.npz")
        arrays: dict[str, Any] = analysis.arrays()
        with atomic_write(files[-1]) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)
    files += draw(analyses, folder)
    models = [
        {
            "model": each.model,
            "image_size": list(each.size),
            "images": each.images,
            "measures": list(each.results),
            "refused": each.refused,
            **each.about,
        }
        for each in analyses
    ]
    files.append(folder / "analysis.json")
    with atomic_write(files[-1]) as temporary:
        temporary.write_text(json.dumps({"models": models, **(record or {})}, indent=2) + "\n", encoding="utf-8")
    return files


def slug(name: str) -> str:
    """A model's name as the stem of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")


def draw(analyses: Sequence[Analysis], folder: Path) -> list[Path]:
    """Write PNG and SVG of every measure that some model has, with all models that have it.

    Returns:
        The files.
    """
    files = []
    with house_style():
        for name, results in by_measure(analyses).items():
            for suffix, figure in measure_called(name).figures(results).items():
                for ending in ("png", "svg"):
                    files.append(folder / f"{name}{suffix}.{ending}")
                    save(figure, files[-1])
    return files


def by_measure(analyses: Sequence[Analysis]) -> dict[str, dict[str, Any]]:
    """Results by measure and model, of the measures that some model has."""
    found = {
        name: {each.model: each.results[name] for each in analyses if name in each.results} for name in all_measures()
    }
    return {name: results for name, results in found.items() if results}


def markdown(analyses: Sequence[Analysis]) -> str:
    """One table per measure, a line per layer and one or two columns per model; then what was refused and why."""
    parts = []
    for name, results in by_measure(analyses).items():
        kind = measure_called(name)
        if kind.title:
            headers, lines = kind.table(results)
            table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
            parts.append(f"## {name} ({kind.title})\n\n{table}")
    if refused := [sentence for each in analyses for sentence in refusals(each)]:
        parts.append("\n".join(["## Refused", "", *(f"- {sentence}" for sentence in refused)]))
    if few := [each.model for each in analyses if each.images == 1]:
        parts.append(f"One image was measured of {', '.join(few)}, so there are no intervals: give at least two.")
    return "\n\n".join(parts) + "\n"


def refusals(analysis: Analysis) -> list[str]:
    """A sentence per reason, naming the measures that were refused for it."""
    measures: dict[str, list[str]] = {}
    for name, reason in analysis.refused.items():
        measures.setdefault(reason, []).append(name)
    return [f"{analysis.model}: {', '.join(names)}: {reason}" for reason, names in measures.items()]
