"""`hkd export` and `hkd verify`: students that leave, and checkpoints that come."""

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.given import Whole
from experiments.commands.printed import out
from experiments.grids import new_table
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.files import atomic_write

if TYPE_CHECKING:  # they import torch, which takes seconds
    from experiments.results.stats import Estimate
    from experiments.sharing.verify import Verified

LOWEST = 5  # classes that are printed


@app.command
def export(
    run: str,
    *,
    to: Path,
    data: Path | None = None,
    profile: str | None = None,
    hub_format: bool = False,
    benchmark: str | None = None,
    licence: str | None = None,
    onnx: bool = False,
) -> int:
    """Write a trained student as a folder that timm loads, with its card; what timm makes of it is compared first.

    Args:
        run: key of a run (`hkd runs list`), or a cell: TABLE/ROW/METHOD[/VARIANT][/SEED]; the first seed unless named.
        to: folder that is made.
        data: folder of the data sets, or the images that `hkd distill` was given, for the names of the classes; the
            default is $HKD_DATA, then data/.
        profile: scale of a cell's table; the default is in params.yaml.
        hub_format: add what the Hugging Face hub reads: the head of README.md, and .eval_results/.
        benchmark: the hub's data set that the run was measured on: OWNER/NAME or OWNER/NAME:TASK.
        licence: of the weights, as the hub writes it (mit, apache-2.0); `other` unless given.
        onnx: write model.onnx too, checked with ONNX Runtime; needs `pip install "hkd[onnx]"`.
    """
    from experiments.sharing.export import check_folder, export  # imports torch, which takes seconds
    from experiments.sharing.model_card import teachers_of
    from experiments.sharing.source import found

    folder, store, console = places.folder(to, "--to"), Store(places.runs()), out()
    check_folder(folder)
    source = found(run, store, profile)
    done = export(
        source,
        folder,
        teachers_of(source, store),
        data_root=places.data() if data is None else places.folder(data, "--data"),
        hub=hub_format,
        benchmark=benchmark,
        licence=licence,
        onnx=onnx,
    )
    values = ", ".join(f"{name} {value:.2f}" for name, value in source.record.metrics.items())
    lines = [
        f"{source.name} ({values}) is in {folder}: {', '.join(done.files)}",
        f"timm makes of it the same logits to the bit, as {done.form.architecture}"
        + (", once modeling.py is imported" if done.form.own else "")
        + f"; {done.params_m:.3f} M parameters, {done.gmacs:.4g} GMACs, {done.classes} classes",
    ]
    if done.onnx_difference is not None:
        lines.append(f"ONNX Runtime's logits differ by {done.onnx_difference:.1e} at most")
    own = "import sys; sys.path.insert(0, FOLDER); import modeling; " if done.form.own else ""
    lines.append(f'Load it: {own}timm.create_model("local-dir:{folder}", pretrained=True)')
    for line in (*lines, *done.sentences):
        console.print(Text(line))
    return 0


