r"""H-GKD: a sparse convolutional student that sees part of an image learns, without labels, what a transformer that was
pre-trained by masked image modelling makes of it.

Source: arXiv:2309.09571. No official code exists, and the paper has no equations: options settle what it leaves open.
The student's stage maps go through a U-Net decoder (`parts.unet`) that predicts the teacher's patch features F; a
linear map of the student's last sparse map, averaged over its *active* positions, is to lie among a queue Q of teacher
embeddings as the teacher's embedding z_T (mean of its patch features, unit length) does:

.. math::
    L = w_{sim} L_{sim} + w_{feat} L_{feat}

    L_{feat} = \frac{1}{B |\Omega| D} \sum_b \sum_{p \in \Omega_b} \| P_{bp} - F_{bp} \|^2

    L_{sim} = \frac{1}{B} \sum_b [1 - \rho(softmax(Q z_T / \tau), softmax(Q z_S / \tau))]

Deviations: none known. Decided here: F is the teacher's last map after its final norm, as taps have it.
Shapes: B batch, K queue entries, D the teacher's width, C the student's, H W grid, g side of the mask.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.devices import sent
from hkd.errors import Refused, UserError
from hkd.methods.base import Criterion, Method, Needs, Samples, refuse_student
from hkd.methods.parts.embedding_queue import EmbeddingQueue
from hkd.methods.parts.feature_mimicking import to_grid
from hkd.methods.parts.gathering import SHORTEST
from hkd.methods.parts.initialisers import as_spark
from hkd.methods.parts.logits import exact
from hkd.methods.parts.masks import MaskConfig, active_mean, mask_batch, mask_grid, mask_of, refuse_conv, visible_cells
from hkd.methods.parts.unet import UNetDecoder, stage_maps, stage_shapes
from hkd.models.families.base import accepts
from hkd.models.masks import mask_at
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import Count, Few, NotNegative, Positive, ShareBelow1, Switch, options, together
from hkd.spec import ModelCard, Recipe

EPS = 1e-8  # in the denominator of Pearson's correlation
NORM_EPS = 1e-6  # of the layer norm of teacher features
MIM = (
    "teacher_view=mim lets the teacher fill in what was masked, by its own decoder or regressor, which is no part of a "
    "teacher here: use full or visible."
)
ALONE = "hgkd needs a teacher with the role 'teacher', also with teacher_view=visible."


@options
class HGKDConfig(MaskConfig):
    """Every reading of the paper; the defaults are the one that was chosen for its table.

    w_sim, w_feat: weights of the two terms. One of weight 0 is not computed and has no parameters.
    queue_size, tau: K, and the temperature of both softmaxes.
    mask_ratio: share of hidden cells.
    decoder: `unet` goes up to the student's finest map, `short` takes one step, `none` maps the last map to the
        teacher's width and enlarges the result. The head's stride is the ratio of the decoder's grid to the teacher's.
    positions, target: where features are compared; layer-normalised teacher features (per position, no affine part)
        or raw ones.
    multi_scale: further 1x1 heads on all blocks' outputs against the teacher's map resized to each grid (averages of
        a finer one, else bilinear); the mean of these terms is `feat_scales`, of weight w_feat.
    sim_space: what is correlated, the softmaxes or the similarities themselves.
    queue_update, queue_content, exclude_self: the batch enters the queue before or after the loss; the student's
        similarities are to the teacher's embeddings or (`dual`) to a queue of the student's own; entries of the same
        training image do not count.
    head_layers: linear maps in the embedding head; GELU between them.
    teacher_view: `full` images; or the `visible` cells only, where alone features then exist; `mim` is refused.
    """

    w_sim: NotNegative = 1.0
    w_feat: NotNegative = 1.0
    queue_size: Count = 50000
    tau: Positive = 0.1
    mask_ratio: ShareBelow1 = 0.6
    decoder: Literal["unet", "short", "none"] = "unet"
    positions: Literal["all", "masked", "visible"] = "all"
    target: Literal["norm", "raw"] = "norm"
    multi_scale: Switch = False
    sim_space: Literal["softmax", "raw"] = "softmax"
    queue_update: Literal["before", "after"] = "before"
    queue_content: Literal["teacher", "dual"] = "teacher"
    exclude_self: Switch = False
    head_layers: Few = 1
    teacher_view: Literal["full", "visible", "mim"] = "full"

    @together
    def _terms(self) -> None:
        if not self.w_sim + self.w_feat:
            raise ValueError("w_sim and w_feat must not both be 0")
        if self.teacher_view == "visible" and self.w_feat and (self.positions != "visible" or self.multi_scale):
            raise ValueError(
                "teacher_view=visible has features at visible positions only: set positions to visible and multi_scale "
                "to false"
            )
        if self.multi_scale and self.decoder == "none":
            raise ValueError("multi_scale puts heads on the decoder's blocks, of which decoder=none has none")


def pearson(
    a: Float[Tensor, "B K"], b: Float[Tensor, "B K"], keep: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, " B"]:
    r"""Pearson's correlation of two vectors, row by row.

    .. math:: \rho(a, b) = \frac{\sum_k (a_k - \bar a)(b_k - \bar b)}{\|a - \bar a\| \|b - \bar b\| + 10^{-8}}

    Args:
        a, b: vectors.
        keep: entries that count; all, unless given.

    Returns:
        Values in [-1, 1]; exactly 0 where a vector is constant.
    """
    a, b = _centred(a, keep), _centred(b, keep)
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (lengths + EPS)


def _centred(x: Float[Tensor, "B K"], keep: Bool[Tensor, "B K"] | None) -> Float[Tensor, "B K"]:
    """Deviations from the mean of the kept entries, zero elsewhere."""
    # Of a constant vector the mean alone would leave rounding, which the denominator's 1e-8 may not outweigh.
    x = x - x[:, :1].detach()
    if keep is None:
        return x - x.mean(dim=1, keepdim=True)
    mean = torch.where(keep, x, 0).sum(dim=1, keepdim=True) / keep.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(keep, x - mean, 0)


def distribution(
    sims: Float[Tensor, "B K"], *, tau: float, keep: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, "B K"]:
    """softmax(sims / tau) over the kept entries, zero elsewhere (everywhere, if none is kept)."""
    if keep is None:
        return torch.softmax(sims / tau, dim=1)
    # Not minus infinity: a row of which nothing is kept would be NaN.
    lowest = torch.finfo(sims.dtype).min
    return torch.where(keep, torch.softmax((sims / tau).masked_fill(~keep, lowest), dim=1), 0)


def similarity_loss(
    sims_s: Float[Tensor, "B K"],
    sims_t: Float[Tensor, "B K"],
    *,
    tau: float,
    space: str = "softmax",
    keep: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    r"""How differently student and teacher see the queue.

    .. math:: L = \frac{1}{B} \sum_b [1 - \rho(softmax(t_b / \tau), softmax(s_b / \tau))]

    Args:
        sims_s: s, the student's similarities to the entries, K >= 1; gradients flow.
        sims_t: t, the teacher's; detached here.
        tau: temperature, > 0.
        space: `softmax`, or `raw`: rho(t_b, s_b), which no temperature changes.
        keep: entries that count; all, unless given.

    Returns:
        Scalar in [0, 2], averaged over B.
    """
    sims_t = sims_t.detach()
    if space == "softmax":
        sims_s, sims_t = (distribution(sims, tau=tau, keep=keep) for sims in (sims_s, sims_t))
    return (1 - pearson(sims_t, sims_s, keep)).mean()


def effective_entries(probabilities: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    r"""How many entries share a distribution: 1 / sum_k p_k^2, from 1 (one has all) to K (all have the same); 0 for
    the empty distribution of a row of which no entry counts."""
    squares = probabilities.square().sum(dim=1)
    return torch.where(squares > 0, 1 / squares.clamp(min=torch.finfo(squares.dtype).tiny), 0)


def feature_loss(
    predicted: Float[Tensor, "B D H W"],
    target: Float[Tensor, "B D H W"],
    selected: Bool[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared error over batch, selected positions and channels.

    .. math:: L = \frac{1}{D \sum_b |\Omega_b|} \sum_b \sum_{p \in \Omega_b} \| P_{bp} - F_{bp} \|^2

    Args:
        predicted: P; gradients flow.
        target: F; detached here.
        selected: Omega; all positions, unless given.

    Returns:
        Scalar. What stands at other positions does not matter, be it infinite.
    """
    target = target.detach()
    if selected is None:
        return (predicted - target).square().mean()
    difference = torch.where(selected, predicted, 0) - torch.where(selected, target, 0)
    return difference.square().sum() / (selected.sum() * predicted.shape[1])


