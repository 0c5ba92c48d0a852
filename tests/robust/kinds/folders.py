"""Class folders as people leave them: odd names, links, pipes, folders in the place of files, damaged memories."""

import json
import os
import random
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.looking.images import ImageFolder
from hkd.data.cifar100 import Cifar100
from hkd.data.cub200 import Cub200
from hkd.data.folder import ClassFolder
from hkd.data.imagenet1k import ImageNet1k
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from tests.robust.damage import ODD_VALUES, damaged
from tests.robust.fuzz import Input, Kind

SIDE = 32
NOBODY = 65534  # a user who may read nothing that is forbidden to all
NAMES = (
    b"\xff.jpg",
    b"a\nb.png",
    b".png",
    b"._x.png",
    b".hidden.jpg",
    b"x.PNG",
    b"x.tif",
    b"x.png.png",
    b" .png",
    "é.png".encode(),
    b"e\xcc\x81.png",
    b"..png",
    b"-rf.png",
    b"\x1b[31m.png",
    b"%s.png",
    b"{0}.jpg",
    b"x" * 250 + b".jpg",
    b"a\tb.jpg",
    b"007.png",
    b"7.png",
    "٣.png".encode(),
    "\u2028.png".encode(),
    b"Thumbs.db",
    b"README",
)
CLASSES = (
    b"c",
    b"\xfe",
    b"a\nc",
    b".hidden",
    b"c.png",
    "ß".encode(),
    b" ",
    b"a b",
    b"__MACOSX",
    b"@eaDir",
    b"-x",
    b"x" * 255,
)
HOW = (
    "name",
    "class",
    "one side",
    "empty",
    "nested",
    "deep",
    "link out",
    "dangling",
    "loop",
    "folder as image",
    "pipe",
    "forbidden folder",
    "forbidden file",
    "file as class",
    "one class",
    "no class",
    "long",
    "nothing in train",
)


def layout(folder: Path, top: str) -> None:
    for part in ("train", "test"):
        for kind in "ab":
            place = folder / top / part / kind
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (SIDE, SIDE), (90 * number, 50, 7)).save(place / f"{part}{kind}{number}.png")


def disturb(rng: random.Random, top: Path, how: str) -> str:
    """Do one of `HOW` in a data set's folder; says where."""
    part = top / rng.choice(("train", "test"))
    place = part / rng.choice("ab")
    # Another disturbance may have come before: links, pipes and files of 10**12 bytes are no images to copy.
    files = [path for path in place.glob("*.png") if path.is_file() and not path.is_symlink()]
    image = next((path for path in sorted(files) if path.stat().st_size < 10**6), None)
    whole = image.read_bytes() if image is not None else b""
    name = rng.choice(NAMES)
    odd = Path(os.fsdecode(os.fsencode(place) + b"/" + name))
    if how == "name":
        odd.write_bytes(whole if rng.random() < 0.7 else b"")
    elif how in ("class", "one side"):
        kind = rng.choice(CLASSES)
        for side in ("train", "test") if how == "class" else (part.name,):
            made = Path(os.fsdecode(os.fsencode(top) + b"/" + side.encode() + b"/" + kind))
            made.mkdir()
            if rng.random() < 0.8:
                (made / "x.png").write_bytes(whole)
    elif how == "empty":
        for path in [*place.iterdir()]:
            path.unlink()
    elif how == "nested":
        (place / "images").mkdir()
        for path in [*place.glob("*.png")]:
            path.rename(place / "images" / path.name)
    elif how == "deep":
        made = place
        for _ in range(rng.choice((10, 300))):
            made = made / "deeper"
            os.mkdir(made)
    elif how == "link out":
        (place / "out.png").symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/", "/proc/self/mem", "/dev/null")))
        (part / "z").symlink_to(rng.choice(("/etc", "/dev", "/proc/self", "/nowhere", ".", "..")))
    elif how == "dangling":
        (rng.choice((place, part)) / "gone.png").symlink_to("/nowhere/x.png")
    elif how == "loop":
        (place / "loop.png").symlink_to("loop.png")
    elif how == "folder as image":
        (place / "x.png").mkdir()
    elif how == "pipe":
        os.mkfifo(rng.choice((place, part)) / "pipe.png")
    elif how == "forbidden folder":
        rng.choice((top, part, place)).chmod(rng.choice((0, 0o300, 0o400, 0o444)))
    elif how == "forbidden file":
        if image is not None:
            image.chmod(0)
    elif how == "file as class":
        (part / "c").write_bytes(b"x")
    elif how == "long":
        with open(place / "long.png", "wb") as file:
            file.truncate(10**12)
    elif how in ("one class", "no class", "nothing in train"):
        for side in ("train",) if how == "nothing in train" else ("train", "test"):
            for kind in "b" if how == "one class" else "ab":
                for path in [*(top / side / kind).iterdir()]:
                    path.unlink()
                (top / side / kind).rmdir()
    return f"{how} in {place.relative_to(top)}, {name!r}"


