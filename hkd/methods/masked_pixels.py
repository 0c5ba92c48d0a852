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
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_size, refuse_student
from hkd.methods.parts.initialisers import as_spark
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import MaskConfig, mask_batch, mask_grid, mask_of, refuse_conv
from hkd.methods.parts.patches import mae_loss, painted, patchify
from hkd.methods.parts.unet import UNetDecoder, stage_maps, stage_shapes
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import ShareBetween, Size, options
from hkd.spec import ModelCard, Recipe


@options
class MaskedPixelsConfig(MaskConfig):
    """mask_ratio: share of hidden cells.

    image_size: side in px of the images the student sees, which must be its card's; the decoder ends there.
    """

    image_size: Size = 224
    mask_ratio: ShareBetween = 0.6


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
        return (
            refuse_student("masked_pixels", does, student, "visible", "backend")
            or refuse_conv("masked_pixels", config, student)
            or refuse_size("masked_pixels", student, config.image_size)
        )

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Masks of the batch, drawn here, and how they are computed with."""
        return mask_batch(batch, self.grid, self.config.mask_ratio, self.config)

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The one term."""
        predicted = exact(self.predict(taps_s, batch.extra["visible"]))
        return {"pixels": mae_loss(predicted, self.cells(batch), mask_of(batch), norm_pix=True)}

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
        predicted = exact(self.predict(taps_s, batch.extra["visible"]))
        return painted(predicted, self.cells(batch), mask_of(batch), norm_pix=True)
