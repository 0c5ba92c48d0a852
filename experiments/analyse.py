"""`hkd analyse`: several models over one folder of images, written to one folder."""

import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analysis.looking.images import ImageFolder
from analysis.looking.model import Subject, load, parse
from analysis.measure import ALL, analyse
from analysis.report import Analysis, markdown, slug, write
from hkd.errors import Refused, UserError
from hkd.registry import lookup

NAMED = 5  # corrupt images that are named on the screen; all are in analysis.json


class Outcome:
    """What the command did: text for the screen, sentences for stderr and the exit code."""

    def __init__(self) -> None:
        self.analyses: list[Analysis] = []
        self.sentences: list[str] = []
        self.failed = False
        self.files: list[Path] = []
        self.text = ""


def run(
    models: Sequence[str],
    folder: Path,
    measures: Sequence[str],
    output: Path,
    *,
    batch_size: int,
    image_size: str | None,
    limit: int | None,
    seed: int,
    device: str | None,
    random: bool,
    control: bool,
    console: Console,
) -> Outcome:
    """See the command for the arguments. What can be wrong is found before the first model is measured."""
    if not models:
        raise UserError("Name at least one model, such as vit_small_patch16_224 or NAME=FILE.safetensors.")
    names = [name for text in measures for name in text.split(",") if name] or [*ALL]
    for name in names:
        lookup("measure", name, dict.fromkeys(ALL))
    size, where = parsed_size(image_size), parsed_device(device)
    wanted: list[tuple[str, bool]] = []
    for text in dict.fromkeys(models):
        known = parse(text, random=random)
        wanted.append((text, random))
        if control and (known.file is not None or not random):
            wanted.append((known.arch, True))
    images = ImageFolder(folder, limit, seed)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {output} for what is found cannot be made: {error.strerror}.") from error
    done, slugs = Outcome(), set[str]()
    for text, untrained in dict.fromkeys(wanted):
        try:
            subject = load(text, random=untrained, seed=seed, image_size=size, device=where)
            subject = replace(subject, label=unique(subject.label, slugs))
            done.analyses.append(measured(subject, images, names, batch_size, console))
        except Refused as error:
            done.sentences.append(f"refused: {text}: {error}")
        except UserError as error:
            done.failed = True
            done.sentences.append(f"failed: {text}: {error}")
    tell_corrupt(images, done)
    if not done.analyses:
        raise UserError(" ".join(done.sentences))
    record = {
        "folder": str(images.folder),
        "seed": seed,
        "images": [name for name in images.names if name not in images.corrupt],
        "corrupt": images.corrupt,
        "versions": {"timm": timm.__version__, "torch": torch.__version__},
    }
    done.files = write(done.analyses, output, record)
    done.text = markdown(done.analyses)
    return done


def measured(
    subject: Subject, images: ImageFolder, names: Sequence[str], batch_size: int, console: Console
) -> Analysis:
    """One model, behind a progress bar on a terminal."""
    shown = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True,
    )  # fmt: skip
    with shown if console.is_terminal else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One image was measured")  # said once, at the end
        task = shown.add_task(subject.label, total=len(images.names))
        found = analyse(
            subject, images, names, batch_size=batch_size, progress=lambda count: shown.advance(task, count)
        )
    found.about = {
        "weights": subject.weights,
        "mean": subject.mean,
        "std": subject.std,
        "crop_pct": subject.crop_pct,
    }
    return found


def tell_corrupt(images: ImageFolder, done: Outcome) -> None:
    """Count and name what could not be read."""
    if images.corrupt:
        first = [f"{name} ({reason})" for name, reason in [*images.corrupt.items()][:NAMED]]
        more = f" and {len(images.corrupt) - NAMED} more" if len(images.corrupt) > NAMED else ""
        done.sentences.append(
            f"{len(images.corrupt)} of {len(images.names)} images were left out: {', '.join(first)}{more}"
        )


def unique(label: str, slugs: set[str]) -> str:
    """A label whose file no other model of this call has."""
    number, found = 1, label
    while slug(found) in slugs:
        number += 1
        found = f"{label} {number}"
    slugs.add(slug(found))
    return found


def parsed_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "224" or "192x256"."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise UserError(f"The image size is '{text}'; give a side in px, 224, or height x width, 192x256.")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def parsed_device(text: str | None) -> torch.device:
    """A device that is there; the GPU, if there is one, unless another is named."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"Unknown device '{text}'; give cpu, cuda or cuda:0.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"The device '{text}' cannot compute in double precision; give cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no device '{text}' here; torch sees {torch.cuda.device_count()} GPUs.")
    return device
