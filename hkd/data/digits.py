"""`digits`: the real handwritten digits that ship inside scikit-learn, composed on demand as 32-px colour images.

Every image is one 8x8 digit, scaled bicubically to 23-28 px, placed with jitter, in a light grey with a slight
tint on a dark one, with mild noise. Rows follow their writers, so the cut by rows keeps writers apart.
"""

import gzip
import importlib.util
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from pydantic import Field

from hkd.data.base import DataSet, OnCorrupt, Split, SplitName, balanced_subset, digest
from hkd.data.compose import CUBIC, draw, to_bytes
from hkd.errors import UserError
from hkd.files import sha256
from hkd.options import Count, Few, NotNegative, Whole, options

# One cut for everything that is composed from these digits (no writer in two splits, up to shared blocks' edges).
CUT: dict[SplitName, tuple[int, int]] = {"train": (0, 1029), "val": (1029, 1287), "test": (1287, 1797)}

SIDE = 32  # px of the canvas
HEIGHT = (23, 28)  # px of a digit, both included
WIDEN = (-1, 1)  # px by which it is wider than high
BACKGROUND = (0.0, 0.25)  # grey level
INK = (0.7, 1.0)  # grey level
TINT = 0.05  # largest difference of a channel from grey
Noise = Annotated[NotNegative, Field(le=0.5)]
STREAM = {"train": 1, "val": 2, "test": 3}  # first word of every image's random stream
RECIPE = digest(CUT, SIDE, HEIGHT, WIDEN, BACKGROUND, INK, TINT, STREAM, CUBIC)  # changes when a constant above does


@options
class DigitsConfig:
    """n_train: labelled training digits in all, class-balanced, drawn by the run's seed; None takes all 1,029.
    copies, test_copies: images rendered from each source row in train, and in validation and test.
    noise: standard deviation of the pixel noise, of the full range. jitter: largest shift from the centre in px.
    """

    n_train: Annotated[Count, Field(ge=10)] | None = None
    copies: Few = 1
    test_copies: Few = 1
    noise: Noise = 0.04
    jitter: Annotated[Whole, Field(le=8)] = 1


class Digits(DataSet):
    """Ten classes, 1,029 / 258 / 510 source rows in train, validation and test.

    Validation and test are the same whatever the seed; the cut is fixed, whatever `select` says.
    """

    name: ClassVar[str] = "digits"
    licence: ClassVar[str] = "CC BY 4.0"
    source: ClassVar[str] = "https://archive.ics.uci.edu/dataset/80 (test part, as bundled with scikit-learn)"
    expected: ClassVar[dict[str, int]] = {"classes": 10, **{split: end - start for split, (start, end) in CUT.items()}}
    checksum: ClassVar[dict[str, str]] = {
        "digits.csv.gz": "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    }
    Config = DigitsConfig

    num_classes = 10
    image_size = SIDE

    def missing(self) -> str | None:
        path = source_file()
        if path is None:
            return "The digits come with scikit-learn, which is not installed: run `pip install scikit-learn`."
        if not path.is_file():
            return f"The digits are not at {path}: reinstall scikit-learn, which brings that file."
        return None

    def fingerprint(self) -> str:
        return digest(self.name, self.source_digest(), asdict(self.options), RECIPE)

    def source_digest(self) -> str:
        """SHA-256 of the bundled file; UserError unless it is the one whose rows the cut was made for."""
        self.present()
        found = f"sha256:{_sha256(source_file())}"
        if found != self.checksum["digits.csv.gz"]:
            wanted = self.checksum["digits.csv.gz"]
            raise UserError(f"{source_file()} has {found}, not {wanted}: install a scikit-learn with the usual digits.")
        return found

    def counts(self) -> dict[str, int]:
        sources = {**self.expected, "train": self.options.n_train or self.expected["train"]}
        return {split: sources[split] * self.copies(split) for split in CUT}

    def copies(self, split: SplitName) -> int:
        """Images of each source row."""
        return self.options.copies if split == "train" else self.options.test_copies

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.source_digest()
        glyphs, labels = source_digits(source_file())
        rows = np.arange(*CUT[split])
        if split == "train" and self.options.n_train is not None:
            total = self.options.n_train
            rows = rows[balanced_subset(labels[rows], total, self.num_classes, np.random.default_rng([seed, total]))]
        copies = self.copies(split)
        images = np.stack(
            [self.render(glyphs[row], split, row, copy) for copy in range(copies) for row in rows.tolist()]
        )
        rows = np.tile(rows, copies)
        return Split(images, None, labels[rows], rows)

    def render(
        self, glyph: Float[np.ndarray, "8 8"], split: SplitName, row: int, copy: int
    ) -> UInt8[np.ndarray, "3 S S"]:
        """One image, a function of (split, row, copy) and the options `noise` and `jitter` alone."""
        rng = np.random.default_rng([STREAM[split], row, copy])
        height = int(rng.integers(HEIGHT[0], HEIGHT[1], endpoint=True))
        width = height + int(rng.integers(WIDEN[0], WIDEN[1], endpoint=True))
        jitter = self.options.jitter
        dx, dy = rng.integers(-jitter, jitter, endpoint=True, size=2).tolist()
        box = np.array([[(SIDE - width) // 2 + dx, (SIDE - height) // 2 + dy, width, height]])
        background = rng.uniform(*BACKGROUND) + rng.uniform(-TINT, TINT, size=3)
        ink = rng.uniform(*INK) + rng.uniform(-TINT, TINT, size=3)
        canvas, _ = draw(glyph[None], box, ink[None], background, (SIDE, SIDE))
        return to_bytes(canvas + self.options.noise * rng.standard_normal(canvas.shape))


def source_file() -> Path | None:
    """Where scikit-learn keeps the digits, found without importing it; None when it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


@lru_cache(maxsize=1)
def source_digits(path: Path) -> tuple[Float[np.ndarray, "1797 8 8"], Int[np.ndarray, " 1797"]]:
    """The 8x8 digits as coverage in [0, 1], in the order of the file, and their classes."""
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16.0, table[:, -1].astype(np.int64)


_sha256 = lru_cache(maxsize=1)(sha256)
