"""Mean intersection over union of semantic segmentation, over all pixels of a data set.

Source: the metric of ADE20K's benchmark, Zhou et al. 2017. One confusion matrix is filled over all images; unions and
intersections are counted over the data set and not per image, whose mean is another, lower number.
Shapes: C classes, H and W sides of an image in px.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from hkd.data.dense import IGNORE


@dataclass(frozen=True)
class MeanIoU:
    """Percent; nan where nothing can be told.

    miou: mean of `iou` over the classes that are in the truth or were predicted. macc: mean of `acc` over the classes
    in the truth. pixels: correct pixels. foreground: as miou, without class 0.
    iou: intersection over union of each class [C]. acc: correct part of each class's true pixels [C].
    """

    miou: float
    macc: float
    pixels: float
    foreground: float
    iou: Float64[Tensor, " C"]
    acc: Float64[Tensor, " C"]

    def named(self) -> dict[str, float]:
        """The means by name."""
        return {"miou": self.miou, "macc": self.macc, "pixel_acc": self.pixels, "miou_foreground": self.foreground}


class Confusion:
    """Counts of pixels by true class (rows) and predicted class (columns), filled image by image.

    The counts of several processes add up: `matrix` is summed over them, or given to `merge`.

    Args:
        classes: C.
        ignore: label of pixels that are not counted.
        device: where `matrix` is.
    """

    def __init__(self, classes: int, *, ignore: int = IGNORE, device: torch.device | str = "cpu"):
        self.classes, self.ignore = classes, ignore
        self.matrix: Int64[Tensor, "C C"] = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Integer[Tensor, "..."], target: Integer[Tensor, "..."]) -> None:
        """Count the pixels of one or several images.

        Args:
            predicted: classes from 0 for each pixel, ignored ones included, [H, W] or [B, H, W].
            target: of the same shape: classes from 0, or `ignore`.

        Raises:
            ValueError: the sizes differ, or a value that is counted is no class.
        """
        if predicted.shape != target.shape:
            raise ValueError(f"prediction and target differ: {tuple(predicted.shape)} and {tuple(target.shape)}")
        counted = target != self.ignore
        truth, guess = target[counted].long(), predicted[counted].long()
        if not len(truth):
            return
        for what, values in (("target", truth), ("prediction", guess)):
            low, high = values.min().item(), values.max().item()
            if low < 0 or high >= self.classes:
                raise ValueError(f"a {what} must be 0 to {self.classes - 1}, got {low} to {high}")
        counts = torch.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.matrix += counts.view(self.classes, self.classes).to(self.matrix.device)

    def merge(self, matrix: Int64[Tensor, "C C"]) -> None:
        """Add the counts of another process."""
        self.matrix += matrix.to(self.matrix.device)

    def compute(self) -> MeanIoU:
        """The metrics of all pixels counted so far."""
        counts = self.matrix.cpu().double()
        hits, true, guessed = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        iou = 100.0 * hits / (true + guessed - hits)  # 0 / 0 is nan: the class is nowhere
        acc = 100.0 * hits / true
        pixels = 100.0 * hits.sum() / counts.sum()
        return MeanIoU(
            miou=iou.nanmean().item(),
            macc=acc.nanmean().item(),
            pixels=pixels.item(),
            foreground=iou[1:].nanmean().item(),
            iou=iou,
            acc=acc,
        )
