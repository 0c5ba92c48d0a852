"""The lists of FGVC-Aircraft, and the MATLAB files of Stanford Cars, beside images."""

import random
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from hkd.data.aircraft import Aircraft
from hkd.data.stanford_cars import META, TEST, TRAIN, StanfordCars
from tests.robust.damage import damaged
from tests.robust.fuzz import Input, Kind
from tests.robust.kinds.folders import shown
from tests.robust.kinds.lists import PIECES

SIDE = 24  # px, of which 20 are a banner
VARIANTS = ("Boeing 737-700", "F-16A/B")


def apart(data: Aircraft | StanfordCars, folder: Path) -> None:
    """Take both splits; no image may be in both, or outside the folder."""
    shown(data)
    splits = [data.load(part, seed=0, select=False) for part in ("train", "test")]
    rows = [set(split.rows.tolist()) for split in splits]
    assert not rows[0] & rows[1], "an image in train and test"
    for split in splits:
        assert set(split.labels.tolist()) <= set(range(data.num_classes)), "a label that is no class"
        paths = split.paths or ()
        assert all(path.resolve().is_relative_to(folder.resolve()) for path in paths), "a file outside"


def aircraft(rng: random.Random, folder: Path) -> Input:
    data = folder / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    lines: dict[str, list[str]] = {"variants.txt": list(VARIANTS)}
    for number in range(12):
        Image.new("RGB", (SIDE, SIDE), (9, 20 * number, 99)).save(data / "images" / f"{1000 + number}.jpg")
        part = ("train", "val", "test")[number % 3]
        lines.setdefault(f"images_variant_{part}.txt", []).append(f"{1000 + number} {VARIANTS[number // 3 % 2]}")
    hostile = rng.choice(list(lines))
    held = lines[hostile]
    place = rng.randrange(len(held))
    how = rng.choice(("piece", "piece", "drop", "double", "blank", "bytes", "bytes", "other"))
    told = ""
    if how == "piece":
        first, _, rest = held[place].partition(" ")
        told = rng.choice(PIECES)
        held[place] = rng.choice((f"{told} {rest}", f"{first} {told}", told))
    elif how == "drop":
        del held[place : place + rng.choice((1, 9))]
    elif how == "double":
        held.append(held[place])
    elif how == "blank":
        held.insert(place, rng.choice(("", " ", "\t", "#", "\r")))
    elif how == "other":
        held.append(rng.choice([line for other in lines.values() for line in other]))
        told = held[-1]
    for name, values in lines.items():
        (data / name).write_text("\n".join(values) + "\n")
    if how == "bytes":
        content, told = damaged(rng, (data / hostile).read_bytes())
        (data / hostile).write_bytes(content)
    options = {"classes": 2, "image_size": 8, "memory": rng.random() < 0.5}
    return Input(f"{hostile}, {how} {told}, {options}", lambda: apart(Aircraft(options, folder), folder))


def cars(rng: random.Random, folder: Path) -> Input:
    top = folder / "stanford_cars"
    (top / "devkit").mkdir(parents=True)
    names = np.empty((1, 2), dtype=object)
    names[0] = ["Acura RL 2012", "Citroën C4"]
    content: dict[str, dict[str, object]] = {META: {"class_names": names}}
    for file, part in ((TRAIN, "cars_train"), (TEST, "cars_test")):
        (top / part).mkdir()
        entries = np.zeros((1, 4), dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        for number in range(4):
            entries[0, number] = (3, np.uint8(number % 2 + 1), f"{number + 1:05d}.jpg")
            Image.new("RGB", (SIDE, SIDE), (9, 60 * number, 99)).save(top / part / f"{number + 1:05d}.jpg")
        content[file] = {"annotations": entries}
    hostile = rng.choice(list(content))
    how = rng.choice(("bytes", "bytes", "bytes", "value", "name", "shape"))
    told = ""
    if how == "value" and hostile != META:
        odd = (0, 3, -1, 1.5, float("nan"), 1e300, "2", "", None, [1, 2], np.zeros((0, 0)), {"a": 1}, "../../x.jpg")
        told = str(value := rng.choice([each for each in odd if each is not None]))
        content[hostile]["annotations"][0, 1][rng.choice(("class", "fname"))] = value  # type: ignore[index]
    elif how == "name":
        content[hostile] = {"other": next(iter(content[hostile].values()))}
    elif how == "shape":
        told = str(value := rng.choice((np.zeros((2, 2)), "text", np.zeros((0, 0)), {"a": 1}, np.bool_(True))))
        content[hostile] = dict.fromkeys(content[hostile], value)
    packed = rng.random() < 0.5
    for file, held in content.items():
        scipy.io.savemat(top / file, held, do_compression=packed and file != hostile)
    if how == "bytes":
        found, told = damaged(rng, (top / hostile).read_bytes())
        (top / hostile).write_bytes(found)
    options = {"classes": 2, "image_size": 8, "memory": rng.random() < 0.5}
    return Input(f"{hostile}, {how} {told}, {options}", lambda: apart(StanfordCars(options, folder), folder))


KINDS: dict[str, Kind] = {"aircraft": aircraft, "cars": cars}
