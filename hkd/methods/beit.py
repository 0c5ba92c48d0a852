r"""BEiT: the student sees an image with some patches replaced, and names the visual words of these patches.

Source: Bao et al. 2022, arXiv:2106.08254. A learned mask token stands for the hidden patches, all tokens go through
the encoder, and a linear head on its last map predicts the code that a tokeniser gives each hidden patch. With M the
hidden patches of a batch and z_i the code of patch i,

.. math:: L = -\frac{1}{|M|} \sum_{i \in M} \log softmax(W h_i + b)_{z_i}

The mask is the paper's algorithm 1 (with the released code's log-uniform aspect): blocks until round(ratio N) patches
are hidden.

Deviations. The official tokeniser, the discrete VAE of DALL-E (8192 codes), is not obtainable here; in its place
stands a codebook of patch pixels, learned on the fly (`PatchCodebook`). Its patches are raw RGB, not contrast-
normalised: DALL-E's codes too are those that reconstruct colours and brightness best, nearest codes of raw pixels are
exactly the ones of least squared error, and normalising would blow up the noise of flat patches, of which there are
many. Targets move while the codebook does. Masks: the block that crosses the goal is cut row by row, so that all images
hide equally many; the least block of 16 of 196 patches shrinks with the grid; a block longer than the grid is shortened
instead of drawn again. No teacher, no labels.
Shapes: B batch, D width, g patches a side, N = g * g, p patch side in px, V = 3 * p * p, K codes, m hidden patches.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_size, refuse_student
from hkd.methods.parts.gathering import several_processes
from hkd.methods.parts.initialisers import SPREAD, as_spark
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import HOST, places, random_visible, some_visible
from hkd.methods.parts.patch_codebook import PatchCodebook
from hkd.methods.parts.patches import patchify, square_patches
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, to_tokens
from hkd.options import Count, ShareBelow1, ShareBetween, Size, Switch, options
from hkd.spec import ModelCard, Recipe

BLOCK = 16 / 196  # least area of a block, as a share of the grid: 16 patches of 14x14
ASPECT = 0.3  # least ratio of height to width; the greatest is its inverse


@options
class BEiTConfig:
    """Options."""

    mask_ratio: ShareBetween = 0.4  # share of hidden patches
    blockwise: Switch = True  # hide blocks; off: patches at random
    codes: Annotated[Count, Field(ge=2)] = 8192  # K, size of the codebook
    image_size: Size = 224  # px a side: of the images as the student sees them, which its card must say too
    codebook_decay: ShareBelow1 = 0.99  # of the codebook's moving averages, per step
    dead: ShareBelow1 = 0.01  # a code with less than this share of the mean count is moved


def blockwise_visible(count: int, grid: int, hidden: int, device: torch.device) -> Bool[Tensor, "B 1 g g"]:
    """Masks that hide blocks, exactly `hidden` patches in each of `count` images, by draws of torch's generator.

    A block has an area uniform between the least and what is still to be hidden (the least, if that is more), an aspect
    log-uniform between .3 and 1 / .3, and any place. Blocks may overlap; the last is cut, row by row.
    """
    rows, columns = torch.arange(grid, device=device)[:, None], torch.arange(grid, device=device)
    least = max(1, round(BLOCK * grid**2))
    masked = torch.zeros(count, grid, grid, dtype=torch.bool, device=device)
    missing = torch.full((count, 1), hidden, device=device)
    while missing.any():
        area, aspect, top, left = torch.rand(4, count, 1, 1, device=device)
        area = least + area * (missing[:, :, None] - least).clamp_min(0)
        aspect = torch.exp(math.log(ASPECT) * (1 - 2 * aspect))
        height, width = ((area * ratio).sqrt().round().clamp(1, grid) for ratio in (aspect, 1 / aspect))
        top, left = ((place * (grid - size + 1)).floor() for place, size in ((top, height), (left, width)))
        block = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        new = (block & ~masked).flatten(1)
        new &= new.cumsum(1) <= missing
        masked |= new.view_as(masked)
        missing = missing - new.sum(1, keepdim=True)
    return ~masked[:, None]


class BEiT(Method):
    """`codes`. Own parameters: the mask token and the head. Buffers: the codebook, and sums for `diagnostics`.

    The student is of the family `beit` or `mim_vit`.
    """

    Config = BEiTConfig
    guesses: Tensor

    def __init__(
        self, config: BEiTConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build mask token, head and an empty codebook.

        Raises:
            Refused: patches that are not square or not whole pixels, or a ratio that hides none or all of them.
        """
        super().__init__(config, student, teachers, criterion)
        self.grid, self.patch = square_patches("beit", student, config.image_size)
        width = student.final[0]
        self.hidden = round(config.mask_ratio * self.grid**2)
        self.shown = some_visible("beit", self.grid, self.grid**2 - self.hidden)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.head = nn.Linear(width, config.codes)
        self.codebook = PatchCodebook(config.codes, 3 * self.patch**2, decay=config.codebook_decay, dead=config.dead)
        self.register_buffer("guesses", torch.zeros(2, dtype=torch.long))  # right ones and all, of all processes
        nn.init.normal_(self.mask_token, std=SPREAD)
        as_spark(self.head)

    @classmethod
    def needs(cls, config: BEiTConfig) -> Needs:
        """No teacher; the encoder's last map."""
        return Needs()

    @classmethod
    def refuse(
        cls, config: BEiTConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students that take no mask, or see images of another size."""
        does = "hides patches from its student"
        return refuse_student("beit", does, student, "visible", "mask_token") or refuse_size(
            "beit", student, config.image_size
        )

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """A new mask for every image, and the token that stands for what it hides."""
        if self.config.blockwise:
            batch.extra["visible"] = blockwise_visible(len(batch.x), self.grid, self.hidden, HOST)
        else:
            batch.extra["visible"] = random_visible(len(batch.x), self.grid, self.shown, HOST)
        return {"visible": batch.extra["visible"], "mask_token": self.mask_token}

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One term, in nats per hidden patch; in training mode the codebook then moves towards the batch's patches."""
        patches = patchify(batch.x, self.grid, self.patch)
        hidden = places(~batch.extra["visible"], batch.x.device)
        codes = self.codebook(patches.flatten(0, 1))[hidden]
        logits = exact(self.head(to_tokens(taps_s.final).flatten(0, 1)[hidden]))
        if self.training:
            self._note(logits.detach(), codes)
        return {"codes": F.cross_entropy(logits, codes)}

    def _note(self, logits: Tensor, codes: Tensor) -> None:
        guesses = torch.stack([(logits.argmax(1) == codes).sum(), codes.new_tensor(len(codes))])
        if several_processes():
            dist.all_reduce(guesses)
        self.guesses += guesses

    def diagnostics(self) -> dict[str, float]:
        """Figures of the training steps since the last call; empty before the first step.

        hidden_top1: percent of hidden patches whose code was named. codes_used: codes that some patch has.
        codes_perplexity: exp of the entropy of the codes of all patches, from 1 (one code) to K (all equally often).
        """
        right, count = self.guesses.tolist()
        if count == 0:
            return {}
        usage = self.codebook.usage.double()
        share = usage[usage > 0] / usage.sum()
        self.guesses.zero_()
        self.codebook.usage.zero_()
        return {
            "hidden_top1": 100 * right / count,
            "codes_used": float(len(share)),
            "codes_perplexity": math.exp(-float((share * share.log()).sum())),
        }