def disturbed(rng: random.Random, top: Path, ways: Sequence[str], count: int) -> str:
    """Do some of the ways, but those that another one has made impossible; says which and where."""
    told = []
    for how in rng.sample(ways, count):
        try:
            told.append(disturb(rng, top, how))
        except (OSError, StopIteration):
            continue
    return "; ".join(told)


def expectation(rng: random.Random) -> dict[str, object]:
    """Options of a class folder, right and wrong."""
    found: dict[str, object] = {"image_size": rng.choice((8, SIDE))}
    for name in ("classes", "n_train", "n_test"):
        if rng.random() < 0.2:
            found[name] = rng.choice((1, 2, 3, 10**6, 0, -1, None, "2", 1.5, True))
    if rng.random() < 0.2:
        found["expected"] = rng.choice(
            (
                {"classes": 2},
                {"classes": 0},
                {"train": 4, "test": 4},
                {"train": 5},
                {},
                None,
                {"test": -1},
                {"nonsense": 1},
                {"classes": 10**9},
                [],
            )
        )
    if rng.random() < 0.1:
        found[rng.choice(("folder", "crop_pct", "image_size"))] = rng.choice(ODD_VALUES)
    return found


def shown(data: ClassFolder) -> None:
    """Everything a table asks of a data set."""
    data.missing()
    data.counts()
    data.fingerprint()
    classes = data.num_classes
    for split, select in (("train", False), ("test", False), ("val", True)):
        held = data.load(split, seed=0, select=select, on_corrupt="skip")
        assert len(held) == 0 or (held.labels.min() >= 0 and held.labels.max() < classes), "a label that is no class"
        loader = Loader(held, None, num_classes=classes, seed=0, train=False, on_corrupt="skip")
        found = sum(len(batch.x) for batch in loader.epoch(0))
        assert found + len(set(loader.corrupt) - set(held.corrupt)) == len(held), "an image neither shown nor told"
        stop = Loader(data.load(split, seed=0, select=select), None, num_classes=classes, seed=0, train=False)
        assert sum(len(batch.x) for batch in stop.epoch(0)) == len(held)


def as_nobody(action: Callable[[], None]) -> Callable[[], None]:
    """The same, by a user to whom files can be forbidden."""

    def attempt() -> None:
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            action()
        finally:
            os.seteuid(before)

    return attempt


def class_folders(rng: random.Random, folder: Path) -> Input:
    kind, top = rng.choice(
        ((ClassFolder, "folder"), (ImageNet1k, "imagenet"), (Cifar100, "cifar100"), (Cub200, "CUB_200_2011"))
    )
    layout(folder, top)
    told = disturbed(rng, folder / top, HOW, rng.choice((1, 1, 2)))
    options = expectation(rng)
    if kind is Cifar100:
        options = {name: value for name, value in options.items() if name in ("classes", "n_train", "n_test")}
        options.setdefault("classes", 2)
    elif kind is not ClassFolder and rng.random() < 0.8:
        options.setdefault("expected", {"classes": 2})
    if kind is Cub200 and rng.random() < 0.5:
        options["memory"] = True
    folder.chmod(0o777)

    def attempt() -> None:
        shown(kind(options, folder))

    return Input(f"{kind.name} {options}, {told}", as_nobody(attempt))


