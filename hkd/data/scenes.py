"""`scenes`: several real handwritten digits on one canvas, with boxes, instance masks and a semantic map.

The digits, their cut into writers' splits, contrast and noise are those of `digits`; only the scenes are new. Each
shows three to six digits of different classes, in three sizes; where boxes overlap a little, later digits cover
earlier ones.
"""

from dataclasses import asdict
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from hkd.data.base import SplitName, digest
from hkd.data.compose import draw, to_bytes
from hkd.data.dense import DenseSet, DenseSplit, Objects, draw_subset
from hkd.data.digits import BACKGROUND, INK, RECIPE, STREAM, TINT, Digits, Noise
from hkd.data.numbers import rows_of, sources
from hkd.options import Size, options

SIDE = 64  # px of the canvas
DIGITS = (3, 6)  # digits that are tried, both included; never fewer are placed than the first number
HEIGHTS = (20, 24, 28)  # px: sides of a digit's square
OVERLAP = 0.12  # two squares share less than this part of the smaller one
TRIES = 30  # places tried for a digit before it is left out
COVERED = 0.35  # coverage from which on a pixel belongs to a digit
SIZE_BORDERS = {"box": (17.0, 20.0), "mask": (13.0, 15.5)}  # px: about a third of the digits is below, between, above
STREAM_OF_SCENES = 7  # first word of every scene's random stream
COMPOSITION = digest(RECIPE, SIDE, DIGITS, HEIGHTS, OVERLAP, TRIES, COVERED, STREAM_OF_SCENES)


class Scene(NamedTuple):
    """The image, its objects in the order of drawing, its semantic map, and the source rows of the objects' digits."""

    image: UInt8[np.ndarray, "3 H W"]
    objects: Objects
    map: UInt8[np.ndarray, "H W"]
    rows: Int[np.ndarray, " K"]


@options
class ScenesConfig:
    """pool: training scenes that exist; a teacher sees all of them.
    n_train: annotated training scenes, drawn from the pool by the run's seed; None takes all.
    n_test: scenes in validation and in test, each. noise: standard deviation of the pixel noise, of the full range.
    """

    pool: Size = 800
    n_train: Size | None = None
    n_test: Size = 300
    noise: Noise = 0.04


class Scenes(DenseSet):
    """Ten classes of objects, the digits; the map has eleven, background and the digits after it.

    Scene k of a split is a function of (split, k) and the option `noise` alone. The cut is fixed, whatever `select`
    says. A mask is where a digit's own coverage exceeds 0.35 and no later digit's does; its box is the mask's bounds,
    and the map holds the same pixels.
    """

    name: ClassVar[str] = "scenes"
    licence: ClassVar[str] = Digits.licence
    source: ClassVar[str] = Digits.source
    checksum: ClassVar[dict[str, str]] = Digits.checksum
    expected: ClassVar[dict[str, int]] = {"classes": 10}
    Config = ScenesConfig

    image_size = SIDE

    @property
    def object_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    @property
    def map_names(self) -> tuple[str, ...]:
        return ("background", *self.object_names)

    def missing(self) -> str | None:
        return self.digits().missing()

    def digits(self) -> Digits:
        """The data set whose digits are shown."""
        return Digits({}, self.root)

    def fingerprint(self) -> str:
        return digest(self.name, self.digits().source_digest(), asdict(self.options), COMPOSITION)

    def counts(self) -> dict[str, int]:
        held = self.options.n_test
        return {"train": self.options.n_train or self.options.pool, "val": held, "test": held}

    def load_dense(self, split: SplitName, *, seed: int, select: bool) -> DenseSplit:
        self.digits().source_digest()
        if split == "train":
            chosen = draw_subset(self.options.pool, self.options.n_train, seed, self.name)
        else:
            chosen = np.arange(self.options.n_test)
        shown = [render(split, index, self.options.noise) for index in chosen.tolist()]
        return DenseSplit(
            images=np.stack([scene.image for scene in shown]),
            paths=None,
            rows=chosen,
            sizes=np.full((len(shown), 2), SIDE),
            objects=[scene.objects for scene in shown],
            maps=np.stack([scene.map for scene in shown]),
            object_names=self.object_names,
            map_names=self.map_names,
            image_size=SIDE,
            max_size=SIDE,
            size_borders=SIZE_BORDERS,
        )


@lru_cache(maxsize=4096)  # runs of one table share their scenes: 25 kB each
def render(split: SplitName, index: int, noise: float) -> Scene:
    """Scene `index` of a split. Its arrays are read-only, because calls share them."""
    rng = np.random.default_rng([STREAM_OF_SCENES, STREAM[split], index])
    count = int(rng.integers(DIGITS[0], DIGITS[1], endpoint=True))
    boxes = place(count, rng)
    while len(boxes) < DIGITS[0]:
        boxes = place(count, rng)
    labels = rng.permutation(10)[: len(boxes)]
    rows = np.array([int(rng.choice(rows_of(split, digit))) for digit in labels.tolist()])
    background = rng.uniform(*BACKGROUND) + rng.uniform(-TINT, TINT, size=3)
    inks = rng.uniform(*INK, size=(len(boxes), 1)) + rng.uniform(-TINT, TINT, size=(len(boxes), 3))
    canvas, coverage = draw(sources()[0][rows], boxes, inks, background, (SIDE, SIDE))
    image = to_bytes(canvas + noise * rng.standard_normal(canvas.shape))

    covered = coverage > COVERED
    masks = covered.copy()
    for later in range(1, len(covered)):
        masks[:later] &= ~covered[later]
    objects = Objects(bounds(masks), labels, masks, np.zeros(len(labels), dtype=bool))
    meaning = ((labels + 1)[:, None, None] * masks).sum(axis=0).astype(np.uint8)
    for array in (image, objects.boxes, labels, masks, objects.crowd, meaning, rows):
        array.setflags(write=False)
    return Scene(image, objects, meaning, rows)


def place(count: int, rng: np.random.Generator) -> Int[np.ndarray, "K 4"]:
    """Squares (x, y, side, side in px) for up to `count` digits that overlap each other by less than `OVERLAP`."""
    placed: list[tuple[int, int, int, int]] = []
    for side in rng.choice(HEIGHTS, size=count).tolist():
        for x, y in rng.integers(0, SIDE - side, endpoint=True, size=(TRIES, 2)).tolist():
            if all(overlap((x, y, side, side), other) < OVERLAP for other in placed):
                placed.append((x, y, side, side))
                break
    return np.array(placed)


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Area that two boxes (x, y, width, height) share, as a part of the smaller one's."""
    (x, y, w, h), (u, v, s, t) = one, other
    shared = max(0, min(x + w, u + s) - max(x, u)) * max(0, min(y + h, v + t) - max(y, v))
    return shared / min(w * h, s * t)


def bounds(masks: Bool[np.ndarray, "K H W"]) -> Float32[np.ndarray, "K 4"]:
    """Smallest boxes x1, y1, x2, y2 in px around masks that are not empty."""
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    height, width = masks.shape[1:]
    first = np.argmax(columns, axis=1), np.argmax(rows, axis=1)
    last = width - np.argmax(columns[:, ::-1], axis=1), height - np.argmax(rows[:, ::-1], axis=1)
    return np.stack([*first, *last], axis=1).astype(np.float32)
