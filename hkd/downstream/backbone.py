"""A model of the zoo as the backbone of a dense task: four maps of images of any size.

Weights, their names and their shapes are those of the model at its own image size, whatever the size of the images;
what depends on it is derived in each pass. Learned or fixed absolute positions are resampled bicubically, as timm does
(`resample_abs_pos_embed`), and BEiT's tables of relative position biases are too (`resize_rel_pos_bias_table_simple`).
Swin keeps its windows and shifts them wherever the map is larger than one.

Maps are what `Taps.stages` holds at the model's own size, to the bit: before the final norm, which gets no gradient.
Shapes: B batch, H W sides of an image in px, D width, h heads, g and G patches a side at the model's own size and here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from timm.models.beit import Beit, gen_relative_position_index
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from hkd.errors import Refused, UserError
from hkd.models.convert.files import classes_of, read_weights
from hkd.models.families.base import Family, family_of
from hkd.models.families.beit import without_own_bias
from hkd.models.families.eva import EvaFamily
from hkd.models.families.mixer import MixerFamily
from hkd.models.families.swin import SwinFamily
from hkd.models.families.vit import ViTFamily
from hkd.models.hooks import evaluation_mode
from hkd.models.normalise import Normalise, memory_format
from hkd.models.tap_model import TapModel
from hkd.models.taps import tokens_to_map
from hkd.spec import ModelCard, Weights
from hkd.training.inputs import give_weights

STAGES = 4


class Backbone(nn.Module):
    """Four maps of a model of the zoo, fine to coarse.

    Attributes:
        net: the plain timm model without a classifier; its `state_dict` is what is exported.
        card, family: how it was built.
        channels: D of each map.
        strides: px of the image per position of each map, at the model's own size; plain transformers have four equal
            ones.
        multiple: H and W of images must be multiples of it: the coarsest stride.
    """

    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]

    def __init__(self, card: ModelCard, drop_path: float | None = None) -> None:
        """Build with random weights from torch's global generator.

        Args:
            card: which model.
            drop_path: stochastic depth rate instead of the card's own.

        Raises:
            UserError: unknown family or architecture.
            Refused: a model that serves one image size alone, or without four stages.
        """
        super().__init__()
        self.card = card
        self.family = family_of(card.family)
        if isinstance(self.family, MixerFamily):
            raise Refused(
                f"{card.name} mixes the tokens of one image size by learned weights, so it cannot be the backbone of a "
                f"dense task, whose images have other sizes: take a CNN or a transformer."
            )
        if len(card.stages) != STAGES:
            raise Refused(
                f"A dense task needs the maps of {STAGES} stages, and {card.name} has {len(card.stages)} taps: name "
                f"{STAGES} in its card."
            )
        self.net: Any = self.family.build(of_any_size(card, self.family), 0, drop_path)
        if isinstance(self.net, Beit):
            self.net.patch_embed.strict_img_size = False
        self.memory_format = memory_format(card)
        self.net.to(memory_format=self.memory_format)
        self.normalise = Normalise(card.mean, card.std)
        self.multiple = 1  # for the measurement alone
        shapes = self._measure()
        self.channels = tuple(shape[0] for shape in shapes)  # type: ignore[assignment]
        self.strides = tuple(round(card.image_size / shape[1]) for shape in shapes)  # type: ignore[assignment]
        self.multiple = max(self.strides)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Maps [B, channels[i], H / strides[i], W / strides[i]] of RGB images in [0, 1], which are normalised here.

        Raises:
            UserError: sides that are no multiples of `multiple`.
        """
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise UserError(
                f"{self.card.name} takes images whose sides are multiples of {self.multiple} px, got {width} x "
                f"{height}: pad them."
            )
        x = self.normalise(x).contiguous(memory_format=self.memory_format)
        indices = sorted({*self.card.stages})
        if isinstance(self.net, Beit) and self.net.patch_embed.dynamic_feat_size((height, width)) != own_grid(self.net):
            maps = beit_maps(self.net, x, indices)
        else:
            if isinstance(self.net, SwinTransformer):
                shift_windows(self.net, (height, width))
            maps = self.family.intermediates(self.net, x, indices)[1]
        return [maps[index] for index in self.card.stages]

    @torch.no_grad()
    def _measure(self) -> list[tuple[int, ...]]:
        """Shapes of the four maps of one image of the model's own size, in evaluation mode."""
        side, device = self.card.image_size, next(self.net.parameters()).device
        with evaluation_mode(self.net):
            maps = self(torch.zeros(1, 3, side, side, device=device))
        return [tuple(map_.shape[1:]) for map_ in maps]


