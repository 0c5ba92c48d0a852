"""Images: whole ones of every mode and format, with bytes changed, cut, repeated or put in, under any suffix."""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from hkd.data import images
from hkd.errors import UserError
from tests.robust.damage import damaged
from tests.robust.fuzz import Input, Kind

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")
FORMATS = {
    "PNG": (".png", MODES),
    "JPEG": (".jpg", ("RGB", "L", "CMYK")),
    "BMP": (".bmp", ("RGB", "L", "P", "1")),
    "WEBP": (".webp", ("RGB", "RGBA")),
}


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
    options = (
        {"interlace": rng.random() < 0.3}
        if kind == "PNG"
        else {"progressive": rng.random() < 0.5}
        if kind == "JPEG"
        else {}
    )
    picture.save(file, kind, **options)
    return suffix, file.getvalue(), f"{kind} {mode} {height}x{width}"


def image_files(rng: random.Random, folder: Path) -> Input:
    suffix, content, shown = an_image(rng)
    content, how = damaged(rng, content)
    if rng.random() < 0.2:
        suffix = rng.choice(images.SUFFIXES)
    path = folder / f"image{suffix}"
    path.write_bytes(content)

    def attempt() -> None:
        try:
            pixels = images.read(path)
        except images.Unreadable as error:  # the data set adds the name of the file
            raise UserError(f"{path}: {error}.") from None
        assert pixels.shape[:1] == (3,), f"not RGB: {pixels.shape}"

    return Input(f"{shown} as {suffix}, {how}", attempt)


KINDS: dict[str, Kind] = {"images": image_files}
