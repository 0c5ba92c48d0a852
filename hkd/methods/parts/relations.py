r"""Token relations of plain vision transformers: products of queries and keys, and what methods need to know of a
model to compare them.

.. math:: R = Q K^T

per head, of the queries and keys with bias after the layer's input norm, unscaled and without softmax, unless told
otherwise. Only tokens that are handed over enter: gather first, then multiply.
Shapes: B batch, h heads, d width of a head, n tokens, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hkd.models.families.base import accepts, family_of, split_heads
from hkd.models.tap_model import Teacher
from hkd.spec import ModelCard

SCALED = "1/sqrt(d)"


@dataclass(frozen=True)
class Shape:
    """depth: blocks. heads: of each attention. grid: (H, W) of patch tokens. prefix: tokens before them.

    plain: a VisionTransformer of timm with its ordinary attention in every block.
    """

    depth: int
    width: int
    heads: int
    grid: tuple[int, int]
    prefix: int
    plain: bool = True


def shape_of(card: ModelCard) -> Shape | None:
    """The shape of a transformer of one grid, or None for any other model.

    Built on torch's meta device: nothing is computed or drawn.
    """
    if not accepts(card.family, "outputs"):
        return None
    with torch.device("meta"):
        net: Any = family_of(card.family).build(card, 0)
    attentions: list[Any] = [block.attn for block in net.blocks]
    plain = isinstance(net, VisionTransformer) and all(isinstance(attention, Attention) for attention in attentions)
    height, width = net.patch_embed.grid_size
    return Shape(len(attentions), net.embed_dim, attentions[0].num_heads, (height, width), net.num_prefix_tokens, plain)


def projected(attention: Any, tokens: Float[Tensor, "B n D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, h, n, d] of the input of a timm Attention."""
    return split_heads(attention, attention.qkv(tokens))


def regroup(x: Float[Tensor, "B h n d"], groups: int) -> Float[Tensor, "B a n e"]:
    """Queries or keys of all heads side by side, split again into `groups` heads, of which there are a = groups."""
    return x.transpose(1, 2).flatten(2).unflatten(2, (groups, -1)).transpose(1, 2)


def relations(
    q: Float[Tensor, "B h n d"],
    k: Float[Tensor, "B h n d"],
    *,
    groups: int | None = None,
    scale: str = "raw",
) -> Float[Tensor, "B a n n"]:
    """Q K^T head by head.

    Args:
        q, k: of one layer.
        groups: heads to regroup into first (a, which divides h d); None: the model's own.
        scale: `raw`, or `1/sqrt(d)`: divided by the root of the (regrouped) head's width, which makes attention logits.
    """
    if groups is not None:
        q, k = regroup(q, groups), regroup(k, groups)
    if scale == SCALED:
        q = q * q.shape[-1] ** -0.5
    return q @ k.transpose(2, 3)


def attended(
    q: Float[Tensor, "B h n d"], k: Float[Tensor, "B h N d"], v: Float[Tensor, "B h N d"]
) -> Float[Tensor, "B n D"]:
    r"""softmax(Q K^T / \sqrt d) V, heads side by side: what attention gives to its output projection. Fused."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def before_affine(norm: Any, normed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
    """The output of a layer norm without its gain and bias: what it was given, but for each token's mean and scale."""
    return (normed - norm.bias) / norm.weight


def first_tokens(teacher: Teacher, x: Float[Tensor, "B 3 Hi Wi"]) -> Float[Tensor, "B N D"]:
    """Patch tokens that enter the first block of a plain ViT, which no tap holds.

    Args:
        teacher: the model; only its patch embedding is run, and its prefix tokens are left out.
        x: RGB in [0, 1], resized and normalised as the teacher does.
    """
    net: Any = teacher.net
    return net.norm_pre(net._pos_embed(net.patch_embed(teacher.prepare(x))))[:, net.num_prefix_tokens :]


def refuse_relations(teacher: str, shape_t: Shape, shape_s: Shape, groups: int | None, scale: str) -> str | None:
    """Why relations of a teacher and a student cannot be compared, as one sentence with the option that resolves it.

    Args:
        teacher: its name.
        shape_t, shape_s: of teacher and student.
        groups, scale: the options `relation_heads` and `relation_scale`, arguments of `relations`.

    Returns:
        None where they can be.
    """
    if groups is None and shape_t.heads != shape_s.heads:
        return (
            f"Relations are compared head by head, and {teacher} has {shape_t.heads} heads, the student "
            f"{shape_s.heads}: set relation_heads to a number that divides both widths, such as 1."
        )
    if groups is not None and (shape_t.width % groups or shape_s.width % groups):
        return (
            f"relation_heads={groups} does not divide the widths {shape_t.width} of {teacher} and {shape_s.width} of "
            f"the student: set it to a divisor of both, such as 1."
        )
    if shape_t.width != shape_s.width and scale == "raw":
        return (
            f"Raw relations of different widths, {shape_t.width} of {teacher} and {shape_s.width} of the student, "
            f"cannot be compared: set relation_scale to {SCALED}."
        )
    return None
