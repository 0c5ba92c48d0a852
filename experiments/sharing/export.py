"""A trained student as a folder that timm loads: weights, config.json, a model card; proved by loading it again.

What was written is read by timm as anybody would read it, and compared with the student that the run left, on a fixed
batch and bit for bit; where they differ nothing is exported. Adapters are never exported: they are of the training.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.sharing import model_card, modeling
from experiments.sharing.source import Found
from experiments.sharing.timm_form import TimmForm, timm_form
from hkd.data import DATASETS
from hkd.errors import UserError
from hkd.files import sha256
from hkd.models.convert.files import classes_of, read_weights
from hkd.models.families.base import family_of
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights, save_weights
from hkd.registry import load, lookup
from hkd.spec import DataSpec, ModelCard
from hkd.tasks.train import classifier_names

WEIGHTS, CONFIG, OWN_CODE, CARD, ONNX = "model.safetensors", "config.json", "modeling.py", "README.md", "model.onnx"
# What timm raises at a folder that it cannot make a model of.
NOT_LOADED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
BATCH = 4  # images of the comparison
ONNX_TOLERANCE = 1e-4  # largest difference of a logit that ONNX Runtime may have


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. sentences: what a reader should know that was left out."""

    folder: Path
    form: TimmForm
    files: tuple[str, ...]
    classes: int
    params_m: float
    gmacs: float
    onnx_difference: float | None = None
    sentences: tuple[str, ...] = ()


def export(
    found: Found,
    folder: Path,
    teachers: tuple[model_card.TeacherFacts, ...],
    *,
    data_root: Path,
    hub: bool = False,
    benchmark: str | None = None,
    licence: str | None = None,
    onnx: bool = False,
) -> Exported:
    """Write a run's student as a folder of timm's, with its card.

    Args:
        found: the run.
        folder: that is made; an empty one is taken.
        teachers: of the run, for the card.
        data_root: where data sets are; their class names are written if they are there.
        hub: with the YAML head and the `.eval_results/` of the Hugging Face hub.
        benchmark: the hub's data set and task that the run was measured on, `OWNER/NAME` or `OWNER/NAME:TASK`.
        licence: of the weights, as the hub writes it.
        onnx: with model.onnx too.

    Raises:
        UserError: the folder is taken, the student has no timm form, or timm would compute something else from it.
    """
    check_folder(folder)
    spec, form = found.spec, timm_form(found.spec.student)
    student = student_of(found)
    images = fixed_batch(spec.student)
    wanted = logits(student.net, images)
    params, gmacs = size(student.net, images)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    if aside.exists():
        shutil.rmtree(aside)
    difference, sentences = None, []
    try:
        aside.mkdir(parents=True)
        save_weights(student.net.state_dict(), aside / WEIGHTS)
        labels = class_names(spec.data, data_root, student.info.classes)
        if labels is None and student.info.classes:
            sentences.append(f"No class names are written: data set '{spec.data.name}' has none, or is not here.")
        config = config_of(form, student, labels, crop_pct=crop_of(spec.data, data_root))
        config["hkd"] = model_card.facts(found, params_m=params, gmacs=gmacs, weights=sha256(aside / WEIGHTS))
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if form.own:
            shutil.copyfile(modeling.__file__, aside / OWN_CODE)
        check_equal(aside, form, images, wanted, spec.student)
        if onnx:
            from experiments.sharing.onnx_file import write_onnx

            difference = write_onnx(student.net, images, wanted, aside / ONNX, ONNX_TOLERANCE)
        card = model_card.card(
            found, teachers, form=form, params_m=params, gmacs=gmacs, onnx=onnx, hub=hub, licence=licence
        )
        (aside / CARD).write_text(card, encoding="utf-8")
        if hub:
            entry, sentence = model_card.eval_results(found, benchmark)
            if entry is not None:
                (aside / ".eval_results").mkdir()
                (aside / ".eval_results" / f"{spec.data.name}.yaml").write_text(entry, encoding="utf-8")
            else:
                sentences.append(sentence)
        if folder.exists():
            folder.rmdir()  # it is empty
        aside.rename(folder)
    finally:
        if aside.exists():
            shutil.rmtree(aside)
    files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return Exported(
        folder=folder,
        form=form,
        files=files,
        classes=student.info.classes,
        params_m=params,
        gmacs=gmacs,
        onnx_difference=difference,
        sentences=tuple(sentences),
    )


