r"""Masked pixel reconstruction: the control that tells H-GKD's teacher from its masks, encoder and decoder.

Source: SparK, arXiv:2301.03580, which the sparse baseline of H-GKD (arXiv:2309.09571) is taken to be. The student sees
part of an image; a U-Net decoder (`parts.unet`) goes up to the image's own size, where a 1x1 convolution gives the
pixels. With x_c the 3 c^2 values of cell c and M the masked cells:

.. math:: L = \frac{1}{|M|} \sum_{c \in M} \frac{1}{3 c^2}
              \left\| \hat x_c - \frac{x_c - mean(x_c)}{\sqrt{var(x_c) + 10^{-6}}} \right\|^2

The loss is MAE's on cells instead of patches. Decided here: pixels are RGB in [0, 1]; SparK takes them after the data
set's normalisation.
Shapes: B batch, S side of the image in px, g side of the mask, c side of a cell in px, N = g * g, V = 3 * c * c.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_size, refuse_student
from hkd.methods.parts.initialisers import as_spark
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import mask_batch, mask_grid
from hkd.methods.parts.patches import mae_loss, painted, patchify
from hkd.methods.parts.unet import UNetDecoder, stage_maps, stage_shapes
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.registry import lookup
from hkd.spec import FORBID, ModelCard, Recipe


@dataclass(frozen=True, kw_only=True)
class MaskedPixelsConfig:
    """As HGKDConfig, where the names are the same.

    image_size: side in px of the images the student sees, which must be its card's; the decoder ends there.

    Raises ValueError for unknown choices and numbers out of range.
    """

    __pydantic_config__ = FORBID
    image_size: int = 224
    mask_ratio: float = 0.6
    grid: int | None = None
    mask_per: Literal["image", "batch"] = "image"
    conv: Literal["sparse", "dense"] = "sparse"
    backend: Literal["auto", "masked", "rows", "spconv"] = "auto"
    width: int = 768

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                lookup(name, getattr(self, name), dict.fromkeys(get_args(hint)))
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")
        for name in ("image_size", "grid", "width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class MaskedPixels(Method):
    """`pixels` alone; no teacher, no task loss, and labels are not looked at. Own parameters: decoder and head."""

    Config = MaskedPixelsConfig

    def __init__(
        self, config: MaskedPixelsConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build decoder and head.

        Raises:
            Refused: stage maps, mask and image whose sides do not fit, or a mask that hides all cells or none.
        """
        super().__init__(config, student, teachers, criterion)
        self.grid = mask_grid("masked_pixels", student, config.grid, config.mask_ratio)
        self.decoder = UNetDecoder(
            stage_shapes(student), config.width, config.image_size, masked=config.conv == "sparse"
        )
        self.head = nn.Conv2d(self.decoder.widths[-1], 3, 1)
        self.head.apply(as_spark)

    @classmethod
    def needs(cls, config: MaskedPixelsConfig) -> Needs:
        """All stages of the student."""
        return Needs(student=Want(stages=(1, 2, 3, 4)))

    @classmethod
    def refuse(
        cls, config: MaskedPixelsConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """A student that takes no mask, or images of another size than the option says."""
        does = "shows its student part of an image"
        return refuse_student("masked_pixels", does, student, "visible", "backend") or refuse_size(
            "masked_pixels", student, config.image_size
        )

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Masks of the batch, drawn here, and how they are computed with."""
        return mask_batch(batch, self.grid, self.config)

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The one term."""
        visible = batch.extra["visible"]
        predicted = exact(self.predict(taps_s, visible))
        return {"pixels": mae_loss(predicted, self.cells(batch), visible, norm_pix=True)}

    def cells(self, batch: Batch) -> Float[Tensor, "B N V"]:
        """Pixels of the images in [0, 1] by cell, at the size at which the student sees them."""
        return exact(patchify(batch.x, self.grid, self.config.image_size // self.grid))

    def predict(self, taps_s: Taps, visible: Bool[Tensor, "B 1 g g"]) -> Float[Tensor, "B N V"]:
        """Normalised pixels of all cells."""
        pixels = self.head(self.decoder(stage_maps(taps_s), visible)[-1])
        return patchify(pixels, self.grid, self.config.image_size // self.grid)

    @torch.no_grad()
    def picture(self, batch: Batch, taps_s: Taps) -> Float[Tensor, "B 3 S S"]:
        """The images with their hidden cells painted (`painted`).

        Args:
            batch: images, and in `extra` the mask that `student_inputs` drew for them.
            taps_s: of the student under that mask.
        """
        visible = batch.extra["visible"]
        return painted(exact(self.predict(taps_s, visible)), self.cells(batch), visible, norm_pix=True)
