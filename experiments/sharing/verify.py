"""A checkpoint measured on images: accuracy with an interval, calibration, size, agreement; and what was claimed.

Shapes: N images, C classes of the model, b images of one forward pass.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.results import stats
from experiments.results.stats import Estimate
from experiments.sharing.checkpoint import Checkpoint, Claims
from experiments.sharing.export import CONFIG, size
from hkd.data import DATASETS
from hkd.data.base import DataSet, PathList, Split
from hkd.data.folder import file_names, folder_names
from hkd.data.own import OwnFolder
from hkd.data.sources import FileSource, MemorySource
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.normalise import Normalise, resized
from hkd.registry import load, lookup

BINS = 15  # of confidence, of equal width
PARTS = ("test", "val")  # folders that may hold the class folders
NEAR = 0.02  # of a count: published ones are rounded
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Images:
    """Test images with the class of each among the model's, and the names of the classes that are there."""

    split: Split
    target: Int[np.ndarray, " N"]
    names: dict[int, str]
    told: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """One class: its images, and the share that is right, with Wilson's interval."""

    name: str
    top1: Estimate


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Whether a count is the claimed one, as a sentence."""

    text: str
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was measured. ece: expected calibration error in points; confidence: mean, in percent. unread: images that
    could not be decoded, by name. verdict, holds: of the claimed accuracy, None where none was claimed."""

    name: str
    images: int
    top1: Estimate
    top5: Estimate | None
    ece: float
    confidence: float
    classes: tuple[OfClass, ...]
    params_m: float
    gmacs: float
    counts: tuple[Counted, ...]
    told: tuple[str, ...]
    unread: Mapping[str, str]
    verdict: str | None
    holds: bool | None
    agreement: Estimate | None = None
    teacher: Estimate | None = None

    @property
    def as_claimed(self) -> bool:
        """Whether nothing that was measured contradicts a claim."""
        return self.holds is not False and all(count.fits for count in self.counts)

    def document(self) -> dict[str, Any]:
        """All of it as JSON values; nan as null."""
        cleaned: dict[str, Any] = clean(asdict(self))
        return cleaned


