"""What an analysis found, as a table, as arrays and as figures.

Shapes: L layers, h heads, n images shown.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from analysis.accumulate import HeadResult
from analysis.dct_spectrum import DCTResult
from analysis.fourier import FourierResult

SHOWN = 4  # images whose attention is kept and drawn
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
UNITS = {"attention_distance": "px", "attention_nmi": ""}
SHARES = {
    "share_energy": "DC share of energy",
    "share_unscaled": "DC share, unscaled",
    "share_orthonormal": "DC share, orthonormal",
}


@dataclass(frozen=True)
class AttentionMaps:
    """What one patch attends to in some images.

    images: RGB in [0, 1], [n, Hi, Wi, 3]. maps: by 1-based block, [n, h, H, W], each summing to one. query: (row,
    column) of the patch. patch: its side in px. size: (height, width) of what the network saw, in px.
    """

    images: np.ndarray
    maps: dict[int, np.ndarray]
    query: tuple[int, int]
    patch: float
    size: tuple[int, int]

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for `numpy.savez`."""
        maps = {f"block_{block}": map_ for block, map_ in self.maps.items()}
        return {"images": self.images, "query": np.array(self.query), "patch": np.array(self.patch), **maps}


@dataclass
class Analysis:
    """Measures of one model.

    model: its name. size: (height, width) of its images in px. images: how many were measured. results: by measure.
    refused: reason by measure that this model does not have. uniform: distance in px of attention that is the same
    everywhere, [L]. about: facts for the record.
    """

    model: str
    size: tuple[int, int]
    images: int = 0
    results: dict[str, HeadResult | FourierResult | DCTResult | AttentionMaps] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    uniform: np.ndarray | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """All numbers but spectra by channel, a line each, with 95 % intervals over images (nan for one image).

        Columns: model, measure, layer (1-based; 0 is the embedding), name of the layer, head (1-based), frequency (in
        units of pi), quantity, unit, value, low, high, images.
        """
        rows = [row for name, result in self.results.items() for row in _rows(name, result)]
        frame = pd.DataFrame([{"model": self.model, **row, "images": self.images} for row in rows], columns=[*COLUMNS])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of all measures, by `<measure>.<field>`."""
        found = {
            f"{name}.{key}": value for name, result in self.results.items() for key, value in result.arrays().items()
        }
        return found if self.uniform is None else found | {"attention_distance.uniform_px": self.uniform}

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
    from analysis.plots import draw  # matplotlib takes a second, and a table needs none

    names = [slug(analysis.model) for analysis in analyses]
    if len(set(names)) < len(names):
        raise ValueError(f"Each model of an analysis needs a name of its own, also as that of a file; got {names}.")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "table.csv", folder / "table.md"]
    pd.concat([analysis.table() for analysis in analyses]).to_csv(files[0], index=False)
    files[1].write_text(markdown(analyses))
    for name, analysis in zip(names, analyses, strict=True):
        files.append(folder / f"{name}.npz")
        arrays: dict[str, Any] = analysis.arrays()
        np.savez_compressed(files[-1], **arrays)
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
    files[-1].write_text(json.dumps({"models": models, **(record or {})}, indent=2) + "\n")
    return files


def slug(name: str) -> str:
    """A model's name as the stem of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")


def _rows(name: str, result: Any) -> list[dict[str, Any]]:
    """Lines of one measure's table."""
    if isinstance(result, HeadResult):
        return _head_rows(name, result.pixels())
    if isinstance(result, FourierResult):
        return [
            {
                **line(name, "relative log amplitude", "", result.relative[row, k], result.relative_half[row, k]),
                "layer": row + first_layer(result),
                "name": result.names[row],
                "frequency": result.frequency[row, k],
            }
            for row in range(len(result.names))
            for k in range(1, result.relative.shape[1])
            if not np.isnan(result.relative[row, k])
        ]
    if isinstance(result, DCTResult):
        return [
            line(name, text, "", getattr(result, key), getattr(result, f"{key}_half")) for key, text in SHARES.items()
        ]
    return []


