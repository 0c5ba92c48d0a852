r"""What a student's tokens can learn of a frozen vision transformer: four targets, each of which says what taps it
reads and how far student and teacher are apart.

Smooth L1 distances, means over all elements, of features that are normalised per token or not, of relations (see
`hkd.methods.parts.relations`), of attended values softmax(R / sqrt d) V, or of what blocks give out.
Shapes: B batch, P prefix tokens, N patches, n kept ones, M = P + n, D width, h heads, d width of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.devices import sent
from hkd.methods.parts.logits import exact
from hkd.methods.parts.patches import patch_statistics
from hkd.methods.parts.relations import SCALED, attended, before_affine, projected, relations
from hkd.methods.parts.token_decoder import TokenDecoder
from hkd.models.masks import gather_tokens, with_prefix
from hkd.models.tap_model import Teacher
from hkd.models.taps import Taps, Want, to_tokens

Visible = Bool[Tensor, "B N"] | None


def normalise_tokens(tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
    """Each token minus its mean, divided by the root of its variance (with D - 1) plus 1e-6."""
    mean, std = patch_statistics(tokens)
    return (tokens - mean) / std


def distance(predicted: Float[Tensor, "*S"], target: Float[Tensor, "*S"], *, beta: float) -> Float[Tensor, ""]:
    r"""Smooth L1 distance, in single precision or better.

    .. math:: \ell(e) = e^2 / (2 \beta) \;\text{if}\; |e| < \beta, \;\text{else}\; |e| - \beta / 2

    Args:
        predicted: gradients flow.
        target: detached here.
        beta: > 0.

    Returns:
        Scalar, the mean over all elements.
    """
    return F.smooth_l1_loss(exact(predicted), exact(target.detach()), beta=beta)


def final_tokens(taps_t: Taps) -> Float[Tensor, "B M D"]:
    """All tokens after a teacher's last block, before its final norm."""
    patches = to_tokens(taps_t.stages[4])
    return torch.cat([taps_t.prefix[4], patches], dim=1) if 4 in taps_t.prefix else patches


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student and a teacher whose tokens are compared.

    teacher: the frozen model. prefix: P of the student. class_token: prefix tokens are compared too. hidden: at the
    patches that the student did not see, of which it predicts all; else at those it saw. normed: features are
    normalised per token. beta: where the distance turns linear.
    """

    teacher: Teacher
    prefix: int
    class_token: bool
    hidden: bool
    normed: bool
    beta: float

    def of_student(self, tokens: Float[Tensor, "B M D"], visible: Visible) -> Float[Tensor, "B m D"]:
        """The compared ones of the student's predictions."""
        if self.hidden:
            return self._at(tokens, visible, self.prefix)
        return tokens[:, self.start :]

    def of_teacher(self, tokens: Float[Tensor, "B M D"], visible: Visible) -> Float[Tensor, "B m D"]:
        """The compared ones of all the teacher's tokens."""
        return self._at(tokens, visible, self.teacher.info.prefix)

    @property
    def start(self) -> int:
        """Where the compared ones begin among the student's own tokens."""
        return 0 if self.class_token else self.prefix

    def _at(self, tokens: Tensor, visible: Visible, prefix: int) -> Tensor:
        start = 0 if self.class_token else prefix
        if visible is None:
            return tokens[:, start:]
        places = with_prefix(~visible if self.hidden else visible, prefix)[:, start:]
        return gather_tokens(tokens, sent(places, tokens.device))

    def normalised(self, target: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        """Features as they are compared."""
        return normalise_tokens(exact(target)) if self.normed else target

    def distance(self, predicted: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """See `distance`."""
        return distance(predicted, target, beta=self.beta)

    def attention(self, block: int) -> Any:
        """The teacher's attention module of a block."""
        return self.teacher.family.attention_modules(self.teacher.net)[block]


class Target(ABC):
    """What is learned of a teacher."""

    @abstractmethod
    def needs(self) -> tuple[Want, Want]:
        """Taps of the student and of the teacher."""

    @abstractmethod
    def loss(
        self, pair: Pair, heads: Sequence[nn.Module], taps_s: Taps, taps_t: Taps, visible: Visible
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "2"]]:
        """How far apart they are, and for people its size, of relations raw and scaled, else twice.

        Args:
            pair: whose tokens these are.
            heads: between student and target; what each target takes is said there.
            taps_s: of the student.
            taps_t: of the teacher, which saw the whole image.
            visible: which patches the student saw; None: all.
        """


def _alike(loss: Tensor) -> tuple[Tensor, Tensor]:
    return loss, loss.detach().expand(2)


@dataclass(frozen=True, kw_only=True)
class FinalFeatures(Target):
    """The teacher's final features before its final norm, through one head: any module, or a `TokenDecoder`.

    depth: layers of the student. normed_student: its features are those after its final norm. whole: it runs on all
    tokens, mask tokens among them.
    """

    depth: int
    normed_student: bool
    whole: bool

    def needs(self) -> tuple[Want, Want]:
        return Want() if self.normed_student else Want(outputs=(self.depth - 1,)), Want(stages=(4,))

    def loss(
        self, pair: Pair, heads: Sequence[nn.Module], taps_s: Taps, taps_t: Taps, visible: Visible
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "2"]]:
        tokens = taps_s.tokens if self.normed_student else taps_s.outputs[self.depth - 1]
        (head,) = heads
        places = (None if self.whole else visible,) if isinstance(head, TokenDecoder) else ()
        predicted = head(tokens, *places)
        target = pair.of_teacher(final_tokens(taps_t), visible)
        return _alike(pair.distance(pair.of_student(predicted, visible), pair.normalised(target)))


