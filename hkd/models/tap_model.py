"""A timm model that takes images as they are, normalises them its own way, and returns taps.

Shapes: B batch, C classes, D width, H W grid, N tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.families.base import Family, Tail, family_of
from hkd.models.hooks import changed_inputs, evaluation_mode
from hkd.models.normalise import Prepare, memory_format
from hkd.models.taps import TapInfo, Taps, Want
from hkd.spec import ModelCard

Prompt = Callable[[Tensor], Tensor]  # of the map in which a stage begins, [B, D, H, W] to the same

NOTHING = Want()  # beside logits, pooled and final feature


@dataclass(frozen=True)
class Built:
    """A network that is there already, and what is to be known of it: attributes of a `TapModel`."""

    net: nn.Module
    family: Family
    prepare: nn.Module
    info: TapInfo


class TapModel(nn.Module):
    """A model of the zoo behind the taps contract.

    Attributes:
        net: the plain timm model; its `state_dict` is what is exported.
        card, family: how it was built and how it is run.
        prepare: from RGB in [0, 1] to the images that `net` takes.
        info: shapes of its taps.
    """

    def __init__(
        self, card: ModelCard, num_classes: int, drop_path: float | None = None, *, built: Built | None = None
    ) -> None:
        """Build with random weights from torch's global generator, drawing as timm alone would.

        Args:
            card: which model.
            num_classes: size of its classifier; 0 for none.
            drop_path: stochastic depth rate instead of the card's own.
            built: a network to be taken as it is, instead of the card's.

        Raises:
            UserError: unknown family or architecture.
        """
        super().__init__()
        self.card = card
        if built is not None:
            self.family, self.net, self.prepare, self.info = built.family, built.net, built.prepare, built.info
            return
        self.family = family_of(card.family)
        self.net = self.family.build(card, num_classes, drop_path)
        self.net.to(memory_format=memory_format(card))
        self.prepare = Prepare(card)
        if (adopted := self.family.adopt(card, self.net)) is not None:
            self.family, self.info = adopted
            if num_classes not in (0, self.info.classes):
                raise UserError(
                    f"The model {card.name} was asked for {num_classes} classes and gives {self.info.classes} logits: "
                    f"its classifier must have as many outputs as its num_classes says."
                )
            return
        self.info = self._measure(num_classes)

    def forward(self, x: Float[Tensor, "B 3 Hi Wi"], want: Want = NOTHING, **options: Any) -> Taps:
        """Taps of RGB images in [0, 1] of any size, which are resized and normalised here.

        Args:
            x: images; bilinear resizing to `card.image_size` squared where they differ.
            want: taps beside logits, pooled and final feature.
            options: for the family's forward (a mask, views); what it takes is in `family.accepts`.

        Raises:
            UserError: a stage or a block that the model does not have.
        """
        if unknown := [stage for stage in want.stages if stage not in (1, 2, 3, 4)]:
            raise UserError(f"Stage {unknown[0]} was asked of {self.card.name}; stages are 1, 2, 3 and 4.")
        return self.family.forward(self.net, self.card, self.prepare(x), want, **options)

    @torch.no_grad()
    def _measure(self, num_classes: int) -> TapInfo:
        """Shapes of all taps, from one image in eval mode: no statistics, no randomness, no hooks left."""
        side, device = self.card.image_size, next(self.net.parameters()).device
        with evaluation_mode(self.net):
            taps = self(torch.zeros(1, 3, side, side, device=device), Want(stages=(1, 2, 3, 4)))
        return TapInfo(
            classes=num_classes,
            pooled=taps.pooled.shape[1],
            final=tuple(taps.final.shape[1:]),
            stages={stage: tuple(feature.shape[1:]) for stage, feature in taps.stages.items()},
            prefix=taps.prefix[4].shape[1] if taps.prefix else 0,
        )


class Teacher(TapModel):
    """A frozen model: no gradients, no gradient history, and evaluation mode whatever `train()` is called.

    train_mode: keep it in training mode instead (stochastic depth on), which is how ScaleKD's released code probably
    ran its teachers; batch-norm statistics then move, weights do not.
    """

    def __init__(
        self, card: ModelCard, num_classes: int, train_mode: bool = False, *, built: Built | None = None
    ) -> None:
        super().__init__(card, num_classes, built=built)
        self.train_mode = train_mode
        self.requires_grad_(False)
        super().train(train_mode)

    def train(self, mode: bool = True) -> "Teacher":
        """Do nothing: the mode was chosen at construction."""
        return self

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B 3 Hi Wi"], want: Want = NOTHING, **options: Any) -> Taps:
        """As `TapModel.forward`, detached."""
        return super().forward(x, want, **options)

    def tail(self, blocks: int | None = None) -> Tail:
        """This teacher's last stage as a differentiable function of tokens (see `Tail`).

        Args:
            blocks: how many blocks, for plain transformers (2 unless given).

        Raises:
            UserError: the family has no tail, or not that many blocks.
        """
        return self.family.tail(self.net, blocks)

    def prompted(
        self, x: Float[Tensor, "B 3 Hi Wi"], prompts: Mapping[int, Prompt], want: Want = NOTHING, *, mixed: bool = False
    ) -> Taps:
        """Taps of a pass in which stages begin with what prompts make of their maps; not detached.

        Gradients reach the prompts through the frozen weights, never those. Prefix tokens pass the prompts by.

        Args:
            x: as `TapModel.forward`.
            prompts: by stage.
            want: as `TapModel.forward`.
            mixed: token and channels-last maps are read back in the order of their numbers in [B, D, H, W], which mixes
                positions with channels: what PAT's released code does.

        Raises:
            Refused: the family does not say where its stages begin.
        """
        family, entries = self.family, self.family.entries(self.net, self.card)

        def change(stage: int, x: Tensor) -> Tensor:
            grid = self.info.stages[stage][1:]
            map_ = prompts[stage](family.map_inside(x, grid))
            if mixed and family.block_layout != "NCHW":
                map_ = map_.flatten(1).unflatten(1, (*map_.shape[2:], map_.shape[1])).permute(0, 3, 1, 2)
            return family.with_map(x, map_)

        with changed_inputs({stage: entries[stage] for stage in sorted(prompts)}, change):
            return TapModel.forward(self, x, want)

    @torch.no_grad()
    def entry_shapes(self) -> dict[int, tuple[int, int, int]]:
        """(D, H, W) of the map in which each stage begins, from one image. Raises Refused as `prompted` does."""
        shapes: dict[int, tuple[int, int, int]] = {}

        def seen(stage: int, map_: Tensor) -> Tensor:
            shapes[stage] = map_.shape[1], map_.shape[2], map_.shape[3]
            return map_

        side, weight = self.card.image_size, next(self.net.parameters())
        image = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
        with evaluation_mode(self.net):
            self.prompted(image, {stage: partial(seen, stage) for stage in (1, 2, 3, 4)})
        return shapes
