"""Tiny data sets in the official layouts, drawn from a fixed seed: what canaries of the papers' own data sets read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 3
TRAIN, TEST = 10, 4  # images of a class
DENSE_TRAIN, DENSE_TEST = 12, 3


def write_samples(root: Path) -> None:
    """Write all of them below a folder that is taken as the data root."""
    rng = np.random.default_rng(7)
    for folder, side, suffix in (("cifar100", 32, "png"), ("imagenet", 48, "jpg"), ("folder", 40, "png")):
        class_folders(root / folder, rng, side, suffix)
    birds(root / "CUB_200_2011", rng)
    objects(root / "coco", rng)
    maps(root / "ADEChallengeData2016", rng)
    aircraft(root / "fgvc-aircraft-2013b" / "data", rng)
    class_folders(root / "stanford_cars", rng, 48, "jpg")


def image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Soft coloured noise, which survives JPEG."""
    small = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def class_folders(folder: Path, rng: np.random.Generator, side: int, suffix: str) -> None:
    """`<train|test>/<class>/<number>.<suffix>`, some of them not square."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            place = folder / part / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count):
                width = side if suffix == "png" and side == 32 else side + 4 * (number % 3)
                image(rng, side, width).save(place / f"{number:05d}.{suffix}")


def birds(folder: Path, rng: np.random.Generator) -> None:
    """CUB-200's lists beside its images."""
    lines: dict[str, list[str]] = {
        name: []
        for name in (
            "classes.txt",
            "images.txt",
            "image_class_labels.txt",
            "train_test_split.txt",
            "bounding_boxes.txt",
        )
    }
    number = 0
    for label in range(CLASSES):
        kind = f"{label + 1:03d}.Bird_{label}"
        lines["classes.txt"].append(f"{label + 1} {kind}")
        (folder / "images" / kind).mkdir(parents=True)
        for place in range(TRAIN + TEST):
            number += 1
            name = f"{kind}/Bird_{place:04d}_{number}.jpg"
            image(rng, 48, 60).save(folder / "images" / name, quality=95)
            lines["images.txt"].append(f"{number} {name}")
            lines["image_class_labels.txt"].append(f"{number} {label + 1}")
            lines["train_test_split.txt"].append(f"{number} {int(place < TRAIN)}")
            lines["bounding_boxes.txt"].append(f"{number} 4.0 6.0 40.0 30.0")
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")


def aircraft(folder: Path, rng: np.random.Generator) -> None:
    """FGVC-Aircraft's lists beside its images."""
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"Variant {label}\n" for label in range(CLASSES)))
    number = 0
    for part, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
        lines = []
        for label in [*range(CLASSES)] * count:
            number += 1
            image(rng, 68, 60).save(folder / "images" / f"{number:07d}.jpg", quality=95)
            lines.append(f"{number:07d} Variant {label}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))


def objects(folder: Path, rng: np.random.Generator) -> None:
    """COCO's images and annotations: polygons, a crowd of run lengths, an image without objects."""
    kinds = [{"id": number, "name": f"kind {number}"} for number in (1, 3, 90)]
    height, width = 60, 80
    (folder / "annotations").mkdir(parents=True)
    for part, count in (("train2017", DENSE_TRAIN), ("val2017", DENSE_TEST)):
        (folder / part).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            image(rng, height, width).save(folder / part / f"{number:012d}.jpg", quality=95)
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height})
            for _ in range(0 if number == count and part == "train2017" else 2):
                w, h = (int(value) for value in rng.integers(16, 40, size=2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": kinds[len(annotations) % 3]["id"],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        crowd = {"size": [height, width], "counts": [0, 600, height * width - 600]}
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 10, height],
                "area": 600,
                "iscrowd": 1,
                "segmentation": crowd,
            }
        )
        content = {"images": images, "annotations": annotations, "categories": kinds}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def maps(folder: Path, rng: np.random.Generator) -> None:
    """ADE20K's images and maps: 0 is unlabelled."""
    for part, prefix, count in (("training", "train", DENSE_TRAIN), ("validation", "val", DENSE_TEST)):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"ADE_{prefix}_{number:08d}"
            image(rng, 60, 80).save(folder / "images" / part / f"{name}.jpg", quality=95)
            values = rng.integers(0, 5, size=(6, 8), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
            Image.fromarray(values).save(folder / "annotations" / part / f"{name}.png")