def _head_rows(name: str, result: HeadResult) -> list[dict[str, Any]]:
    rows = []
    for layer, module in enumerate(result.names):
        place = {"layer": layer + 1, "name": module}
        for quantity, value, half in (
            ("mean over heads", result.layer, result.layer_half),
            ("spread over heads", result.spread, result.spread_half),
            ("standard deviation over heads", result.std, result.std_half),
        ):
            rows.append(line(name, quantity, UNITS[name], value[layer], half[layer]) | place)
        for head, value in enumerate(result.mean[layer]):
            if not np.isnan(value):
                found = line(name, "head", UNITS[name], value, result.mean_half[layer, head])
                rows.append(found | place | {"head": head + 1})
    return rows


def line(name: str, quantity: str, unit: str, value: float, half: float) -> dict[str, Any]:
    """What all lines of the table have."""
    return {
        "measure": name,
        "quantity": quantity,
        "unit": unit,
        "value": float(value),
        "low": float(value - half),
        "high": float(value + half),
    }


# -- the table for reading --------------------------------------------------------------------------------------------

TITLES = {
    "attention_distance": "attention_distance (px; mean over heads; spread: largest minus smallest head)",
    "attention_nmi": "attention_nmi (0 to 1; mean over heads; spread: largest minus smallest head)",
    "fourier": "fourier (log amplitude at the highest frequency, relative to frequency 0; layer 0: embedding)",
    "dct_spectrum": "dct_spectrum (% of the last feature map in its DC component)",
}


def markdown(analyses: Sequence[Analysis]) -> str:
    """One table per measure, a line per layer and one or two columns per model; then what was refused and why."""
    parts = []
    for name, title in TITLES.items():
        if having := [each for each in analyses if name in each.results]:
            headers, lines = _shares(having) if name == "dct_spectrum" else _by_layer(name, having)
            parts.append(f"## {title}\n\n{tabulate(lines, headers, tablefmt='pipe', disable_numparse=True)}")
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


def _shares(analyses: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of the DCT's shares."""
    lines = []
    for each in analyses:
        result: Any = each.results["dct_spectrum"]
        pairs = [(getattr(result, key), getattr(result, f"{key}_half")) for key in SHARES]
        lines.append([each.model, *(number(100 * value, 100 * half, 1) for value, half in pairs)])
    return ["model", *SHARES.values()], lines


def _by_layer(name: str, analyses: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of a measure by layer; models of fewer layers have empty cells."""
    headers, columns = ["layer"], []
    digits = {"attention_distance": 1, "attention_nmi": 3, "fourier": 2}[name]
    for each in analyses:
        result: Any = each.results[name]
        kinds = [("", "highest")]
        if isinstance(result, HeadResult):
            result, kinds = result.pixels(), [("", "layer"), ("spread", "spread")]
        for title, key in kinds:
            headers.append(title or each.model)
            pairs = zip(getattr(result, key), getattr(result, f"{key}_half"), strict=True)
            layers = range(first_layer(result), first_layer(result) + len(result.names))
            columns.append(dict(zip(layers, (number(*pair, digits) for pair in pairs), strict=True)))
    layers_of_all = sorted({layer for column in columns for layer in column})
    return headers, [[str(layer), *(column.get(layer, "") for column in columns)] for layer in layers_of_all]


def first_layer(result: HeadResult | FourierResult) -> int:
    """Number of a result's first layer: 0 for the embedding, else 1."""
    return 0 if result.names[0] == "embedding" else 1


def number(value: float, half: float, digits: int) -> str:
    """`116.5 ± 0.1`, or `116.5` without an interval."""
    text = f"{value:.{digits}f}".replace("-", "−")
    return text if np.isnan(half) else f"{text} ± {half:.{digits}f}"
