r"""Hybrid Distill: a fresh plain ViT learns, without labels, the final features of one teacher and the token relations
of another's late layers.

Source: arXiv:2306.15876; its code was announced, not released. Tc, supervised or contrastive, gives discrimination by
its features F_c; Tm, pre-trained by masked image modelling, gives diversity by R_m^i, the products of queries and keys
of late layers i. The teachers see the whole image and the student the patches that a mask keeps:

.. math::
    L = L_f + \alpha L_r, \quad L_f = mean\; \ell(F_s - norm(F_c[keep]))

    L_r = mean_{i \in \{L-1, L-2\}} mean\; \ell(R_s^i - R_m^i[keep, keep]), \quad R = Q K^T

with l the smooth L1 distance. The progressive mask drops, before some blocks of Tm, the tokens most like the mean of
those still kept (`hkd.methods.parts.token_mask`).

Layers are counted from 1 in options, as the paper counts them; layer i is block i - 1.

Decided here where the paper is silent: cosine similarity; the class token is compared and never masked; F_s is after
the student's final norm and F_c before the teacher's, normalised per token; the direct mask looks at the output of Tm's
last layer; block outputs and attention outputs of the student are compared as they are; `relation_heads` and
`relation_scale` are independent. The asymmetric encoder of its Figure 7, described by the name of FD alone, is a BEiT
with one table of relative positions (`hkd.models.families.hybrid_beit`); it learns features, not relations.
Shapes: B batch, P prefix tokens, N = g * g patches, n kept ones, M = P + n, D width, h heads, d width of a head.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_student
from hkd.methods.parts.initialisers import SPREAD, xavier
from hkd.methods.parts.masks import HOST, random_visible, visible_cells
from hkd.methods.parts.relations import Shape, first_tokens, refuse_relations, shape_of
from hkd.methods.parts.token_decoder import DecoderConfig, TokenDecoder
from hkd.methods.parts.token_mask import kept_after, redundant_mask, share_kept
from hkd.methods.parts.token_targets import (
    AttendedValues,
    BlockOutputs,
    BlockTarget,
    FinalFeatures,
    Pair,
    Relations,
    Target,
)
from hkd.models.families.base import accepting
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want, to_tokens
from hkd.options import (
    Different,
    Few,
    NotNegative,
    Positive,
    ShareAbove0,
    ShareBelow1,
    ShareBetween,
    Switch,
    options,
    together,
)
from hkd.spec import ModelCard, Recipe

Span = Literal["all", "front", "middle", "back", "last"]
# (depth, a quarter of it) -> first layer, number of layers
SPANS: dict[Span, Callable[[int, int], tuple[int, int]]] = {
    "all": lambda depth, quarter: (1, depth - 1),
    "front": lambda depth, quarter: (1, quarter),
    "middle": lambda depth, quarter: ((depth - quarter) // 2 + 1, quarter),
    "back": lambda depth, quarter: (depth - quarter, quarter),
    "last": lambda depth, quarter: (depth - 1, 1),
}
ENCODERS = {"plain": "plain ViTs with timm's ordinary attention", "asymmetric": "encoders unlike those"}


@options
class HybridConfig(DecoderConfig):
    """Every switch of the paper's tables; the defaults are its method without the mask, as most tables have it.

    targets: what is learned from whom, the final features or (primed in the paper) what `late_target` says of late
        layers: `c` Tc's features, `m` Tm's features, `c+c` both of Tc, `m+m` both of Tm, `c+m` features of Tc and late
        layers of Tm. Tc has the role `features`, Tm the role `relations`; a teacher that is not read is not needed.
    late_target: `relation`; `msa`, softmax(R / sqrt d) V before the output projection, over all of the teacher's tokens
        and all that the student has; `feature`, block outputs; `both_last`, the final features of that teacher too.
    late_layers: layers of the late target, from 1; None: the last two before the last, 10 and 11 of 12. Or a span that
        is at the same share of any depth: `all` before the last (of 12 layers 1 to 11), a quarter of the layers at the
        `front` (1, 2, 3), in the `middle` (5, 6, 7) or at the `back` before the last (9, 10, 11), or the `last` before
        it (11).
    depth: layers of student and teachers, which their cards must have too.
    alpha, beta: weight of the late term (0: not computed); where the smooth L1 distance turns linear.
    target_norm: normalise features (final ones and block outputs, not `msa`) per token.
    student_norm: the student's features are those after its final norm.
    class_token: class (and other prefix) tokens are compared too, in the task `direct`.
    hidden_class: they are compared too in the tasks `masked` and `dbot`, as dBOT's code does; off: patches alone.
    relation_scale, relation_heads: raw products or attention logits; heads into which queries and keys of all heads are
        split anew on both sides (1: the full width), None: the models' own.
    mask: `none`; `random`; `direct`, one step by the tokens after Tm's last layer; `progressive`, a step before the
        blocks 0, depth // 3 and 2 depth // 3 of Tm.
    drop: K, the share of kept tokens that each progressive step drops, rounded down.
    keep: share of tokens that `random` and `direct` keep.
    mask_tokens: what `progressive` compares: a block's input (`block`), for which Tm's card must have the ends of the
        first two thirds as stages 1 and 2, or that after the block's layer norm (`normed`), which any card gives.
    decoder: between student and features: `none`, unless widths differ, when a linear map is; `linear`; or attention.
    decoder_width, decoder_heads: of the attention decoders.
    encoder: what the student is, `plain`, a ViT like the teachers (`hybrid_vit`), or `asymmetric`, an encoder unlike
        them (`hybrid_beit`), which gives no queries, keys and values to compare.
    task: `direct`; `masked`, mask tokens enter the encoder, and `dbot`, they enter the decoder: features of one teacher
        are learned at hidden patches.
    mask_ratio: share of hidden patches in `masked` and `dbot`.

    A mask that leaves no token and options that contradict each other are refused.
    """

    targets: Literal["c", "m", "c+c", "m+m", "c+m"] = "c+m"
    late_target: Literal["relation", "msa", "feature", "both_last"] = "relation"
    late_layers: Annotated[tuple[Few, ...], Field(min_length=1), Different] | Span | None = None
    depth: Few = 12
    alpha: NotNegative = 1.0
    beta: Positive = 2.0
    target_norm: Switch = True
    student_norm: Switch = True
    class_token: Switch = True
    hidden_class: Switch = False
    relation_scale: Literal["raw", "1/sqrt(d)"] = "raw"
    relation_heads: Few | None = None
    mask: Literal["none", "random", "direct", "progressive"] = "none"
    drop: ShareBelow1 = 0.3
    keep: ShareAbove0 = 0.35
    mask_tokens: Literal["block", "normed"] = "block"
    decoder: Literal["none", "linear", "attn1", "attn2", "attn4", "attn8"] = "none"
    encoder: Literal["plain", "asymmetric"] = "plain"
    task: Literal["direct", "masked", "dbot"] = "direct"
    mask_ratio: ShareBetween = 0.75

    @together
    def _late(self) -> None:
        if isinstance(self.late_layers, tuple) and max(self.late_layers) > self.depth:
            raise ValueError(f"late_layers must be layers from 1 to depth ({self.depth}), got {self.late_layers}")
        if self.late_layers is not None and self.late_target == "both_last":
            raise ValueError("late_target=both_last is about the last layer: leave late_layers out")
        if self.late_layers is None and self.depth < 3 and late_role(self) and self.late_target != "both_last":
            raise ValueError(f"the two layers before the last need a depth of at least 3, got {self.depth}")
        if self.late_target == "feature" and not self.target_norm and late_role(self):
            raise ValueError("late_target=feature is known up to each token's mean and scale: leave target_norm on")
        if self.encoder == "asymmetric" and late_role(self) and self.late_target in ("relation", "msa"):
            raise ValueError(
                f"late_target={self.late_target} reads queries and keys, which encoder=asymmetric does not give: set "
                f"late_target to feature or both_last, targets to c or m, or alpha to 0.0"
            )

    @property
    def class_switch(self) -> str:
        """The option that says whether class tokens are compared in this task."""
        return "class_token" if self.task == "direct" else "hidden_class"

    @property
    def compares_class(self) -> bool:
        """Whether class tokens are compared."""
        return bool(getattr(self, self.class_switch))

    @together
    def _masks(self) -> None:
        if self.mask in ("direct", "progressive") and self.targets in ("c", "c+c"):
            raise ValueError(
                f"mask={self.mask} looks at the tokens of the teacher 'relations', which targets={self.targets} has "
                f"not: set targets to c+m (with alpha 0.0 to learn Tc's features alone) or mask to random"
            )
        if self.mask == "progressive" and self.depth < 3:
            raise ValueError(f"mask=progressive needs three thirds of a depth of at least 3, got {self.depth}")
        if self.task == "direct":
            if self.hidden_class:
                raise ValueError("hidden_class is for task=masked and dbot; task=direct has class_token")
            return
        if self.targets not in ("c", "m") or self.mask != "none":
            raise ValueError(
                f"task={self.task} learns the features of one teacher at patches it hides itself: set targets to c or "
                f"m, and mask to none"
            )
        if self.decoder == "none" or (self.task == "dbot" and self.decoder == "linear"):
            wanted = "linear" if self.task == "masked" else "attn2 or another with attention"
            raise ValueError(f"task={self.task} needs a decoder: set it to {wanted}, got {self.decoder}")


def final_role(config: HybridConfig) -> str:
    """Role of the teacher whose final features are learned."""
    return "relations" if config.targets in ("m", "m+m") else "features"


def late_role(config: HybridConfig) -> str:
    """Role of the teacher whose late layers are learned; empty if none are."""
    if config.targets in ("c", "m") or not config.alpha:
        return ""
    return "features" if config.targets == "c+c" else "relations"


def late_blocks(config: HybridConfig) -> tuple[int, ...]:
    """0-based blocks of the late target."""
    layers = config.late_layers
    if layers is None:
        layers = (config.depth - 2, config.depth - 1)
    elif isinstance(layers, str):
        first, count = SPANS[layers](config.depth, max(1, config.depth // 4))
        layers = tuple(range(first, first + count))
    return tuple(layer - 1 for layer in layers)


def mask_blocks(config: HybridConfig) -> tuple[int, int, int]:
    """0-based blocks before which the progressive mask drops tokens."""
    return 0, config.depth // 3, 2 * config.depth // 3


def kept_counts(config: HybridConfig, count: int) -> list[int]:
    """Of `count` patches, how many the student sees after each step of the mask."""
    if config.mask == "progressive":
        return kept_after(count, config.drop, len(mask_blocks(config)))
    return [count if config.mask == "none" else share_kept(count, config.keep)]


def final_target(config: HybridConfig) -> FinalFeatures:
    """What is learned of final features."""
    return FinalFeatures(depth=config.depth, normed_student=config.student_norm, whole=config.task == "masked")


def late_target(config: HybridConfig) -> Target:
    """What is learned of late layers."""
    if config.late_target == "both_last":
        return final_target(config)
    blocks = late_blocks(config)
    if config.late_target == "relation":
        return Relations(blocks, groups=config.relation_heads, scale=config.relation_scale)
    return AttendedValues(blocks) if config.late_target == "msa" else BlockOutputs(blocks, depth=config.depth)


class Hybrid(Method):
    """`feat` (+ `late`, weighted by alpha); no task loss, and labels are not looked at.

    The student gives its tokens of kept patches; teachers are plain ViTs with as many patches. Own parameters: none
    where widths agree, else linear maps; a decoder; a mask token. Buffer, kept in checkpoints: the running sums of
    `diagnostics`. Memory of a step: relations of n x n kept tokens, per head and late layer.
    """

    Config = HybridConfig
    teachers: dict[str, Teacher]
    sums: Tensor

    def __init__(
        self, config: HybridConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build heads.

        Raises:
            Refused: hidden patches that are none or all.
        """
        super().__init__(config, student, teachers, criterion)
        self.grid, width = student.final[1], student.final[0]
        self.counts = kept_counts(config, self.grid**2)
        if config.task != "direct":
            self.counts = [visible_cells("hybrid", self.grid, config.mask_ratio)]
        self.final, self.late = final_target(config), late_target(config) if late_role(config) else None
        self.head = self._decoder(width, teachers[final_role(config)].info.final[0])
        self.late_heads = nn.ModuleList()
        if self.late is not None:
            width_t = teachers[late_role(config)].info.final[0]
            if isinstance(self.late, FinalFeatures):
                self.late_heads.append(self._decoder(width, width_t))
            elif isinstance(self.late, BlockTarget):
                self.late_heads.extend(linear(width, width_t) for _ in self.late.blocks)
        self.mask_token = nn.Parameter(torch.empty(width)) if config.task == "masked" else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=SPREAD)
        # batches, feature term, late term, the late term with relations scaled, share of kept patches
        self.register_buffer("sums", torch.zeros(5, dtype=torch.float64))

    def pair(self, role: str) -> Pair:
        """The student and the teacher of a role."""
        config = self.config
        return Pair(
            teacher=self.teachers[role],
            prefix=self.student.prefix,
            class_token=config.compares_class,
            hidden=config.task != "direct",
            normed=config.target_norm,
            beta=config.beta,
        )

    def _decoder(self, width: int, width_t: int) -> nn.Module:
        config = self.config
        if config.decoder == "none":
            return linear(width, width_t)
        if config.decoder == "linear":
            return nn.Linear(width, width_t).apply(xavier)
        return TokenDecoder(
            width,
            width_t,
            self.grid,
            self.student.prefix,
            depth=int(config.decoder.removeprefix("attn")),
            width=config.decoder_width,
            heads=config.decoder_heads,
            fills=config.task == "dbot",
        )

    @classmethod
    def needs(cls, config: HybridConfig) -> Needs:
        """What the targets read, and what the mask looks at."""
        student, teacher = final_target(config).needs()
        teachers = {final_role(config): teacher}

        def add(role: str, want: Want) -> None:
            teachers[role] = teachers.get(role, Want()) | want

        if role := late_role(config):
            want, teacher = late_target(config).needs()
            student |= want
            add(role, teacher)
        if config.mask == "direct":
            add("relations", Want(stages=(4,)))
        if config.mask == "progressive":
            normed = config.mask_tokens == "normed"
            add("relations", Want(attention=mask_blocks(config)) if normed else Want(stages=(1, 2)))
        return Needs(student=student, teachers=teachers)

    @classmethod
    def refuse(
        cls, config: HybridConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students and teachers that cannot be compared token by token, each with the option that resolves it."""
        does = "runs its student on kept tokens and reads what is inside"
        if reason := refuse_student("hybrid", does, student, "visible", "outputs"):
            return reason
        shape_s = shape_of(student)
        if shape_s is None or shape_s.plain != (config.encoder == "plain"):
            other = next(name for name in ENCODERS if name != config.encoder)
            return (
                f"encoder={config.encoder} is for {ENCODERS[config.encoder]}, and {student.name} is of "
                f"'{student.family}': set encoder to {other}, or take another student."
            )
        if shape_s.grid[0] != shape_s.grid[1]:
            return f"hybrid masks a square grid of patches, and that of {student.name} is {_text(shape_s.grid)}."
        if shape_s.depth != config.depth:
            return f"hybrid has a depth of {config.depth}, and {student.name} {shape_s.depth} layers: set depth to it."
        for role in cls.needs(config).teachers:
            if role not in teachers:
                return f"hybrid with targets={config.targets} needs a teacher with the role '{role}'."
            if reason := refuse_teacher(config, role, teachers[role], shape_s):
                return reason
        return None

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Which patches are kept, and what stands for the others."""
        visible = self.visible(batch, taps_t)
        inputs: dict[str, Any] = {}
        if visible is not None:
            inputs["visible"] = batch.extra["visible"] = visible
        if self.mask_token is not None:
            inputs["mask_token"] = self.mask_token
        return inputs

    def visible(self, batch: Batch, taps_t: Mapping[str, Taps]) -> Bool[Tensor, "B 1 g g"] | None:
        """The mask of each image, or None for the whole."""
        config, count = self.config, len(batch.x)
        if config.task != "direct" or config.mask == "random":
            return random_visible(count, self.grid, self.counts[-1], HOST)
        if config.mask == "none":
            return None
        steps = self.mask_steps(batch, taps_t["relations"])
        return redundant_mask(steps, self.counts).view(count, 1, self.grid, self.grid)

    def mask_steps(self, batch: Batch, taps_t: Taps) -> list[Float[Tensor, "B N _"]]:
        """Tm's patch tokens at each step of the mask."""
        teacher = self.teachers["relations"]
        if self.config.mask == "direct":
            return [to_tokens(taps_t.stages[4])]
        if self.config.mask_tokens == "normed":
            return [taps_t.attention[block][:, teacher.info.prefix :] for block in mask_blocks(self.config)]
        with torch.no_grad():
            first = first_tokens(teacher, batch.x)
        return [first, to_tokens(taps_t.stages[1]), to_tokens(taps_t.stages[2])]

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One or two terms."""
        config = self.config
        visible = batch.extra["visible"].flatten(1) if "visible" in batch.extra else None
        role = final_role(config)
        feat, _ = self.final.loss(self.pair(role), [self.head], taps_s, taps_t[role], visible)
        losses, sizes = {"feat": feat}, torch.zeros(2, device=feat.device)
        if self.late is not None:
            role = late_role(config)
            late, sizes = self.late.loss(self.pair(role), [*self.late_heads], taps_s, taps_t[role], visible)
            losses["late"] = config.alpha * late
        if self.training:
            with torch.no_grad():
                shown = self.counts[-1] / self.grid**2
                self.sums += torch.stack([feat.new_ones(()), feat, *sizes.to(feat), feat.new_full((), shown)])
        return losses

    def diagnostics(self) -> dict[str, float]:
        """Means over the training batches since the last call: `feat_size` and `late_size`, both terms without weights;
        of relations `late_raw` and `late_scaled` instead, whichever is learned; `kept`, the share of patches that the
        student sees. Of this process's share of the batch."""
        batches, feat, late, scaled, kept = self.sums.tolist()
        self.sums.zero_()
        if not batches:
            return {}
        sizes = {"feat_size": feat, "kept": kept}
        if self.late is not None:
            relation = isinstance(self.late, Relations)
            sizes |= {"late_raw": late, "late_scaled": scaled} if relation else {"late_size": late}
        return {name: total / batches for name, total in sizes.items()}


def linear(width: int, width_t: int) -> nn.Module:
    """Nothing where widths agree, else a linear map, Xavier uniform with zero bias."""
    return nn.Identity() if width == width_t else nn.Linear(width, width_t).apply(xavier)


def _text(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def refuse_teacher(config: HybridConfig, role: str, card: ModelCard, shape_s: Shape) -> str | None:
    """Why a teacher cannot be compared with a student of this shape, as one sentence, or None."""
    shape_t = shape_of(card)
    if shape_t is None or not shape_t.plain:
        return (
            f"hybrid needs plain ViTs with timm's ordinary attention as teachers (of the family {accepting('qkv')}), "
            f"which {card.name} is not."
        )
    if shape_t.grid != shape_s.grid:
        return (
            f"hybrid compares tokens of equal places, and {card.name} has {_text(shape_t.grid)} patches, the student "
            f"{_text(shape_s.grid)}: give one of their cards the image_size that makes them equal (14 px patches of "
            f"196 px images are the 14x14 of 16 px patches at 224 px)."
        )
    if config.compares_class and shape_t.prefix != shape_s.prefix:
        return (
            f"hybrid compares class tokens too, and {card.name} has {shape_t.prefix} prefix tokens, the student "
            f"{shape_s.prefix}: set {config.class_switch} to false to compare patches alone."
        )
    late, masks = late_role(config) == role, role == "relations" and config.mask == "progressive"
    if shape_t.depth != config.depth and (late or masks):
        return (
            f"hybrid has a depth of {config.depth} and {card.name} {shape_t.depth} layers: take a teacher of the "
            f"student's depth, or leave its layers alone by targets=c or m with a mask that is none, random or direct."
        )
    if masks and config.mask_tokens == "block":
        ends = tuple(block - 1 for block in mask_blocks(config)[1:])
        if card.stages[:2] != ends:
            return (
                f"mask_tokens=block reads the stages 1 and 2 of {card.name}, which must end at the blocks {ends[0]} "
                f"and {ends[1]}, not {card.stages[0]} and {card.stages[1]}: set them in its card, or set mask_tokens "
                f"to normed."
            )
    if late and config.late_target == "relation":
        return refuse_relations(card.name, shape_t, shape_s, config.relation_heads, config.relation_scale)
    return None
