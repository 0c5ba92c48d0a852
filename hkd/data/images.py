"""What an image file is, for all data sets and analyses: which names, how it becomes bytes in colour, what is refused.

The content decides how a file is decoded, not its suffix. Values of 16 bits become bytes as value / 257; grey, palette,
CMYK and transparent images become RGB as Pillow converts them (transparency is dropped); of an animation the first
picture is shown. No data set applies the orientation in EXIF: labels, boxes and maps are of the pixels as stored.

JPEG is decoded by torchvision (twice as fast as Pillow, and equal bit for bit), the rest by Pillow: libpng as
torchvision calls it does not survive damaged files. Nothing is decoded before its announced size was looked at.
Shapes: H and W sides of an image in px.
"""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8, UInt16

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # as Pillow calls them; it must not try others, of which some run programs
MOST_PIXELS = 100_000_000  # the largest photograph of ImageNet-1K has 61 million
MOST_BYTES = 2**30
MOST_SCANNED = 5_000_000_000  # px over all passes of a progressive JPEG, of which each goes over the whole image
UNREADABLE = "not a readable image"
PNG = b"\x89PNG\r\n\x1a\n"


class Unreadable(ValueError):
    """A file that is no image to be shown; the text says why, without the file's name."""


def is_image_name(name: str) -> bool:
    """Whether a file is called as images are; hidden files (macOS writes `._x.jpg` beside `x.jpg`) are none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read(path: Path) -> UInt8[np.ndarray, "3 H W"]:
    """An image file in colour; in memory the colours of a pixel are neighbours.

    Raises:
        Unreadable: no such file, damaged, of another format, or too large.
    """
    data = content(path)
    if data.startswith(b"\xff\xd8\xff") and jpeg_head(data)[2] != 4:
        return read_jpeg(data)
    with opened(data) as image:
        if png_depth(data) == 16:
            return narrowed(deep_colours(image, data)).transpose(2, 0, 1)
        return np.array(image.convert("RGB")).transpose(2, 0, 1)


def size(path: Path) -> tuple[int, int]:
    """Height and width in px that an image file announces. Raises Unreadable."""
    with opened(content(path)) as image:
        return image.height, image.width


def content(path: Path) -> bytes:
    """The bytes of a file. Raises Unreadable where there is none, or no ordinary one, or one too long for an image."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("not a file")
        if found.st_size > MOST_BYTES:
            raise Unreadable(f"{found.st_size:,} bytes, more than the {MOST_BYTES:,} of the largest image")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def opened(data: bytes) -> "Iterator[ImageFile]":
    """A file's content as Pillow's image, its head checked and its pixels not decoded yet.

    Raises:
        Unreadable: also for what the block raises: Pillow decodes when pixels are asked for.
    """
    from PIL import Image, UnidentifiedImageError  # late, because planning imports this file

    check_size(*announced(data))
    check_png(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, and of sizes that are refused here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(*image.size)
                yield image
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(UNREADABLE) from error
    except Exception as error:  # decoders meet damage in every way: OSError, SyntaxError, struct.error, IndexError...
        raise Unreadable(UNREADABLE) from error


def read_jpeg(data: bytes) -> UInt8[np.ndarray, "3 H W"]:
    """A JPEG file of one or three components in colour."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    width, height, _ = jpeg_head(data)
    check_size(width, height)
    if (scans := data.count(b"\xff\xda")) * width * height > MOST_SCANNED:
        raise Unreadable(f"{scans:,} passes over {width} x {height} px")
    with warnings.catch_warnings():
        # torchvision announces that decoding moves to a package of its own; here it is the faster one at hand.
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # and is not written to
        try:
            return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB).numpy()
        except RuntimeError as error:
            raise Unreadable(UNREADABLE) from error


def narrowed(values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Values of 16 bits as bytes: value / 257, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def deep_colours(image: "ImageFile", data: bytes) -> UInt16[np.ndarray, "H W 3"]:
    """The values of a PNG of 16 bits. Of all but grey Pillow unpacks the upper bytes; asked again, the lower ones.

    Args:
        image: the file, its pixels not decoded yet.
        data: its content.
    """
    kind = data[25]  # 0: grey, 2: colours, 4: grey and transparency, 6: colours and transparency
    if kind == 0:
        return np.stack([np.asarray(image).astype(np.uint16)] * 3, axis=-1)
    if kind == 4:  # as if its four bytes were colours
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        pairs = np.asarray(image).astype(np.uint16)
        return np.stack([pairs[..., 0] * 256 + pairs[..., 1]] * 3, axis=-1)
    upper = np.asarray(image)[..., :3].astype(np.uint16)
    with opened(data) as again:
        again.tile = [tile._replace(args=f"{again.mode};16L") for tile in again.tile]
        return upper * 256 + np.asarray(again)[..., :3]


def check_size(width: int, height: int) -> None:
    """Refuse an image whose pixels would not reasonably fit in memory."""
    if width < 1 or height < 1:
        raise Unreadable(UNREADABLE)
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{width} x {height} px are more than the {MOST_PIXELS:,} that an image may have")


def check_resized(width: int, height: int) -> None:
    """Refuse an image so long and narrow that resizing it would not reasonably fit in memory."""
    if width * height > MOST_PIXELS:
        raise Unreadable(f"so long and narrow that it would be resized to {width} x {height} px")


def announced(data: bytes) -> tuple[int, int]:
    """Width and height in px in the head of a file, before any library allocates for it.

    Raises:
        Unreadable: its format is none of `FORMATS`, or its head is not whole.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg_head(data)[:2]
        if data.startswith(PNG):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"BM"):
            short = struct.unpack_from("<I", data, 14)[0] == 12  # the header of OS/2
            width, height = struct.unpack_from("<HH" if short else "<ii", data, 18)
            return abs(width), abs(height)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            kind = data[12:16]
            if kind == b"VP8X":
                return (
                    1 + int.from_bytes(data[24:27], "little"),
                    1 + int.from_bytes(data[27:30], "little"),
                )
            if kind == b"VP8L":
                bits = struct.unpack_from("<I", data, 21)[0]
                return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    except struct.error as error:
        raise Unreadable(UNREADABLE) from error
    raise Unreadable(UNREADABLE)


