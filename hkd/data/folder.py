"""Class folders of images, as ImageNet has them: `<folder>/train/<class>/*.jpg` and `<folder>/test/<class>/*.jpg`.

The test folder may be called `val`. Images stay files and are decoded when needed.
Classes are numbered in the order of their sorted names.
"""

import hashlib
import json
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import Field, Strict

from hkd.data import kept
from hkd.data.base import DataSet, OnCorrupt, PathList, Split, SplitName, balanced_subset, digest
from hkd.data.images import MOST_BYTES, is_image_name
from hkd.errors import UserError
from hkd.files import atomic_write, printable, sha256
from hkd.options import Count, FolderName, Share, Size, options

log = logging.getLogger(__name__)

HELD_OUT = 10  # one in so many training rows of each class is for validation
CACHE = ".hkd-cache"  # folder for what can be computed again
MOST_KEPT = 1000  # bytes of a remembered digest
DECODING = 2  # raised where decoding changes: images that were remembered under another number are not used


class Entry(NamedTuple):
    """One image file: its class, and its path relative to the folder of the data set."""

    label: int
    name: str


Images = Annotated[int, Strict(), Field(ge=0, le=10**9)]


@options
class SubsetConfig:
    """folder: its name below the data root. classes: the first k classes only; None takes all.
    n_train, n_test: images per class; train drawn by the run's seed, test the first ones; None takes all.
    """

    folder: FolderName = "folder"
    classes: Count | None = None
    n_train: Count | None = None
    n_test: Count | None = None


@options
class ClassFolderConfig(SubsetConfig):
    """image_size, crop_pct: side in px that a model sees; the centre crop's share of the resized short side.
    expected: counts that must be there.
    """

    image_size: Size = 224
    crop_pct: Annotated[Share, Field(ge=0.1)] = 0.875
    expected: dict[Literal["classes", "train", "test"], Images] | None = None


