r"""Multi-level logit distillation (MLKD, also MLLD): predictions agree for each sample, within the batch and among
classes, at five temperatures and on two views of each image.

Source: Jin et al. 2023 (CVPR), "Multi-level logit distillation", and its released code, which differs from what it
seems to mean (`form`). With P = softmax(z / T) [B, C], T in (tau, 3, 5, 2, 6), KL_T as KD has it with T^2, `a` the
share of samples of which the teacher is no surer than of the median one, `c` that of classes it expects no more often:

.. math::
    kd &= \sum_T a KL_T(weak) + \sum_{\tau,3,5} KL_T(strong) + \sum_{2,6} KL_T(weak) \\
    cls &= c \sum_T ||P_t^T P_t - P_s^T P_s||^2 / C, \quad bat = a \sum_T ||P_t P_t^T - P_s P_s^T||^2 / B

`cls` and `bat` are of the weak view. `intended` takes what the masks were for: samples and classes below the median
alone count on the weak view (sums over them still divided by B or C), all temperatures are compared on the strong view,
and its `cls` and `bat` are added, without masks.
Deviations: the strong view is drawn from the recipe's view as `parts.views` says, where the code has RandAugment.
Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.kd import kd_loss
from hkd.methods.parts.logits import exact, same_classes
from hkd.methods.parts.views import ViewConfig, augmented
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, Rising, ShareAbove0, options

Form = Literal["released", "intended"]
OTHERS = (3.0, 5.0, 2.0, 6.0)  # temperatures beside tau
WRONG_VIEW = 3  # from here on the released code compares the weak view for the strong one
Logits = Float[Tensor, "B C"]


@options
class MLKDConfig(ViewConfig):
    """Options; those of `ViewConfig` draw the strong view.

    tau: first of the five temperatures. form: `released` or `intended`.
    views: 2: the student and the teacher see a strong view too, in a second pass of each; 1: the recipe's view is both.
    w_task: of the task losses of both views. w_kd, w_cls, w_bat: of the terms.
    """

    crop: Annotated[tuple[ShareAbove0, ShareAbove0], Rising] = (0.5, 1.0)
    tau: Positive = 4.0
    form: Form = "released"
    views: Literal[2, 1] = 2
    w_task: NotNegative = 0.1
    w_kd: NotNegative = 0.9
    w_cls: NotNegative = 0.9
    w_bat: NotNegative = 0.9


def not_above_median(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 where a value is at most the median (the mean of the middle two of an even number), else 0."""
    return (values <= values.quantile(0.5)).to(values.dtype)


def gram_distances(p_s: Float[Tensor, "N M"], p_t: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """Squared differences of the rows' inner products with all rows, summed for each row and divided by N."""
    return (p_t @ p_t.T - p_s @ p_s.T).square().sum(dim=1) / len(p_s)


def sample_divergences(logits_s: Logits, logits_t: Logits, *, tau: float) -> Float[Tensor, " B"]:
    """`kd_loss` of every sample, divided by B: its terms."""
    log_p_s, log_p_t = (F.log_softmax(logits / tau, dim=1) for logits in (logits_s, logits_t))
    return tau**2 * F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=1) / len(logits_s)


def mlkd_losses(
    weak_s: Logits, weak_t: Logits, strong_s: Logits, strong_t: Logits, *, tau: float, form: Form
) -> dict[str, Float[Tensor, ""]]:
    """`kd`, `cls` and `bat` of the equations above.

    Args:
        weak_s, strong_s: the student's logits of both views; gradients flow.
        weak_t, strong_t: the teacher's; detached here.
        tau: first temperature, > 0.
        form: `released` or `intended`.

    Returns:
        Scalars, unweighted.
    """
    # Inner products of probabilities are no matter for 16 bits, which autocast would take for them.
    with torch.autocast(weak_s.device.type, enabled=False):
        weak_s, weak_t, strong_s, strong_t = map(exact, (weak_s, weak_t.detach(), strong_s, strong_t.detach()))
        p = weak_t.softmax(dim=1)
        unsure, rare = not_above_median(p.amax(dim=1)), not_above_median(p.sum(dim=0))
        if form == "released":  # masks of numbers that are sums already are factors
            unsure, rare = unsure.mean().expand_as(unsure), rare.mean().expand_as(rare)
        found = dict.fromkeys(("kd", "cls", "bat"), weak_s.new_zeros(()))
        for place, temperature in enumerate((tau, *OTHERS)):
            swapped = form == "released" and place >= WRONG_VIEW
            second = (weak_s, weak_t) if swapped else (strong_s, strong_t)
            kd = (unsure * sample_divergences(weak_s, weak_t, tau=temperature)).sum()
            found["kd"] = found["kd"] + kd + kd_loss(*second, tau=temperature)
            p_s, p_t = ((logits / temperature).softmax(dim=1) for logits in (weak_s, weak_t))
            found["cls"] = found["cls"] + (rare * gram_distances(p_s.T, p_t.T)).sum()
            found["bat"] = found["bat"] + (unsure * gram_distances(p_s, p_t)).sum()
            if form == "intended":
                p_s, p_t = ((logits / temperature).softmax(dim=1) for logits in (strong_s, strong_t))
                found["cls"] = found["cls"] + gram_distances(p_s.T, p_t.T).sum()
                found["bat"] = found["bat"] + gram_distances(p_s, p_t).sum()
        return found


class MLKD(Method):
    """`task`, `kd`, `cls` and `bat`. No parameters of its own; serves every pair with the same classes."""

    Config = MLKDConfig
    teachers: dict[str, Teacher]

    def __init__(
        self, config: MLKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a teacher with other classes."""
        super().__init__(config, student, teachers, criterion)
        same_classes("mlkd", student, teachers["teacher"].info)

    @classmethod
    def needs(cls, config: MLKDConfig) -> Needs:
        """The teacher's logits."""
        return Needs(teachers={"teacher": Want()})

    def second_view(self, batch: Batch) -> Float[Tensor, "B 3 H W"] | None:
        """The strong view."""
        if self.config.views == 1:
            return None
        batch.extra["strong"] = augmented(batch.x, self.config)
        return batch.extra["strong"]

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """All weighted terms; with one view the task loss counts twice, as with two equal ones."""
        config = self.config
        weak_s, weak_t = strong_s, strong_t = taps_s.logits, taps_t["teacher"].logits
        if taps_s.second is not None:
            strong_s = taps_s.second.logits
            strong_t = self.teachers["teacher"](batch.extra["strong"]).logits
        task = self.task_loss(weak_s, batch.y) + self.task_loss(strong_s, batch.y)
        found = mlkd_losses(weak_s, weak_t, strong_s, strong_t, tau=config.tau, form=config.form)
        weights = {"kd": config.w_kd, "cls": config.w_cls, "bat": config.w_bat}
        return {"task": config.w_task * task, **{name: weights[name] * loss for name, loss in found.items()}}
