"""`numbers100` and `numbers200`: two real handwritten digits on one canvas, composed on demand as 32-px colour images.

The digits, their cut into writers' splits, contrast and noise are those of `digits`; only whole images are new.
In `numbers100` the digits stand side by side, and the class is the two-digit number. In `numbers200` the right digit
stands lower or higher than the left one as well: the class is 100 * arrangement + number.
"""

from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from pydantic import Field

from hkd.data.base import DataSet, OnCorrupt, Split, SplitName, balanced_subset, digest
from hkd.data.compose import draw, to_bytes
from hkd.data.digits import BACKGROUND, CUT, INK, RECIPE, SIDE, STREAM, TINT, Digits, Noise, source_digits, source_file
from hkd.options import Count, Few, Whole, options

WIDTH = (13, 15)  # px of a digit, both included
HEIGHT = {1: (17, 20), 2: (15, 17)}  # px of a digit, by number of arrangements
LEFT = (1, 17)  # px: left edges of the two digits before jitter
STEP = 5  # px by which each digit of numbers200 is moved up or down from the middle
ROWS = 10_000  # a sample's row is ROWS * (source row of its left digit) + (that of its right one)
COMPOSITION = digest(RECIPE, WIDTH, HEIGHT, LEFT, STEP)


@options
class NumbersConfig:
    """pool: training images of each class that exist; a teacher sees all of them.
    n_train: labelled training images in all, class-balanced, drawn from the pool by the run's seed; None takes all.
    n_test: images of each class in validation and in test.
    noise: standard deviation of the pixel noise, of the full range. jitter: largest shift of each digit in px.
    """

    pool: Few = 60
    n_train: Annotated[Count, Field(ge=100)] | None = None
    n_test: Few = 10
    noise: Noise = 0.04
    jitter: Annotated[Whole, Field(le=4)] = 1


@options
class Numbers200Config(NumbersConfig):
    """As NumbersConfig; n_train is at least 200."""

    n_train: Annotated[Count, Field(ge=200)] | None = None


class Numbers(DataSet):
    """Base of both: `arrangements` times 100 classes; images are numbered within their class.

    Image k of a class is a function of (split, class, k) and the options `noise` and `jitter` alone; the source digits
    that it shows are drawn among all rows of its split.
    """

    arrangements: ClassVar[int]
    licence: ClassVar[str] = Digits.licence
    source: ClassVar[str] = Digits.source
    checksum: ClassVar[dict[str, str]] = Digits.checksum
    Config = NumbersConfig

    image_size = SIDE

    @property
    def num_classes(self) -> int:
        return 100 * self.arrangements

    def missing(self) -> str | None:
        return self.digits().missing()

    def digits(self) -> Digits:
        """The data set whose digits are shown."""
        return Digits({}, self.root)

    def fingerprint(self) -> str:
        return digest(self.name, self.digits().source_digest(), asdict(self.options), COMPOSITION)

    def counts(self) -> dict[str, int]:
        held = self.options.n_test * self.num_classes
        return {"train": self.options.n_train or self.options.pool * self.num_classes, "val": held, "test": held}

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.digits().source_digest()
        each = self.options.pool if split == "train" else self.options.n_test
        labels = np.tile(np.arange(self.num_classes), each)  # one image of every class, then the next of every class
        chosen = np.arange(len(labels))
        if split == "train" and self.options.n_train is not None:
            total = self.options.n_train
            chosen = balanced_subset(labels, total, self.num_classes, np.random.default_rng([seed, total]))
        kind = (self.arrangements, self.options.noise, self.options.jitter)
        images, rows = compose(split, tuple(chosen.tolist()), *kind)
        return Split(images, None, labels[chosen], rows)


class Numbers100(Numbers):
    """Two digits side by side, 100 classes."""

    name: ClassVar[str] = "numbers100"
    arrangements: ClassVar[int] = 1
    expected: ClassVar[dict[str, int]] = {"classes": 100}


class Numbers200(Numbers):
    """Two digits, the right one lower or higher, 200 classes."""

    name: ClassVar[str] = "numbers200"
    arrangements: ClassVar[int] = 2
    expected: ClassVar[dict[str, int]] = {"classes": 200}
    Config = Numbers200Config


@lru_cache(maxsize=4)  # runs of one table share their test images, and runs of one seed their training images
def compose(
    split: SplitName, places: tuple[int, ...], arrangements: int, noise: float, jitter: int
) -> tuple[UInt8[np.ndarray, "N 3 S S"], Int[np.ndarray, " N"]]:
    """Images and rows; place p is image p // C of class p % C. Read-only, because calls share them."""
    images, rows = zip(
        *(render(split, *divmod(place, 100 * arrangements), arrangements, noise, jitter) for place in places),
        strict=True,
    )
    found = np.stack(images), np.array(rows)
    for array in found:
        array.setflags(write=False)
    return found


def render(
    split: SplitName, number: int, label: int, arrangements: int, noise: float, jitter: int
) -> tuple[UInt8[np.ndarray, "3 S S"], int]:
    """Image `number` of class `label`, and its row."""
    rng = np.random.default_rng([arrangements, STREAM[split], label, number])
    arrangement, value = divmod(label, 100)
    pair = [int(rng.choice(rows_of(split, digit))) for digit in divmod(value, 10)]
    glyphs, _ = sources()
    widths, heights = (rng.integers(*span, endpoint=True, size=2) for span in (WIDTH, HEIGHT[arrangements]))
    dx, dy = rng.integers(-jitter, jitter, endpoint=True, size=(2, 2))
    step = 0 if arrangements == 1 else STEP * (1 - 2 * arrangement) * np.array([-1, 1])
    boxes = np.stack([np.array(LEFT) + dx, (SIDE - heights) // 2 + step + dy, widths, heights], axis=1)
    background = rng.uniform(*BACKGROUND) + rng.uniform(-TINT, TINT, size=3)
    inks = rng.uniform(*INK, size=(2, 1)) + rng.uniform(-TINT, TINT, size=(2, 3))
    canvas, _ = draw(glyphs[pair], boxes, inks, background, (SIDE, SIDE))
    return to_bytes(canvas + noise * rng.standard_normal(canvas.shape)), ROWS * pair[0] + pair[1]


@lru_cache(maxsize=30)
def rows_of(split: SplitName, digit: int) -> Int[np.ndarray, " n"]:
    """Source rows of one split that show a digit, ascending."""
    _, labels = sources()
    first, last = CUT[split]
    return first + np.flatnonzero(labels[first:last] == digit)


@lru_cache(maxsize=1)
def sources() -> tuple[Float[np.ndarray, "1797 8 8"], Int[np.ndarray, " 1797"]]:
    """`source_digits` of the installed scikit-learn."""
    return source_digits(source_file())
