"""Prompts of a frozen teacher: what is added to the maps in which its stages begin, and may read how far a student was
from it in the step before (feedback).

Source: PAT (ICCV 2025), "adaptive feedback prompts", and its released code. There the squeeze-and-excitation module
gives its gate alone, so that a prompt is one vector for an image (`gate`); `scale` multiplies, as such modules do.
Decided here: without a step before, or one of another size, the feedback is zero, so that every step has every
parameter in its graph; and the gates of narrow maps (`SqueezeExcite`).
Shapes: B batch, C width where a stage begins, D width of the teacher's map, H W grid where a stage begins.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.errors import Refused

GROUPS = 4  # of a prompt's first and last convolution
SQUEEZE, NARROW = 16, 96  # of a gate's hidden layer, and the width from which it is squeezed
Excite = Literal["gate", "scale"]
Shape = tuple[int, int, int]


class SqueezeExcite(nn.Module):
    """The mean over positions through two 1x1 convolutions to a gate in (0, 1) [B, C, 1, 1]; `scale`: the map times it.

    The hidden layer has C / 16 channels; below 96 channels it has C, as so few may all be silent from the first step.
    """

    def __init__(self, width: int, form: Excite) -> None:
        super().__init__()
        hidden = width // SQUEEZE if width >= NARROW else width
        self.form, self.squeeze, self.excite = form, nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, map_: Float[Tensor, "B C H W"]) -> Tensor:
        """The gate, or the gated map."""
        gate = self.excite(self.squeeze(map_.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return gate if self.form == "gate" else gate * map_


class LastStep(nn.Module):
    """A tensor of the step before, or nothing.

    It is part of the state, as what PyTorch calls extra state, because its shape is known from the first step only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor = torch.empty(0)

    def get_extra_state(self) -> Tensor:
        return self.value

    def set_extra_state(self, state: Tensor) -> None:
        self.value = state.clone()


class Prompt(nn.Module):
    """x + beta p(x), or with feedback f x + beta p(q([x, r(f)])); beta is 0 at the start.

    p is a 1x1, a depthwise 5x5 and a 1x1 convolution, the gate, and a 1x1 one, the outer two in groups; q the same
    without groups; r brings the teacher's width to that of x, after a batch norm.

    Args:
        shape: (C, H, W) of x, the map in which the stage begins.
        shape_t: (D, H, W) of the stage's map, whose difference from the student's is the feedback.
        excite: what `SqueezeExcite` gives.
        feedback: whether there is one.

    Raises:
        Refused: a width that 4 does not divide.
    """

    def __init__(self, shape: Shape, shape_t: Shape, excite: Excite, *, feedback: bool) -> None:
        super().__init__()
        width = shape[0]
        if width % GROUPS:
            raise Refused(
                f"A prompt convolves in {GROUPS} groups, and a stage of the teacher begins with {width} channels: "
                f"leave that stage out of afp_stages."
            )
        self.grid, self.shape_t = shape[1:], shape_t
        self.beta = nn.Parameter(torch.zeros(()))
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=GROUPS),
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.Conv2d(width, width, 1),
            SqueezeExcite(width, excite),
            nn.Conv2d(width, width, 1, groups=GROUPS),
        )
        self.last: LastStep | None = None
        if not feedback:
            return
        self.last = LastStep()
        self.fit = (
            nn.Identity()
            if shape == shape_t
            else nn.Sequential(nn.BatchNorm2d(shape_t[0]), nn.Conv2d(shape_t[0], width, 1))
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 5, padding=2),
            nn.Conv2d(width, width, 1),
            SqueezeExcite(width, excite),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The prompted map."""
        if self.last is None:
            return x + self.beta * self.layers(x)
        error = self.last.value.to(x)
        if error.shape != (len(x), *self.shape_t):
            error = x.new_zeros(len(x), *self.shape_t)
        error = error if error.shape[2:] == self.grid else F.interpolate(error, self.grid)
        return x + self.beta * self.layers(self.fuse(torch.cat([x, self.fit(error)], dim=1)))

    def remember(self, error: Float[Tensor, "B D H W"]) -> None:
        """Keep how far the student's map was from the teacher's, for the next step."""
        if self.last is not None:
            self.last.value = error.detach().clone(memory_format=torch.contiguous_format)
