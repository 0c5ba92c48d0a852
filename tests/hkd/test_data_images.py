"""What an image file is: bits, modes, damage, sizes that are announced."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from hkd.data import images
from hkd.data.images import Unreadable, is_image_name, read

RNG = np.random.default_rng(0)
SOFT = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((37, 29))


def part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return images.PNG + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def shown(tmp_path, content: bytes) -> np.ndarray:
    (tmp_path / "x.png").write_bytes(content)
    return read(tmp_path / "x.png")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_values_of_sixteen_bits_are_divided_by_257(tmp_path, colour, channels):
    values = RNG.integers(0, 65536, (7, 9, channels)).astype(np.uint16)
    values[0, :3] = np.array([65535, 128, 129])[:, None]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    wanted = np.round(values.astype(np.float64) / 257)[..., : 3 if channels > 2 else 1]
    found = shown(tmp_path, png(9, 7, 16, colour, rows)).transpose(1, 2, 0)
    assert np.array_equal(found, np.broadcast_to(wanted, (7, 9, 3)))
    assert found[0, :3, 0].tolist() == [255, 0, 1]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "JPEG"])
def test_eight_bits_become_rgb_as_torchvision_and_pillow_make_it(tmp_path, kind, mode):
    try:
        content = encoded(SOFT.convert(mode), kind)
    except OSError:
        pytest.skip(f"{kind} has no {mode}")
    found = shown(tmp_path, content)
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    if kind != "BMP":
        (tmp_path / "y").write_bytes(content)
        theirs = decode_image(str(tmp_path / "y"), ImageReadMode.RGB).numpy()
        assert np.array_equal(found, theirs)
        assert found.strides == theirs.strides  # resizing may depend on what is neighbour in memory


def test_cmyk_is_converted_as_pillow_does(tmp_path):
    content = encoded(SOFT.convert("CMYK"), "JPEG")
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(shown(tmp_path, content).transpose(1, 2, 0), wanted)


def test_the_orientation_of_exif_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for kind in ("JPEG", "PNG", "WEBP"):
        assert shown(tmp_path, encoded(SOFT, kind, exif=exif)).shape == (3, 29, 37)


@pytest.mark.parametrize(
    ("name", "right"),
    [("a.JPG", True), ("a.bmp", True), ("a.webp", True), ("._a.jpg", False), ("a.tif", False), ("jpg", False)],
)
def test_names_of_images(name, right):
    assert is_image_name(name) == right


def huge(kind: str) -> bytes:
    """A few bytes that announce more than 100 million px."""
    if kind == "PNG":
        return png(60_000, 60_000, 8, 2, b"\0")
    if kind == "BMP":
        return encoded(SOFT, "BMP").replace(struct.pack("<ii", 37, 29), struct.pack("<ii", 60_000, 60_000), 1)
    if kind == "JPEG":
        content = encoded(SOFT, "JPEG")
        return content.replace(struct.pack(">HH", 29, 37), struct.pack(">HH", 60_000, 60_000), 1)
    content = bytearray(encoded(SOFT, "WEBP", lossless=True))
    content[21:25] = struct.pack("<I", (16_383 - 1) | (16_383 - 1) << 14)
    return bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "WEBP"])
def test_sizes_that_would_not_fit_in_memory_are_refused_before_decoding(tmp_path, kind):
    with pytest.raises(Unreadable, match=r"(60000 x 60000|16383 x 16383) px are more than the 100,000,000"):
        shown(tmp_path, huge(kind))


def test_other_formats_are_not_tried(tmp_path):
    for kind in ("GIF", "TIFF", "PPM", "EPS"):
        with pytest.raises(Unreadable, match="not a readable image"):
            shown(tmp_path, encoded(SOFT, kind))


def test_what_is_no_ordinary_file_is_said(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for path, why in ((tmp_path / "folder.png", "not a file"), (tmp_path / "gone.png", "no such file")):
        with pytest.raises(Unreadable, match=why):
            read(path)


def test_an_altered_pixel_of_a_png_is_noticed(tmp_path):
    content = bytearray(encoded(SOFT, "PNG", compress_level=0))
    content[len(content) // 2] ^= 1
    with pytest.raises(Unreadable):
        shown(tmp_path, bytes(content))


DAMAGE = """
import sys
from pathlib import Path
import numpy as np
from hkd.data.images import Unreadable, read

folder, count = Path(sys.argv[1]), int(sys.argv[2])
whole = [path.read_bytes() for path in sorted(folder.iterdir())]
rng = np.random.default_rng(0)
seen = [0, 0]
for number in range(count):
    data = bytearray(whole[number % len(whole)])
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(2, len(data)))
        match rng.integers(4):
            case 0: data[place] = int(rng.integers(256))
            case 1: data = data[: max(place, 12)]
            case 2: data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case 3: data = data[: max(place, 12)] + data[place + int(rng.integers(1, 9)) :]
    path = folder / "damaged"
    path.write_bytes(data)
    try:
        seen[read(path).dtype == np.uint8] += 1
    except Unreadable:
        seen[0] += 1
print(seen)
"""


@pytest.mark.parametrize("count", [75, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.long])])
def test_no_damage_ends_the_process_or_raises_anything_else(tmp_path, count):
    for kind, mode in [(k, m) for k in ("PNG", "WEBP", "BMP", "JPEG") for m in ("RGB", "L", "P", "CMYK")]:
        try:
            content = encoded(SOFT.convert(mode), kind)
        except OSError:
            continue
        (tmp_path / f"{kind}{mode}").write_bytes(content)
    values = RNG.integers(0, 65536, (7, 27)).astype(">u2")
    (tmp_path / "deep").write_bytes(png(9, 7, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path), str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, read_ = map(int, done.stdout.strip("[]\n").split(","))
    assert refused + read_ == count
    assert refused > count // 4


def test_a_png_begins_with_its_only_head(tmp_path):
    whole = io.BytesIO()
    Image.new("RGB", (4, 4)).save(whole, "PNG")
    head, rest = whole.getvalue()[8:33], whole.getvalue()[33:]
    for name, parts in {"late": part(b"tEXt", b"a\0b") + head, "twice": head + head, "whole": head}.items():
        (tmp_path / f"{name}.png").write_bytes(images.PNG + parts + rest)
    assert read(tmp_path / "whole.png").shape == (3, 4, 4)
    for name in ("late", "twice"):  # what is where the head should be is told as its size, or not at all
        with pytest.raises(Unreadable, match=r"not a readable image|px are more than"):
            read(tmp_path / f"{name}.png")


def test_a_jpeg_of_passes_without_end_is_refused_before_decoding(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    size, last = whole.index(b"\xff\xc2") + 5, whole.rindex(b"\xff\xda")
    large = whole[:size] + struct.pack(">HH", 9000, 9000) + whole[size + 4 : last] + whole[last:-2] * 60 + whole[-2:]
    (tmp_path / "a.jpg").write_bytes(large)
    with pytest.raises(Unreadable, match="passes over 9000 x 9000 px"):
        read(tmp_path / "a.jpg")
