"""Models of other libraries, and what a `Distiller` once got wrong: each fault has its test here."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn

import hkd
from hkd.contract.checks import LABEL_FREE, card
from hkd.distiller.module import Distiller
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want
from tests.hkd.test_distiller import CLASSES, LABELS, S3, images, resnet, total, vit

# --- every timm classifier


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cait_xxs24_224", {"img_size": 32, "depth": 4, "embed_dim": 32, "num_heads": 2}),
        ("xcit_nano_12_p16_224", {"img_size": 32, "depth": 4, "embed_dim": 32}),
        ("levit_128s", {"img_size": 64}),
        ("hiera_tiny_224", {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 1, 1)}),
    ],
)
def test_a_timm_class_of_tokens_has_the_logits_and_the_maps_of_timm(name, options):
    net = timm.create_model(name, num_classes=CLASSES, **options).eval()
    x = images(2, options["img_size"])
    student = Distiller(net, None, "supervised", image_size=x.shape[-1]).step.student
    taps, alone = student(x, Want(stages=(1, 2, 3, 4))), student(x)
    maps = net.forward_intermediates(x, norm=False, output_fmt="NCHW", intermediates_only=True)
    torch.testing.assert_close(taps.logits, net(x))
    torch.testing.assert_close(alone.logits, net(x))
    torch.testing.assert_close(alone.final, taps.final)
    torch.testing.assert_close(taps.pooled, net.forward_head(net.forward_features(x), pre_logits=True))
    torch.testing.assert_close(taps.stages[4], maps[-1])
    assert taps.final.shape == maps[-1].shape


def test_final_tokens_are_those_after_the_norm_without_the_class_token():
    net = timm.create_model("cait_xxs24_224", num_classes=CLASSES, img_size=32, depth=4, embed_dim=32, num_heads=2)
    student = Distiller(net.eval(), None, "supervised", image_size=32).step.student
    expected = net.forward_features(images())[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    torch.testing.assert_close(student(images()).final, expected)


def test_a_volos_logits_are_of_both_of_its_heads():
    sizes = {"layers": (1, 1, 1, 1), "embed_dims": (16, 24, 24, 24), "num_heads": (2, 2, 2, 2), "mlp_ratio": 2.0}
    net = timm.models.VOLO(img_size=32, num_classes=CLASSES, **sizes).eval()
    teacher = Distiller(resnet(), net, "kd", image_size=32).teachers["teacher"]
    torch.testing.assert_close(teacher(images()).logits, net(images()))


# --- torchvision and transformers


def test_torchvisions_swin_is_read_with_its_channels_last():
    net = torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 4, 8], [4, 4], num_classes=CLASSES).eval()
    names = {stage: f"features.{2 * stage - 1}" for stage in (1, 2, 3, 4)}
    student = Distiller(net, None, "supervised", image_size=64, taps={"stages": names}).step.student
    assert student.info.stages == {1: (24, 16, 16), 2: (48, 8, 8), 3: (96, 4, 4), 4: (192, 2, 2)}
    x = images(side=64)
    torch.testing.assert_close(student(x, Want(stages=(1,))).stages[1], net.features[:2](x).permute(0, 3, 1, 2))


def test_a_map_that_is_square_both_ways_takes_the_layout_of_the_others():
    net = torchvision.models.SwinTransformer([4, 4], 16, [1, 1, 1, 1], [1, 2, 4, 8], [4, 4], num_classes=CLASSES).eval()
    alone = {"stages": {1: "features.1"}}  # 16 channels of 16x16
    with pytest.raises(UserError, match=r"gives \[1, 16, 16, 16\], which does not tell"):
        Distiller(net, None, "supervised", image_size=64, taps={"stages": {1: "features.1", 4: "features.1"}})
    both = alone["stages"] | {4: "features.7"}
    student = Distiller(net, None, "supervised", image_size=64, taps={"stages": both}).step.student
    x = images(side=64)
    torch.testing.assert_close(student(x, Want(stages=(1,))).stages[1], net.features[:2](x).permute(0, 3, 1, 2))


class StandIn(nn.Module):
    """What an image classifier of transformers is to its caller: tokens behind a class token."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.config = SimpleNamespace(image_size=32, patch_size=8)
        self.embed, self.classifier = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, classes)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, pixel_values, output_hidden_states=False, return_dict=None):
        tokens = self.embed(pixel_values).flatten(2).transpose(1, 2)
        states = [torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return SimpleNamespace(logits=self.classifier(states[-1][:, 0]), hidden_states=tuple(states))


@pytest.mark.parametrize("method", ["kd", "fitnet", "hcd"])
def test_a_classifier_of_transformers_learns_and_teaches(method):
    for student, teacher in ((hkd.from_transformers(StandIn()), vit()), (resnet(), hkd.from_transformers(StandIn()))):
        distiller = Distiller(student, teacher, method, image_size=32)
        total(distiller(images(), LABELS)).backward()
        assert all(x.grad is not None for x in distiller.student.parameters())


def test_the_taps_of_a_classifier_of_transformers_are_its_hidden_states():
    model = StandIn()
    adapted = hkd.from_transformers(model)
    assert adapted.taps == {"stages": {1: "hidden.2", 2: "hidden.4", 3: "hidden.6", 4: "hidden.8"}, "prefix": 1}
    states = model(images()).hidden_states
    taps = Distiller(adapted, None, "supervised", image_size=32).step.student(images(), Want(stages=(2,)))
    assert torch.equal(taps.stages[2], states[4][:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    assert torch.equal(taps.prefix[2], states[4][:, :1])
    assert set(adapted.state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_what_is_no_classifier_of_transformers_is_told():
    with pytest.raises(UserError, match="ResNet is no image classifier of transformers"):
        hkd.from_transformers(resnet())
    headless = StandIn()
    headless.forward = lambda **_: SimpleNamespace(last_hidden_state=0)
    with pytest.raises(UserError, match=r"gives no logits: take a \.\.\.ForImageClassification"):
        hkd.from_transformers(headless)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_models_of_the_installed_transformers_are_served():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    configs = (
        transformers.ViTConfig(image_size=32, patch_size=8, num_labels=CLASSES, **sizes),
        transformers.SwinConfig(
            image_size=128, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, num_labels=CLASSES
        ),
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_labels=CLASSES),
    )
    for config in configs:
        model = transformers.AutoModelForImageClassification.from_config(config).eval()
        side = getattr(config, "image_size", 64)
        teacher = hkd.from_transformers(model, image_size=side)
        distiller = Distiller(resnet(), teacher, "fitnet", image_size=side)
        x = images(side=side)
        torch.testing.assert_close(distiller.teachers["teacher"](x).logits, model(pixel_values=x).logits)
        total(distiller(x, LABELS)).backward()


# --- faults


@pytest.mark.parametrize("method", ["mae", "beit", "masked_pixels"])
def test_a_method_with_an_image_size_has_that_of_the_student(method):
    options, family = LABEL_FREE[method]
    options = {name: value for name, value in options.items() if name != "image_size"}
    distiller = Distiller(TapModel(card(family), CLASSES), None, method, image_size=32, **options)
    assert distiller.step.method.config.image_size == 32
    total(distiller(images(), LABELS)).backward()


@pytest.mark.parametrize("method", ["mae", "beit", "moco", "simclr"])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_a_distiller_in_double_precision_stays_in_it(method, given):
    options, family = LABEL_FREE[method]
    options = {name: value for name, value in options.items() if name != "image_size"}
    samples = torch.arange(8) % CLASSES
    distiller = Distiller(TapModel(card(family), CLASSES), None, method, samples=samples, **options).double()
    losses = distiller(images().to(given), LABELS)
    assert {loss.dtype for loss in losses.values()} == {torch.float64}
    total(losses).backward()


def crd():
    return Distiller(resnet(), vit(), "crd", image_size=32, samples=torch.arange(8) % CLASSES, negatives=2)


def test_crds_banks_move_in_training_alone():
    distiller = crd()
    before = copy.deepcopy(distiller.step.method.state_dict())
    distiller.eval()(images(), LABELS, index=LABELS)
    assert all(torch.equal(value, before[name]) for name, value in distiller.step.method.state_dict().items())
    distiller.train()(images(), LABELS, index=LABELS)
    assert not torch.equal(distiller.step.method.bank_s, before["bank_s"])


def test_crds_losses_are_the_same_without_gradients():
    distiller = crd().eval()
    found = []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        with context():
            found.append({name: loss.item() for name, loss in distiller(images(), LABELS, index=LABELS).items()})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_one_image_has_nothing_to_be_told_from(method):
    options, family = LABEL_FREE[method]
    distiller = Distiller(TapModel(card(family), CLASSES), None, method, samples=LABELS, **options)
    with pytest.raises(UserError, match=f"'{method}' compares samples with each other, so every batch"):
        distiller(images(1), LABELS[:1])


def test_a_copy_of_a_scalekd_distiller_has_the_last_stage_of_its_own_teacher():
    first = Distiller(resnet(), vit(), "scalekd", image_size=32, **S3).eval()
    second = copy.deepcopy(first)
    before = second(images(), LABELS)
    with torch.no_grad():
        for parameter in first.teachers["teacher"].net.parameters():
            parameter.zero_()
    after = second(images(), LABELS)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(first(images(), LABELS)["feat_s3_orig"], before["feat_s3_orig"])


def test_models_that_were_compiled_beforehand_are_known():
    student, teacher = resnet(), vit()
    compiled = [torch.compile(model, backend="eager") for model in (student, teacher)]
    distiller = Distiller(*compiled, "fd", image_size=32)
    assert distiller.student is student
    torch.manual_seed(0)
    plain = Distiller(resnet(), vit(), "fd", image_size=32)
    plain.step.method.load_state_dict(distiller.step.method.state_dict())
    assert torch.equal(total(distiller(images(), LABELS)), total(plain(images(), LABELS)))


@pytest.mark.parametrize("task", ["masked", "dbot"])
def test_hidden_tasks_compare_the_class_token_if_asked(task):
    options = {"depth": 4, "targets": "c", "task": task, "decoder_width": 32, "decoder_heads": 2}
    options["decoder"] = "linear" if task == "masked" else "attn1"
    with_token = [
        replace(model, kwargs=model.kwargs | {"class_token": True, "global_pool": "token"})
        for model in (card("hybrid_vit"), ZOO["mae_b16_mini"])
    ]
    teachers = {"features": Teacher(with_token[1], CLASSES)}
    losses = {}
    for hidden_class in (False, True):
        torch.manual_seed(0)
        student = TapModel(with_token[0], CLASSES)
        distiller = Distiller(student, teachers, "hybrid", hidden_class=hidden_class, **options)
        assert distiller.step.method.pair("features").class_token is hidden_class
        torch.manual_seed(1)
        losses[hidden_class] = distiller(images(), LABELS)["feat"]
    assert not torch.equal(losses[False], losses[True])


def test_the_class_token_of_the_direct_task_has_its_own_option():
    with pytest.raises(UserError, match="hidden_class is for task=masked and dbot; task=direct has class_token"):
        Distiller(TapModel(card("hybrid_vit"), CLASSES), {}, "hybrid", hidden_class=True)
