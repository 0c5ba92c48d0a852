r"""Masked autoencoder (MAE): the student is an encoder that sees a few patches; a decoder paints the hidden ones.

Source: He et al. 2022, arXiv:2111.06377, and the official code. A random subset of the patches goes through the
encoder; a narrow transformer gets its tokens back in place, a learned mask token everywhere else and fixed sin-cos
positions, and predicts the pixels of every patch. With y the pixels of a patch, normalised per patch, and M the hidden
patches of a batch,

.. math:: L = \frac{1}{|M|} \sum_{i \in M} \frac{1}{3 p^2} \lVert \hat y_i - y_i \rVert^2

Deviations: the decoder gets no class token, because taps hold none after the final norm (the encoder's still attends
and is attended to); pixels are RGB in [0, 1] instead of standardised by the mean and deviation of a data set, which
only matters without `norm_pix` and through eps; `round(N (1 - mask_ratio))` patches are visible instead of the whole
part; the encoder is initialised, and learns its positions, as its card says; the channels of the fixed positions are in
timm's order (sines of row and column, then cosines of row and column), where MAE has sines and cosines of the column,
then of the row: the same numbers, permuted. No teacher, no labels.
Shapes: B batch, D encoder width, E decoder width, g patches a side, N = g * g, p patch side in px, V = 3 * p * p,
S = g * p.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import LayerNorm, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_size, refuse_student
from hkd.methods.parts.initialisers import SPREAD, xavier
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import HOST, mask_of, random_visible, visible_cells
from hkd.methods.parts.patches import mae_loss, painted, patchify, square_patches
from hkd.methods.parts.token_decoder import DecoderConfig
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, to_tokens
from hkd.options import Few, ShareBetween, Size, Switch, options
from hkd.spec import ModelCard, Recipe


@options
class MAEConfig(DecoderConfig):
    """Options."""

    mask_ratio: ShareBetween = 0.75  # share of hidden patches
    image_size: Size = 224  # px a side: of the images as the student sees them, which its card must say too
    decoder_depth: Few = 8
    norm_pix: Switch = True  # predict pixels normalised by the mean and deviation of their patch


class MAE(Method):
    """`pixels`. Own parameters: the decoder. The student is the encoder, of the family `mim_vit` or `beit`."""

    Config = MAEConfig
    positions: Tensor

    def __init__(
        self, config: MAEConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build the decoder.

        Raises:
            Refused: patches that are not square or not whole pixels, or a ratio that hides none or all of them.
        """
        super().__init__(config, student, teachers, criterion)
        self.grid, self.patch = square_patches("mae", student, config.image_size)
        self.shown = visible_cells("mae", self.grid, config.mask_ratio)
        width = config.decoder_width
        self.embed = nn.Linear(student.final[0], width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.Sequential(
            *(
                Block(width, config.decoder_heads, qkv_bias=True, norm_layer=LayerNorm)
                for _ in range(config.decoder_depth)
            )
        )
        self.norm = LayerNorm(width)  # timm's, with eps 1e-6 as MAE has it
        self.predict = nn.Linear(width, 3 * self.patch**2)
        self.register_buffer("positions", build_sincos2d_pos_embed([self.grid] * 2, width), persistent=False)
        self.apply(xavier)
        nn.init.normal_(self.mask_token, std=SPREAD)

    @classmethod
    def needs(cls, config: MAEConfig) -> Needs:
        """No teacher; the encoder's last map."""
        return Needs()

    @classmethod
    def refuse(
        cls, config: MAEConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students that take no mask, or see images of another size."""
        does = "hides patches from its student"
        return refuse_student("mae", does, student, "visible", "mask_token") or refuse_size(
            "mae", student, config.image_size
        )

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """A new mask for every image."""
        batch.extra["visible"] = random_visible(len(batch.x), self.grid, self.shown, HOST)
        return {"visible": batch.extra["visible"]}

    def decode(self, final: Float[Tensor, "B D g g"], visible: Bool[Tensor, "B 1 g g"]) -> Float[Tensor, "B N V"]:
        """Predicted (normalised) pixels of every patch, from the encoder's last map, which is read where visible."""
        # Embedding the zeros at hidden places too costs little, and spares gathering and scattering.
        embedded = self.embed(to_tokens(final))
        tokens = torch.where(visible.flatten(1)[:, :, None], embedded, self.mask_token.to(embedded.dtype))
        return self.predict(self.norm(self.blocks(tokens + self.positions)))

    def patches(self, batch: Batch) -> Float[Tensor, "B N V"]:
        """Pixels of the images in [0, 1], as the student has them."""
        return exact(patchify(batch.x, self.grid, self.patch))

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One term."""
        visible = mask_of(batch)
        predicted = exact(self.decode(taps_s.final, visible))
        return {"pixels": mae_loss(predicted, self.patches(batch), visible, norm_pix=self.config.norm_pix)}

    @torch.no_grad()
    def picture(self, batch: Batch, taps_s: Taps) -> Float[Tensor, "B 3 S S"]:
        """The images with their hidden patches painted (`painted`).

        Args:
            batch: images, and in `extra` the mask that `student_inputs` drew for them.
            taps_s: of the student under that mask.
        """
        visible = mask_of(batch)
        predicted = exact(self.decode(taps_s.final, visible))
        return painted(predicted, self.patches(batch), visible, norm_pix=self.config.norm_pix)
