"""Pictures of the report: those that tables left on this machine, else those that the docs keep, in fewer colours."""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from experiments import places
from experiments.planning import schema
from experiments.report.gather import Entry
from hkd.files import atomic_write, sha256

KEPT = Path("docs") / "pictures"
WIDEST = 960  # px
COLOURS = 48
DRAWN_HERE = re.compile(
    r"comparison|ranking$|gains$|^scalekd_table3$"
)  # of gains and ranks, as tables' pages show them
MOST_PIXELS = 60_000_000  # of a picture that is opened


def pictures(entry: Entry, folder: Path) -> list[dict[str, Any]]:
    """The pictures of a table or figure, copied into the report's folder.

    Returns:
        One dict each: file below the report's folder ("" where it is broken, and then `problem` says so), caption,
        source, width and height in px.
    """
    drawn = sorted((places.tables(entry.profile) / entry.name).glob("*.png"))
    drawn = [path for path in drawn if not DRAWN_HERE.search(path.stem)]
    kept = sorted((places.repository() / KEPT).glob(f"{entry.name}*.png")) if entry.page == entry.name else []
    kept = [path for path in kept if owner(path.stem) == entry.name and not DRAWN_HERE.search(path.stem)]
    found = []
    for path in drawn or kept:
        what = path.stem.removeprefix(entry.name).strip("_").replace("_", " ") or "the table"
        source = "drawn on this machine" if drawn else f"kept with the docs, {KEPT.as_posix()}/{path.name}"
        caption = f"{entry.title}: {what}"
        name = f"{entry.page}_{path.stem}" if drawn else path.stem
        found.append({"caption": caption, "source": source, **copied(path, name, folder)})
    return found


def owner(stem: str) -> str:
    """The table whose name a file's begins with; of several the longest, and "" of none."""
    return max((name for name in schema.table_ids() if f"{stem}_".startswith(f"{name}_")), key=len, default="")


def copied(path: Path, name: str, folder: Path) -> dict[str, Any]:
    """A picture in fewer colours in the report's folder; what it is instead if it cannot be read."""
    try:
        target = folder / "pictures" / f"{name}.{sha256(path)[:8]}.png"  # of equal content there is a copy already
        if target.is_file():
            with Image.open(target, formats=["PNG"]) as there:
                return {"file": f"pictures/{target.name}", "problem": "", "width": there.width, "height": there.height}
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width} × {picture.height} px")
            whole = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return {"file": "", "problem": f"The picture {path.name} cannot be read ({error}).", "width": 0, "height": 0}
    if whole.width > WIDEST:
        whole = whole.resize((WIDEST, round(whole.height * WIDEST / whole.width)), Image.Resampling.LANCZOS)
    few = whole.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        few.save(temporary, "PNG")
    return {"file": f"pictures/{target.name}", "problem": "", "width": few.width, "height": few.height}
