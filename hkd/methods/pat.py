r"""PAT: the student's view is brought to the teacher's by attention among its regions, and the teacher's to the student
by prompts.

Source: Lin et al. 2025 (ICCV), "Perspective-Aware Teaching", and its released code, whose weights these are. Parts:
region-aware attention with aligners (`hkd.methods.parts.region_attention`) and adaptive feedback prompts
(`hkd.methods.parts.prompts`). With A_i the aligned student, F_i the maps of a second pass of the teacher with prompts
at the entry of its stages, z_T the logits of its plain pass and z_P those of the prompted one:

.. math:: L = L_{task} + KL(z_T || z_S) + \sum_i HCL(A_i, F_i) + KL(z_T || z_P)

F_i is not detached: the prompts learn from it, through the frozen teacher. The plain pass alone can be cached.
Deviations: from the released code, each with an option that takes its way: positions by token (`positions`), and the
order of a token teacher's tokens is kept (`token_order`). Prefix tokens pass the prompts by; there the last patch is
taken for the class token. The teacher stays in evaluation mode; there its first batch of an epoch is in training mode.
Shapes: B batch, C classes, D width, H W grid.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.kd import kd_loss
from hkd.methods.parts.hierarchical_context import hierarchical_context_loss
from hkd.methods.parts.logits import exact, same_classes
from hkd.methods.parts.pairs import several_images, with_positions
from hkd.methods.parts.prompts import Prompt
from hkd.methods.parts.region_attention import MapAligner, RegionAttention, TokenAligner
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import Few, NotNegative, Size, Stages, options, together

STAGES = (1, 2, 3, 4)


@options
class PATConfig:
    """Options.

    afp_stages: teacher stages with a prompt; none: the teacher is not prompted, and its plain maps are the targets.
    width, heads: of the attention.
    positions: what queries and keys have: sinusoids by token; by the sample's place in the batch (as released); none.
    token_order: `kept`; `released` mixes tokens with channels before every prompted stage of a token teacher.
    excite: what the prompts' gates give: `gate` themselves (as released), `scale` the map times the gate.
    feedback: whether prompts read how far the student was from the teacher in the step before.
    w_task, w_kd, w_feat, w_reg: weights of the terms.
    """

    afp_stages: Stages = STAGES
    width: Size = 512
    heads: Few = 8
    positions: Literal["token", "sample", "none"] = "token"
    token_order: Literal["kept", "released"] = "kept"
    excite: Literal["gate", "scale"] = "gate"
    feedback: Literal["previous", "off"] = "previous"
    w_task: NotNegative = 1.0
    w_kd: NotNegative = 1.0
    w_feat: NotNegative = 1.0
    w_reg: NotNegative = 1.0

    @together
    def _attention(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be divisible by twice heads, got {self.width} and {self.heads}")


class PAT(Method):
    """`task`, `kd`, `feat` (all stages) and `reg` (the prompted teacher's logits against the plain one's).

    Own parameters: the attention, an aligner per stage, and a prompt per stage of `afp_stages`.
    """

    Config = PATConfig
    teachers: dict[str, Teacher]

    def __init__(
        self, config: PATConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build all modules.

        Raises:
            Refused: a teacher with other classes, or of a family that does not say where its stages begin; a stage
                without positions; or a width that a prompt cannot convolve.
        """
        super().__init__(config, student, teachers, criterion)
        teacher = teachers["teacher"]
        same_classes("pat", student, teacher.info)
        with_positions("pat", STAGES, student=student, teacher=teacher.info)
        shapes = {stage: student.stages[stage] for stage in STAGES}
        self.attention = RegionAttention(shapes, config.width, config.heads, config.positions)
        aligner = MapAligner if teacher.family.block_layout == "NCHW" else TokenAligner
        self.aligners = nn.ModuleDict(
            {str(stage): aligner(config.width, teacher.info.stages[stage]) for stage in STAGES}
        )
        self.prompts = nn.ModuleDict()
        entries = teacher.entry_shapes() if config.afp_stages else {}
        for stage in sorted(config.afp_stages):
            shape_t = teacher.info.stages[stage]
            self.prompts[str(stage)] = Prompt(
                entries[stage], shape_t, config.excite, feedback=config.feedback == "previous"
            )
        self.single = any(shape[1:] == (1, 1) for shape in teacher.info.stages.values())

    @classmethod
    def needs(cls, config: PATConfig) -> Needs:
        """All stages of the student; of the plain teacher the logits, and its stages where there are no prompts."""
        return Needs(
            student=Want(stages=STAGES), teachers={"teacher": Want() if config.afp_stages else Want(stages=STAGES)}
        )

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """All weighted terms.

        Raises:
            UserError: training on one image where a map has one position, over which no batch norm has a variance.
        """
        config, plain = self.config, taps_t["teacher"]
        if self.single and self.training:
            several_images("pat", len(batch))
        losses = {
            "task": config.w_task * self.task_loss(taps_s.logits, batch.y),
            "kd": config.w_kd * kd_loss(taps_s.logits, plain.logits, tau=1.0),
        }
        regions = self.attention({stage: taps_s.stages[stage] for stage in STAGES})
        aligned = {stage: self.aligners[str(stage)](tokens) for stage, tokens in regions.items()}
        targets, prompts = plain.stages, dict[str, Any](self.prompts.items())
        if prompts:
            prompted = self.teachers["teacher"].prompted(
                batch.x,
                {int(stage): prompt for stage, prompt in prompts.items()},
                Want(stages=STAGES),
                mixed=config.token_order == "released",
            )
            targets = prompted.stages
            losses["reg"] = config.w_reg * kd_loss(prompted.logits, plain.logits, tau=1.0)
            if self.training:
                for stage, prompt in prompts.items():
                    prompt.remember(exact(aligned[int(stage)]) - exact(targets[int(stage)]))
        distances = [hierarchical_context_loss(map_s, targets[stage]) for stage, map_s in aligned.items()]
        losses["feat"] = config.w_feat * sum(distances)
        return losses
