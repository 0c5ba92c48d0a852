"""Which methods serve which timm architectures: one member of every file of `timm.models`, as student and as teacher.

`python -m tests.hkd.families` surveys all of them and writes docs/families.md; `test_families.py` does the same and
compares. Members are the smallest of their file, without weights, at the smallest image size at which they run; where
the smallest is large, a shallow and narrow one of the same class stands for it, and its arguments are shown.
"""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _registry
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import hkd
from hkd.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
METHODS = ("kd", "fitnet", "ofa", "hcd", "scalekd", "crd")
ROLES = ("student", "teacher")
EVERYWHERE = ("kd", "fitnet", "hcd", "crd")  # what nine of ten families serve in both roles
BROKEN = "broken:"  # how the sentence of what is no refusal begins
CLASSES = 10
SIDES = (64, 96, 128, 192, 224, 256)  # px
TINY = {"embed_dim": 96, "depth": 4, "num_heads": 3}
# Of every file of timm.models its smallest model.
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", TINY),
    "byoanet": ("eca_botnext26ts_256", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"depth": 4}),
    "coat": ("coat_lite_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cspresnet50", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", TINY),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", {}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", TINY),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hieradet_sam2": ("hieradet_small", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}),
    "inception_v3": ("inception_v3", {}),
    "inception_v4": ("inception_v4", {}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("coatnet_pico_rw_224", {}),
    "metaformer": ("poolformer_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv5": ("mobilenetv5_base", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", TINY),
    "nasnet": ("nasnetalarge", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", TINY),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m0_9", {}),
    "res2net": ("res2net50_48w_2s", {}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnetr_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {}),
    "vgg": ("vgg11", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", TINY),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("xception", {}),
    "xception_aligned": ("xception41", {}),
    "xcit": ("xcit_nano_12_p16_224", {}),
}


@dataclass(frozen=True)
class Row:
    """What was seen of a family. cells: by role and method, the sentence of a refusal; empty where it trained."""

    family: str
    model: str
    side: int
    cells: dict[tuple[str, str], str]

    @property
    def serves(self) -> bool:
        """Whether it trains by the methods of `EVERYWHERE` in both roles."""
        return not any(self.cells[role, method] for role in ROLES for method in EVERYWHERE)


class NotTrainedError(AssertionError):
    """A step that neither trained nor was refused."""


def architectures() -> list[str]:
    """Names of the files of `timm.models` that have models."""
    return sorted(_registry._module_to_models)


def member(family: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a family's smallest model; of a file that is not listed, found by counting."""
    if family in MEMBERS:
        return MEMBERS[family]
    sizes = {}
    for name in sorted(_registry._module_to_models[family]):
        with torch.device("meta"):
            sizes[name] = sum(x.numel() for x in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: sizes[name]), {}


def built(family: str) -> tuple[nn.Module, int]:
    """A family's member and the smallest side of images that it takes."""
    name, arguments = member(family)
    wrong: Exception | None = None
    for side in (*SIDES, None):
        for more in ({"img_size": side}, {}) if side else ({},):
            try:
                torch.manual_seed(0)
                net = timm.create_model(name, num_classes=CLASSES, **arguments, **more)
                size = side or net.pretrained_cfg["input_size"][-1]
                with torch.no_grad():
                    net.eval()(torch.rand(1, 3, size, size))
                return net.train(), size
            except Exception as error:  # of whatever kind: this size is not for this model
                wrong = error
    raise AssertionError(f"{name} does not run at any size") from wrong


def partner(role: str, side: int) -> nn.Module:
    """The small model in the other role: a ViT that teaches students, a ResNet that learns of teachers."""
    torch.manual_seed(1)
    if role == "student":
        return VisionTransformer(
            img_size=side, patch_size=side // 4, embed_dim=32, depth=4, num_heads=2, num_classes=CLASSES
        )
    return timm.create_model("resnet18", num_classes=CLASSES, channels=(8, 8, 16, 24), layers=(1, 1, 1, 1))


def train_one_step(distiller: hkd.Distiller, side: int) -> None:
    """Raise NotTrainedError unless losses and gradients of two images are finite and the student moves."""
    torch.manual_seed(2)
    x, y = torch.rand(2, 3, side, side), torch.tensor([1, 2])
    losses = distiller(x, y, index=torch.tensor([1, 2]))
    distiller.zero_grad()
    sum(losses.values()).backward()
    if odd := [name for name, loss in losses.items() if not loss.isfinite()]:
        raise NotTrainedError(f"losses {odd} are not finite")
    slopes = {name: x.grad for name, x in distiller.student.named_parameters() if x.grad is not None}
    if odd := [name for name, slope in slopes.items() if not slope.isfinite().all()]:
        raise NotTrainedError(f"gradients of {odd[:3]} are not finite")
    if not any(slope.any() for slope in slopes.values()):
        raise NotTrainedError("nothing of the student has a gradient")


def survey(family: str) -> Row:
    """Try all methods with a family's member in both roles."""
    net, side = built(family)
    cells = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own
        for role in ROLES:  # a teacher is frozen, so that comes last
            models: list[Any] = [net, partner(role, side)] if role == "student" else [partner(role, side), net]
            for method in METHODS:
                options = {"samples": torch.arange(20) % CLASSES, "negatives": 4} if method == "crd" else {}
                try:
                    distiller = hkd.Distiller(*models, method, image_size=side, **options)
                    # Looked at once; what a distiller made of its models serves the next.
                    models = [distiller.step.student, distiller.teachers["teacher"]]
                    train_one_step(distiller, side)
                    cells[role, method] = ""
                except UserError as error:
                    cells[role, method] = str(error)
                except Exception as error:  # the fault that this is here to find; the others go on
                    cells[role, method] = f"{BROKEN} {type(error).__name__}: {error}"
    return Row(family, shown(family), side, cells)


def shown(family: str) -> str:
    """A member as it is built."""
    name, arguments = member(family)
    return ", ".join([f"`{name}`", *(f"{key}={value}" for key, value in arguments.items())])


def page(rows: list[Row]) -> str:
    """docs/families.md."""
    sentences: dict[str, int] = {}
    lines = []
    for row in rows:
        marks = []
        for role in ROLES:
            for method in METHODS:
                sentence = row.cells[role, method]
                marks.append(f"[{sentences.setdefault(sentence, len(sentences) + 1)}]" if sentence else "+")
        lines.append(f"| {row.family} | {row.model} | {row.side} | {' | '.join(marks)} |")
    serving = sum(row.serves for row in rows)
    table = "\n".join(lines)
    reasons = "\n".join(f"{number}. {sentence}" for sentence, number in sentences.items())
    return f"""# Every architecture of timm as student and as teacher

For each file of `timm.models` its smallest model (timm {timm.__version__}, no weights, {CLASSES} classes, two images of
the smallest size at which it runs) trained one step through `hkd.Distiller`, as the student of a small ViT and as the
teacher of a small ResNet. **{serving} of {len(rows)}** serve kd, fitnet, hcd and crd in both roles. `+`: losses and
gradients were finite. A number: it was refused, by the sentence below. This page is written by
`python -m tests.hkd.families`; the test of the same name checks it.

How taps are found, and how to name them where they are not: [library.md](library.md).

| timm file | model | px | {" | ".join(f"{method}<br>student" for method in METHODS)} | \
{" | ".join(f"{method}<br>teacher" for method in METHODS)} |
| --- | --- | --- |{" --- |" * (2 * len(METHODS))}
{table}

## Refusals

{reasons}
"""


def main() -> None:
    """Survey the families that are named, or all, and write the page of all."""
    parser = argparse.ArgumentParser(description="Survey timm's architectures and write docs/families.md.")
    parser.add_argument("families", nargs="*", help="survey these alone and print their refusals")
    given = parser.parse_args().families
    rows = []
    for family in given or architectures():
        rows.append(survey(family))
        refused = {f"{role} {method}": text for (role, method), text in rows[-1].cells.items() if text}
        print(family, rows[-1].side, *(f"\n  {where}: {text}" for where, text in refused.items()), flush=True)
    if not given:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
