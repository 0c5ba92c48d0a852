"""The zoo: what each card builds, against the papers' numbers; twins; construction keys; bad cards."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hkd.errors import UserError
from hkd.models import FAMILIES
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard

# Name: parameters in millions (1000 classes) and shapes of stages 3, 4, both as the method papers' tables give them.
PUBLISHED = {
    "swin_t": (28.29, (384, 14, 14), (768, 7, 7)),
    "swin_s": (49.61, (384, 14, 14), (768, 7, 7)),
    "swin_b": (87.77, (512, 14, 14), (1024, 7, 7)),
    "swin_l": (196.53, (768, 14, 14), (1536, 7, 7)),
    "eva_l14": (304.20, (1024, 16, 16), (1024, 16, 16)),
    "mobilenet_v1": (4.23, (512, 14, 14), (1024, 7, 7)),
    "resnet18": (11.69, (256, 14, 14), (512, 7, 7)),
    "resnet50": (25.56, (1024, 14, 14), (2048, 7, 7)),
    "resnet50d": (25.58, (1024, 14, 14), (2048, 7, 7)),
    "convnext_t": (28.59, (384, 14, 14), (768, 7, 7)),
    "mixer_s16": (18.53, (512, 14, 14), (512, 14, 14)),
    "mixer_b16": (59.88, (768, 14, 14), (768, 14, 14)),
    "mixer_b14": (60.30, (768, 16, 16), (768, 16, 16)),
    "vit_s16": (22.05, (384, 14, 14), (384, 14, 14)),
    "vit_b16": (86.57, (768, 14, 14), (768, 14, 14)),
    "vit_b14": (86.47, (768, 16, 16), (768, 16, 16)),
    "mobilenet_v2": (3.50, (96, 14, 14), (1280, 7, 7)),
    "deit_t": (5.72, (192, 14, 14), (192, 14, 14)),
    "resmlp_s12": (15.35, (384, 14, 14), (384, 14, 14)),
    "swin_p": (5.51, (192, 14, 14), (384, 7, 7)),  # 5.16 with 100 classes
    "swin_n": (9.60, (256, 14, 14), (512, 7, 7)),  # 9.14 with 100 classes
    "swin_t_ofa": (28.29, (384, 14, 14), (768, 7, 7)),
    "vit_s16_ofa": (22.05, (384, 14, 14), (384, 14, 14)),
    "mixer_b16_ofa": (59.88, (768, 14, 14), (768, 14, 14)),
    "convnext_t_ofa": (28.59, (384, 14, 14), (768, 7, 7)),
    "sparse_resnet50": (25.56, (1024, 14, 14), (2048, 7, 7)),
    "sparse_resnet18": (11.69, (256, 14, 14), (512, 7, 7)),
    "sparse_mobilenet_v2": (3.50, (96, 14, 14), (1280, 7, 7)),
    "sparse_efficientnet_lite0": (4.65, (112, 14, 14), (1280, 7, 7)),
    "channel_resnet50": (25.56, (1024, 14, 14), (2048, 7, 7)),
    "cae_b16": (86.58, (768, 14, 14), (768, 14, 14)),
    "hybrid_b16": (86.42, (768, 14, 14), (768, 14, 14)),
    "mae_b16": (86.57, (768, 14, 14), (768, 14, 14)),
    "beit_b16": (86.53, (768, 14, 14), (768, 14, 14)),
    "deit_b16": (86.57, (768, 14, 14), (768, 14, 14)),
    "clip_b16": (86.57, (768, 14, 14), (768, 14, 14)),
    "dino_b16": (86.57, (768, 14, 14), (768, 14, 14)),
    "hybrid_fd_b16": (86.43, (768, 14, 14), (768, 14, 14)),
}
MINI = sorted(name for name in ZOO if name.endswith("_mini"))


def first_of_families(names):
    """All names, of which those after a family's first take seconds each and are long."""
    first = {}
    for name in names:
        first.setdefault(ZOO[name].family, name)
    marks = [pytest.mark.slow, pytest.mark.long]
    return [pytest.param(name, marks=[] if name in first.values() else marks) for name in names]


def millions(model: TapModel) -> float:
    return sum(p.numel() for p in model.net.parameters()) / 1e6


class OnMeta(dict):
    """Models of the zoo at 1000 classes, shapes only: built when asked for, without memory or arithmetic."""

    def __missing__(self, name):
        with torch.device("meta"):
            self[name] = TapModel(ZOO[name], 1000).eval()
        return self[name]


@pytest.fixture(scope="module")
def on_meta():
    return OnMeta()


@pytest.mark.parametrize("name", first_of_families(PUBLISHED))
def test_paper_model_has_the_published_size_and_taps(on_meta, name):
    parameters, stage3, stage4 = PUBLISHED[name]
    assert millions(on_meta[name]) == pytest.approx(parameters, abs=0.006)
    info = on_meta[name].info
    assert (info.stages[3], info.stages[4], info.final) == (stage3, stage4, stage4)
    assert info.pooled == stage4[0]


@pytest.mark.parametrize("name", first_of_families(ZOO))
def test_stated_sizes_are_those_of_the_built_model(on_meta, name):
    card, side = ZOO[name], ZOO[name].image_size
    assert millions(on_meta[name]) == pytest.approx(card.params_m, abs=6e-4)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        on_meta[name](torch.zeros(1, 3, side, side))
    assert flops.get_total_flops() / 2e9 == pytest.approx(card.gmacs, rel=5e-3)


