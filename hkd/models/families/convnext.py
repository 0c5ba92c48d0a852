"""ConvNeXt: Liu et al. 2022, arXiv:2201.03545."""

from hkd.models.families.base import Family


class ConvNeXtFamily(Family):
    """A CNN to the taps; `final` is normed where the card sets `head_norm_first`, else timm norms after pooling."""

    name = "convnext"
    timm_files = ("convnext",)
