"""The lists of CUB-200-2011, and the maps and the table of ADE20K, beside images."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hkd.data.ade20k import TABLE, Ade20k
from hkd.data.cub200 import BOXES, Cub200
from hkd.data.dense import IGNORE
from hkd.data.loading.dense import DenseLoader, ViewOptions
from hkd.spec import Recipe
from tests.robust.damage import damaged
from tests.robust.fuzz import Input, Kind
from tests.robust.kinds.folders import shown

RECIPE = Recipe(epochs=1, batch_size=2, flip=True)
SIDE = 12  # px
PIECES = (
    "1e400",
    "nan",
    "-1",
    "0",
    "99",
    "1.0",
    "",
    " ",
    "x",
    "é",
    "１",
    "1_0",
    "+1",
    "0x1",
    "9" * 400,
    "../../x.jpg",
    "/etc/passwd",
    "images/001.Bird/0.jpg",
    "001.Bird\\0.jpg",
    "\x00",
    "\x1b[31m",
    "a\tb",
    "-0",
    "1e-400",
    "inf",
    "1 1",
    "\u2028",
    "\r",
)


def birds(rng: random.Random, folder: Path) -> Input:
    top = folder / "CUB_200_2011"
    names = [f"00{kind + 1}.Bird/{number}.jpg" for kind in range(2) for number in range(4)]
    for name in names:
        (top / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, 2 * SIDE), (9, 99, 9)).save(top / "images" / name)
    columns = {
        "classes.txt": ["001.Bird", "002.Bird"],
        "images.txt": names,
        "image_class_labels.txt": ["1"] * 4 + ["2"] * 4,
        "train_test_split.txt": ["1", "0"] * 4,
        BOXES: ["1.0 2.0 5.5 7.0"] * 8,
    }
    lines = {name: [f"{number} {value}" for number, value in enumerate(values, 1)] for name, values in columns.items()}
    hostile = rng.choice(list(lines))
    held = lines[hostile]
    place = rng.randrange(len(held))
    how = rng.choice(
        (
            "piece",
            "piece",
            "piece",
            "value",
            "drop",
            "double",
            "swap",
            "blank",
            "header",
            "bytes",
            "bytes",
            "file",
            "coding",
            "more",
        )
    )
    told = ""
    if how in ("piece", "value"):
        parts = held[place].split(" ")
        column = rng.randrange(len(parts))
        parts[column] = (
            rng.choice((*PIECES, "1e308", "-1e308", "1000", "0.5"))
            if how == "piece"
            else rng.choice(columns[hostile]).split(" ")[0]
        )
        held[place] = " ".join(parts)
        told = held[place][:60]
    elif how == "drop":
        del held[place : place + rng.choice((1, 8))]
    elif how == "double":
        held.insert(place, held[place])
    elif how == "swap":
        rng.shuffle(held)
    elif how == "blank":
        held.insert(place, rng.choice(("", " ", "\t", "#", "\r")))
    elif how == "header":
        held.insert(0, "id name")
    elif how == "more":
        held.append(f"{len(held) + 1} {rng.choice(columns[hostile])}")
        told = held[-1]
    text = rng.choice(("\n", "\n", "\r\n", "\r", "\n\n")).join(held).encode() + rng.choice((b"", b"\n", b"\n\n \n"))
    if how == "bytes":
        text, told = damaged(rng, text)
    elif how == "coding":
        told = rng.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1", "zip"))
        text = zlib.compress(text) if told == "zip" else (text.decode() + "\n9 caf\xe9").encode(told)
    for name, values in lines.items():
        (top / name).write_text("\n".join(values) + "\n") if name != hostile else (top / name).write_bytes(text)
    if how == "file":
        (top / hostile).unlink()
        told = rng.choice(("folder", "pipe", "link", "dangling", "none"))
        if told == "folder":
            (top / hostile).mkdir()
        elif told == "pipe":
            os.mkfifo(top / hostile)
        elif told in ("link", "dangling"):
            (top / hostile).symlink_to("/dev/null" if told == "link" else "/nowhere")
    options = {"classes": 2, "image_size": 8, "memory": rng.random() < 0.5, "boxes": rng.random() < 0.5}

    def attempt() -> None:
        data = Cub200(options, folder)
        shown(data)
        train = data.load("train", seed=0, select=False)
        test = data.load("test", seed=0, select=False)
        assert not set(train.rows.tolist()) & set(test.rows.tolist()), "an image in train and test"
        if train.paths is not None and test.paths is not None:
            files = {str(path) for path in train.paths}
            assert not files & {str(path) for path in test.paths}, "a file in train and test"
            assert all(path.resolve().is_relative_to(folder) for path in train.paths), "a file outside"

    return Input(f"{hostile}, {how} {told}, {options}", attempt)


def a_map(rng: random.Random) -> tuple[str, bytes, str]:
    """A map's suffix, bytes and description."""
    values = (
        np.random.default_rng(rng.getrandbits(32))
        .integers(0, rng.choice((5, 5, 256)), (SIDE, 2 * SIDE))
        .astype(np.uint8)
    )
    file = io.BytesIO()
    mode = rng.choice(
        ("L", "L", "P", "1", "RGB", "RGBA", "LA", "I;16", "bits", "JPEG", "BMP", "WEBP", "size", "turned")
    )
    if mode == "bits":
        bits = rng.choice((1, 2, 4))
        rows = b"".join(
            b"\0" + np.packbits(np.unpackbits((row % 2**bits)[:, None], axis=1)[:, -bits:].ravel()).tobytes()
            for row in values
        )
        head = struct.pack(">IIBBBBB", 2 * SIDE, SIDE, bits, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        )
        return ".png", content, f"{bits} bits"
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * rng.choice((1, 257)))
    elif mode == "P":
        picture = Image.fromarray(values)
        picture.putpalette(rng.randbytes(768))
    elif mode in ("size", "turned"):
        picture = Image.fromarray(values[:-1] if mode == "size" else values.T)
    else:
        picture = Image.fromarray(values).convert(mode if mode in ("1", "RGB", "RGBA", "LA") else "L")
    kind = mode if mode in ("JPEG", "BMP", "WEBP") else "PNG"
    picture.save(file, kind)
    return rng.choice((".png", ".png", ".png", ".jpg", ".bmp")), file.getvalue(), f"{mode} to {values.max()}"


