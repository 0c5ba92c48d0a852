"""What a figure leaves beside its picture: arrays, and the numbers that claims are checked on.

A number has the half width of its 95 % interval over images and, where several seeds were trained, its value for each.
Files are equal byte for byte for equal contents.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Number:
    """A measured number. half: of its 95 % interval over `images`; nan for none. seeds: its value by seed, if trained.

    Of a trained model `value` and `half` are those of the first seed.
    """

    value: float
    half: float = math.nan
    images: int = 0
    seeds: Mapping[int, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it: null for what is not finite."""

        def finite(value: float) -> float | None:
            return float(value) if math.isfinite(value) else None

        return {
            "value": finite(self.value),
            "half": finite(self.half),
            "images": self.images,
            "seeds": {str(seed): float(value) for seed, value in self.seeds.items() if math.isfinite(value)},
        }


def save_measures(numbers: Mapping[str, Number], path: Path, *, profile: str, images: str) -> None:
    """Write measures.json.

    Args:
        numbers: by name.
        path: of the file.
        profile: the scale at which the models were trained.
        images: which ones were measured, as a sentence.
    """
    values = {name: number.plain() for name, number in numbers.items()}
    document = {"profile": profile, "images": images, "values": values}
    path.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """CSV with numbers of five digits; for `dvc plots` and spreadsheets."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.5g}" if isinstance(value, float) else value for value in line] for line in lines)
    return buffer.getvalue()


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write an .npz file without the time in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
