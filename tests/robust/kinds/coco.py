"""COCO's annotations: values that cannot be at every place, masks of every kind, names that lead elsewhere."""

import json
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from hkd.data.coco import Coco
from hkd.data.dense import run_lengths
from hkd.data.loading.dense import DenseLoader, ViewOptions
from hkd.downstream.coco_ap import CocoAP
from hkd.spec import Recipe
from tests.robust.damage import changed, damaged
from tests.robust.fuzz import Input, Kind

HEIGHT, WIDTH = 12, 20
RECIPE = Recipe(epochs=1, batch_size=2, flip=True)


def compressed(runs: list[int]) -> str:
    """Run lengths as COCO's text, written by the rule of its format."""
    text = ""
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr((digit | 32 if more else digit) + 48)
    return text


def content(rng: random.Random) -> dict[str, list]:
    """A whole file of three images."""
    images = [
        {"id": 3 * number + 1, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} for number in range(3)
    ]
    entries = []
    for number in range(6):
        x, y = rng.randint(-2, 15), rng.randint(-2, 8)
        w, h = rng.randint(1, 9), rng.randint(1, 9)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
        runs = run_lengths(mask)
        ring = [x, y, x + w, y, x + w, y + h + 0.5, x, y + h]
        masks = (
            [ring],
            [ring, ring],
            {"size": [HEIGHT, WIDTH], "counts": runs},
            {"size": [HEIGHT, WIDTH], "counts": compressed(runs)},
        )
        entries.append(
            {
                "id": number + 1,
                "image_id": 3 * (number % 3) + 1,
                "category_id": rng.choice((2, 5)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(number == 5),
                "segmentation": rng.choice(masks),
            }
        )
    kinds = [{"id": 2, "name": "ant"}, {"id": 5, "name": "bee"}]
    return {"images": images, "annotations": entries, "categories": kinds}


def odd_mask(rng: random.Random) -> object:
    """A mask that is none, or a very large one."""
    far = rng.choice((1e5, -1e5, 99_999, 1e6, 1e308))
    ring = [0, 0, far, 0, far, far, 0, far]
    text = rng.choice(
        (
            "",
            "0",
            "o" * 100,
            "P" * 1000,
            compressed([HEIGHT * WIDTH]),
            compressed([10**9]),
            compressed([2**40, 5]),
            compressed([0, -5, 245]),
            "".join(map(chr, (rng.randrange(48, 112) for _ in range(20)))),
            "\x00",
            "é",
            "0" * 10**5,
        )
    )
    size = rng.choice(
        (
            [HEIGHT, WIDTH],
            [HEIGHT, WIDTH],
            [WIDTH, HEIGHT],
            [0, 0],
            [10**6, 10**6],
            [True, WIDTH],
            [12.0, 20],
            "12",
            None,
        )
    )
    counts = rng.choice(
        (
            [HEIGHT * WIDTH],
            [0] * 1000 + [240],
            [10**4299, 1],
            [240, 0, 0],
            [-1, 241],
            [2**63],
            [1.0, 239],
            [None],
            [[240]],
            [10**4299] * 12,
            text,
            text,
            text,
            None,
            5,
            {},
        )
    )
    return rng.choice(
        (
            [ring],
            [ring * 500],
            [[1, 1, 5, 5, float("nan"), 2]],
            [[0, 0] * 1000],
            [ring[:5]],
            [ring[:6]],
            [[]],
            [],
            {},
            None,
            "x",
            [[1, 2, 3, 4, 5, 6], None],
            [[True] * 6],
            [["1"] * 6],
            [[-99_999.5, 0, 99_999, 1] * 400],
            [[0.5] * 6],
            [ring] * 200,
            {"size": size, "counts": counts},
            {"size": size, "counts": counts},
            {"size": size, "counts": counts},
            {"counts": counts},
        )
    )


def annotations(rng: random.Random, folder: Path) -> Input:
    files = {part: content(rng) for part in ("train2017", "val2017")}
    top = folder / "coco"
    for part in files:
        (top / part / "sub").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (WIDTH, HEIGHT), (80 * number, 9, 9)).save(top / part / f"{number}.png")
        Image.new("RGB", (WIDTH, HEIGHT)).save(top / part / "sub" / "3.png")
    (top / "annotations").mkdir()
    hostile = rng.choice(("train2017", "train2017", "val2017"))
    value: object = files[hostile]
    how = rng.choice(
        ("place", "place", "place", "mask", "mask", "box", "names", "ids", "bytes", "bytes", "size", "deep")
    )
    told = ""
    entry = rng.choice(files[hostile]["annotations"])
    image = rng.choice(files[hostile]["images"])
    if how == "place":
        value, told = changed(rng, value)
    elif how == "mask":
        entry["segmentation"] = odd_mask(rng)
        told = str(entry["segmentation"])[:80]
    elif how == "box":
        odd = (0, -1, 1e-9, 1e308, -1e308, 10**400, 10**300, float("nan"), float("inf"), "1", None, True, WIDTH, [1])
        entry["bbox"] = [rng.choice(odd) if rng.random() < 0.5 else side for side in entry["bbox"]]
        entry["area"] = rng.choice((entry["area"], *odd))
        told = f"{entry['bbox']} {entry['area']}"[:80]
    elif how == "names":
        name = rng.choice(
            (
                "../val2017/0.png",
                "sub/3.png",
                "./0.png",
                f"{hostile}/0.png",
                "/etc/passwd",
                "sub",
                "",
                ".",
                "..",
                "0.png\n",
                "a\nb.png",
                "\ud800.png",
                "\udcff.png",
                "sub/../0.png",
                "sub/\udcff.png",
                "x\x00.png",
                "x" * 5000,
                "\x1b[31m",
            )
        )
        image["file_name"] = name
        (top / hostile / "a\nb.png").write_bytes((top / hostile / "0.png").read_bytes())
        for place in (top / hostile, top / hostile / "sub"):
            odd_name = os.fsencode(place) + b"/\xff.png"
            Path(os.fsdecode(odd_name)).write_bytes((top / hostile / "0.png").read_bytes())
        told = repr(name)[:60]
    elif how == "ids":
        kind = rng.choice(list(files[hostile]))
        chosen = rng.choice(files[hostile][kind])
        chosen[rng.choice(("id", "image_id", "category_id"))] = rng.choice(
            (1, 2, 2**63, -(2**63), 10**4000, "1", 1.0, True, None, "a\nb", [1], {"a": 1}, float("nan"), "x" * 9999)
        )
        told = f"of {kind}"
    elif how == "size":
        side = rng.choice(("height", "width"))
        image[side] = rng.choice((0, -1, 10**9, 10**400, 12.0, "12", None, True, HEIGHT + 1, 10**5, [12]))
        told = f"{side} {image[side]!s:.20}"
    for part, held in files.items():
        try:
            text = json.dumps(value if part == hostile else held).encode()
        except RecursionError:  # so deep that Python does not write it
            text = b"[" * 3000 + b"]" * 3000
        if part == hostile and how == "bytes":
            text, told = damaged(rng, text)
            if rng.random() < 0.3:
                text = b"\xef\xbb\xbf" + text
        elif part == hostile and how == "deep":
            depth = rng.choice((900, 5000, 10**6))
            place = rng.choice(('"images"', '"bbox"', '"area"', '"license"', '"name"'))
            deep = f"{place}: {'[' * depth}{']' * depth}, "
            text = text.replace(b'"id"', deep.encode() + b'"id"', 1)
            told = f"{place} {depth}"
        (top / "annotations" / f"instances_{part}.json").write_bytes(text)

    def attempt() -> None:
        data = Coco({"image_size": 16, "max_size": 32}, folder)
        data.missing()
        data.fingerprint()
        for split in ("train", "test", "val"):
            held = data.load_dense(split, seed=0, select=split == "val")
            for objects in held.objects:
                height, width = objects.masks.shape[1:]
                inside = (objects.boxes >= 0).all() and (objects.boxes[:, 2:] <= [width, height]).all()
                assert inside, f"a box outside: {objects.boxes}"
                assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(), f"a box of no area: {objects.boxes}"
                assert set(objects.labels.tolist()) <= set(range(len(held.object_names)))
            loader = DenseLoader(
                held,
                RECIPE if split == "train" and len(held) > 1 else None,
                options=ViewOptions(),
                seed=0,
                train=split == "train" and len(held) > 1,
            )
            for _ in loader.epoch(0):
                continue
        found = data.load_dense("test", seed=0, select=False)
        judge = CocoAP(found.coco())
        for position, objects in enumerate(found.objects):
            judge.add(position, objects.boxes, np.ones(len(objects), np.float32), objects.labels, objects.masks)
        judge.compute()

    return Input(f"{hostile}, {how} {told}", attempt)


KINDS: dict[str, Kind] = {"coco": annotations}