@dataclass(frozen=True)
class Relations(Target):
    """Products of queries and keys of some blocks; no heads.

    groups: heads to split into anew; None: the models' own. scale: `raw` or `1/sqrt(d)`, whichever is learned.
    """

    blocks: tuple[int, ...]
    groups: int | None
    scale: str

    def needs(self) -> tuple[Want, Want]:
        return Want(qkv=self.blocks), Want(attention=self.blocks)

    def loss(
        self, pair: Pair, heads: Sequence[nn.Module], taps_s: Taps, taps_t: Taps, visible: Visible
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "2"]]:
        # Relations reach hundreds, of which 16 bits would keep the first digits.
        with torch.autocast(taps_s.logits.device.type, enabled=False):
            terms = [self.distances(pair, taps_s, taps_t, block, visible) for block in self.blocks]
            both = torch.stack(terms).mean(dim=0)
            return both[int(self.scale == SCALED)], both.detach()

    def distances(self, pair: Pair, taps_s: Taps, taps_t: Taps, block: int, visible: Visible) -> Float[Tensor, "2"]:
        """Of one block's relations, raw and scaled; gradients flow from the one that is learned."""
        q_s, k_s = (exact(x[:, :, pair.start :]) for x in taps_s.qkv[block][:2])
        with torch.no_grad():
            tokens = exact(pair.of_teacher(taps_t.attention[block], visible))
            q_t, k_t, _ = projected(pair.attention(block), tokens)
        both = []
        for scale in ("raw", SCALED):
            with torch.set_grad_enabled(torch.is_grad_enabled() and scale == self.scale):
                compared = (relations(q, k, groups=self.groups, scale=scale) for q, k in ((q_s, k_s), (q_t, k_t)))
                both.append(pair.distance(*compared))
        return torch.stack(both)


@dataclass(frozen=True)
class BlockTarget(Target):
    """Something of some blocks, each through a head of its own."""

    blocks: tuple[int, ...]

    def loss(
        self, pair: Pair, heads: Sequence[nn.Module], taps_s: Taps, taps_t: Taps, visible: Visible
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "2"]]:
        with torch.autocast(taps_s.logits.device.type, enabled=False):
            pairs = zip(self.blocks, heads, strict=True)
            terms = [self.distance(pair, taps_s, taps_t, block, head, visible) for block, head in pairs]
            return _alike(torch.stack(terms).mean())

    @abstractmethod
    def distance(
        self, pair: Pair, taps_s: Taps, taps_t: Taps, block: int, head: nn.Module, visible: Visible
    ) -> Float[Tensor, ""]:
        """Of one block."""


class AttendedValues(BlockTarget):
    """softmax(R / sqrt d) V before the output projection; the teacher attends to all of its own tokens."""

    def needs(self) -> tuple[Want, Want]:
        return Want(qkv=self.blocks), Want(attention=self.blocks)

    def distance(
        self, pair: Pair, taps_s: Taps, taps_t: Taps, block: int, head: nn.Module, visible: Visible
    ) -> Float[Tensor, ""]:
        values = attended(*(exact(x) for x in taps_s.qkv[block]))[:, pair.start :]
        with torch.no_grad():
            target = attended(*projected(pair.attention(block), exact(taps_t.attention[block])))
        return pair.distance(head(values), pair.of_teacher(target, visible))


@dataclass(frozen=True)
class BlockOutputs(BlockTarget):
    """What blocks give out. depth: layers of student and teacher."""

    depth: int

    def needs(self) -> tuple[Want, Want]:
        # The output of a block is the input of the next one's layer norm.
        following = tuple(block + 1 for block in sorted(self.blocks) if block + 1 < self.depth)
        return Want(outputs=self.blocks), Want(stages=(4,), attention=following)

    def distance(
        self, pair: Pair, taps_s: Taps, taps_t: Taps, block: int, head: nn.Module, visible: Visible
    ) -> Float[Tensor, ""]:
        if block + 1 == self.depth:
            target = final_tokens(taps_t)
        else:
            # What layer norm took, the target norm takes too; its gain and bias must go.
            net: Any = pair.teacher.net
            target = before_affine(net.blocks[block + 1].norm1, exact(taps_t.attention[block + 1]))
        target = pair.normalised(pair.of_teacher(target, visible))
        return pair.distance(head(exact(taps_s.outputs[block][:, pair.start :])), target)