def check_folder(folder: Path) -> None:
    """Raise UserError unless a folder can be made there, or is there and empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} {what}; --to names a folder that is to be made, or an empty one.")


def student_of(found: Found) -> TapModel:
    """The student as its run left it, in evaluation mode and in torch's default memory format.

    Channels-last convolutions add in another order: timm's own format is the one that is compared bit for bit.
    """
    state = read_weights(found.weights)
    head = classifier_names(family_of(found.spec.student.family).build(found.spec.student, 1))
    classes = classes_of(state.get(head[0])) if head else 0
    model = TapModel(found.spec.student, classes)
    load_weights(model.net, found.weights)
    model.net.to(memory_format=torch.contiguous_format)
    return model.eval()


def fixed_batch(card: ModelCard) -> Tensor:
    """Images as a model sees them: uniform noise in [0, 1], normalised by its card, the same each time."""
    x = torch.rand(BATCH, 3, card.image_size, card.image_size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (card.mean, card.std))
    return (x - mean) / std


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    """What a network gives for normalised images."""
    return net(images)


def size(net: nn.Module, images: Tensor) -> tuple[float, float]:
    """Millions of parameters, and GMACs of one image (convolutions and matrix products)."""
    params = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(images[:1])
    return params, flops.get_total_flops() / 2e9


def config_of(form: TimmForm, student: TapModel, labels: list[str] | None, *, crop_pct: float) -> dict[str, Any]:
    """config.json as timm reads it."""
    net: Any = student.net
    card, side = student.card, student.card.image_size
    known = None if form.own else timm.get_pretrained_cfg(form.architecture)
    classifiers = [name.rpartition(".")[0] for name in classifier_names(net) if name.endswith(".weight")]
    document: dict[str, Any] = {
        "architecture": form.architecture,
        "num_classes": student.info.classes,
        "num_features": net.num_features,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": "img_size" in form.args or bool(known and known.fixed_input_size),
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": student.info.classes,
            "pool_size": None,
            "first_conv": next(name for name, part in net.named_modules() if isinstance(part, nn.Conv2d)),
            "classifier": (classifiers[0] if len(classifiers) == 1 else classifiers) or None,
        },
    }
    if form.args:
        document["model_args"] = form.args
    if labels is not None:
        document["label_names"] = labels
    return document


def class_names(spec: DataSpec, root: Path, classes: int) -> list[str] | None:
    """Names of the classes in the order of the logits, where the data set has names and is here."""
    data = load(lookup("data set", spec.name, DATASETS))(spec.options, root)
    if data.missing() is not None or not hasattr(data, "class_names"):
        return None
    names = list(data.class_names)[:classes]
    return names if classes and len(names) == classes else None


def crop_of(spec: DataSpec, root: Path) -> float:
    """The centre crop's share of the resized short side with which the student was measured; 1: none."""
    data = load(lookup("data set", spec.name, DATASETS))(spec.options, root)
    return float(getattr(data.options, "crop_pct", 1.0))


def loaded(folder: Path) -> Any:
    """The model of an exported folder, as timm makes it.

    Raises:
        UserError: its modeling.py is not ours; code that came with weights is never run.
    """
    code = folder / OWN_CODE
    if code.is_file():
        if code.read_bytes() != Path(modeling.__file__).read_bytes():
            raise UserError(f"{code} is not the file that `hkd export` writes, and is not run; look at it yourself.")
        modeling.register()
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def check_equal(folder: Path, form: TimmForm, images: Tensor, wanted: Tensor, card: ModelCard) -> None:
    """Raise UserError unless timm makes of a folder the model that was exported, to the bit."""
    try:
        got = logits(loaded(folder), images)
    except NOT_LOADED as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"timm {timm.__version__} does not load {card.name} as '{form.architecture}' ({first.rstrip('.')}); "
            "nothing was exported."
        ) from error
    if not torch.equal(got, wanted):
        by = float((got - wanted).abs().max()) if got.shape == wanted.shape else float("nan")
        raise UserError(
            f"timm {timm.__version__} makes other logits of {card.name} as '{form.architecture}' (by {by:.2g}); "
            "nothing was exported."
        )
