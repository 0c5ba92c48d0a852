"""ResMLP: Touvron et al. 2021, arXiv:2105.03404, which timm builds by its Mixer class."""

from functools import partial
from typing import Any

from timm.models.mlp_mixer import Affine, ResBlock

from hkd.models.families.mixer import MixerFamily


class ResMLPFamily(MixerFamily):
    """Key of its own in `ModelCard.kwargs`, for cards whose `arch` is the class.

    layer_scale: initial value of the residual branches' scale (1e-4 in timm's models).
    """

    name = "resmlp"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        if ":" in arch:
            block = partial(ResBlock, init_values=kwargs.pop("layer_scale", 1e-4))
            kwargs |= {"block_layer": block, "norm_layer": Affine, "mlp_ratio": 4}
        return super().construct(arch, kwargs)