@app.command
def verify(
    checkpoint: Path,
    *,
    model: str | None = None,
    data: Path | None = None,
    claims: float | None = None,
    claims_params: float | None = None,
    claims_gmacs: float | None = None,
    teacher: str | None = None,
    image_size: Annotated[Whole | None, Parameter(validator=Number(gte=1))] = None,
    crop_pct: float | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    per_class: bool = False,
    json: Path | None = None,
    device: str = "cpu",
) -> int:
    """Measure somebody's checkpoint, and say whether it does what is claimed: exit 0, or 1 if it does not.

    Files as timm (any version), OFA-KD, ScaleKD and mmcls write them; code in them is never run. Works offline.

    Args:
        checkpoint: .safetensors, .pt, .pth or .pth.tar, or a folder that `hkd export` or timm wrote.
        model: what it is: a model of ours or of timm. Not needed for a folder.
        data: test images, a folder for each class, in FOLDER/test, FOLDER/val or FOLDER. An exported student is
            measured on the test split that it was measured on before, without it or where it is what it learned from.
        claims: top-1 accuracy that is claimed, in percent.
        claims_params: parameters that are claimed, in millions.
        claims_gmacs: GMACs that are claimed.
        teacher: for agreement: a folder as above, or MODEL=FILE.
        image_size: side in px of what the model sees; the default is the model's.
        crop_pct: the centre crop's share of the resized short side; the default is the model's.
        mean: of RGB in [0, 1], three numbers; the default is the model's.
        std: likewise.
        per_class: print every class, not the lowest alone.
        json: file for all that was measured.
        device: cpu or cuda.
    """
    from experiments.analyse import parsed_device
    from experiments.sharing import verify as verifying  # imports torch, which takes seconds
    from experiments.sharing.checkpoint import Claims
    from experiments.sharing.checkpoint import checkpoint as read

    check_claims(claims, claims_params, claims_gmacs, crop_pct)
    target = None if json is None else places.output(json, "--json")
    where = str(parsed_device(device))
    given: dict[str, Any] = {"side": image_size, "crop_pct": crop_pct, "mean": mean, "std": std}
    changes = {name: value for name, value in given.items() if value is not None}
    subject = replace(read(places.file(checkpoint), model), **changes)
    folder = None if data is None else places.folder(data, "--data")
    images = verifying.images_of(subject, folder, places.data())
    name, _, file = (teacher or "").rpartition("=")
    other = read(places.file(file), name or None) if teacher else None
    own = Claims(top1=claims, params_m=claims_params, gmacs=claims_gmacs, who="that are claimed")
    done = verifying.verify(subject, images, (own, subject.claims), other, device=where)
    print_verified(done, per_class)
    if target is not None:
        with atomic_write(target) as temporary:
            temporary.write_text(dumps(done.document(), indent=1) + "\n", encoding="utf-8")
        out().print(Text(f"All of it is in {json}"))
    return int(not done.as_claimed)


def check_claims(top1: float | None, params: float | None, gmacs: float | None, crop_pct: float | None) -> None:
    """Raise UserError for numbers that nobody can claim."""
    if top1 is not None and not 1 <= top1 <= 100:
        fraction = f": if {top1:g} is a fraction, write {100 * top1:g}" if 0 < top1 < 1 else ""
        raise UserError(f"--claims is {top1:g}; a claimed accuracy is in percent, from 1 to 100{fraction}.")
    for name, value in (("--claims-params", params), ("--claims-gmacs", gmacs)):
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"{name} is {value:g}; it is in millions or GMACs, and above 0.")
    if crop_pct is not None and not 0.1 <= crop_pct <= 1:
        raise UserError(f"--crop-pct is {crop_pct:g}; it is a share, from 0.1 to 1.")


def print_verified(done: "Verified", per_class: bool) -> None:
    """The finding first, then what it rests on."""
    console = out()

    def line(text: str) -> None:
        console.print(Text(text))

    line(f"{done.name}: top-1 {interval(done.top1)} % of {done.images} images")
    if done.verdict is not None:
        line(done.verdict)
    for count in done.counts:
        line(count.text)
    if done.top5 is not None:
        line(f"top-5 {interval(done.top5)} %")
    line(f"calibration: ECE {done.ece:.2f} points, mean confidence {done.confidence:.2f} %")
    line(f"size: {done.params_m:.4g} M parameters, {done.gmacs:.4g} GMACs")
    if done.agreement is not None and done.teacher is not None:
        line(f"teacher: top-1 {interval(done.teacher)} %; same class as the teacher: {interval(done.agreement)} %")
    for sentence in done.told:
        line(sentence)
    if done.unread:
        line(f"{len(done.unread)} images could not be read: {', '.join(list(done.unread)[:3])}")
    lowest = sorted(done.classes, key=lambda each: each.top1.mean)
    shown = new_table("class" if per_class else f"lowest of {len(lowest)} classes", "images", "top-1 %", "95 %")
    for each in done.classes if per_class else lowest[:LOWEST]:
        bounds = f"[{each.top1.low:.1f}, {each.top1.high:.1f}]"
        shown.add_row(Text(each.name), str(each.top1.n), f"{each.top1.mean:.1f}", Text(bounds))
    console.print(shown)
    line("Intervals are Wilson's, 95 %, over images as if each were drawn by itself; seeds and data are not in them.")


def interval(estimate: "Estimate") -> str:
    """`78.20 [77.83, 78.56]`."""
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