def clean(value: Any) -> Any:
    """JSON values: nan as None."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def verify(
    subject: Checkpoint,
    images: Images,
    claims: Sequence[Claims] = (),
    teacher: Checkpoint | None = None,
    *,
    device: str = "cpu",
) -> Verified:
    """Measure a checkpoint on images and compare it with what is claimed of it.

    Args:
        subject: the checkpoint.
        images: with classes among its own.
        claims: said of it, the first of which that names a thing counts.
        teacher: another model of the same classes, for agreement.
        device: of the computation.

    Raises:
        UserError: no image can be read, the teacher has other classes, or the model does not take such images.
    """
    if teacher is not None and teacher.classes != subject.classes:
        raise UserError(f"The teacher has {teacher.classes} classes and {subject.name} {subject.classes}.")
    check_size(subject)
    logits, seen, unread = predict(subject, images.split, device)
    if not len(seen):
        raise UserError(f"None of the {len(images.split)} images can be read, among them {next(iter(unread))}.")
    if not logits.isfinite().all():
        raise UserError(
            f"{subject.name} gives no numbers for these images: its weights are too large, or not for this mean and "
            f"standard deviation ({subject.mean}, {subject.std})."
        )
    target = torch.from_numpy(images.target)[seen]
    right = logits.argmax(1) == target
    probability = logits.softmax(1)
    confidence = probability.max(1).values
    params, gmacs = size(subject.net, torch.zeros(1, 3, subject.side, subject.side, device=device))
    top1 = share(right)
    claimed = next(((claim.top1, claim.who) for claim in claims if claim.top1 is not None), None)
    verdict = holds = None
    if claimed is not None:
        value, who = claimed
        holds = top1.low <= value <= top1.high
        where = "inside" if holds else "above" if value > top1.high else "below"
        verdict = f"The {value:.2f} % {who} lie {where} the interval [{top1.low:.2f}, {top1.high:.2f}]: " + (
            "these images do not contradict them." if holds else "they are not what these images show."
        )
    agreement = taught = None
    if teacher is not None:
        others, also, _ = predict(teacher, images.split, device)
        both = np.intersect1d(seen.numpy(), also.numpy())
        mine, theirs = logits.argmax(1)[torch.isin(seen, torch.from_numpy(both))], others.argmax(1)
        agreement = share(mine == theirs)
        taught = share(theirs == torch.from_numpy(images.target)[also])
    return Verified(
        name=subject.name,
        images=len(seen),
        top1=top1,
        top5=share((logits.topk(5).indices == target[:, None]).any(1)) if subject.classes > 5 else None,
        ece=calibration_error(confidence, right),
        confidence=100 * float(confidence.mean()),
        classes=tuple(
            OfClass(name=name, top1=share(right[target == label]))
            for label, name in sorted(images.names.items())
            if (target == label).any()
        ),
        params_m=params,
        gmacs=gmacs,
        counts=tuple(counted(params, gmacs, claims)),
        told=(*subject.told, *images.told),
        unread=unread,
        verdict=verdict,
        holds=holds,
        agreement=agreement,
        teacher=taught,
    )


def share(right: Tensor) -> Estimate:
    """How many of some truth values are true, in percent."""
    return stats.binomial(int(right.sum()), len(right))


def calibration_error(confidence: Float[Tensor, " N"], right: Tensor) -> float:
    """Expected calibration error in points (Guo et al. 2017): mean |accuracy - confidence| over bins of images."""
    place = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, right.double() - confidence.double())
    return 100 * float(gap.abs().sum()) / len(confidence)


def counted(params: float, gmacs: float, claims: Sequence[Claims]) -> Iterator[Counted]:
    """Parameters and GMACs beside what is claimed of them."""
    for what, found, named in (("M parameters", params, "params_m"), ("GMACs", gmacs, "gmacs")):
        claim = next((each for each in claims if getattr(each, named) is not None), None)
        if claim is None:
            continue
        value = getattr(claim, named)
        if abs(found - value) <= NEAR * value:
            yield Counted(text=f"It has the {value:.4g} {what} {claim.who}.", fits=True)
            continue
        twice = " (about twice: FLOPs, of which a multiply-add has two?)" if 1.9 < value / found < 2.1 else ""
        like = [card.name for card in ZOO.values() if abs((getattr(card, named) or 0) - value) <= NEAR * value / 4]
        would = f"; {' and '.join(like[:2])} would fit" if like else ""
        yield Counted(text=f"It has {found:.4g} {what}, not the {value:.4g} {claim.who}{twice}{would}.", fits=False)


@torch.no_grad()
def check_size(subject: Checkpoint) -> None:
    """Raise UserError where a model does not take images of the side that it is to be shown."""
    net = subject.net.cpu()
    try:
        net(torch.zeros(1, 3, subject.side, subject.side))
    except (AssertionError, RuntimeError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{subject.name} does not take images of {subject.side} px ({first.rstrip('.')}); leave --image-size out."
        ) from error


@torch.no_grad()
def predict(subject: Checkpoint, split: Split, device: str) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Logits [n, C] of the images that could be read, their positions [n], and the files that could not."""
    net, normalise = subject.net.to(device), Normalise(subject.mean, subject.std).to(device)
    if split.images is not None:
        source: Any = MemorySource(torch.from_numpy(split.images), None)
    else:
        assert split.paths is not None
        source = FileSource(split.paths, subject.side, subject.crop_pct, None, fill=False, banner=split.banner)
    logits, seen = [], []
    unread: dict[str, str] = {}
    for part in torch.arange(len(split)).split(BATCH):
        shown = source(part, None, None)
        unread |= shown.corrupt
        if len(shown.index):
            logits.append(net(normalise(resized(shown.x.to(device), subject.side))).float().cpu())
            seen.append(shown.index)
    return (
        torch.cat(logits) if logits else torch.empty(0, 1),
        torch.cat(seen) if seen else torch.empty(0).long(),
        unread,
    )


# -- images and their classes --------------------------------------------------------------------------------------


def images_of(subject: Checkpoint, folder: Path | None, root: Path) -> Images:
    """The images to measure a checkpoint on.

    Args:
        subject: the checkpoint.
        folder: that the user names. Where it is what an exported student was trained on, its test split is meant: most
            of the rest was seen in training.
        root: where data sets are, if no folder is named.

    Raises:
        UserError: there are none, or none whose classes are known.
    """
    if folder is None:
        if is_own(subject):
            raise UserError("It was measured on images of somebody's own: say where they are, --data FOLDER.")
        return own_images(subject, root)
    if is_own(subject) and folder.is_dir():
        trained = own_data(subject, folder).fingerprint()
        if subject.data is not None and trained == subject.data.fingerprint:
            return own_images(subject, folder)
    return images_in(folder, subject)