def analysed_folders(rng: random.Random, folder: Path) -> Input:
    layout(folder, "folder")
    told = disturbed(rng, folder / "folder", HOW, 2)
    folder.chmod(0o777)

    def attempt() -> None:
        found = ImageFolder(folder / "folder", limit=rng.choice((None, 1, 5)))
        for _ in found.batches((8, 8)):
            continue

    return Input(told, as_nobody(attempt))


def memories(rng: random.Random, folder: Path) -> Input:
    """What is remembered beside the data, damaged or of somebody who meant ill; the digits must stay."""
    kind, top = rng.choice(((Cifar100, "cifar100"), (Cub200, "CUB_200_2011"), (ClassFolder, "folder")))
    layout(folder, top)
    options: dict[str, object] = {"classes": 2}
    if kind is Cub200:
        options |= {"memory": True, "image_size": 8}
    right = kind(options, folder)
    fingerprint, held = right.fingerprint(), right.load("train", seed=0, select=False)
    cache = folder / top / ".hkd-cache"
    path = rng.choice(sorted(cache.iterdir()))
    how = rng.choice(
        ("bytes", "bytes", "folder", "pipe", "link", "text", "arrays", "arrays", "packed", "cache is a file")
    )
    content = path.read_bytes()
    changed_values = False
    if how == "bytes":
        content, told = damaged(rng, content)
        path.write_bytes(content)
        how += f" {told}"
    elif how == "cache is a file":
        for other in cache.iterdir():
            other.unlink()
        cache.rmdir()
        cache.write_bytes(b"x")
    elif how == "text":
        value = rng.choice(ODD_VALUES)
        path.write_text(json.dumps(rng.choice((value, {"state": value, "content": value}, [value]))))
    elif how in ("arrays", "packed") and path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        name = rng.choice(sorted(arrays))
        array = arrays[name]
        arrays[name] = rng.choice(
            (
                array[:-1],
                array[..., None],
                array.astype(np.float32) if name != "corrupt" else array[:0],
                np.array(0),
                -np.ones(array.shape, np.int64),
                array.astype(np.int64) + 10**6 if name != "corrupt" else array,
                np.zeros((0, 5)),
                np.concatenate([array, array]),
            )
        )
        changed_values = True
        save = np.savez_compressed if how == "packed" else np.savez
        with open(path, "wb") as file:
            save(file, **arrays)
        how += f" {name} {arrays[name].dtype} {arrays[name].shape}"
    else:
        path.unlink()
        {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("/dev/zero")}.get(
            how, lambda: path.write_bytes(b"")
        )()

    def attempt() -> None:
        again = kind(options, folder)
        assert again.fingerprint() == fingerprint, "another fingerprint"
        found = again.load("train", seed=0, select=False)
        same = held.images is None or np.array_equal(held.images, found.images)
        assert changed_values or same, "other images"
        assert found.labels.max() < 2, "a label that is no class"
        shown(again)

    return Input(f"{kind.name}: {path.name}, {how}", attempt)


def bombs(rng: random.Random, folder: Path) -> Input:
    """A memory that would unpack to more than any machine has."""
    layout(folder, "cifar100")
    data = Cifar100({"classes": 2}, folder)
    held = data.load("train", seed=0, select=False)
    path = next((folder / "cifar100" / ".hkd-cache").glob("train*.npz"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        count = rng.choice((10**3, 10**4))
        head = {"descr": "|u1", "fortran_order": False, "shape": (rng.choice((1, 10**9, 10**12)), 3, 32, 32)}
        np.lib.format.write_array_header_1_0(file, head)
        for _ in range(count):
            file.write(bytes(2**14))

    def attempt() -> None:
        again = Cifar100({"classes": 2}, folder).load("train", seed=0, select=False)
        if not np.array_equal(again.images, held.images):
            raise AssertionError("other images")
        raise UserError("computed again")

    return Input(f"a memory of {head['shape']}", attempt)


KINDS: dict[str, Kind] = {
    "class_folders": class_folders,
    "analysed_folders": analysed_folders,
    "memories": memories,
    "memory_bombs": bombs,
}
