"""Images as users meet them: in class folders, in detection data and in a folder to analyse.

Whole ones of every mode and format, with bytes changed, cut, repeated or put in, under any suffix; and heads that
announce what is not there.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from analysis.looking.images import ImageFolder
from hkd.data import images
from hkd.data.dense import IGNORE, DenseSplit
from hkd.data.folder import ClassFolder
from hkd.data.loading.dense import DenseLoader, ViewOptions
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.spec import Recipe
from tests.robust.damage import damaged
from tests.robust.fuzz import Input, Kind

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")
FORMATS = {
    "PNG": (".png", MODES),
    "JPEG": (".jpg", ("RGB", "L", "CMYK")),
    "BMP": (".bmp", ("RGB", "L", "P", "1")),
    "WEBP": (".webp", ("RGB", "RGBA")),
}
SHOWN = 224  # px
RECIPE = Recipe(epochs=1, batch_size=2, crop="resized", flip=True)
ORIENTATION = 274  # number of EXIF's field


def an_image(rng: random.Random) -> tuple[str, bytes, str]:
    """A whole image's suffix, bytes and description."""
    kind = rng.choice(list(FORMATS))
    suffix, modes = FORMATS[kind]
    mode, height, width = rng.choice(modes), rng.randint(1, 40), rng.randint(1, 40)
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    options: dict[str, object] = {}
    if kind == "PNG":
        options = {"interlace": rng.random() < 0.3}
    elif kind == "JPEG":
        options = {"progressive": rng.random() < 0.5}
    if kind in ("WEBP", "PNG") and mode in ("RGB", "RGBA") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [picture.rotate(90 * turn) for turn in range(1, 4)]}
    if rng.random() < 0.2:
        exif = Image.Exif()
        exif[ORIENTATION] = rng.choice((1, 3, 6, 8, 0, 77))
        options["exif"] = exif.tobytes()
    picture.save(file, kind, **options)
    return suffix, file.getvalue(), f"{kind} {mode} {height}x{width} {sorted(options)}"


