"""`hkd doctor` and `hkd analyse`: at this machine, and at models."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.given import Whole
from experiments.commands.printed import is_wide, out, print_markdown
from experiments.grids import new_table
from hkd.errors import UserError


@app.command
def doctor() -> int:
    """Look at versions, processor, GPUs, folders, data sets and weights, and say how to get what is missing."""
    from experiments.doctor import examine, readiness

    console = out()
    wide = is_wide(console)
    shown = new_table()
    shown.add_column("")
    shown.add_column("what", no_wrap=True)
    for column in ("found", "step") if wide else ("found, or the step that gets it",):
        shown.add_column(column, overflow="fold")
    marks = {"ok": Text("ok", "green"), "note": Text("-", "dim"), "missing": Text("missing", "yellow")}
    group = None
    findings = examine()
    for finding in findings:
        if finding.group != group:
            group = finding.group
            shown.add_section()
        words = (finding.text, finding.step) if wide else (finding.step or finding.text,)
        shown.add_row(marks[finding.state], Text(finding.name), *map(Text, words))
    console.print(shown)
    console.print(Text(readiness(findings)))
    return 0


@app.command
def analyse(
    *model: str,
    images: Path,
    measures: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    batch_size: Whole = 32,
    image_size: str | None = None,
    limit: Annotated[Whole | None, Parameter(validator=Number(gte=1))] = None,
    seed: Whole = 0,
    device: str | None = None,
    random: bool = False,
    control: bool = False,
) -> int:
    """Measure attention and features of models over a folder of images: tables, arrays and figures.

    docs/analysis.md says what the measures are. One that a model cannot give is refused by name, the others go on.

    Args:
        model: timm names (published weights), or NAME=FILE.safetensors with a timm name or a model of ours.
        images: folder of JPEG, PNG or WebP files, searched with all folders below it.
        measures: attention_distance, attention_nmi, fourier, dct_spectrum, attention_maps; all unless some are named.
        output: folder for what is found; the default is results/analysis.
        batch_size: images in one forward pass.
        image_size: what models see, 224 or 192x256 (height x width); the default is each model's own.
        limit: at most so many images, drawn by the seed.
        seed: of that draw and of random weights.
        device: cpu, cuda or cuda:0; the default is the GPU if there is one.
        random: random weights for models without a file, instead of published ones.
        control: also measure each architecture with random weights.
    """
    from experiments import analyse as analysis  # imports torch, which takes seconds

    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it must be at least 1.")
    folder = places.results() / "analysis" if output is None else places.folder(output, "--output")
    done = analysis.run(
        model,
        images,
        measures or [],
        folder,
        batch_size=batch_size,
        image_size=image_size,
        limit=limit,
        seed=seed,
        device=device,
        random=random,
        control=control,
        console=Console(stderr=True),
    )
    print_markdown(done.text, out())
    out().print(Text(f"{done.analyses[0].images} images; {len(done.files)} files are in {folder}"))
    for sentence in done.sentences:
        print(" ".join(sentence.split()), file=sys.stderr)
    return 2 if done.failed else 0