class ClassFolder(DataSet):
    """Any data set laid out as class folders.

    Validation (`select=True`) is the last tenth of each class's training images, in the order of their names.
    """

    name: ClassVar[str] = "folder"
    licence: ClassVar[str] = "that of the images given"
    source: ClassVar[str] = "the user's own folder"
    expected: ClassVar[dict[str, int]] = {}
    checksum: ClassVar[dict[str, str]] = {}
    Config: ClassVar[type[SubsetConfig]] = ClassFolderConfig
    obtain: ClassVar[str] = "put the images there as train/<class>/ and test/<class>/ (or val/<class>/)"
    full: ClassVar[dict[str, int]] = {}  # counts of the whole data set where a part of it is fine; else `expected`
    hash_content: ClassVar[bool] = True  # False: a file is identified by its name and size, for very large data

    @property
    def folder(self) -> Path:
        return self.root / self.options.folder

    @property
    def image_size(self) -> int:
        return self.options.image_size

    @property
    def num_classes(self) -> int:
        asked = self.asked or {}
        return self.options.classes or asked.get("classes") or self.expected.get("classes") or len(self.class_names)

    def part(self, split: str) -> Path:
        """The folder of the classes of "train" or "test"."""
        if split == "test" and not isdir(self.folder / "test"):
            return self.folder / "val"
        return self.folder / split

    def missing(self) -> str | None:
        for split in ("train", "test"):
            if not isdir(self.part(split)):
                return f"Data set '{self.name}' is not at {self.part(split)}: {self.obtain}."
        return None

    @cached_property
    def class_names(self) -> list[str]:
        """All classes that are there, sorted; UserError unless train and test have the same."""
        self.present()
        train, test = (folder_names(self.part(split)) for split in ("train", "test"))
        if odd := sorted(set(train) ^ set(test)):
            where = "train" if odd[0] in train else "test"
            raise UserError(
                f"Class '{odd[0]}' is only in {self.part(where)}: train and test must have the same classes."
            )
        exact, least = self.wanted_counts().get("classes"), self.options.classes or 1
        if (exact is not None and len(train) != exact) or len(train) < least:
            found = f"{self.part('train')} has {len(train)} classes, {exact or least} are needed"
            raise UserError(f"{found}: complete it or set option 'classes'.")
        return train

    @property
    def asked(self) -> dict[str, int] | None:
        """Counts that the options say must be there."""
        return self.options.expected

    def wanted_counts(self) -> dict[str, int]:
        """Counts to be checked: those asked for, else those of the whole data set unless only a part is taken.

        The classes are those of the whole unless their number is said.
        """
        whole = self.expected if self.options.classes is None else {}
        if self.asked is None:
            return whole
        return {name: count for name, count in whole.items() if name == "classes"} | self.asked

    def counts(self) -> dict[str, int]:
        """Images of train and test: those asked for, else those of the whole data set, in proportion to its classes."""
        asked, full = self.asked or {}, self.full or self.expected
        classes = self.options.classes or asked.get("classes") or full.get("classes")
        found = {}
        for split, each in (("train", self.options.n_train), ("test", self.options.n_test)):
            if each is not None and classes:
                found[split] = each * classes
            elif each is None and split in asked:
                found[split] = asked[split]
            elif each is None and classes and split in full:
                found[split] = full[split] * classes // full["classes"]
        return found

    def entries(self, split: str) -> list[Entry]:
        """Images of "train" or "test" with labels, sorted by class and name; only the classes asked for.

        Raises:
            UserError: a class without images, or another number of them than is needed.
        """
        part = self.part(split)
        found: list[Entry] = []
        others = Counter({"images outside the class folders": len(file_names(part))})
        for label, name in enumerate(self.class_names[: self.options.classes]):
            files, left = listed(part / name)
            found += [Entry(label, f"{part.name}/{name}/{file}") for file in files]
            others += left
        if +others:
            log.warning("%s: left out %s", part, told(others))
        wanted = self.wanted_counts().get(split, len(found))
        if len(found) != wanted:
            raise UserError(
                f"{part} has {len(found)} images, {wanted} are needed: complete it or set option 'expected'."
            )
        self.check_classes(split, np.array([entry.label for entry in found], dtype=np.int64))
        return found

    def check_classes(self, split: str, labels: Int[np.ndarray, " N"]) -> None:
        """Say how many images the classes of "train" or "test" have, and raise UserError where one has none."""
        counts = np.bincount(labels, minlength=self.num_classes)
        empty = np.flatnonzero(counts == 0).tolist()
        if empty:
            name = self.class_names[empty[0]]
            place = self.part(split) / name
            more = f" ({len(empty)} of {len(counts)} classes have none)" if len(empty) > 1 else ""
            left = listed(place)[1] if isdir(place) else {}
            held = f"; left out were {told(left)}" if left else ""
            what = f"Class '{name}' has no {split} images that can be read, in {place}{more}{held}"
            raise UserError(f"{what}: put images there, or take the class out.")
        log.info(
            "%s, %s: %d classes of %d to %d images, %d in all",
            *(self.name, split, len(counts), counts.min(), counts.max(), counts.sum()),
        )

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        found = self.entries(source_of(self, split, select))
        labels = np.array([entry.label for entry in found], dtype=np.int64)
        rows = row_numbers([entry.name for entry in found])
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        paths = PathList(self.folder, [found[position].name for position in chosen])
        return Split(None, paths, labels[chosen], rows[chosen], self.image_size, self.options.crop_pct)

    def choose(
        self, labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " N"], split: SplitName, *, seed: int, select: bool
    ) -> Int[np.ndarray, " n"]:
        """Positions that belong to a split, ascending: the held-out cut, then the options n_train and n_test."""
        order = np.lexsort((rows, labels))
        classes = [order[labels[order] == label] for label in range(self.num_classes)]
        if split == "test":
            limit = self.options.n_test
            if limit is not None and (fewest := min(map(len, classes))) < limit:
                raise UserError(f"n_test asks for {limit} images per class, but a class has only {fewest}.")
            return np.sort(np.concatenate([held[:limit] for held in classes]))
        if select:
            cuts = [len(held) - max(1, len(held) // HELD_OUT) if len(held) > 1 else len(held) for held in classes]
            parts = [held[cut:] if split == "val" else held[:cut] for held, cut in zip(classes, cuts, strict=True)]
        else:
            parts = classes
        pool = np.sort(np.concatenate(parts))
        if split == "val" or self.options.n_train is None:
            return pool
        total = self.options.n_train * self.num_classes
        rng = np.random.default_rng([seed, total])
        return pool[balanced_subset(labels[pool], total, self.num_classes, rng)]

    def fingerprint(self) -> str:
        self.present()
        return digest(self.name, self.content(), asdict(self.options))

    def content(self) -> str:
        """SHA-256 over the names and contents of all image files (or names and sizes, see `hash_content`)."""
        if self.hash_content:
            return content_digest(self.folder, self.image_files())
        return listing_digest(self.folder, [self.part("train"), self.part("test")])

    def image_files(self) -> list[str]:
        """All image files, relative to the folder, sorted."""
        parts = [self.part(split) for split in ("train", "test")]
        return [f"{p.name}/{name}/{file}" for p in parts for name in folder_names(p) for file in file_names(p / name)]


def source_of(data: DataSet, split: SplitName, select: bool) -> str:
    """The part of the source a split comes from; UserError where nothing is held out for validation."""
    if split == "val" and not select:
        raise UserError(f"Data set '{data.name}' holds validation images out of train only while settings are chosen.")
    return "test" if split == "test" else "train"


@contextmanager
def scanned(folder: Path) -> "Iterator[Iterator[os.DirEntry[str]]]":
    """What a folder holds. Raises UserError where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            yield found
    except OSError as error:
        raise UserError(f"Cannot list {folder} ({error.strerror}): mend the folder.") from error


def read_bytes(path: Path, most: int = -1) -> bytes:
    """A file's content, or its first `most` bytes. Raises UserError where it cannot be read."""
    try:
        if path.exists() and not isfile(path):  # a pipe would be waited for
            raise UserError(f"{path} is no file: replace it.")
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}): mend or replace it.") from error


