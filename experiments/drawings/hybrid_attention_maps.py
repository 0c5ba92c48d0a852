"""What one patch attends to in Hybrid Distill's teachers and student (arXiv:2306.15876, Figure 5c).

Shapes: B images, S side in px, H W grid.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import Normalize
from torch import Tensor

from analysis.looking.attention import attention_layers
from analysis.measure import attended
from analysis.measures.attention_maps import AttentionMaps, MapsResult, draw_map, draw_scale
from analysis.style import TILE, Lettering, sheet
from experiments.drawings.base import NAMES, Finished
from hkd.models.tap_model import TapModel

SHOWN = 6  # images


def draw(finished: Finished, folder: Path) -> None:
    """Maps of teachers and student."""
    plan, chosen = finished.plan, finished.images(SHOWN)
    images = torch.cat(list(chosen))
    models = {
        NAMES.get(slug, slug): finished.step(run).method.teachers[role]
        for slug, (run, role) in finished.teachers().items()
    }
    models |= {label: finished.step(run).student for label, run in finished.runs.items()}
    maps = {label: query_maps(model, images) for label, model in models.items()}
    maps_figure(
        images,
        maps,
        folder / "maps",
        title=f"What the marked patch attends to\n{plan.here}",
        caption=f"Profile {plan.profile}; mean over heads; one colour range for all maps. Images: "
        f"{len(images)} of the test split, evenly spaced.",
    )
    arrays = {
        label: {f"layer_{layer}": map_.mean(axis=1).astype(float) for layer, map_ in each.maps.items()}
        for label, each in maps.items()
    }
    finished.leave(folder, chosen, arrays=arrays)


@torch.no_grad()
def query_maps(model: TapModel, images: Float[Tensor, "B 3 S S"]) -> MapsResult:
    """What the central patch attends to in the last late layer but one and in the last (10 and 12 of 12).

    Args:
        model: a plain transformer.
        images: RGB in [0, 1].
    """
    size = (model.card.image_size,) * 2
    layers = attention_layers(model.net, size)
    maps = AttentionMaps(layers=sorted({max(1, len(layers) - 2), len(layers)}))
    model.eval()
    with attended([maps], layers, images, size):
        model(images)
    return maps.compute()


def maps_figure(
    images: Float[Tensor, "B 3 S S"], maps: Mapping[str, MapsResult], path: Path, *, title: str, caption: str
) -> None:
    """Images, and what the marked patch of each attends to, by model and layer; one colour range for all.

    Args:
        images: RGB in [0, 1].
        maps: by model's label.
        path, title, caption: see `sheet`.
    """
    scaled = {label: each.scaled() for label, each in maps.items()}
    shown = [(layer, map_) for layers in scaled.values() for layer, map_ in layers.items()]
    width, side = max(0.15 + TILE * (len(shown) + 1), 5.2), images.shape[-1]
    names = ["\n".join(textwrap.wrap(label, 2 * int(TILE / 0.09))) for label in maps]
    above = 0.5 + 0.19 * max(name.count("\n") + 1 for name in names)
    texts: dict[str, Any] = {"title": title, "caption": caption, "lettering": Lettering(heading_line=0.25)}
    with sheet(path, width, TILE * len(images), above=above, below=0.82, **texts) as page:
        norm = Normalize(0, float(np.quantile(np.concatenate([map_.ravel() for _, map_ in shown]), 0.995)))
        first = next(iter(maps.values()))
        patch = side / shown[0][1].shape[1]  # of the image as it is drawn, which all share
        for y, image in enumerate(images.clamp(0, 1).movedim(1, -1).numpy()):
            for x, picture in enumerate([image, *(map_[y] for _, map_ in shown)]):
                left, bottom = 0.06 + TILE * x, page.top - TILE * (y + 1)
                axes = page.axes(left + 0.03, bottom + 0.03, TILE - 0.06, TILE - 0.06)
                draw_map(axes, picture, norm, (side, side), first.query, patch, line=1.4)
                if y == 0:
                    axes.set_title("image" if x == 0 else f"layer {shown[x - 1][0]}", fontsize=11, pad=4)
        at = 1
        for name, layers in zip(names, scaled.values(), strict=True):
            middle = 0.06 + TILE * (at + len(layers) / 2)
            page.text(middle, page.top + 0.24, name, ha="center", va="bottom", fontsize=12)
            at += len(layers)
        axes = page.axes(0.3, page.bottom - 0.3, page.width - 0.6, 0.11)
        draw_scale(page.figure, axes, norm, "attention of the marked patch (1: the same everywhere)", pad=1)