def maps(rng: random.Random, folder: Path) -> Input:
    top = folder / "ADEChallengeData2016"
    flat = rng.random() < 0.3
    for sub, prefix in (("training", "ADE_train_"), ("validation", "ADE_val_")):
        for kind in ("images", "annotations"):
            (top / kind / ("" if flat else sub)).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                path = top / kind / ("" if flat else sub) / f"{prefix}{number}"
                pixels = np.full((SIDE, 2 * SIDE), number + 1, np.uint8)
                picture = Image.fromarray(pixels)
                picture.convert("RGB").save(f"{path}.jpg") if kind == "images" else picture.save(f"{path}.png")
    names = "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "".join(f"{n}\t0.1\t1\t1\t0\tthing {n}\n" for n in range(1, 5))
    (top / TABLE).write_text(names)
    how = rng.choice(("map", "map", "map", "damaged", "damaged", "image", "table", "files"))
    told = ""
    place = next(path for path in sorted((top / "annotations").rglob("*.png")) if "train_1" in path.name)
    if how in ("map", "damaged"):
        suffix, content, told = a_map(rng)
        if how == "damaged":
            content, more = damaged(rng, content)
            told += f", {more}"
        place.unlink()
        place.with_suffix(suffix).write_bytes(content)
    elif how == "image":
        path = next((top / "images").rglob("ADE_train_1.jpg"))
        content, told = damaged(rng, path.read_bytes())
        path.write_bytes(content)
    elif how == "table":
        odd = (
            names.replace("Name", "Nam"),
            names.replace("thing 2", '"'),
            names + '"' + "x" * 200_000,
            names.replace("\t", ","),
            "",
            "\n",
            "Name\n",
            "Name\n\n\n\n\n",
            names.replace("thing 1", "a\x00b"),
            names.replace("thing 1", '"a\nb"'),
            names * 50,
            "Name\tName\n1\t2\n" * 5,
        )
        content, told = (
            damaged(rng, rng.choice(odd).encode()) if rng.random() < 0.7 else (names.encode("utf-16"), "UTF-16")
        )
        (top / TABLE).write_bytes(content)
    else:
        told = rng.choice(
            ("no map", "no image", "two", "folder", "pipe", "dangling", "latin", "empty", "table is a folder")
        )
        if told == "no map":
            place.unlink()
        elif told == "no image":
            next((top / "images").rglob("ADE_train_1.jpg")).unlink()
        elif told == "two":
            place.with_suffix(".bmp").write_bytes(place.read_bytes())
        elif told == "latin":
            Path(os.fsdecode(os.fsencode(place.parent) + b"/ADE_train_\xe9.png")).write_bytes(place.read_bytes())
        elif told == "table is a folder":
            (top / TABLE).unlink()
            (top / TABLE).mkdir()
        elif told == "empty":
            for path in place.parent.iterdir():
                path.unlink()
        else:
            place.unlink()
            {"folder": place.mkdir, "pipe": lambda: os.mkfifo(place), "dangling": lambda: place.symlink_to("/nowhere")}[
                told
            ]()

    def attempt() -> None:
        data = Ade20k({"classes": 4, "image_size": 8, "max_size": 16}, folder)
        data.missing()
        data.fingerprint()
        for split in ("train", "test", "val"):
            held = data.load_dense(split, seed=0, select=split == "val")
            for skip in ("skip", "stop"):
                loader = DenseLoader(
                    held,
                    RECIPE if split == "train" else None,
                    options=ViewOptions(),
                    seed=0,
                    train=split == "train",
                    on_corrupt=skip,
                )
                for batch in loader.epoch(0):
                    assert batch.maps is None or set(batch.maps.unique().tolist()) <= {0, 1, 2, 3, IGNORE}, (
                        "a value that is no class"
                    )
            assert set(np.unique(np.concatenate([map_.ravel() for map_ in held.maps])).tolist()) <= {0, 1, 2, 3, IGNORE}

    return Input(f"{how}, {told}, {'flat' if flat else 'folders'}", attempt)


KINDS: dict[str, Kind] = {"birds": birds, "maps": maps}