def check_names(folder: Path, names: list[str]) -> list[str]:
    """The names, sorted. Raises UserError where one is not UTF-8."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        odd = next(name for name in names if re.search("[\ud800-\udfff]", name))
        raise UserError(f"{folder} has a name that is not UTF-8 ('{odd}'): rename it.") from None
    return sorted(names)


def check_link(entry: "os.DirEntry[str]") -> None:
    """Raise UserError for a link that leads nowhere."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise UserError(f"{entry.path} is a link that leads nowhere: mend it or take it out.")


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; without hidden ones."""
    names = []
    with scanned(folder) as found:
        for entry in found:
            if entry.is_dir() and not entry.name.startswith("."):
                names.append(entry.name)
            elif not entry.is_file():
                check_link(entry)
    return check_names(folder, names)


def file_names(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted."""
    return listed(folder)[0]


def listed(folder: Path) -> tuple[list[str], Counter[str]]:
    """Names of the images in a folder, sorted, and what else is there: its kind -> how many."""
    images: list[str] = []
    others: Counter[str] = Counter()
    with scanned(folder) as found:
        for entry in found:
            if not is_image_name(entry.name):
                suffix = Path(printable(entry.name)).suffix.lower()[:20]
                kind = f"{suffix} files" if suffix else "files without a suffix"
                others["folders" if entry.is_dir() else "hidden files" if entry.name.startswith(".") else kind] += 1
            elif entry.is_file():
                images.append(entry.name)
            else:
                check_link(entry)
                others["folders called as images are" if entry.is_dir() else "devices"] += 1
    return check_names(folder, images), others


def told(others: Mapping[str, int]) -> str:
    """Counts in words, the largest first: `.tif files (3), folders (1)`."""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} ({count})" for kind, count in ordered if count)


def row_numbers(names: list[str]) -> Int[np.ndarray, " N"]:
    """Rows in the source: the file names where all are different numbers (as `00304.webp`), else the position."""
    stems = [Path(name).stem for name in names]
    if all(re.fullmatch(r"\d{1,18}", stem) for stem in stems) and len(set(map(int, stems))) == len(stems):
        return np.array([int(stem) for stem in stems], dtype=np.int64)
    return np.arange(len(names))