def test_every_paper_model_has_a_twin_of_the_same_family():
    assert {name.removesuffix("_mini") for name in MINI} == set(PUBLISHED)
    for name in MINI:
        assert ZOO[name].family == ZOO[name.removesuffix("_mini")].family


@pytest.mark.slow
@pytest.mark.long
def test_all_twins_differ(on_meta):
    for a, b in combinations(MINI, 2):
        assert ZOO[a].identity() != ZOO[b].identity()
        if str(on_meta[a.removesuffix("_mini")].net) == str(on_meta[b.removesuffix("_mini")].net):
            continue  # one architecture under two families, such as MAE's teacher and Hybrid Distill's student
        assert str(on_meta[a].net) != str(on_meta[b].net) or ZOO[a].image_size != ZOO[b].image_size


@pytest.mark.parametrize(("small", "large"), [("swin_s", "swin_b"), ("mixer_s16", "mixer_b16"), ("vit_s16", "vit_b16")])
def test_base_twin_is_half_as_wide_again_as_the_small_one(on_meta, small, large):
    assert on_meta[f"{large}_mini"].info.pooled == 1.5 * on_meta[f"{small}_mini"].info.pooled


@pytest.mark.parametrize(("name", "classes", "parameters"), [("swin_p", 100, 5.16), ("swin_n", 100, 9.14)])
def test_swins_without_a_timm_name_have_the_stated_size_at_a_hundred_classes(name, classes, parameters):
    with torch.device("meta"):
        assert millions(TapModel(ZOO[name], classes)) == pytest.approx(parameters, abs=0.006)


def test_stages_1_and_2_of_mobilenet_v2_end_where_its_second_and_fifth_block_do(on_meta):
    assert on_meta["mobilenet_v2"].info.stages[1] == (24, 56, 56)
    assert on_meta["mobilenet_v2"].info.stages[2] == (32, 28, 28)


def test_swin_twins_are_ordered_by_width_as_their_originals(on_meta):
    widths = [on_meta[f"swin_{size}_mini"].info.pooled for size in "tsbl"]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize("name", ["mixer_b14_mini", "vit_b14_mini", "eva_l14_mini"])
def test_patch_14_twin_has_a_grid_of_its_own(on_meta, name):
    assert ZOO[name].image_size == 35
    assert on_meta[name].info.final[1:] == (5, 5)


@pytest.mark.parametrize("name", ["swin_s_mini", "swin_b_mini", "swin_l_mini", "eva_l14_mini"])
def test_teacher_twin_maps_are_large_enough_for_a_loss_without_the_mean(on_meta, name):
    assert min(on_meta[name].info.final[1:]) >= 2


def test_swin_twin_merges_patches_between_stages_3_and_4(on_meta):
    model = on_meta["swin_l_mini"]
    assert [shape[1] for shape in model.info.stages.values()] == [8, 8, 4, 2]
    assert not isinstance(model.net.layers[-1].downsample, nn.Identity)


@pytest.mark.parametrize("name", [name for name, card in ZOO.items() if card.pretrained])
def test_normalisation_is_that_of_the_published_weights(name):
    published = timm.models.get_pretrained_cfg(ZOO[name].pretrained)
    assert published.architecture == ZOO[name].arch
    assert (published.mean, published.std) == (ZOO[name].mean, ZOO[name].std)


def test_zoo_is_read_without_torch():
    code = "import sys, hkd.models.cards.zoo; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MINI)
def test_card_builds_the_same_model_after_a_round_trip_through_json(name):
    card = replace(ZOO[name], kwargs=json.loads(json.dumps(ZOO[name].kwargs)))
    with torch.device("meta"):
        original, copied = TapModel(ZOO[name], 10), TapModel(card, 10)
    assert str(original.net) == str(copied.net)


def test_drop_path_given_replaces_that_of_the_card():
    def rates(model):
        return {module.drop_prob for module in model.net.modules() if hasattr(module, "drop_prob")}

    card = ZOO["swin_l_mini"]
    assert max(rates(TapModel(card, 10, drop_path=0.4))) == pytest.approx(0.4)
    assert max(rates(TapModel(card, 10))) == pytest.approx(card.kwargs["drop_path_rate"])


def test_small_image_resnet_keeps_the_full_grid():
    net = TapModel(ZOO["resnet18_32px"], 10).net
    assert isinstance(net.maxpool, nn.Identity)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert net.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v1_mini"])
def test_mobilenet_uses_relu_as_its_papers_do(on_meta, name):
    kinds = {type(module) for module in on_meta[name].net.modules()}
    assert nn.ReLU in kinds
    assert nn.ReLU6 not in kinds


def test_same_seed_gives_timms_own_initial_weights():
    torch.manual_seed(0)
    ours = TapModel(ZOO["vit_s16_mini"], 10).net.state_dict()
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(**ZOO["vit_s16_mini"].kwargs, num_classes=10).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()


def test_unknown_architecture_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"'resnet_18'.*Did you mean 'resnet18'"):
        TapModel(ModelCard(name="x", family="resnet", arch="resnet_18"), 10)


def test_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="Unknown model family 'resnett'.*Known: " + ", ".join(sorted(FAMILIES))):
        TapModel(ModelCard(name="x", family="resnett", arch="resnet18"), 10)