def normalise(map_t: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
    """Layer norm of each position's features, without affine part."""
    tokens = map_t.movedim(1, -1)
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS).movedim(-1, 1)


class HGKD(Method):
    """`sim` + `feat` (+ `feat_scales`); no task loss, and labels are not looked at.

    In evaluation mode (losses of held-out images) the queue is read but does not move.
    Own parameters: embedding head, decoder and heads. Buffers, kept in checkpoints: the queue (`queue_s` too, if it is
    dual) and the running sums of `diagnostics`. Memory of a step: 2 B K similarities.
    """

    Config = HGKDConfig
    teachers: dict[str, Teacher]
    sums: Tensor

    def __init__(
        self, config: HGKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build heads, decoder and queue.

        Raises:
            Refused: no teacher; grids of student, mask, decoder and teacher that do not fit; a mask that hides all.
        """
        super().__init__(config, student, teachers, criterion)
        if config.teacher_view == "mim":
            raise Refused(MIM)
        if "teacher" not in teachers:
            raise Refused(ALONE)
        self.grid = mask_grid("hgkd", student, config.grid, config.mask_ratio, whole=True)
        width_t, *grid_t = teachers["teacher"].info.final
        if grid_t[0] != grid_t[1] or grid_t[0] < 1:
            raise Refused(f"hgkd needs a teacher whose map is square, and this one's is {grid_t[0]}x{grid_t[1]}.")
        self.grid_t = grid_t[0]
        partly = config.teacher_view == "visible" or (config.w_feat and config.positions != "all")
        if partly and self.grid_t % self.grid:
            raise Refused(
                f"hgkd cannot tell a mask of {self.grid}x{self.grid} cells on the teacher's grid of "
                f"{self.grid_t}x{self.grid_t}: take one that is a multiple, or positions=all with teacher_view=full."
            )
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))  # batches, effective entries, filled entries
        if config.w_sim:
            self.embed = embedding_head(student.final[0], width_t, config.head_layers)
            self.queue = EmbeddingQueue(config.queue_size, width_t)
            if config.queue_content == "dual":
                self.queue_s = EmbeddingQueue(config.queue_size, width_t)
        if config.w_feat:
            self._build_decoder(student, width_t)

    def _build_decoder(self, student: TapInfo, width_t: int) -> None:
        config = self.config
        hidden = self.grid**2 - visible_cells("hgkd", self.grid, config.mask_ratio, whole=True)
        if config.positions == "masked" and not hidden:
            raise Refused(
                f"positions=masked compares hidden positions, of which mask_ratio {config.mask_ratio} leaves none."
            )
        self.decoder: UNetDecoder | None = None
        self.scale_heads = nn.ModuleList()
        if config.decoder == "none":
            self.head = nn.Conv2d(student.final[0], width_t, 1)
        else:
            sides = [shape[1] for shape in stage_shapes(student).values()]
            side = max(sides) if config.decoder == "unet" else 2 * min(sides)
            if side % self.grid_t:
                raise Refused(
                    f"The decoder ends at {side}x{side} and the teacher's grid is {self.grid_t}x{self.grid_t}, which "
                    f"no whole stride bridges: take another student, teacher or image size, or decoder=none."
                )
            self.decoder = UNetDecoder(stage_shapes(student), config.width, side, masked=config.conv == "sparse")
            stride = side // self.grid_t
            self.head = nn.Conv2d(self.decoder.widths[-1], width_t, stride, stride)
            if config.multi_scale:
                self.scale_heads.extend(nn.Conv2d(width, width_t, 1) for width in self.decoder.widths)
        self.head.apply(as_spark)
        self.scale_heads.apply(as_spark)

    @classmethod
    def needs(cls, config: HGKDConfig) -> Needs:
        """All stages for a decoder; the teacher, unless the method itself shows it the visible cells."""
        stages = Want(stages=(1, 2, 3, 4)) if config.w_feat and config.decoder != "none" else Want()
        teachers = {"teacher": Want()} if config.teacher_view == "full" else {}
        return Needs(student=stages, teachers=teachers, index=config.exclude_self and config.w_sim > 0)

    @classmethod
    def refuse(
        cls, config: HGKDConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """A student that takes no mask, no teacher, or one that cannot see as `teacher_view` asks."""
        if reason := refuse_student("hgkd", "shows its student part of an image", student, "visible", "backend"):
            return reason
        if reason := refuse_conv("hgkd", config, student):
            return reason
        if config.teacher_view == "mim":
            return MIM
        if "teacher" not in teachers:
            return ALONE
        if config.teacher_view == "visible" and not accepts(teachers["teacher"].family, "visible"):
            return (
                f"teacher_view=visible needs a teacher that takes a mask, and a {teachers['teacher'].family} does not."
            )
        return None

    def prepare(self, samples: Samples) -> None:
        """Check that the queue is not larger than the data.

        Raises:
            Refused: it is.
        """
        if self.config.w_sim and self.config.queue_size > len(samples.labels):
            raise Refused(
                f"A queue of {self.config.queue_size} embeddings is larger than the {len(samples.labels)} training "
                f"images that fill it: set queue_size to at most {len(samples.labels)}."
            )

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Masks of the batch, drawn here, and how they are computed with."""
        return mask_batch(batch, self.grid, self.config.mask_ratio, self.config)

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The weighted terms; in training mode the batch's embeddings enter the queue."""
        if self.config.teacher_view == "visible":
            taps_t = {"teacher": self.teachers["teacher"](batch.x, Want(), visible=batch.extra["visible"])}
        map_t = exact(taps_t["teacher"].final.detach())
        losses = {}
        if self.config.w_sim:
            losses["sim"] = self.config.w_sim * self.similarity(batch, taps_s.final, map_t, mask_of(batch))
        if self.config.w_feat:
            feat, scales = self.features(taps_s, map_t, batch.extra["visible"])
            losses["feat"] = self.config.w_feat * feat
            if scales is not None:
                losses["feat_scales"] = self.config.w_feat * scales
        return losses

    def similarity(
        self,
        batch: Batch,
        map_s: Float[Tensor, "B C H W"],
        map_t: Float[Tensor, "B D h w"],
        visible: Bool[Tensor, "B 1 g g"],
    ) -> Float[Tensor, ""]:
        """L_sim, in single precision; zero while the queue is empty.

        Args:
            batch: tells which samples these are.
            map_s: the student's last map, sparse or not.
            map_t: the teacher's features.
            visible: the masks.
        """
        config = self.config
        active_s = mask_at(visible, (map_s.shape[2], map_s.shape[3])) if config.conv == "sparse" else None
        active_t = mask_at(visible, (self.grid_t, self.grid_t)) if config.teacher_view == "visible" else None
        with torch.autocast(map_s.device.type, enabled=False):
            z_s = F.normalize(self.embed(active_mean(exact(map_s), active_s)), dim=1, eps=SHORTEST)
            z_t = F.normalize(active_mean(map_t, active_t), dim=1, eps=SHORTEST)
            if self.training and config.queue_update == "before":
                self._enqueue(z_s, z_t, batch)
            loss = self._similarity(z_s, z_t, batch)
            if self.training and config.queue_update == "after":
                self._enqueue(z_s, z_t, batch)
        return loss

    def _enqueue(self, z_s: Tensor, z_t: Tensor, batch: Batch) -> None:
        self.queue.enqueue(z_t, batch.index)
        if self.config.queue_content == "dual":
            self.queue_s.enqueue(z_s, batch.index)

    def _similarity(self, z_s: Tensor, z_t: Tensor, batch: Batch) -> Tensor:
        config = self.config
        if config.exclude_self and batch.index is None:
            raise UserError("exclude_self needs Batch.index, the row of each sample in the training data.")
        rows, samples = self.queue.filled()
        if not len(rows):
            return 0 * z_s.sum()
        rows_s = self.queue_s.filled()[0] if config.queue_content == "dual" else rows
        if config.queue_update == "after":
            rows_s = rows_s.clone()  # the backward pass reads it when the queue has moved on
        sims_s, sims_t = z_s @ rows_s.T, z_t @ rows.T
        # In evaluation mode the index is of another split.
        keep = samples != batch.index[:, None] if config.exclude_self and self.training else None
        if self.training:
            with torch.no_grad():
                entries = effective_entries(distribution(sims_t, tau=config.tau, keep=keep)).mean()
                self.sums += torch.stack([torch.ones_like(entries), entries, self.queue.fill.to(entries)])
        return similarity_loss(sims_s, sims_t, tau=config.tau, space=config.sim_space, keep=keep)

    def features(
        self, taps_s: Taps, map_t: Float[Tensor, "B D h w"], visible: Bool[Tensor, "B 1 g g"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
        """L_feat at the decoder's end, and its mean over the heads of all blocks if there are such."""
        predicted = self.predict(taps_s, visible)
        pairs = list(zip(predicted, self.targets(map_t, predicted), strict=True))
        shown = sent(visible, map_t.device)
        losses = [feature_loss(exact(p), f, self.selected(shown, p.shape[-1])) for p, f in pairs]
        return losses[0], torch.stack(losses[1:]).mean() if losses[1:] else None

    def predict(self, taps_s: Taps, visible: Bool[Tensor, "B 1 g g"]) -> list[Tensor]:
        """P [B, D, h, w] on the teacher's grid; behind it, where `multi_scale`, those of all blocks, coarsest first."""
        if self.decoder is None:
            grid = (self.grid_t, self.grid_t)
            return [F.interpolate(self.head(taps_s.final), size=grid, mode="bilinear", align_corners=False)]
        maps = self.decoder(stage_maps(taps_s), visible)
        heads = zip(self.scale_heads, maps, strict=True) if self.config.multi_scale else ()
        return [self.head(maps[-1]), *(head(map_) for head, map_ in heads)]

    def targets(self, map_t: Float[Tensor, "B D h w"], predicted: list[Tensor]) -> list[Tensor]:
        """F on the grid of each prediction."""
        resized = [to_grid(map_t, (p.shape[2], p.shape[3])) for p in predicted]
        return [normalise(map_) for map_ in resized] if self.config.target == "norm" else resized

    def selected(self, visible: Bool[Tensor, "B 1 g g"], side: int) -> Bool[Tensor, "B 1 H W"] | None:
        """Positions of a grid at which features are compared; None for all."""
        if self.config.positions == "all":
            return None
        shown = mask_at(visible, (side, side))
        return shown if self.config.positions == "visible" else ~shown

    def diagnostics(self) -> dict[str, float]:
        """Means over the batches since the last call: `queue_entries`, the effective number of entries in the teacher's
        softmax (see `effective_entries`), and `queue_fill`, how many there were. Of this process's share of the batch.
        """
        batches, entries, fill = self.sums.tolist()
        self.sums.zero_()
        return {"queue_entries": entries / batches, "queue_fill": fill / batches} if batches else {}


def embedding_head(width_in: int, width_out: int, layers: int) -> nn.Sequential:
    """Linear maps with GELU between them, all but the first of the output's width."""
    widths = [width_in] + [width_out] * layers
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*modules[:-1]).apply(as_spark)