def content_digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over names and contents of files; remembered as long as no name, size or time of change differs."""
    names = list(names)
    try:
        stats = [(name, stat.st_size, stat.st_mtime_ns) for name in names if (stat := os.stat(folder / name))]
        # What is longer than any image is none, and would take hours.
        contents = lambda: [(n, sha256(folder / n) if size <= MOST_BYTES else size) for n, size, _ in stats]  # noqa: E731
        return remembered(folder, digest(stats), lambda: digest(contents()))
    except OSError as error:
        raise UserError(f"Cannot read {error.filename} ({error.strerror}): mend or replace it.") from error


def listing_digest(folder: Path, parts: Iterable[Path]) -> str:
    """SHA-256 over names and sizes of files; remembered as long as no class folder had a file added or removed."""
    folders = [part / name for part in parts for name in folder_names(part)]

    def listed() -> str:
        total = hashlib.sha256()
        for path in folders:
            for name in file_names(path):
                total.update(f"{path.relative_to(folder)}/{name}\0{os.stat(path / name).st_size}\n".encode())
        return total.hexdigest()

    try:
        times = [(str(path.relative_to(folder)), os.stat(path).st_mtime_ns) for path in folders]
        return remembered(folder, digest(times), listed)
    except OSError as error:
        raise UserError(f"Cannot read {error.filename} ({error.strerror}): mend or replace it.") from error


def remembered(folder: Path, state: str, compute: Any) -> str:
    """`compute()`, kept under the state it was computed for: in the cache folder, or where that is read-only in the
    folder that `hkd.data.kept` was told.
    """
    paths = [folder / CACHE / "content.json"]
    if (also := kept.folder()) is not None:
        paths.append(also / f"content-{digest(str(folder.resolve()))[:16]}.json")
    for path in paths:
        if (known := kept_content(path, state)) is not None:
            return known
    content = compute()
    document = json.dumps({"state": state, "content": content, "check": digest(state, content)})
    if (place := next((path for path in paths if writable(path.parent)), None)) is not None:
        keep(place, lambda temporary: temporary.write_text(document))
    return content


def kept_content(path: Path, state: str) -> str | None:
    """What `remembered` kept for this state; None where there is nothing, or something damaged."""
    try:
        known = json.loads(read_bytes(path, MOST_KEPT))
        right = known["state"] == state and known["check"] == digest(state, known["content"])
        return known["content"] if right else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def arrays_of(
    path: Path, kinds: Mapping[str, type], below: Mapping[str, int], side: int
) -> dict[str, np.ndarray] | None:
    """Arrays that were kept, by name; None where they are not there, damaged, or not what is kept.

    Args:
        path: in the cache folder.
        kinds: NumPy's type of each. `images` are [n, 3, side, side] and the others [n], but for `corrupt`: pairs of a
            path and a reason.
        below: what the values of some must be less than; none is negative.
        side: of the images in px.
    """
    if not isfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("what is kept is not packed")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in kinds}
    except Exception as error:  # damage shows in every way, and all of it can be computed again
        log.warning("%s is damaged (%s): its content is computed again", path, type(error).__name__)
        return None
    shapes = {name: array.shape[1:] for name, array in arrays.items() if array.ndim}
    wanted = dict.fromkeys(kinds, ()) | {"images": (3, side, side), "corrupt": (2,)}
    right = shapes == wanted and len({len(array) for name, array in arrays.items() if name != "corrupt"}) == 1
    right = right and all(np.issubdtype(arrays[name].dtype, kind) for name, kind in kinds.items())
    return arrays if right and all(((arrays[n] >= 0) & (arrays[n] < most)).all() for n, most in below.items()) else None


def keep_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays for `arrays_of`, where that can be written."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))

    keep(path, write)


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache folder, which can be computed again: that it cannot be written is only said."""
    if not writable(path.parent):
        return
    try:
        with atomic_write(path) as temporary:
            write(temporary)
    except OSError as error:
        log.warning("%s could not be written (%s): it will be computed again", path, error.strerror)


def writable(folder: Path) -> bool:
    """Make the folder if that is possible, and say whether files can be written there."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