def announced(rng: random.Random) -> tuple[str, bytes, str]:
    """A file whose head tells of an image that is too large, very long, or not as its content."""
    side, other = rng.choice((0, 1, 7, 65535, 10**5, 2**31 - 1, 2**32 - 1)), rng.choice((0, 1, 3, 10**4, 10**5, 2**31))
    rows = zlib.compress(bytes(rng.choice((0, 100, 10**6))))
    depth, colour = rng.choice((1, 2, 4, 8, 16, 3, 0, 255)), rng.choice((0, 2, 3, 4, 6, 1, 9))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, other, depth, colour, 0, 0, rng.choice((0, 1, 2))))
    kind = rng.choice(("png", "late head", "two heads", "bmp", "webp", "jpeg", "scans"))
    if kind == "late head":
        head = chunk(b"tEXt", rng.randbytes(rng.randint(0, 30))) + head
    if kind == "two heads":
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + head
    content = images.PNG + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    if kind == "bmp":
        content = b"BM" + struct.pack(
            "<IHHIIiiHHIIiiII",
            10**4,
            0,
            0,
            54,
            40,
            side % 2**31,
            -(other % 2**31),
            1,
            rng.choice((1, 4, 8, 16, 24, 32, 7)),
            rng.choice((0, 1, 2, 3)),
            0,
            0,
            0,
            0,
            0,
        )
        content += bytes(rng.choice((0, 100, 10**5)))
    elif kind == "webp":
        wide, high = ((value - 1) % 2**24 for value in (side, other))
        part = b"VP8X" + struct.pack("<II", 10, rng.getrandbits(8)) + wide.to_bytes(3, "little")
        part += high.to_bytes(3, "little") + rng.randbytes(rng.choice((0, 40)))
        content = b"RIFF" + struct.pack("<I", len(part) + 4) + b"WEBP" + part
    elif kind in ("jpeg", "scans"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
        whole = file.getvalue()
        place = whole.index(b"\xff\xc2") + 5
        high, wide = rng.choice((0, 1, 17, 9999, 65535)), rng.choice((0, 1, 9, 9999, 65535))
        content = whole[:place] + struct.pack(">HH", high, wide) + whole[place + 4 :]
        if kind == "scans":
            last = content.rindex(b"\xff\xda")
            content = content[:last] + content[last:-2] * rng.choice((10, 1000, 20_000)) + content[-2:]
    suffix = {"bmp": ".bmp", "webp": ".webp", "jpeg": ".jpg", "scans": ".jpg"}.get(kind, ".png")
    return suffix, content, f"{kind} that announces {side}x{other}, depth {depth}, colour {colour}"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def strip(rng: random.Random) -> tuple[str, bytes, str]:
    """A whole image that is very long and thin."""
    long = rng.choice((100, 5000, 10**5, 10**6))
    size = (long, 1) if rng.random() < 0.5 else (1, long)
    kind = rng.choice(("PNG", "BMP")) if long > 16_000 else rng.choice(list(FORMATS))
    file = io.BytesIO()
    Image.new(rng.choice(("RGB", "L")), size).save(file, kind)
    return FORMATS[kind][0], file.getvalue(), f"{kind} strip {size}"


def image_files(rng: random.Random, folder: Path) -> Input:
    kind = rng.random()
    if kind < 0.7:
        suffix, content, shown = an_image(rng)
        content, how = damaged(rng, content)
    else:
        suffix, content, shown = strip(rng) if kind > 0.93 else announced(rng)
        how = "as it is"
    if rng.random() < 0.2:
        suffix = rng.choice(images.SUFFIXES)
    user = rng.choice((class_folder, class_folder, dense, analysed))
    return Input(f"{shown} as {suffix}, {how}, {user.__name__}", user(folder, content, suffix))


def class_folder(folder: Path, content: bytes, suffix: str) -> Callable[[], None]:
    """Shown in training and evaluation, stopping and skipping."""
    for part in ("train", "test"):
        for kind in "ab":
            (folder / "folder" / part / kind).mkdir(parents=True)
            Image.new("RGB", (9, 11), "red").save(folder / "folder" / part / kind / "whole.png")
        (folder / "folder" / part / "a" / f"hostile{suffix}").write_bytes(content)

    def attempt() -> None:
        data = ClassFolder({"image_size": SHOWN}, folder)
        data.fingerprint()
        for train in (True, False):
            split = data.load("train", seed=0, select=False, on_corrupt="skip")
            loader = Loader(split, RECIPE, num_classes=2, seed=0, train=train, on_corrupt="skip", batch_size=3)
            shown = sum(len(batch.x) for batch in loader.epoch(0))
            assert shown == 3 - (len(loader.corrupt) if not train else 0), f"{shown} images, {loader.corrupt}"
        named(lambda: [*Loader(split, None, num_classes=2, seed=0, train=False).epoch(0)], "hostile")

    return attempt


def dense(folder: Path, content: bytes, suffix: str) -> Callable[[], None]:
    """Shown by the loader of detection and segmentation, stopping and skipping."""
    Image.new("RGB", (9, 11), "red").save(folder / "whole.png")
    (folder / f"hostile{suffix}").write_bytes(content)
    paths = [folder / "whole.png", folder / f"hostile{suffix}"]

    def attempt() -> None:
        split = DenseSplit(
            None,
            paths,
            np.arange(2),
            maps=[np.full((11, 9), IGNORE, np.uint8)] * 2,
            image_size=SHOWN,
            max_size=2 * SHOWN,
        )
        more = {"options": ViewOptions(), "seed": 0, "train": False}
        loader = DenseLoader(split, None, on_corrupt="skip", **more)
        shown = sum(len(batch.x) for batch in loader.epoch(0))
        assert shown == 2 - len(loader.corrupt), f"{shown} images, {loader.corrupt}"
        named(lambda: [*DenseLoader(split, None, **more).epoch(0)], "hostile")

    return attempt


def analysed(folder: Path, content: bytes, suffix: str) -> Callable[[], None]:
    """Shown by an analysis of a folder's images."""
    (folder / f"hostile{suffix}").write_bytes(content)

    def attempt() -> None:
        named(lambda: torch.cat([*ImageFolder(folder).batches((SHOWN, SHOWN))]), "hostile")

    return attempt


def named(action: Callable[[], object], name: str) -> None:
    """Do it; a refusal must name the file."""
    try:
        action()
    except UserError as error:
        if name not in str(error):
            raise AssertionError(f"a refusal that does not name it: {error}") from error
        raise


def jpegs(rng: random.Random, folder: Path) -> Input:
    """A damaged JPEG, decoded."""
    file = io.BytesIO()
    size = rng.randint(1, 64), rng.randint(1, 64)
    pixels = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    options = {"progressive": rng.random() < 0.5, "quality": rng.randint(5, 100), "subsampling": rng.randint(0, 2)}
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = rng.randint(1, 4)
    pixels.convert(rng.choice(("RGB", "L", "CMYK"))).save(file, "JPEG", **options)
    content, how = damaged(rng, file.getvalue())
    (folder / "a.jpg").write_bytes(content)

    def attempt() -> None:
        try:
            images.read(folder / "a.jpg")
        except images.Unreadable as error:
            raise UserError(str(error)) from error

    return Input(f"JPEG {size} {how}", attempt)


KINDS: dict[str, Kind] = {"images": image_files, "jpegs": jpegs}
