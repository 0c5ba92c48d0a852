r"""CAE: a regressor tells what the encoder would make of hidden patches, from what it made of visible ones.

Source: Chen et al. 2022, arXiv:2202.03026, and the official code. The encoder sees the visible patches alone. The
latent contextual regressor starts from one learned mask token at each hidden place; each of its blocks attends from
there to the visible latents and to its own hidden ones. A decoder of self-attention names the visual word z_i of each
hidden patch from the regressed latents alone, and these are to be what the encoder makes of the hidden patches by
themselves (alignment), which gets no gradient. With M the hidden patches of a batch, r_i their regressed latents and
e_i the encoder's,

.. math:: L = -\frac{1}{|M|} \sum_{i \in M} \log softmax(W d_i + b)_{z_i}
              + \lambda \frac{1}{|M| D} \sum_{i \in M} \|r_i - e_i\|^2

Masks are BEiT's blocks (`hkd.methods.beit`), of half of the patches.

Deviations: keys have a bias, which cancels in the softmax; the visual words are of a codebook of patch pixels learned
on the fly, as in our BEiT (the official ones, DALL-E's, are not obtainable here); the card says whether the encoder's
positions are learned, and they are in our miniature, where CAE's are fixed; regressor and decoder have the encoder's
width, as the official ViT-B has. No teacher, no labels.
Shapes: B batch, D width, g patches a side, N = g * g, n visible and m hidden patches, h heads.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from timm.layers import LayerNorm, LayerScale, Mlp, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs, refuse_size, refuse_student
from hkd.methods.beit import blockwise_visible
from hkd.methods.parts.initialisers import SPREAD, xavier
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import HOST, places, some_visible
from hkd.methods.parts.patch_codebook import PatchCodebook
from hkd.methods.parts.patches import patchify, square_patches
from hkd.models.families.beit import AlignedTaps
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, to_tokens
from hkd.options import Count, Few, NotNegative, ShareBelow1, ShareBetween, Size, options
from hkd.spec import ModelCard, Recipe

SCALE = 0.1  # start of the layer scales in regressor and decoder


@options
class CAEConfig:
    """Options.

    mask_ratio: share of hidden patches. w_align: lambda; 0 leaves the alignment out. regressor_depth, decoder_depth:
    blocks. heads: of both. codes, codebook_decay, dead: of the codebook. image_size: px a side, of the images as the
    student sees them, which its card must say too.
    """

    mask_ratio: ShareBetween = 0.5
    w_align: NotNegative = 2.0
    regressor_depth: Few = 4
    decoder_depth: Few = 4
    heads: Few = 12
    codes: Annotated[Count, Field(ge=2)] = 8192
    image_size: Size = 224
    codebook_decay: ShareBelow1 = 0.99
    dead: ShareBelow1 = 0.01


class RegressorBlock(nn.Module):
    """Cross attention from hidden places to all, then an MLP; each scaled and added, with norms as the official code
    has them: the stream itself is normed before the MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.scale_attention, self.scale_mlp = LayerScale(width, SCALE), LayerScale(width, SCALE)

    def forward(
        self,
        queries: Float[Tensor, "B m D"],
        context: Float[Tensor, "B N D"],
        at_queries: Float[Tensor, "B m D"],
        at_context: Float[Tensor, "B N D"],
    ) -> Float[Tensor, "B m D"]:
        """New latents at the hidden places.

        Args:
            queries: latents there.
            context: latents that are attended to.
            at_queries, at_context: embeddings of their positions, which values do not have.
        """
        q = self.split(self.q(self.norm_q(queries + at_queries)))
        k, v = self.split(self.k(self.norm_k(context + at_context))), self.split(self.v(self.norm_v(context)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(queries + self.scale_attention(self.out(attended)))
        return x + self.scale_mlp(self.mlp(x))

    def split(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B h M d"]:
        """Heads apart."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class CAE(Method):
    """`codes` and `align`. Own parameters: mask token, regressor, decoder and head. Buffers: the codebook.

    The student is of the family `beit`.
    """

    Config = CAEConfig
    positions: Tensor

    def __init__(
        self, config: CAEConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build regressor and decoder, and an empty codebook.

        Raises:
            Refused: heads that do not divide the width; patches that are not square or not whole pixels, or a ratio
                that hides none or all of them.
        """
        super().__init__(config, student, teachers, criterion)
        self.grid, self.patch = square_patches("cae", student, config.image_size)
        width = student.final[0]
        if width % config.heads or width % 4:
            raise Refused(
                f"cae needs a width that 4 and its {config.heads} heads divide, and the student's is {width}."
            )
        self.hidden = round(config.mask_ratio * self.grid**2)
        some_visible("cae", self.grid, self.grid**2 - self.hidden)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.regressor = nn.ModuleList(RegressorBlock(width, config.heads) for _ in range(config.regressor_depth))
        self.decoder = nn.Sequential(
            *(
                Block(width, config.heads, qkv_bias=True, init_values=SCALE, norm_layer=LayerNorm)
                for _ in range(config.decoder_depth)
            ),
            LayerNorm(width),
        )
        self.head = nn.Linear(width, config.codes)
        self.codebook = PatchCodebook(config.codes, 3 * self.patch**2, decay=config.codebook_decay, dead=config.dead)
        self.register_buffer("positions", build_sincos2d_pos_embed([self.grid] * 2, width), persistent=False)
        self.apply(xavier)
        nn.init.normal_(self.mask_token, std=SPREAD)

    @classmethod
    def needs(cls, config: CAEConfig) -> Needs:
        """No teacher; the encoder's last map."""
        return Needs()

    @classmethod
    def refuse(
        cls, config: CAEConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students that do not look at hidden patches apart, or see images of another size."""
        does = "shows its student the two parts of an image apart"
        return refuse_student("cae", does, student, "aligned") or refuse_size("cae", student, config.image_size)

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """A new mask for every image."""
        batch.extra["visible"] = blockwise_visible(len(batch.x), self.grid, self.hidden, HOST)
        return {"aligned": batch.extra["visible"]}

    def regress(
        self, final: Float[Tensor, "B D g g"], visible: Bool[Tensor, "B 1 g g"]
    ) -> tuple[Float[Tensor, "B m D"], Float[Tensor, "B m D"]]:
        """Latents of the hidden patches in their order, and the embeddings of their positions.

        Args:
            final: the encoder's last map, which is read where patches are visible.
            visible: the masks.
        """
        count = len(final)
        positions = self.positions.to(final.dtype).expand(count, -1, -1).flatten(0, 1)
        shown, hidden = (places(part, final.device) for part in (visible, ~visible))
        at_seen, at_hidden = (positions[part].view(count, -1, positions.shape[1]) for part in (shown, hidden))
        seen = to_tokens(final).flatten(0, 1)[shown].view_as(at_seen)
        latents = self.mask_token.to(final.dtype).expand_as(at_hidden)
        for block in self.regressor:
            latents = block(latents, torch.cat([seen, latents], 1), at_hidden, torch.cat([at_seen, at_hidden], 1))
        return latents, at_hidden

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two terms; in training mode the codebook then moves towards the batch's patches."""
        assert isinstance(taps_s, AlignedTaps)
        visible = batch.extra["visible"]
        hidden = places(~visible, batch.x.device)
        latents, at_hidden = self.regress(taps_s.final, visible)
        codes = self.codebook(patchify(batch.x, self.grid, self.patch).flatten(0, 1))[hidden]
        logits = exact(self.head(self.decoder(latents + at_hidden)).flatten(0, 1))
        losses = {"codes": F.cross_entropy(logits, codes)}
        if self.config.w_align:
            target = exact(to_tokens(taps_s.hidden).flatten(0, 1)[hidden])
            losses["align"] = self.config.w_align * F.mse_loss(exact(latents.flatten(0, 1)), target)
        return losses
