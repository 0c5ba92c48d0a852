r"""ScaleKD: a student of any architecture mimics a vision transformer, partly through that teacher's own last stage.

Source: arXiv:2411.06786 (NeurIPS 2024) and its official repository. Three parts: a cross attention projector (CAP, see
cross_attention.py) makes teacher-like tokens of student maps; dual-view feature mimicking (DFM, see
feature_mimicking.py) compares them with the teacher's last map as they are and without their DC component; teacher
parameter perception (TPP) sends the student's stage 3 through the teacher's frozen last stage (the tail).

For each view v, with F_T the teacher's last map after its final norm where it has one:

.. math::
    U_v = Tail(CAP_{3,v}(S_3)), \quad V_v = CAP_{4,v}(S_4, query = U_v)

    L = (1 - \alpha) L_{task} + \alpha \tau^2 CE(softmax(z_T / \tau), softmax(z_S / \tau))
        + \sum_v w_v [ d_v(U_v, F_T) + d_v(V_v, F_T) ]

Deviations: the teacher stays in evaluation mode (the released code probably did not keep it there), and no extra norms
are put on the taps of a Swin student. `ScaleKDConfig` has options for what the sources leave open.
Shapes: B batch, C classes, D width, H W grid, N = H * W teacher positions.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.cross_attention import ConvolutionProjector, CrossAttentionProjector
from hkd.methods.parts.feature_mimicking import mimic_loss
from hkd.methods.parts.logits import exact
from hkd.models import FAMILIES
from hkd.models.families.base import Tail, accepting, accepts
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want, to_tokens
from hkd.options import Different, Few, NotNegative, Positive, Share, Switch, Whole, options, together
from hkd.spec import ModelCard, Recipe


@options
class ScaleKDConfig:
    """Every switch of the paper's tables; the defaults are its full method. With `stages=()` and `kd=False` nothing is
    left but the task loss.

    stages: student stages that mimic the teacher. `s3` reaches F_T only through the tail, so it needs `tpp`; without
        `s3`, `tpp` has no effect.
    projector: `cap`; `cap_no_pos` without the map of positions; or a convolution on the map resized to the teacher's
        grid, which has no query (`tpp=full` then means `mimic_only`).
    dfm: which projectors there are and what each is compared in. With (o, a) the two weights of a stage:
        `full` one per view, o on the original and a on the alternative (DC-free); `orig_only` and `alt_only` one
        projector whose view takes the whole o + a (beta 1 and beta 0); `two_orig` two projectors, o and a, both
        compared in the original view (same cost as `full`); `off` one projector in the original view with o, the
        loss of FD.
    tpp: `full` U mimics F_T and is the query of stage 4; `mimic_only` U mimics, stage 4 learns its queries;
        `query_only` U is the query and has no loss of its own; `off` no tail: stage 3 is not used at all.
        The paper's "+CAP" row is `stages=(s4,), dfm=off, tpp=off`.
    kd, alpha, tau: logit distillation with weight alpha, which takes it from the task loss only; off: task weight 1.
    heads_*, scale_*, norm: of the projectors: attention heads (must divide the width there: the tail's for s3, the
        teacher's for s4), factor on the softmax scale, norm after the 3x3 convolution.
    w_orig, w_alt: weights o and a; None: 4 and 3 divided by the teacher's positions (.0816 and .0612 on 7x7), because
        distances are summed over positions. s4_w_orig, s4_w_alt: other weights for stage 4.
    beta, lambda_: the same as o = lambda beta, a = lambda (1 - beta); one alone takes the other's default, 4/7 or
        7 / positions. Not together with w_orig or w_alt. A projector whose output nothing uses is not built.
    s4_tap: the student's last map after its final norm or before (Mixer).
    teacher_mode: `train` wakes the teacher's stochastic depth, in its forward pass and in the tail.
    vit_tail: blocks in the tail of a plain transformer; None: the last 2. s4_tail: this many last blocks (and final
        norm) also follow the projector of stage 4, one reading of the repository's helper for plain transformers.

    Combinations in which a switch would do nothing are refused.
    """

    stages: Annotated[tuple[Literal["s3", "s4"], ...], Different] = ("s3", "s4")
    projector: Literal["conv1x1", "conv3x3_bn_relu", "cap_no_pos", "cap"] = "cap"
    dfm: Literal["off", "orig_only", "alt_only", "two_orig", "full"] = "full"
    tpp: Literal["off", "mimic_only", "query_only", "full"] = "full"
    kd: Switch = True
    alpha: Share = 0.5
    tau: Positive = 1.0
    heads_s3: Few = 8
    heads_s4: Few = 8
    scale_s3: Positive = 5.0
    scale_s4: Positive = 5.0
    norm: Literal["batch", "layer"] = "batch"
    w_orig: NotNegative | None = None
    w_alt: NotNegative | None = None
    s4_w_orig: NotNegative | None = None
    s4_w_alt: NotNegative | None = None
    beta: Share | None = None
    lambda_: NotNegative | None = None
    s4_tap: Literal["final", "raw"] = "final"
    teacher_mode: Literal["eval", "train"] = "eval"
    vit_tail: Few | None = None
    s4_tail: Annotated[Whole, Field(le=1024)] = 0

    @together
    def _switches(self) -> None:
        if (self.beta, self.lambda_) != (None, None) and (self.w_orig, self.w_alt) != (None, None):
            raise ValueError("beta and lambda_ set the same weights as w_orig and w_alt: give one pair")
        if "s3" in self.stages and self.tpp == "off" and "s4" not in self.stages:
            raise ValueError("stages=(s3,) with tpp=off compares nothing: stage 3 meets the teacher only in its tail")
        if self.tpp == "query_only" and "s3" in self.stages and not (self.attends and "s4" in self.stages):
            raise ValueError("tpp=query_only needs stage s4 with a cross attention projector to take the query")

    @property
    def attends(self) -> bool:
        """Whether the projectors have queries."""
        return self.projector in ("cap", "cap_no_pos")

    @property
    def tails(self) -> bool:
        """Whether anything goes through the teacher's last stage."""
        return bool(tail_views(self)) or self.s4_tail > 0


def feature_weights(config: ScaleKDConfig, positions: int) -> dict[tuple[str, str], float]:
    """Weight of every feature term that has one.

    Args:
        config: switches and weights.
        positions: H * W of F_T.

    Returns:
        {(stage, view): weight > 0}, view being `orig`, `alt`, or `orig2` for the second projector of `two_orig`.
    """
    if config.beta is None and config.lambda_ is None:
        orig = 4 / positions if config.w_orig is None else config.w_orig
        alt = 3 / positions if config.w_alt is None else config.w_alt
    else:
        beta = 4 / 7 if config.beta is None else config.beta
        total = 7 / positions if config.lambda_ is None else config.lambda_
        orig, alt = total * beta, total * (1 - beta)
    pairs = {}
    if "s3" in config.stages and config.tpp in ("mimic_only", "full"):
        pairs["s3"] = orig, alt
    if "s4" in config.stages:
        pairs["s4"] = (
            orig if config.s4_w_orig is None else config.s4_w_orig,
            alt if config.s4_w_alt is None else config.s4_w_alt,
        )
    weights: dict[tuple[str, str], float] = {}
    for stage, (o, a) in pairs.items():
        views = {
            "off": {"orig": o},
            "orig_only": {"orig": o + a},
            "alt_only": {"alt": o + a},
            "two_orig": {"orig": o, "orig2": a},
            "full": {"orig": o, "alt": a},
        }[config.dfm]
        weights |= {(stage, view): weight for view, weight in views.items() if weight > 0}
    return weights


def query_views(config: ScaleKDConfig) -> tuple[str, ...]:
    """Views in which U is the query of stage 4."""
    if "s3" not in config.stages or config.tpp not in ("query_only", "full") or not config.attends:
        return ()
    return tuple(view for stage, view in feature_weights(config, 1) if stage == "s4")


def tail_views(config: ScaleKDConfig) -> tuple[str, ...]:
    """Views in which stage 3 goes through the tail: to be compared, to be a query, or both."""
    mimicked = tuple(view for stage, view in feature_weights(config, 1) if stage == "s3")
    return tuple(dict.fromkeys(mimicked + query_views(config)))


def no_tail(teacher: ModelCard) -> str:
    """The sentence for a teacher whose last stage takes no tokens."""
    kind = f"a {teacher.family} teacher" if teacher.family in FAMILIES else "a teacher of this class"
    return (
        f"scalekd sends stage 3 through the teacher's last stage, and {kind} has none that takes tokens: take one of "
        f"the family {accepting('tail')}, or set tpp to off."
    )


def soft_cross_entropy(
    logits_s: Float[Tensor, "B C"], logits_t: Float[Tensor, "B C"], *, tau: float
) -> Float[Tensor, ""]:
    r"""Cross-entropy from teacher to student: the KL divergence plus the teacher's entropy, with the same gradient.

    .. math:: L = -\frac{\tau^2}{B} \sum_b \sum_k softmax(t_b / \tau)_k \log softmax(s_b / \tau)_k

    Args:
        logits_s: student logits [B, C]; gradients flow.
        logits_t: teacher logits [B, C]; detached here.
        tau: softmax temperature, > 0.

    Returns:
        Scalar in nats, averaged over B and summed over C.
    """
    return tau**2 * F.cross_entropy(exact(logits_s) / tau, (exact(logits_t.detach()) / tau).softmax(dim=1))


class ScaleKD(Method):
    """`task`, `kd`, and `feat_<stage>_<view>` for each pair of `feature_weights`.

    Own parameters: one projector per stage and view, never shared. The teacher needs a family with a tail when stage 3
    is used.
    """

    Config = ScaleKDConfig
    teachers: dict[str, Teacher]

    def __init__(
        self, config: ScaleKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build the projectors that this configuration uses.

        Raises:
            Refused: a teacher without a tail where one is needed, heads that do not divide the teacher's width, a
                DC-free view or attention on a 1x1 grid, or a number of tail blocks for a teacher that cannot cut its
                tail.
        """
        super().__init__(config, student, teachers, criterion)
        self.projectors = nn.ModuleDict()
        self.weights: dict[tuple[str, str], float] = {}
        self.query_views, self.tail_views = query_views(config), tail_views(config)
        if not self.needs(config).teachers:
            return
        teacher = teachers["teacher"]
        if config.tails and not accepts(teacher.card.family, "tail"):
            raise Refused(no_tail(teacher.card))
        if config.teacher_mode == "train":
            nn.Module.train(teacher)  # Teacher.train does nothing, so that no trainer wakes it by accident
        width, *grid = teacher.info.final
        self.weights = feature_weights(config, grid[0] * grid[1])
        if grid == [1, 1] and any(view == "alt" for _, view in self.weights):
            raise Refused("The teacher's last map is 1x1, so its DC-free view is zero: set dfm to orig_only or off.")
        if tail := self.tail:
            for view in self.tail_views:
                self.add_projector("s3", view, tail.in_width, tail.in_grid)
        _ = self.s4_tail  # a number of blocks that the teacher does not have is refused here
        for stage, view in self.weights:
            if stage == "s4":
                self.add_projector("s4", view, width, (grid[0], grid[1]))

    @property
    def tail(self) -> Tail | None:
        """The teacher's last stage, if stage 3 goes through it; not kept, so that a copy of this method has that of its
        own teacher."""
        return self.teachers["teacher"].tail(self.config.vit_tail) if self.tail_views else None

    @property
    def s4_tail(self) -> Tail | None:
        """The blocks that follow the projector of stage 4, if any do."""
        config = self.config
        return self.teachers["teacher"].tail(config.s4_tail) if config.s4_tail and "s4" in config.stages else None

    def add_projector(self, stage: str, view: str, out_width: int, out_grid: tuple[int, int]) -> None:
        """One projector from the student's tap of `stage` to tokens of the teacher."""
        config = self.config
        shape = self.student.final if stage == "s4" and config.s4_tap == "final" else self.student.stages[int(stage[1])]
        if shape[1:] == (1, 1) and (config.attends or view == "alt"):
            raise Refused(
                f"The student's {stage} map is 1x1, which makes all teacher-like tokens equal, whatever the queries: "
                f"take a student with a larger map, or leave {stage} out of stages."
            )
        projector: nn.Module
        if not config.attends:
            projector = ConvolutionProjector(config.projector, shape[0], out_width, out_grid)
        else:
            projector = CrossAttentionProjector(
                shape[0],
                shape[1:],
                out_width,
                None if stage == "s4" and view in self.query_views else out_grid[0] * out_grid[1],
                heads=config.heads_s3 if stage == "s3" else config.heads_s4,
                scale=config.scale_s3 if stage == "s3" else config.scale_s4,
                norm=config.norm,
                positional=config.projector == "cap",
            )
        self.projectors[f"{stage}_{view}"] = projector

    @classmethod
    def needs(cls, config: ScaleKDConfig) -> Needs:
        """Raw stage 3 if it is used, raw stage 4 if asked for; the teacher unless everything is off."""
        want = Want(stages=(3,)) if tail_views(config) else Want()
        weights = feature_weights(config, 1)
        if config.s4_tap == "raw" and any(stage == "s4" for stage, _ in weights):
            want |= Want(stages=(4,))
        return Needs(student=want, teachers={"teacher": Want()} if config.kd or weights else {})

    @classmethod
    def refuse(
        cls, config: ScaleKDConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """A teacher without a tail where one is needed; a stochastic teacher whose outputs would be cached."""
        if not cls.needs(config).teachers:
            return None
        teacher = teachers.get("teacher")
        if teacher is None:
            return "scalekd needs a teacher."
        if config.tails and not accepts(teacher.family, "tail"):
            return no_tail(teacher)
        if config.teacher_mode == "train" and recipe.views is not None:
            return "teacher_mode=train draws the teacher's depth at every step, which fixed views would freeze."
        return None

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """All weighted terms."""
        config = self.config
        task = self.task_loss(taps_s.logits, batch.y)
        losses = {"task": (1 - config.alpha) * task if config.kd else task}
        if config.kd:
            kd = soft_cross_entropy(taps_s.logits, taps_t["teacher"].logits, tau=config.tau)
            losses["kd"] = config.alpha * kd
        if self.weights:
            target = to_tokens(taps_t["teacher"].final)
            for (stage, view), tokens in self.mimics(taps_s).items():
                distance = mimic_loss(tokens, target, centred=view == "alt")
                losses[f"feat_{stage}_{view}"] = self.weights[stage, view] * distance
        return losses

    def mimics(self, taps_s: Taps) -> dict[tuple[str, str], Float[Tensor, "B N D"]]:
        """What is compared with F_T: U under (`s3`, view) and V under (`s4`, view), as tokens."""
        proxies = self.proxies(taps_s)
        found = {("s3", view): tokens for view, tokens in proxies.items() if ("s3", view) in self.weights}
        map_s = taps_s.final if self.config.s4_tap == "final" else taps_s.stages.get(4)
        for view in (view for stage, view in self.weights if stage == "s4"):
            projector = self.projectors[f"s4_{view}"]
            tokens = projector(map_s, proxies[view]) if view in self.query_views else projector(map_s)
            found["s4", view] = tokens if self.s4_tail is None else to_tokens(self.s4_tail(tokens))
        return found

    def proxies(self, taps_s: Taps) -> dict[str, Float[Tensor, "B N D"]]:
        """U by view: stage 3 through its projectors and the teacher's tail, which sees all views as one batch."""
        if self.tail is None:
            return {}
        tokens = torch.cat([self.projectors[f"s3_{view}"](taps_s.stages[3]) for view in self.tail_views])
        proxies = to_tokens(self.tail(tokens)).chunk(len(self.tail_views))
        return dict(zip(self.tail_views, proxies, strict=True))
