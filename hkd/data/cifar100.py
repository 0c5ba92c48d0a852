"""CIFAR-100, as torchvision lays it out (`cifar-100-python/`) or as class folders of images; kept in memory.

Class folders are decoded once and remembered beside the data, because every run of a table reads them.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from hkd.data.base import OnCorrupt, Split, SplitName
from hkd.data.folder import CACHE, ClassFolder, SubsetConfig, content_digest, row_numbers, source_of, writable
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.options import FolderName, options

SIDE = 32
OFFICIAL = {"train": 50_000, "test": 10_000}
Decoded = tuple[UInt8[np.ndarray, "N 3 32 32"], Int[np.ndarray, " N"], Int[np.ndarray, " N"], dict[str, str]]


@options
class Cifar100Config(SubsetConfig):
    """Options of a part of the data."""

    folder: FolderName = "cifar100"


class Cifar100(ClassFolder):
    """100 classes in alphabetical order, 500 training and 100 test images each; subsets of it are fine.

    `cifar-100-python` beside or inside the option `folder`, where class folders are, comes first.
    """

    name: ClassVar[str] = "cifar100"
    licence: ClassVar[str] = "none stated; its author asks for the citation of Krizhevsky 2009"
    source: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    expected: ClassVar[dict[str, int]] = {"classes": 100}
    full: ClassVar[dict[str, int]] = {"classes": 100, **OFFICIAL}
    checksum: ClassVar[dict[str, str]] = {
        "train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    }
    Config = Cifar100Config
    asked = None
    image_size = SIDE

    @property
    def pickles(self) -> Path | None:
        """torchvision's folder, if it is there."""
        places = (self.root / "cifar-100-python", self.folder / "cifar-100-python")
        return next((place for place in places if place.is_dir()), None)

    def missing(self) -> str | None:
        if self.pickles:
            gone = [split for split in OFFICIAL if not (self.pickles / split).is_file()]
            return f"{self.pickles} has no file '{gone[0]}': unpack cifar-100-python.tar.gz again." if gone else None
        if not (self.part("train").is_dir() and self.part("test").is_dir()):
            step = (
                f"unpack cifar-100-python.tar.gz of {self.source} in {self.root}, or class folders train/, test/ there"
            )
            return f"CIFAR-100 is not at {self.folder}: {step}."
        return None

    def content(self) -> str:
        return content_digest(self.pickles, sorted(OFFICIAL)) if self.pickles else super().content()

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.present()
        source = source_of(self, split, select)
        place = self.pickles
        images, labels, rows, corrupt = self.unpickled(place, source) if place else self.decoded(source)
        if corrupt and on_corrupt == "stop":
            name, reason = next(iter(corrupt.items()))
            raise UserError(f"Cannot read image {name} ({reason}): replace it, or ask to skip corrupt images.")
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        return Split(images[chosen], None, labels[chosen], rows[chosen], corrupt=tuple(corrupt))

    def unpickled(self, place: Path, source: str) -> Decoded:
        """Images of torchvision's file; the official checksum must hold where it has the official count."""
        path = place / source
        data = path.read_bytes()
        try:
            entry = _Restricted(io.BytesIO(data), encoding="latin1").load()
            images = np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
            labels = np.array(entry["fine_labels"], dtype=np.int64)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a file of CIFAR-100 ({error}): unpack cifar-100-python.tar.gz again."
            ) from error
        if (
            len(images) == OFFICIAL[source]
            and f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}" != self.checksum[source]
        ):
            raise UserError(f"{path} does not have {self.checksum[source]}: unpack cifar-100-python.tar.gz again.")
        keep = labels < self.num_classes
        if len(np.unique(labels[keep])) != self.num_classes:
            raise UserError(f"{path} has {len(np.unique(labels))} classes, {self.num_classes} are needed.")
        return images[keep], labels[keep], np.flatnonzero(keep), {}

    def decoded(self, source: str) -> Decoded:
        """Images of class folders; all classes are decoded once and remembered under the digest of the content."""
        numbers = {name: label for label, name in enumerate(self.class_names)}
        path = self.folder / CACHE / f"{source}-{self.content()[:32]}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        else:
            part = self.part(source).name
            arrays = decode(self.folder, [name for name in self.image_files() if name.startswith(f"{part}/")], numbers)
            if writable(path.parent):
                with atomic_write(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
        keep = arrays["labels"] < self.num_classes
        return arrays["images"][keep], arrays["labels"][keep], arrays["rows"][keep], dict(arrays["corrupt"].tolist())


def decode(folder: Path, names: list[str], numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """Images, labels and rows of `part/class/file` names, and the unreadable ones as pairs (path, reason)."""
    images, kept, corrupt = [], [], []
    for place, name in enumerate(names):
        try:
            with Image.open(folder / name) as image:
                if image.size != (SIDE, SIDE):
                    raise ValueError(f"{image.size[0]}x{image.size[1]} px instead of {SIDE}x{SIDE}")
                images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
                kept.append(place)
        except UnidentifiedImageError:
            corrupt.append((str(folder / name), "not an image"))
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow's decoders raise
            corrupt.append((str(folder / name), str(error)))
    return {
        "images": np.stack(images) if images else np.empty((0, 3, SIDE, SIDE), np.uint8),
        "labels": np.array([numbers[names[place].split("/")[1]] for place in kept], dtype=np.int64),
        "rows": row_numbers(names)[kept],
        "corrupt": np.array(corrupt, dtype=np.str_).reshape(-1, 2),
    }


class _Restricted(pickle.Unpickler):
    """Builds arrays, strings, numbers, lists and dicts, and refuses everything else a pickle could call."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (m, "_reconstruct"): np.empty(0).__reduce__()[0]
            for m in ("numpy.core.multiarray", "numpy._core.multiarray")
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]
