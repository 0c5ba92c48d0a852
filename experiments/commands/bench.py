"""`hkd bench`: what a machine does with the papers' pairs."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from experiments import places
from experiments.commands.app import bench_app
from experiments.commands.printed import out
from hkd.errors import UserError


@bench_app.command(name="gpu")
def bench_gpu(
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    to: Path | None = None,
    minutes: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0,
) -> int:
    """Measure steps, precisions, layouts, captured graphs, loader, sparse backends and cached teachers; resumable.

    Exit 1 where something is left: the same command goes on with it.

    Args:
        device: `cpu` tries the script on miniatures, whose numbers say nothing of a GPU.
        to: folder of bench.jsonl and bench.md; the default is results/bench.
        minutes: that this call may take.
    """
    import torch

    from experiments.gpu_bench import TABLE, Scale, bench

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; `hkd bench gpu --device cpu` tries the script on miniatures.")
    console = out()
    folder = places.results() / "bench" if to is None else to
    left = bench(Scale(device, device == "cpu"), folder, minutes=minutes, tell=lambda line: console.print(Text(line)))
    console.print(Text(f"The table is {folder / TABLE}"))
    if left:
        console.print(Text(f"{len(left)} measurements are left, the next is '{left[0]}': give the same command again."))
    return int(bool(left))
