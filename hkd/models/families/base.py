"""What all architectures share: how a timm model is built from its card, and how one forward pass becomes taps.

`net` is annotated Any throughout: its attributes are timm's and differ between its classes.
A family is stateless; adding an architecture is one subclass in one file and its line in `hkd.models.FAMILIES`.
Shapes: B batch, C classes, D width, H W grid, N = H * W patch tokens, P prefix tokens.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import timm
from jaxtyping import Float
from torch import Tensor, nn

from hkd import registry
from hkd.errors import Refused, UserError
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard


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


def tokens_to_map(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B D H W"]:
    """Row-major tokens as a map; a view."""
    return tokens.transpose(1, 2).unflatten(2, grid)


@contextmanager
def recorded_inputs(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Record the first positional input of each module while the context is open.

    Hooks are removed on leaving, also by an exception, and ignore calls from other threads, so that several forward
    passes of one model may overlap.
    """
    inputs: dict[int, Tensor] = {}
    caller = threading.get_ident()

    def recorder(key: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            if threading.get_ident() == caller:
                inputs[key] = args[0]

        return record

    handles = [module.register_forward_pre_hook(recorder(key)) for key, module in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as the tuples timm expects."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


class Family:
    """Base of all families; its defaults serve a timm CNN whose feature maps are NCHW.

    name: as in `hkd.models.FAMILIES`. has_tail: whether `tail` is implemented.
    """

    name: ClassVar[str]
    has_tail: ClassVar[bool] = False

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

    def forward(self, net: Any, card: ModelCard, x: Float[Tensor, "B 3 Hi Wi"], want: Want) -> Taps:
        """Run the model once on normalised images; the logits are those of `net(x)`, bit for bit.

        What is not wanted costs nothing: an empty `want` is timm's own `forward_features` and `forward_head`.
        """
        wanted = {stage: card.stages[stage - 1] for stage in want.stages}
        with recorded_inputs(self._wanted_attention(net, want)) as attention:
            if wanted:
                features, maps, prefix = self.intermediates(net, x, sorted({*wanted.values()}))
            else:
                features, maps, prefix = net.forward_features(x), {}, {}
        pooled, logits = self.head(net, features)
        return Taps(
            logits=logits,
            pooled=pooled,
            final=self.final_map(net, features, x),
            stages={stage: maps[index] for stage, index in wanted.items()},
            prefix={stage: prefix[index] for stage, index in wanted.items() if index in prefix},
            attention=attention,
        )

    def intermediates(
        self, net: Any, x: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """`forward_features(x)` with the raw maps [B, D, H, W] and prefix tokens [B, P, D] at the given indices."""
        # A model without prefix tokens gets no request for them: timm's EVA would fail on it.
        extra = {"return_prefix_tokens": True} if getattr(net, "num_prefix_tokens", 0) else {}
        features, found = net.forward_intermediates(x, indices=list(indices), norm=False, output_fmt="NCHW", **extra)
        if not extra:
            return features, dict(zip(indices, found, strict=True)), {}
        maps, prefix = zip(*found, strict=True)
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

    def _wanted_attention(self, net: Any, want: Want) -> dict[int, nn.Module]:
        if not want.attention:
            return {}
        modules = self.attention_modules(net)
        if unknown := [index for index in want.attention if not 0 <= index < len(modules)]:
            has = f"attention blocks 0 to {len(modules) - 1}" if modules else "no attention"
            raise Refused(f"Attention of block {unknown[0]} was asked of a '{self.name}' model, which has {has}.")
        return {index: modules[index] for index in want.attention}


def last_blocks(net: Any, blocks: int | None, default: int = 2) -> list[nn.Module]:
    """The last `blocks` of an isotropic transformer.

    Raises:
        Refused: not between 1 and the model's depth.
    """
    count = default if blocks is None else blocks
    if not 1 <= count <= len(net.blocks):
        raise Refused(f"A tail of {count} blocks was asked of a model with {len(net.blocks)}; take 1 to all of them.")
    return list(net.blocks)[-count:]


def isotropic_tail(net: Any, blocks: int | None) -> Tail:
    """Tail of a plain transformer: its last blocks on the patch tokens alone (no class token), then its final norm."""
    chosen, grid = last_blocks(net, blocks), net.patch_embed.grid_size

    def run(tokens: Tensor) -> Tensor:
        for block in chosen:
            tokens = block(tokens)
        return tokens_to_map(net.norm(tokens), grid)

    return Tail(net.embed_dim, grid, net.embed_dim, grid, run)
