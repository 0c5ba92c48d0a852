"""What every data set is: a name, licence, source and checksum, options, and three splits of labelled images.

Free of torch, because data sets are asked for their fingerprints while a table is planned.
Shapes: N images of a split, H and W their sides in px.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, UInt8

from hkd.errors import UserError
from hkd.options import configured

SplitName = Literal["train", "val", "test"]
OnCorrupt = Literal["stop", "skip"]


@dataclass(frozen=True)
class Split:
    """Labelled images of one split: either in memory (`images`) or as files that are decoded when needed (`paths`).

    rows: where each image comes from: its row (index) in the source; images rendered from the same source share it.
    image_size: side in px at which `paths` are shown. crop_pct: the centre crop's share of the resized short side.
    corrupt: files that could not be read and were left out of `images`, because that was asked for.
    banner: px at the bottom of each file of `paths` that are no part of the photograph, and are never shown.
    """

    images: UInt8[np.ndarray, "N 3 H W"] | None
    paths: Sequence[Path] | None
    labels: Int[np.ndarray, " N"]
    rows: Int[np.ndarray, " N"]
    image_size: int | None = None
    crop_pct: float = 0.875
    corrupt: tuple[str, ...] = ()
    banner: int = 0

    def __post_init__(self) -> None:
        held = self.images if self.images is not None else self.paths
        if held is None or (self.images is not None and self.paths is not None):
            raise ValueError("a split has either images or paths")
        if not len(held) == len(self.labels) == len(self.rows):
            raise ValueError(f"lengths differ: {len(held)} images, {len(self.labels)} labels, {len(self.rows)} rows")
        if self.images is not None and self.images.shape[2] != self.images.shape[3]:
            raise ValueError(f"images in memory must be square, got {self.images.shape[2:]}")
        if self.paths is not None and self.image_size is None:
            raise ValueError("a split of paths needs image_size")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Side in px of the images that a loader yields."""
        if self.images is not None:
            return self.images.shape[2]
        assert self.image_size is not None
        return self.image_size


class PathList(Sequence[Path]):
    """Paths below one folder, held as bytes (1.3 million `Path` objects would take most of a gigabyte).

    Args:
        root: the folder that all names are relative to.
        names: relative names, [N].
    """

    def __init__(self, root: Path, names: Sequence[str]):
        self.root = root
        self.names = np.array([name.encode() for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("a PathList is read one path at a time")
        return self.root / self.names[index].decode()


class DataSet(ABC):
    """Base of all data sets: constructed by name without touching the disk.

    Subclasses state the facts below and implement `missing`, `fingerprint` and `load`.

    Args:
        options: what a profile sets; fields of `Config`.
        root: the folder that holds all data sets.

    Raises:
        UserError: an unknown option, or a value that cannot be.
    """

    name: ClassVar[str]
    licence: ClassVar[str]
    source: ClassVar[str]
    expected: ClassVar[dict[str, int]]  # classes, and images per split of the whole data set
    checksum: ClassVar[dict[str, str]]  # file -> digest, where the source has one
    Config: ClassVar[type]  # of options, of which a fingerprint holds all

    def __init__(self, options: Mapping[str, Any], root: Path):
        self.options: Any = configured(self.Config, f"Data set '{self.name}'", options)
        self.root = Path(root)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes with these options."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in px of the images that a loader yields."""

    @abstractmethod
    def missing(self) -> str | None:
        """One sentence with the path looked at and the step that gets the data, or None when it is there."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the content and of all options, defaults included. Raises UserError when data is missing."""

    @abstractmethod
    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        """One split.

        Args:
            split: "train", "val" (held out of train) or "test". Only train depends on `seed`.
            seed: of the run; draws the labelled subset.
            select: settings are being chosen, so train excludes the validation rows. When False, train is
                everything but test, and there is no "val", except for data sets whose cut is fixed.
            on_corrupt: "stop" raises UserError naming an unreadable file, "skip" leaves it out and lists it.
        """

    def counts(self) -> dict[str, int]:
        """Images per split with these options, told without the data, which may be missing; unknown ones are absent."""
        return {}

    def present(self) -> None:
        """Raise UserError with the sentence of `missing`, if there is one."""
        if sentence := self.missing():
            raise UserError(sentence)


def digest(*parts: Any) -> str:
    """SHA-256 of plain JSON values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def balanced_subset(
    labels: Int[np.ndarray, " N"], total: int, num_classes: int, rng: np.random.Generator
) -> Int[np.ndarray, " total"]:
    """Positions of a random subset whose class counts differ by at most one, in ascending order.

    Args:
        labels: classes [N] in 0..num_classes - 1.
        total: size of the subset. Where it is no multiple of num_classes, `rng` draws who gets one more.
        num_classes: C.
        rng: draws the subset.

    Raises:
        UserError: a class has too few images.
    """
    counts = np.full(num_classes, total // num_classes)
    counts[rng.permutation(num_classes)[: total % num_classes]] += 1
    chosen = []
    for label, count in enumerate(counts):
        held = np.flatnonzero(labels == label)
        if len(held) < count:
            what = f"n_train asks for {count} images of class {label}"
            raise UserError(f"{what}, but only {len(held)} are there; ask for fewer.")
        chosen.append(rng.permutation(held)[:count])
    return np.sort(np.concatenate(chosen))