def is_own(subject: Checkpoint) -> bool:
    """Whether an exported student was measured on a folder of the user's own, whose path nothing keeps."""
    return subject.data is not None and subject.data.name == OwnFolder.name


def own_data(subject: Checkpoint, root: Path) -> DataSet:
    """The data set that an exported student names.

    Raises:
        UserError: it is code of somebody's own, which is not run because a file names it.
    """
    assert subject.data is not None
    name = subject.data.name
    if ":" in name:
        raise UserError(
            f"Its {CONFIG} names '{name}', code of somebody's own, as what it was measured on, and no code is run "
            "because a file names it: say where test images are, --data FOLDER."
        )
    found: DataSet = load(lookup("data set", name, DATASETS))(subject.data.options or {}, root)
    found.present()
    return found


def own_images(subject: Checkpoint, root: Path) -> Images:
    """The test split that an exported student says it was measured on.

    Raises:
        UserError: it says nothing, or the data is not here.
    """
    if subject.data is None:
        raise UserError("Say where the test images are: --data FOLDER, with a folder for each class.")
    data = own_data(subject, root)
    split = data.load("test", seed=0, select=False, on_corrupt="skip")
    names = subject.labels or tuple(map(str, range(data.num_classes)))
    told = [f"The images are the test split of '{data.name}', the same as when it was exported."]
    wanted = subject.data.fingerprint
    if wanted is not None and data.fingerprint() != wanted:
        told = [f"The images are the test split of '{data.name}' here, which is not the data it was exported with."]
    return Images(split=split, target=split.labels, names=dict(enumerate(names)), told=tuple(told))


def images_in(folder: Path, subject: Checkpoint) -> Images:
    """Class folders of test images, in `folder/test`, `folder/val` or `folder` itself.

    A class is found among the model's by its name, where names are known (the checkpoint's own, or ImageNet-1K's
    synsets for 1000 classes); else, if there are as many folders as classes, by the order of the sorted names.

    Raises:
        UserError: no folder, no class folders, or none that is a class of the model.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; --data names one with a folder of images for each class.")
    place = next((folder / part for part in PARTS if (folder / part).is_dir()), folder)
    names = folder_names(place)
    if not names:
        raise UserError(f"{place} has no class folders; put the test images there as CLASS/IMAGE.")
    label, told = matched(place, names, subject)
    found = [(label[name], f"{name}/{file}") for name in names if name in label for file in file_names(place / name)]
    if not found:
        raise UserError(f"The class folders of {place} hold no images (.jpg, .png, .webp or .bmp).")
    target = np.array([number for number, _ in found], dtype=np.int64)
    paths = PathList(place, [name for _, name in found])
    split = Split(None, paths, target, np.arange(len(found)), subject.side, subject.crop_pct)
    return Images(split=split, target=target, names={label[name]: name for name in label}, told=told)


def matched(place: Path, names: Sequence[str], subject: Checkpoint) -> tuple[dict[str, int], tuple[str, ...]]:
    """Which of a model's classes each folder is, and how that was found."""
    known = {name: number for number, name in enumerate(subject.labels or synsets(subject.classes))}
    label = {name: known[name] for name in names if name in known}
    if label:
        whose = "its own names" if subject.labels else "ImageNet-1K's synsets"
        told = [f"{len(label)} classes were found by {whose}."]
        if len(label) < len(names):
            told.append(f"{len(names) - len(label)} folders are no class of it and were left out.")
        return label, tuple(told)
    if len(names) == subject.classes:
        return {name: number for number, name in enumerate(names)}, ("Classes are in the order of their sorted names.",)
    if known:
        raise UserError(
            f"None of the {len(names)} class folders in {place} (first: '{names[0]}') is among the {subject.classes} "
            f"classes of {subject.name} (first: '{next(iter(known))}'); rename them."
        )
    raise UserError(
        f"{place} has {len(names)} class folders (first: '{names[0]}') and {subject.name} {subject.classes} classes "
        "without names, so no folder can be told to be a class; give as many folders as classes."
    )


def synsets(classes: int) -> list[str]:
    """The names that ImageNet-1K's folders have, for a model of 1000 classes; none for others."""
    return list(timm.data.ImageNetInfo("imagenet-1k").label_names()) if classes == 1000 else []
