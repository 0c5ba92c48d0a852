"""Names of other code bases under those of timm: OpenMMLab's classifiers (mmcls: ScaleKD) and OFA-KD's MobileNet-V1.

A checkpoint of ScaleKD's training holds `student.`, `teacher.` and `distill_losses.`; what is wanted is the student.
Only names change, and for Swin the order of the four neighbours that down-sampling joins: OpenMMLab takes them with
`nn.Unfold` (channel outermost, row by row), timm concatenates (even, even), (odd, even), (even, odd), (odd, odd) rows
and columns, each with all channels. Whether every name and shape then fits is for the reader to see to.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Rule = tuple[str, str]  # a pattern that a whole name matches, and what takes its place


def two_layers(old: str, new: str, leaf: int) -> tuple[Rule, Rule]:
    """Rules of a perceptron's two layers; its tensors are group `leaf` of the pattern."""
    return (
        (rf"backbone\.{old}\.layers\.0\.0\.(\w+)", rf"{new}.fc1.\{leaf}"),
        (rf"backbone\.{old}\.layers\.1\.(\w+)", rf"{new}.fc2.\{leaf}"),
    )


DROPPED = ("data_preprocessor.",)
HEAD: tuple[Rule, ...] = ((r"head\.(?:layers\.head|fc)\.(\w+)", r"@head.\1"),)  # timm's name of it is the model's
VIT: tuple[Rule, ...] = (
    (r"backbone\.(cls_token|pos_embed)", r"\1"),
    (r"backbone\.patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"backbone\.layers\.(\d+)\.ln([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"backbone\.layers\.(\d+)\.attn\.(.+)", r"blocks.\1.attn.\2"),
    *two_layers(r"layers\.(\d+)\.ffn", r"blocks.\1.mlp", 2),
    (r"backbone\.(?:ln1|norm1?)\.(\w+)", r"norm.\1"),
)
MIXER: tuple[Rule, ...] = (
    (r"backbone\.patch_embed\.projection\.(\w+)", r"stem.proj.\1"),
    (r"backbone\.layers\.(\d+)\.ln([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    *two_layers(r"layers\.(\d+)\.token_mix", r"blocks.\1.mlp_tokens", 2),
    *two_layers(r"layers\.(\d+)\.channel_mix", r"blocks.\1.mlp_channels", 2),
    (r"backbone\.ln1\.(\w+)", r"norm.\1"),
)
SWIN: tuple[Rule, ...] = (
    (r"backbone\.patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.(.+)", r"layers.\1.blocks.\2.attn.\3"),
    *two_layers(r"stages\.(\d+)\.blocks\.(\d+)\.ffn", r"layers.\1.blocks.\2.mlp", 3),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.(norm[12]\..+)", r"layers.\1.blocks.\2.\3"),
    (r"backbone\.stages\.(\d+)\.downsample\.(.+)", r"@layers.\1.downsample.\2"),  # of the next stage in timm
    (r"backbone\.norm3\.(\w+)", r"norm.\1"),
)
CONVNEXT: tuple[Rule, ...] = (  # under its authors' names, which timm's own filter takes
    (r"head\.fc\.(\w+)", r"head.\1"),
    (r"backbone\.(stages\.\d+\.\d+\.)depthwise_conv\.(\w+)", r"\1dwconv.\2"),
    (r"backbone\.(stages\.\d+\.\d+\.)pointwise_conv([12])\.(\w+)", r"\1pwconv\2.\3"),
    (r"backbone\.norm3\.(\w+)", r"norm.\1"),
    (r"backbone\.((?:stages|downsample_layers)\..+)", r"\1"),
)
MOBILENET_V2: tuple[Rule, ...] = (
    (r"backbone\.conv1\.conv\.(\w+)", r"conv_stem.\1"),
    (r"backbone\.conv1\.bn\.(\w+)", r"bn1.\1"),
    (r"backbone\.conv2\.conv\.(\w+)", r"conv_head.\1"),
    (r"backbone\.conv2\.bn\.(\w+)", r"bn2.\1"),
    (r"backbone\.layer1\.0\.conv\.0\.conv\.(\w+)", r"blocks.0.0.conv_dw.\1"),
    (r"backbone\.layer1\.0\.conv\.0\.bn\.(\w+)", r"blocks.0.0.bn1.\1"),
    (r"backbone\.layer1\.0\.conv\.1\.conv\.(\w+)", r"blocks.0.0.conv_pw.\1"),
    (r"backbone\.layer1\.0\.conv\.1\.bn\.(\w+)", r"blocks.0.0.bn2.\1"),
    *(
        rule
        for layer in range(2, 8)
        for part, name in enumerate(("conv_pw", "conv_dw", "conv_pwl"))
        for rule in (
            (rf"backbone\.layer{layer}\.(\d+)\.conv\.{part}\.conv\.(\w+)", rf"blocks.{layer - 1}.\1.{name}.\2"),
            (rf"backbone\.layer{layer}\.(\d+)\.conv\.{part}\.bn\.(\w+)", rf"blocks.{layer - 1}.\1.bn{part + 1}.\2"),
        )
    ),
)
RESNET: tuple[Rule, ...] = ((r"backbone\.((?:conv1|bn1|layer[1-4])\..+)", r"\1"),)
# What tells them apart, in this order: a name that only files of this kind have.
KINDS: tuple[tuple[str, str, tuple[Rule, ...]], ...] = (
    ("Swin", r"backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.", SWIN),
    ("MLP-Mixer", r"backbone\.layers\.0\.token_mix\.", MIXER),
    ("ViT", r"backbone\.layers\.0\.attn\.qkv\.", VIT),
    ("ConvNeXt", r"backbone\.stages\.0\.0\.depthwise_conv\.", CONVNEXT),
    ("MobileNet-V2", r"backbone\.layer1\.0\.conv\.0\.conv\.", MOBILENET_V2),
    ("ResNet", r"backbone\.layer1\.0\.conv1\.", RESNET),
)
# timm groups OFA-KD's thirteen blocks in five stages.
OFA_BLOCKS = [(stage, block) for stage, blocks in enumerate((1, 2, 2, 6, 2)) for block in range(blocks)]
OFA_PARTS = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}
NEIGHBOURS = (0, 2, 1, 3)  # of timm's four, their places row by row


@dataclass(frozen=True)
class Renamed:
    """Weights by the names of timm. told: what was done, as sentences; nothing where the names are as they were."""

    state: dict[str, Tensor]
    told: tuple[str, ...] = ()


def renamed(state: Mapping[str, Tensor], head: str = "head") -> Renamed:
    """Weights of other code bases under the names of timm; all others as they are.

    Args:
        state: by name, without `module.`.
        head: timm's name of the model's classifier.
    """
    told = []
    found = dict(state)
    if any(name.startswith("student.") for name in found):
        left = Counter(name.partition(".")[0] for name in found if not name.startswith("student."))
        found = {name.removeprefix("student."): value for name, value in found.items() if name.startswith("student.")}
        others = ", ".join(f"{name} ({count} tensors)" for name, count in left.items())
        told.append(
            "The file is of a distillation: `student.` is taken" + (f", and left are {others}." if left else ".")
        )
    found = {name: value for name, value in found.items() if not name.startswith(DROPPED)}
    for kind, mark, rules in KINDS:
        if any(re.match(mark, name) for name in found):
            told.append(f"The names are OpenMMLab's of a {kind}, and were made timm's.")
            found = {by_rules(name, (*rules, *HEAD)).replace("@head", head): value for name, value in found.items()}
            if kind == "Swin":
                told.append("Of Swin's down-sampling the four neighbours were put into timm's order.")
                found = dict(down_sampled(name, value) for name, value in found.items())
            return Renamed(found, tuple(told))
    if "model.0.0.weight" in found and "model.13.3.weight" in found:
        told.append("The names are those of OFA-KD's MobileNet-V1, and were made timm's.")
        found = {ofa_name(name, head): value for name, value in found.items()}
    return Renamed(found, tuple(told))


def by_rules(name: str, rules: Sequence[Rule]) -> str:
    """A name by the first rule that matches all of it; as it was where none does."""
    for pattern, new in rules:
        if found := re.fullmatch(pattern, name):
            return found.expand(new)
    return name


def down_sampled(name: str, value: Tensor) -> tuple[str, Tensor]:
    """A tensor of Swin's down-sampling, [..., 4 D] over the joined neighbours, as timm has it; others as they are."""
    found = re.fullmatch(r"@layers\.(\d+)\.(downsample\..+)", name)
    if found is None:
        return name, value
    apart = value.unflatten(-1, (-1, 4))  # [..., D, 4]: channel outermost
    return f"layers.{int(found[1]) + 1}.{found[2]}", apart[..., list(NEIGHBOURS)].transpose(-1, -2).flatten(-2)


def ofa_name(name: str, head: str) -> str:
    """A name of OFA-KD's MobileNet-V1 as timm has it."""
    if found := re.fullmatch(r"model\.0\.([01])\.(\w+)", name):
        return f"{('conv_stem', 'bn1')[int(found[1])]}.{found[2]}"
    found = re.fullmatch(r"model\.(\d+)\.([0134])\.(\w+)", name)
    if found and 1 <= int(found[1]) <= len(OFA_BLOCKS):
        stage, block = OFA_BLOCKS[int(found[1]) - 1]
        return f"blocks.{stage}.{block}.{OFA_PARTS[found[2]]}.{found[3]}"
    return re.sub(r"^fc\.", f"{head}.", name)