def load_pretrained(backbone: Backbone, source: Weights, weights: Mapping[str, Path]) -> None:
    """Fill a backbone from the weights of the same model, with or without a classifier, which is left out.

    Draws from the global generators (a model is built to check the file against).

    Args:
        backbone: changed in place, only if everything fits.
        source: a run, a file, or a random initialisation asked for by name.
        weights: local file of each source, by its id.

    Raises:
        UserError: no file, a damaged one, or one of another architecture: what is missing or unexpected is named.
    """
    classifier = classifier_prefixes(backbone.net)
    file = weights.get(source.id)
    classes = 0
    if source.kind != "random" and file is not None and file.is_file():
        held = read_weights(file)
        classes = next((classes_of(held[f"{name}weight"]) for name in classifier if f"{name}weight" in held), 0)
    donor = TapModel(backbone.card, classes)
    give_weights(donor, source, weights)
    state = donor.net.state_dict()
    backbone.net.load_state_dict({name: value for name, value in state.items() if not name.startswith(classifier)})


def classifier_prefixes(net: Any) -> tuple[str, ...]:
    """What the names of a classifier's weights begin with, in a model that was built without: "head.fc."."""
    found = net.get_classifier()
    heads = {id(head) for head in (found if isinstance(found, tuple | list) else [found])}
    return tuple(f"{name}." for name, module in net.named_modules() if id(module) in heads)


def of_any_size(card: ModelCard, family: Family) -> ModelCard:
    """The card of the same network, told to take images of other sizes where its class wants to know beforehand."""
    if isinstance(family, ViTFamily | EvaFamily):
        return replace(card, kwargs=card.kwargs | {"dynamic_img_size": True})
    if isinstance(family, SwinFamily):
        return replace(card, kwargs=card.kwargs | {"strict_img_size": False})
    return card


def shift_windows(net: Any, size: tuple[int, int]) -> None:
    """Let the shifted blocks of a Swin shift along the sides on which the map of an image of this size exceeds a
    window: timm decides so once, at the model's own size.
    """
    grid = net.patch_embed.dynamic_feat_size(size)
    for stage, layer in enumerate(net.layers):
        if stage:
            grid = tuple((side + 1) // 2 for side in grid)
        for block in layer.blocks:
            if any(block.target_shift_size):
                block.shift_size = tuple(
                    window // 2 if side > window else 0 for side, window in zip(grid, block.window_size, strict=True)
                )


def own_grid(net: Any) -> tuple[int, int]:
    """Patches along height and width at the model's own image size."""
    return net.patch_embed.grid_size


def beit_maps(net: Any, x: Float[Tensor, "B 3 H W"], indices: Sequence[int]) -> dict[int, Tensor]:
    """Maps [B, D, G, G'] after the blocks at `indices` of a BEiT whose grid is not its own."""
    grid = net.patch_embed.dynamic_feat_size(x.shape[-2:])
    patches = net.patch_embed(x)
    tokens = torch.cat([net.cls_token.expand(len(patches), -1, -1), patches], dim=1)
    if net.pos_embed is not None:
        tokens = tokens + resample_abs_pos_embed(net.pos_embed, list(grid), list(own_grid(net)), net.num_prefix_tokens)
    tokens = net.pos_drop(tokens)
    shared = None if net.rel_pos_bias is None else bias_on(net.rel_pos_bias, grid)
    maps = {}
    for index, block in enumerate(net.blocks):
        if block.attn.relative_position_bias_table is None:
            tokens = block(tokens, shared_rel_pos_bias=shared)
        else:
            own = bias_on(block.attn, grid)
            tokens = without_own_bias(block)(tokens, shared_rel_pos_bias=own if shared is None else own + shared)
        if index in indices:
            maps[index] = tokens_to_map(tokens[:, net.num_prefix_tokens :], grid).contiguous()
    return maps


def bias_on(owner: Any, grid: tuple[int, int]) -> Float[Tensor, "1 h M M"]:
    """Relative position bias between the M = 1 + G * G' tokens of another grid; gradients reach the module's table.

    Args:
        owner: a timm module with a table of biases.
        grid: (G, G').
    """
    table = owner.relative_position_bias_table
    distances = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3  # the last three are to, from and at the class token
    resized = resize_rel_pos_bias_table_simple(table, grid, (distances, table.shape[1]))
    return resized[relative_index(grid).to(table.device)].permute(2, 0, 1).contiguous()[None]


@lru_cache(maxsize=16)
def relative_index(grid: tuple[int, int]) -> Int[Tensor, "M M"]:
    """Row of a table of biases for each pair of tokens of a grid, the class token first."""
    return gen_relative_position_index(grid)
