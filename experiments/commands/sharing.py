"""`hkd export` and `hkd verify`: students that leave, and checkpoints that come."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.given import Whole
from experiments.commands.printed import out
from experiments.records.store import Store


@app.command
def export(
    run: str,
    *,
    to: Path,
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
        data_root=places.data(),
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