def jpeg_head(data: bytes) -> tuple[int, int, int]:
    """Width, height and components of a JPEG file. Markers are found as libjpeg finds them: what lies between them is
    skipped, and the first head of a frame counts (a second one is an error there).
    """
    place = 2
    while True:
        place = data.find(b"\xff", place)
        while place >= 0 and data[place : place + 1] == b"\xff":
            place += 1
        if place < 0 or place + 9 > len(data):
            raise Unreadable(UNREADABLE)
        marker = data[place]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, place + 4)
            return width, height, components
        if marker in (0xD8, 0xD9, 0xDA):  # another start, an end, or pixels before the head
            raise Unreadable(UNREADABLE)
        bare = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7
        place += 1 if bare else 1 + int.from_bytes(data[place + 1 : place + 3], "big")


def png_depth(data: bytes) -> int | None:
    """Bits of a value in a PNG file; None for another format."""
    return data[24] if data.startswith(PNG) and len(data) > 24 else None


def check_png(data: bytes) -> None:
    """Refuse a PNG file that does not begin with its only head, or one of whose parts does not have its checksum:
    Pillow takes a head anywhere, and does not look at the checksums of pixels.
    """
    if not data.startswith(PNG):
        return
    place = len(PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if (kind == b"IHDR" and length == 13) != (place == len(PNG)):
            raise Unreadable(UNREADABLE)
        # Parts with a small first letter are metadata.
        if kind[0] & 32 == 0 and zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise Unreadable(UNREADABLE)
        if kind == b"IEND":
            return
        place = end + 4
