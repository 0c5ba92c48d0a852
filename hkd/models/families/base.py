"""What all architectures share: how a timm model is built from its card, and how one forward pass becomes taps.

`net` is annotated Any throughout: its attributes are timm's and differ between its classes.
A family is stateless; adding an architecture is one subclass in one file and its line in `hkd.models.FAMILIES`.
Shapes: B batch, C classes, D width, H W grid, N = H * W patch tokens, P prefix tokens, M = P + visible patches,
h heads, d = width of a head.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor, nn

from hkd import registry
from hkd.errors import Refused, UserError
from hkd.models import FAMILIES
from hkd.models.hooks import recorded_inputs, recorded_outputs
from hkd.models.taps import TapInfo, Taps, Want, to_tokens, tokens_to_map
from hkd.spec import ModelCard

# Taps of a `Want` that are of transformer blocks, and what they are called.
BLOCK_TAPS = {"attention": "attention inputs", "qkv": "queries, keys and values", "outputs": "outputs"}


@dataclass(frozen=True)
class Tail:
    """The last stage of a frozen model as a function: gradients reach the tokens, never the weights.

    Not a module, so that a method holding one neither registers nor exports the teacher's weights.

    in_width, in_grid: D3 and (H3, W3) of the tokens it takes. out_width, out_grid: D4 and (H4, W4) of the map it gives.
    """

    in_width: int
    in_grid: tuple[int, int]
    out_width: int
    out_grid: tuple[int, int]
    function: Callable[[Tensor], Tensor]

    def __call__(self, tokens: Float[Tensor, "B N D3"]) -> Float[Tensor, "B D4 H4 W4"]:
        """Map of the last stage after the final norm (what `Taps.final` holds), from tokens in row-major order."""
        expected = (self.in_grid[0] * self.in_grid[1], self.in_width)
        assert tuple(tokens.shape[1:]) == expected, f"tail takes tokens {expected}, got {tuple(tokens.shape[1:])}"
        return self.function(tokens)


@dataclass(frozen=True)
class Encoded:
    """What the blocks of a model made of images.

    features: as its head takes them (timm `forward_features`). final: the same as a map [B, D, H, W].
    maps, prefix: raw maps [B, D, H, W] and prefix tokens [B, P, D] at the wanted indices.
    """

    features: Tensor
    final: Tensor
    maps: dict[int, Tensor] = field(default_factory=dict)
    prefix: dict[int, Tensor] = field(default_factory=dict)


def _tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as the tuples timm expects."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


class Family:
    """Base of all families; its defaults serve a timm CNN whose feature maps are NCHW.

    name: as in `hkd.models.FAMILIES`.
    accepts: what else can be asked of its models. Arguments of `forward`: `visible`, a mask, and what it hides has no
        influence; `mask_token`, with it, a vector in the place of hidden patches; `backend`, how a mask is computed
        with, and `sparse`, that hidden positions can be left out; `aligned`, a mask of which both sides are looked at;
        `views`, other images in the place of the batch, and a moving average. Taps of a `Want`: `attention`, `qkv`,
        `outputs`. `tail`: the last stage as a function.
    block_layout: of what goes from block to block: maps [B, D, H, W] or [B, H, W, D], or tokens [B, P + N, D].
    timm_files: files of timm whose classes it runs; of several families the first of `FAMILIES` has them.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[str]] = frozenset()
    block_layout: ClassVar[Literal["NCHW", "NHWC", "tokens"]] = "NCHW"
    timm_files: ClassVar[tuple[str, ...]] = ()

    def build(self, card: ModelCard, num_classes: int, drop_path: float | None = None) -> nn.Module:
        """A plain, randomly initialised timm model.

        Args:
            card: which model.
            num_classes: size of its classifier; 0 for none.
            drop_path: stochastic depth rate in [0, 1) instead of the card's own.

        Raises:
            UserError: timm knows no such model.
        """
        kwargs = {key: _tuples(value) for key, value in card.kwargs.items()}
        if drop_path is not None:
            kwargs["drop_path_rate"] = drop_path
        return self.construct(card.arch, kwargs | {"num_classes": num_classes})

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        """Call the timm entry point or class; families with keys of their own take them out of `kwargs` first."""
        if ":" in arch:
            return registry.load(arch)(**kwargs)
        if not timm.is_model(arch):
            raise UserError(
                f"timm {timm.__version__} has no model '{arch}'.{registry.nearest(arch, timm.list_models())}"
            )
        return timm.create_model(arch, pretrained=False, **kwargs)

    def adopt(self, card: ModelCard, net: Any) -> "tuple[Family, TapInfo] | None":
        """Who runs a network that was built as the card says, and the shapes of its taps, where that is no matter of
        the family alone; None: this family, which gives every tap.
        """
        return None

    def forward(self, net: Any, card: ModelCard, x: Float[Tensor, "B 3 Hi Wi"], want: Want, **options: Any) -> Taps:
        """Run the model once on normalised images; without options the logits are those of `net(x)`, bit for bit.

        What is not wanted costs nothing: an empty `want` is timm's own `forward_features` and `forward_head`.

        Args:
            net: the timm model.
            card: its card.
            x: normalised images.
            want: taps beside logits, pooled and final feature and tokens.
            options: of `encode`, as `accepts` says.

        Raises:
            Refused: a block that the model does not have, or a tap that it does not give.
        """
        attentions = self._check(net, card, want)
        wanted = {stage: card.stages[stage - 1] for stage in want.stages}
        inner: dict[Hashable, nn.Module] = {("output", index): net.blocks[index] for index in want.outputs}
        inner |= {("qkv", index): attentions[index].qkv for index in want.qkv}
        with (
            recorded_inputs({index: attentions[index] for index in want.attention}) as attention,
            recorded_outputs(inner) as inside,
        ):
            encoded = self.encode(net, x, sorted({*wanted.values()}), **options)
        pooled, logits = self.head(net, encoded.features)
        return Taps(
            logits=logits,
            pooled=pooled,
            final=encoded.final,
            stages={stage: encoded.maps[index] for stage, index in wanted.items()},
            prefix={stage: encoded.prefix[index] for stage, index in wanted.items() if index in encoded.prefix},
            tokens=tokens_among(encoded.features),
            attention=attention,
            qkv={index: split_heads(attentions[index], inside["qkv", index]) for index in want.qkv},
            outputs={index: inside["output", index] for index in want.outputs},
        )

    def encode(self, net: Any, x: Tensor, indices: Sequence[int]) -> Encoded:
        """The images through all blocks, with what lies at the given indices."""
        if indices:
            features, maps, prefix = self.intermediates(net, x, indices)
            return Encoded(features, self.final_map(net, features, x), maps, prefix)
        features = net.forward_features(x)
        return Encoded(features, self.final_map(net, features, x))

    def intermediates(
        self, net: Any, x: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """`forward_features(x)` with the raw maps [B, D, H, W] and prefix tokens [B, P, D] at the given indices."""
        # A model without prefix tokens gets no request for them: timm's EVA would fail on it.
        extra = {"return_prefix_tokens": True} if getattr(net, "num_prefix_tokens", 0) else {}
        features, inner = net.forward_intermediates(x, indices=list(indices), norm=False, output_fmt="NCHW", **extra)
        if not extra:
            return features, dict(zip(indices, inner, strict=True)), {}
        maps, prefix = zip(*inner, strict=True)
        return features, dict(zip(indices, maps, strict=True)), dict(zip(indices, prefix, strict=True))

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled feature [B, D] and logits [B, C], pooling (and drop-out) once for both."""
        pooled = net.forward_head(features, pre_logits=True)
        return pooled, net.get_classifier()(pooled)

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        """`forward_features` as a map [B, D, H, W] without prefix tokens."""
        return features

    def attention_modules(self, net: Any) -> list[nn.Module]:
        """The attention module of every block, in order; empty for models without attention."""
        return []

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        """The last stage, or the last `blocks` blocks, as a function of tokens.

        Raises:
            Refused: this family has none, or not that many blocks.
        """
        raise Refused(f"The family '{self.name}' has no tail; a teacher whose last stage is used must be of another.")

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """By stage, the module with whose first input it begins; stages that share a tap begin together.

        Raises:
            Refused: this family does not say.
        """
        raise Refused(
            f"The family '{self.name}' does not say where its stages begin; a teacher that takes prompts there must be "
            f"of another."
        )

    def map_inside(self, x: Tensor, grid: tuple[int, int]) -> Float[Tensor, "B D H W"]:
        """What goes from block to block as a map without prefix tokens; a view.

        Args:
            x: in this family's layout.
            grid: (H, W) of tokens; maps bring their own.
        """
        if self.block_layout == "tokens":
            return tokens_to_map(x[:, x.shape[1] - grid[0] * grid[1] :], grid)
        return x if self.block_layout == "NCHW" else x.permute(0, 3, 1, 2)

    def with_map(self, x: Tensor, map_: Float[Tensor, "B D H W"]) -> Tensor:
        """The inverse of `map_inside`: what goes from block to block with another map in the place of its own."""
        if self.block_layout == "tokens":
            patches = to_tokens(map_)
            prefix = x[:, : x.shape[1] - patches.shape[1]]
            return torch.cat([prefix, patches], dim=1) if prefix.shape[1] else patches.contiguous()
        return map_ if self.block_layout == "NCHW" else map_.permute(0, 2, 3, 1).contiguous()

    def _check(self, net: Any, card: ModelCard, want: Want) -> list[Any]:
        """The attention modules of a model of which all that is wanted can be had; else Refused, as `forward` says."""
        attentions: list[Any] = self.attention_modules(net)
        for name, shown in BLOCK_TAPS.items():
            indices = getattr(want, name)
            plain = name != "qkv" or all(isinstance(module, Attention) for module in attentions)
            if indices and not (name in self.accepts and plain):
                raise Refused(f"The {shown} of blocks were asked of {card.name}, a '{self.name}' model without these.")
            if unknown := [index for index in indices if not 0 <= index < len(attentions)]:
                raise Refused(
                    f"Block {unknown[0]} was asked of {card.name}, which has blocks 0 to {len(attentions) - 1}."
                )
        return attentions


def first_blocks(card: ModelCard, first: int = 0) -> dict[int, int]:
    """Number of the block in which each stage of a row of blocks begins: the one behind the previous stage's tap.

    Args:
        card: whose stages are numbers of blocks.
        first: the block in which stage 1 begins.
    """
    found = {1: first}
    for stage in range(2, len(card.stages) + 1):
        before, own = card.stages[stage - 2 : stage]
        found[stage] = found[stage - 1] if own == before else before + 1
    return found


def family_of(name: str) -> Family:
    """The family of this name.

    Raises:
        UserError: there is none.
    """
    return registry.load(registry.lookup("model family", name, FAMILIES))()


def accepts(family: str, *names: str) -> bool:
    """Whether models of a family take or give all of this (`Family.accepts`); a family that is not ours: none."""
    return family in FAMILIES and {*names} <= family_of(family).accepts


def accepting(*names: str) -> str:
    """The families that take or give all of this, for a sentence."""
    *first, last = (f"'{family}'" for family in FAMILIES if accepts(family, *names))
    return f"{', '.join(first)} or {last}" if first else last


def tokens_among(features: Any) -> Tensor | None:
    """What a model gives to its head, if that is tokens; some give maps, or several things."""
    return features if isinstance(features, Tensor) and features.ndim == 3 else None


def split_heads(attention: Any, projected: Float[Tensor, "B M E"]) -> tuple[Tensor, Tensor, Tensor]:
    """What timm's Attention makes of the output of its `qkv`: queries and keys (normalised, where it does that) and
    values.

    Args:
        attention: the module.
        projected: E = 3 h d.

    Returns:
        Three tensors [B, h, M, d].
    """
    heads = projected.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    return attention.q_norm(q), attention.k_norm(k), v
