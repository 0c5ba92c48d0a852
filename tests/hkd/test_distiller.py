"""Distillation in somebody else's loop: timm models, modules with named taps, models of the zoo."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import hkd
from hkd.data.batch import Batch
from hkd.distiller.arguments import check_batch, check_model, check_settings, check_taps
from hkd.distiller.module import Distiller
from hkd.errors import Refused, UserError
from hkd.methods import METHODS
from hkd.methods.base import Method, Needs, Samples
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want
from hkd.training.step import TapStep

CLASSES = 5
NAMES = {"stages": {1: "body.0", 2: "body.1", 3: "body.2", 4: "body.3"}, "pooled": "pool", "final": "body.3"}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": CLASSES}


class Net(nn.Module):
    """A user's own CNN."""

    def __init__(self, classes=CLASSES, width=8):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in pairwise(widths)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.head(self.pool(self.body(x)).flatten(1))


class Tokens(nn.Module):
    """A user's own transformer: a class token before 4x4 patches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


def resnet(classes=CLASSES, **kwargs):
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=classes, channels=(8, 8, 16, 24), layers=(1, 1, 1, 1), **kwargs)


def vit(name="timm.models.vision_transformer:VisionTransformer"):
    from hkd.registry import load

    torch.manual_seed(1)
    return load(name)(**VIT)


def images(count=4, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(4)


def total(losses):
    return sum(losses.values())


# --- the loop


def test_ten_lines_train_a_student_and_leave_a_plain_model():
    student, teacher = resnet(), vit()
    plain, before = resnet(), copy.deepcopy(teacher.state_dict())
    distiller = hkd.Distiller(student, teacher, method="kd", num_classes=CLASSES, image_size=32, tau=4.0)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    seen = []
    for _ in range(8):
        losses = distiller(images(), LABELS)
        total(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(total(losses).item())
    assert set(losses) == {"task", "kd"}
    assert seen[-1] < seen[0]
    assert distiller.student is student
    assert list(distiller.student.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_gradients_reach_the_student_and_the_adapters_and_the_state_holds_no_teacher():
    teacher = vit()
    distiller = Distiller(resnet(), teacher, "fd", image_size=32)
    total(distiller(images(), LABELS)).backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    frozen = {id(parameter) for parameter in teacher.parameters()}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert frozen.isdisjoint(id(parameter) for parameter in distiller.parameters())
    student = sum(parameter.numel() for parameter in distiller.student.parameters())
    assert sum(parameter.numel() for parameter in distiller.parameters()) == student + 24 * 32 + 32
    held = {value.data_ptr() for value in distiller.state_dict().values() if value.numel()}
    assert held.isdisjoint(value.data_ptr() for value in teacher.state_dict().values() if value.numel())


def test_the_teacher_stays_in_evaluation_mode_and_the_students_modes_are_left_alone():
    student, teacher = resnet(), resnet()
    student.bn1.eval()
    distiller = Distiller(student, teacher.train(), "kd", image_size=32)
    assert not any(module.training for module in teacher.modules())
    assert (student.training, student.bn1.training, student.layer1.training) == (True, False, True)
    distiller.train()
    assert not teacher.training
    assert student.bn1.training


def test_what_moves_the_distiller_moves_its_teachers():
    distiller = Distiller(resnet(), vit(), "fd", image_size=32).double()
    losses = distiller(images().double(), LABELS)
    assert {loss.dtype for loss in losses.values()} == {torch.float64}


def test_a_wrapper_for_several_processes_goes_around_it(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Distiller(resnet(), vit(), "fd", image_size=32))
        total(wrapped(images(), LABELS)).backward()
        assert all(parameter.grad is not None for parameter in wrapped.parameters())
    finally:
        dist.destroy_process_group()


def test_adapters_go_on_from_a_saved_state():
    first = Distiller(resnet(), vit(), "fd", image_size=32)
    second = Distiller(resnet(), vit(), "fd", image_size=32)
    second.load_state_dict(first.state_dict())
    assert total(first(images(), LABELS)) == total(second(images(), LABELS))


# --- models


@pytest.mark.parametrize("method", ["kd", "fd", "scalekd"])
def test_losses_are_those_of_the_suites_own_step(method):
    torch.manual_seed(3)
    student, teacher = TapModel(ZOO["resnet18_mini"], CLASSES), Teacher(ZOO["swin_t_mini"], CLASSES)
    kind = hkd.registry.load(METHODS[method])
    needs = kind.needs(kind.Config())
    torch.manual_seed(4)
    suite = TapStep(student, kind(kind.Config(), student.info, {"teacher": teacher}, F.cross_entropy), needs)
    x = images()
    batch = Batch(x=x, y=LABELS, index=LABELS)
    expected = suite(batch, {"teacher": teacher(x, needs.teachers["teacher"])})
    torch.manual_seed(4)
    distiller = Distiller(student, teacher, method)
    found = distiller(x, LABELS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert distiller.student is student.net


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("resnet18_mini", "swin_t_mini"), ("vit_s16_mini", "mixer_s16_mini"), ("convnext_t_mini", "resnet18_mini")],
)
def test_a_plain_timm_model_has_the_taps_of_its_card(student, teacher):
    x = images()
    for name in (student, teacher):
        card = ZOO[name]
        tapped = TapModel(card, CLASSES).eval()
        stages = {"stages": dict(zip((1, 2, 3, 4), card.stages, strict=True))}
        normal = {"student": (card.mean, card.std)}
        given = Distiller(tapped.net, None, "supervised", image_size=32, taps=stages, normalize=normal).eval()
        want = Want(stages=(1, 2, 3, 4))
        found, expected = given.step.student(x, want), tapped(x, want)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.final, expected.final)
        torch.testing.assert_close(found.pooled, expected.pooled)
        torch.testing.assert_close(found.stages, expected.stages)
        assert given.step.student.info.stages == tapped.info.stages


def test_stages_of_timm_models_are_the_last_four_maps_or_the_quarters_of_the_depth():
    for net, shapes in (
        (resnet(), [(8, 8, 8), (8, 4, 4), (16, 2, 2), (24, 1, 1)]),
        (vit("timm.models.deit:VisionTransformerDistilled"), [(32, 4, 4)] * 4),
        (TapModel(ZOO["swin_t_mini"], CLASSES).net, [(12, 8, 8), (12, 8, 8), (24, 4, 4), (48, 2, 2)]),
    ):
        info = Distiller(net, None, "supervised", image_size=32).step.student.info
        assert list(info.stages.values()) == shapes
    assert info.prefix == 0


@pytest.mark.parametrize("method", ["kd", "fd"])
def test_a_users_own_module_is_tapped_by_the_names_of_its_modules(method):
    student, teacher = Net(), Net(width=4)
    distiller = Distiller(student, teacher, method, image_size=32, taps=NAMES, teacher_taps=NAMES)
    total(distiller(images(), LABELS)).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    taps = distiller.step.student(images(), Want(stages=(2, 4)))
    assert torch.equal(taps.stages[2], student.body[:2](images()))
    assert torch.equal(taps.final, student.body(images()))
    assert torch.equal(taps.pooled, student.pool(taps.final).flatten(1))
    assert torch.equal(taps.logits, student(images()))
    assert not any(module._forward_hooks for module in student.modules())


def test_stages_alone_tell_the_last_map_and_its_mean():
    distiller = Distiller(Net(), None, "supervised", image_size=32, taps={"stages": {4: "body.3"}})
    taps = distiller.step.student(images())
    torch.testing.assert_close(taps.pooled, taps.final.mean((2, 3)))
    assert distiller.step.student.info.final == (32, 2, 2)


def test_tokens_behind_prefix_tokens_are_maps():
    student = Tokens()
    distiller = Distiller(
        student, None, "supervised", image_size=32, taps={"stages": {2: "blocks.1", 4: "blocks.3"}, "prefix": 1}
    )
    taps = distiller.step.student(images(), Want(stages=(4,)))
    assert distiller.step.student.info.prefix == 1
    assert taps.final.shape == (4, 16, 4, 4)
    torch.testing.assert_close(student.head(taps.prefix[4][:, 0]), taps.logits)


def test_logits_need_no_taps():
    distiller = Distiller(Net(), Net(), "kd", image_size=32)
    assert total(distiller(images(), LABELS)).isfinite()


def test_a_student_of_the_zoo_is_given_by_name():
    distiller = Distiller("resnet18_mini", Teacher(ZOO["swin_t_mini"], CLASSES), "fd", num_classes=CLASSES)
    assert distiller.student.state_dict().keys() == TapModel(ZOO["resnet18_mini"], CLASSES).net.state_dict().keys()
    total(distiller(images(side=40), LABELS)).backward()


def test_a_trained_model_of_the_zoo_may_teach():
    trained = TapModel(ZOO["resnet18_mini"], CLASSES)
    distiller = Distiller("resnet18_mini", trained, "kd", num_classes=CLASSES)
    teacher = distiller.teachers["teacher"]
    assert isinstance(teacher, Teacher)
    assert torch.equal(teacher(images()).logits, trained.eval()(images()).logits)
    assert all(parameter.requires_grad for parameter in trained.parameters())


# --- images


def test_plain_models_see_images_as_they_are():
    student = resnet().eval()
    distiller = Distiller(student, None, "supervised", image_size=32).eval()
    expected = F.cross_entropy(student(images()), LABELS)
    assert torch.equal(distiller(images(), LABELS)["task"], expected)


def test_each_model_sees_images_by_its_own_statistics():
    student, teacher = resnet().eval(), vit().eval()
    own = {"teacher": ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))}
    distiller = Distiller(student, teacher, "kd", image_size=32, normalize=own).eval()

    def normalised(mean, std):
        return (images() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    cfg = student.pretrained_cfg
    found = distiller.step.student(images()).logits, distiller.teachers["teacher"](images()).logits
    torch.testing.assert_close(found[0], student(normalised(cfg["mean"], cfg["std"])))
    torch.testing.assert_close(found[1], teacher(normalised(*own["teacher"])))


# --- methods that need more


class Indexed(Method):
    """Two teachers, the index, and the labels of all samples."""

    class Config:
        pass

    def prepare(self, samples):
        self.samples = samples

    @classmethod
    def needs(cls, config):
        return Needs(teachers={"a": Want(), "b": Want(stages=(2,))}, index=True, hard_labels=True)

    def forward(self, batch, taps_s, taps_t):
        known = (self.samples.labels[batch.index] == batch.y).float().mean()
        return {"known": taps_s.logits.sum() * known, "b": taps_t["b"].stages[2].sum() + taps_t["a"].logits.sum()}


@pytest.fixture
def indexed(monkeypatch):
    from dataclasses import dataclass

    monkeypatch.setattr(Indexed, "Config", dataclass(frozen=True)(type("IndexedConfig", (), {})))
    monkeypatch.setitem(METHODS, "indexed", "hkd.methods.kd:KD")
    load = hkd.registry.load
    monkeypatch.setattr("hkd.registry.load", lambda path: Indexed if path == METHODS["indexed"] else load(path))

    def make(**changes):
        arguments = {"image_size": 32, "samples": [4, 3, 2, 1, 0], "teacher_taps": {"b": NAMES}} | changes
        return Distiller(resnet(), {"a": vit(), "b": Net()}, "indexed", **arguments)

    return make


def test_several_teachers_indices_and_labels_reach_the_method(indexed):
    distiller = indexed()
    losses = distiller(images(), torch.tensor([0, 1, 2, 3]), index=torch.tensor([4, 3, 2, 1]))
    assert set(losses) == {"known", "b"}
    assert distiller.step.method.samples.classes == CLASSES
    given = Samples(labels=torch.zeros(9), classes=CLASSES, epochs=3, steps=7)
    assert indexed(samples=given).step.method.samples is given


def test_what_a_method_needs_and_nobody_gives_is_one_sentence(indexed):
    with pytest.raises(UserError, match=r"rows? in the training set: call distiller\(x, y, index=index\)"):
        indexed()(images(), LABELS)
    with pytest.raises(UserError, match=r"needs class labels \[B\], got targets of shape \[4, 5\]"):
        indexed()(images(), torch.full((4, CLASSES), 0.2), index=LABELS)
    with pytest.raises(UserError, match="give samples=labels"):
        indexed(samples=None)
    with pytest.raises(UserError, match=r"samples must be the N class indices .* got shape \[2, 1\]"):
        indexed(samples=[[1], [2]])
    with pytest.raises(UserError, match=r"reads stage 2 of the b; .* teacher_taps=\{\"stages\": \{2: NAME\}\}"):
        indexed(teacher_taps={"b": {"stages": {4: "body.3"}}})


# --- mistakes


ZOO_TEACHER = Teacher(ZOO["resnet18_mini"], CLASSES)


def make(student=None, teacher=None, method="fd", **arguments):
    return Distiller(student or Net(), teacher or Net(), method, **{"image_size": 32} | arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "kdd"}, "Unknown method 'kdd'. Did you mean 'kd'"),
        ({"method": "kd", "taw": 2.0}, "Method 'kd' has no option 'taw'. Did you mean 'tau'"),
        ({"method": "kd", "tau": 0.0}, "Method 'kd': tau must be greater than 0, got 0"),
        ({"num_classes": 7}, "num_classes is 7, but the student has 5 logits"),
        ({"image_size": None}, r"Say how large the images are: Distiller\(..., image_size=32\)"),
        ({"student": "resnet18_mini", "teacher": ZOO_TEACHER}, "needs its number of classes"),
        ({"student": "resnet18_mimi", "teacher": ZOO_TEACHER}, "Unknown model 'resnet18_mimi'. Did you mean 'resnet18"),
        ({"teacher": "resnet18_mini"}, "is a name .* which brings no weights"),
        ({"taps": {"stage": {4: "body.3"}}}, "Unknown key of taps 'stage'. Did you mean 'stages'"),
        ({"taps": {"stages": {5: "body.3"}}}, "taps names stage 5; stages are 1, 2, 3 and 4"),
        (
            {"taps": {"stages": {4: "boby.3"}}},
            r"stage 4 of taps: the student has no module 'boby.3'. Nearest: 'body.3'",
        ),
        (
            {"teacher_taps": {"final": "zzz"}},
            "'final' of teacher_taps: the teacher has no module 'zzz'. It has: body, ",
        ),
        ({"taps": {"stages": {4: "head"}}}, r"module 'head' of the student gives \[1, 5\]; a tap is a map"),
        ({"taps": {"final": "body.3", "pooled": "body.3"}}, r"'body.3' gives \[1, 32, 2, 2\]; a pooled feature is"),
        ({}, "The method reads 'final' of the student, whose taps nobody told"),
        ({"taps": {"stages": {4: "body.3"}}}, "The method reads 'final' of the teacher, whose taps nobody told"),
        ({"taps": {"layout": "NWHC"}}, "Unknown layout of taps 'NWHC'. Did you mean 'NHWC'"),
        (
            {"method": "kd", "image_size": 1, "student": vit()},
            r"does not take images \[1, 3, 1, 1\] of torch.f",
        ),
        ({"normalize": True}, "The student has no `pretrained_cfg` with mean and std"),
        ({"normalize": {"techer": ((0.0,) * 3, (1.0,) * 3)}}, "normalize names 'techer'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        make(**arguments)


def test_tokens_that_are_no_square_ask_for_the_prefix():
    with pytest.raises(UserError, match="gives 17 tokens, which are no square grid behind 0 prefix tokens"):
        make(Tokens(), taps={"stages": {4: "blocks.3"}})


def test_a_module_that_gives_no_logits_is_refused():
    with pytest.raises(UserError, match=r"The student must return logits \[B, C\], got \[1, 8, 16, 16\]"):
        make(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1)))


class Shifted(timm.models.resnet.ResNet):
    """A class made of a timm one whose logits are not those of its head."""

    def forward(self, x):
        return super().forward(x) + 1


def test_a_timm_class_whose_taps_are_not_known_asks_for_names():
    other = Shifted(timm.models.resnet.BasicBlock, (1, 1, 1, 1), CLASSES, channels=(8, 8, 16, 24))
    with pytest.raises(UserError, match=r"'final' of the student, a timm Shifted, .*: name them by"):
        make(other)
    with pytest.raises(UserError, match="a timm Shifted, are not known: name them by module"):
        make(other, taps={"stages": {1: 0, 2: 0, 3: 1, 4: 1}})
    assert Distiller(other, None, "supervised", image_size=32)(images(), LABELS)["task"].isfinite()
    named = Distiller(other, None, "supervised", image_size=32, taps={"stages": {3: "layer3", 4: "layer4"}})
    assert named.step.student.info.final == (24, 1, 1)


def test_a_timm_beit_is_run_as_its_family_runs_it():
    beit = timm.create_model("beit_base_patch16_224", img_size=32, depth=4, embed_dim=24, num_heads=2, num_classes=5)
    student = make(beit, method="kd").step.student
    assert student.card.family == "beit"
    assert student.info.stages == {1: (24, 2, 2), 2: (24, 2, 2), 3: (24, 2, 2), 4: (24, 2, 2)}


def test_images_of_another_size_than_was_told_are_refused():
    with pytest.raises(UserError, match=r"Images of 48x48 px, but .* 32x32: Distiller\(..., image_size=48\)"):
        make(method="kd")(images(side=48), LABELS)


def test_the_size_of_a_timm_model_is_its_own_unless_told():
    assert Distiller(vit(), Net(), "kd").step.student.prepare.side == 32
    assert Distiller(Net(), vit(), "kd").step.student.prepare.side == 32


def test_other_classes_of_the_teacher_are_one_sentence_where_logits_are_compared():
    distiller = make(teacher=Net(classes=9), method="kd")
    with pytest.raises(UserError, match="'kd' cannot compare a teacher of 9 classes with a student of 5"):
        distiller(images(), LABELS)


def test_models_of_the_zoo_and_plain_ones_agree_on_the_images():
    zoo = Teacher(ZOO["resnet18_mini"], CLASSES)
    with pytest.raises(UserError, match=r"The teacher is a model of the zoo, which takes images in \[0, 1\]"):
        make(resnet(), zoo, "kd")
    assert total(make(resnet(), zoo, "kd", normalize=True)(images(), LABELS)).isfinite()
    with pytest.raises(UserError, match=r"The student is an hkd\.Teacher, which is frozen"):
        make(zoo, zoo, "kd")


def test_a_method_refuses_pairs_by_its_own_sentence():
    with pytest.raises(Refused, match="a mixer teacher has none that takes tokens"):
        make("resnet18_mini", Teacher(ZOO["mixer_s16_mini"], CLASSES), "scalekd", num_classes=CLASSES)
    with pytest.raises(Refused, match="a teacher of this class has none that takes tokens: take one of the family"):
        make(method="scalekd", taps=NAMES, teacher_taps=NAMES)
    with pytest.raises(Refused, match="needs a teacher with the role 'teacher'"):
        Distiller(Net(), None, "kd", image_size=32)


# --- taps are what modules gave


class Block(nn.Module):
    """A norm, whose output a later operation in place changes."""

    def __init__(self, after):
        super().__init__()
        self.conv, self.norm, self.after = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), after
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.after(self.norm(self.conv(x))).mean((2, 3)))


class Doubled(nn.Module):
    def forward(self, x):
        return x.mul_(2)


class DoubledInTraining(nn.Module):
    def forward(self, x):
        return x.mul_(2) if self.training else x


NORM = {"stages": dict.fromkeys((1, 2, 3, 4), "norm")}


def tapped(net, taps=NORM, **options):
    return Distiller(net, None, "supervised", image_size=32, taps=taps, **options).step.student


@pytest.mark.parametrize("after", [nn.ReLU(inplace=True), Doubled(), nn.Dropout(0.5, inplace=True)])
def test_what_a_later_operation_in_place_makes_of_a_tap_is_not_seen(after):
    net = Block(after)
    student = tapped(net)
    expected = net.norm(net.conv(images()))
    taps = student(images(), Want(stages=(1,)))
    assert torch.equal(taps.stages[1], expected)
    assert expected.min() < -1
    taps.stages[1].sum().backward()
    assert net.norm.bias.grad.eq(4 * 16 * 16).all()


def test_only_taps_that_are_overwritten_are_copied():
    net = Block(nn.ReLU(inplace=True))
    both = {"stages": {1: "conv", 2: "norm"}}
    assert tapped(net, both).family.copied == {2}
    assert tapped(Block(nn.ReLU()), both).family.copied == set()
    assert tapped(Block(nn.Dropout(0.5, inplace=True)), both).family.copied == {1, 2}


def test_a_tap_that_is_overwritten_in_training_alone_is_told():
    student = tapped(Block(DoubledInTraining()))
    with pytest.raises(UserError, match="output of module 'norm' of the student is overwritten by a later in-place"):
        student(images())
    assert student.eval()(images()).logits.shape == (4, CLASSES)


class Last(nn.Module):
    """Channels last inside, as in Swin."""

    def __init__(self, width=12):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, CLASSES)
        self.body = nn.Linear(width, width)

    def forward(self, x):
        return self.head(self.body(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


BODY = {"stages": {4: "body"}}


def test_maps_with_channels_last_are_read_by_their_shape():
    net = Last()
    student = tapped(net, BODY)
    assert tapped(net, BODY | {"layout": "NHWC"}).info == student.info
    expected = net.body(net.embed(images()).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert student.info.final == (12, 8, 8)
    assert torch.equal(student(images()).final, expected)
    torch.testing.assert_close(net.head(student(images()).pooled), student(images()).logits)


def test_a_map_as_wide_as_its_grid_is_told_by_another_or_in_words():
    student = tapped(Net(width=4), NAMES)
    assert student.info.stages == {1: (4, 16, 16), 2: (8, 8, 8), 3: (16, 4, 4), 4: (16, 2, 2)}
    net = Last(8)
    readings = r'"NCHW" \(8 channels of 8x8\) or "NHWC" \(8 channels of 8x8'
    with pytest.raises(UserError, match=rf"gives \[1, 8, 8, 8\], which does not tell .* say .*{readings}"):
        tapped(net, BODY)
    expected = net.body(net.embed(images()).permute(0, 2, 3, 1))
    assert torch.equal(tapped(net, BODY | {"layout": "NCHW"})(images()).final, expected)
    assert torch.equal(tapped(net, BODY | {"layout": "NHWC"})(images()).final, expected.permute(0, 3, 1, 2))


class Checkpointed(Net):
    """Gradients end at the body, if checkpointing is re-entrant: images have none."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        body = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(self.pool(body).flatten(1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", ["body.3", "body"])
def test_a_students_tap_without_gradient_is_refused(name):
    taps = {"stages": {4: name}}
    distiller = make(Checkpointed(True), method="supervised", taps=taps)
    with pytest.raises(UserError, match=f"module '{name}' of the student has no gradient, .* use_reentrant=False"):
        distiller(images(), LABELS)
    with torch.no_grad():
        assert distiller(images(), LABELS)["task"].isfinite()
    served = make(Checkpointed(False), method="fd", taps=taps, teacher_taps=NAMES)
    total(served(images(), LABELS)).backward()
    assert all(parameter.grad is not None for parameter in served.parameters())


def test_frozen_parts_of_a_student_need_no_gradient():
    student = Net()
    student.body[:2].requires_grad_(False)
    distiller = make(student, method="fitnet", taps=NAMES, teacher_taps=NAMES)
    total(distiller(images(), LABELS)).backward()
    assert student.body[3][0].weight.grad is not None


# --- a teacher stays a teacher


def sharing(how):
    student = TapModel(ZOO["resnet18_mini"], CLASSES) if how == "zoo" else resnet()
    if how == "part":
        teacher = resnet()
        teacher.bn1 = student.bn1
        return student, teacher
    return student, nn.Sequential(student) if how == "inside" else student


@pytest.mark.parametrize(
    ("how", "what"),
    [("same", "conv1.weight"), ("inside", "conv1.weight"), ("part", "bn1.weight"), ("zoo", "net.conv1.0.weight")],
)
def test_a_teacher_that_shares_weights_with_the_student_is_refused_and_nothing_is_frozen(how, what):
    student, teacher = sharing(how)
    with pytest.raises(UserError, match=f"The student and the teacher share {what}: .* copy.deepcopy"):
        Distiller(student, teacher, "kd", image_size=32)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert Distiller(student, copy.deepcopy(student), "supervised", image_size=32)


@pytest.mark.parametrize("zoo", [False, True])
def test_train_on_the_callers_own_teacher_moves_nothing(zoo):
    teacher = Teacher(ZOO["resnet18_mini"], CLASSES) if zoo else resnet()
    net = teacher.net if zoo else teacher
    distiller = Distiller(
        TapModel(ZOO["resnet18_mini"], CLASSES) if zoo else Net(), teacher, "kd", image_size=32
    ).eval()
    before, first = copy.deepcopy(net.state_dict()), distiller(images(), LABELS)["kd"]
    net.train()
    assert torch.equal(distiller(images(), LABELS)["kd"], first)
    distiller.train()
    distiller(images(), LABELS)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


S3 = {"stages": ("s3",), "heads_s3": 2}  # the last maps of these models have one position


def test_scalekds_teacher_in_training_mode_keeps_that():
    distiller = Distiller(resnet(), vit(), "scalekd", image_size=32, teacher_mode="train", **S3)
    distiller(images(), LABELS)
    assert all(module.training for module in distiller.teachers["teacher"].net.modules())


# --- precision

HALVES = (
    *("kd", "dkd", "dist", "fitnet", "fd", "cc", "rkd", "crd", "ofa", "hcd", "scalekd"),
    *("pat", "vid", "reviewkd", "mlkd"),
)


@pytest.mark.parametrize("method", HALVES)
@pytest.mark.parametrize("how", ["student", "teacher", "both", "after"])
def test_models_of_16_bits_are_served_with_losses_in_single_precision(method, how):
    student, teacher = resnet(), vit()
    exact = Distiller(resnet(), vit(), method, image_size=32, samples=LABELS, **options_of(method)).eval()
    if how in ("student", "both"):
        student.bfloat16()
    if how in ("teacher", "both"):
        teacher.bfloat16()
    distiller = Distiller(student, teacher, method, image_size=32, samples=LABELS, **options_of(method))
    if how == "after":
        distiller.bfloat16()
    distiller.eval().step.method.load_state_dict(exact.step.method.state_dict())
    torch.manual_seed(5)
    losses = distiller(images(), LABELS, index=LABELS)
    torch.manual_seed(5)
    expected = exact(images(), LABELS, index=LABELS)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.1, atol=0.1)
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert next(teacher.parameters()).dtype == (torch.float32 if how == "student" else torch.bfloat16)


def options_of(method):
    return {"crd": {"negatives": 2}, "scalekd": S3}.get(method, {})


def test_images_of_another_precision_are_given_to_each_model_in_its_own():
    distiller = make(resnet(), vit().double(), "kd")
    expected = make(resnet(), vit(), "kd")(images(), LABELS)["kd"]
    for x in (images(), images().double()):
        torch.testing.assert_close(distiller(x, LABELS)["kd"], expected)
    with pytest.raises(UserError, match=r"Images are numbers with a point \(float32\), got torch.uint8"):
        distiller((255 * images()).byte(), LABELS)


def test_methods_that_work_inside_models_say_that_16_bits_are_not_enough():
    with pytest.raises(UserError, match="'mae' works inside its models and needs them in single precision"):
        Distiller(TapModel(ZOO["vit_s16_mini"], CLASSES).bfloat16(), None, "mae")


def test_autocast_is_left_to_look_after_precision():
    distiller = make(resnet(), vit(), "fd")
    with torch.autocast("cpu", torch.bfloat16):
        assert distiller.teachers["teacher"](images()).logits.dtype == torch.bfloat16
        losses = distiller(images(), LABELS)
    total(losses).backward()


# --- rows


def test_rows_and_labels_that_disagree_are_refused():
    distiller = Distiller(resnet(), vit(), "crd", image_size=32, samples=[0, 1, 2, 3, 4], negatives=2)
    assert distiller(images(), LABELS, index=LABELS)["crd_s"].isfinite()
    with pytest.raises(UserError, match="Row 2 of the training set has label 2 in samples, and 0 in this batch"):
        distiller(images(), torch.tensor([0, 1, 0, 3]), index=LABELS)
    for row in (-1, 5):
        with pytest.raises(UserError, match=f"index has row {row}, and samples told 5: rows are 0 to 4"):
            distiller(images(), LABELS, index=torch.tensor([0, 1, 2, row]))
    for index in (LABELS[:3], LABELS.float(), LABELS[:, None]):
        with pytest.raises(UserError, match="index must be the row of each of 4 samples"):
            distiller(images(), LABELS, index=index)
    with pytest.raises(UserError, match="samples has labels -1 to 4, and the student's classes are 0 to 4"):
        Distiller(resnet(), vit(), "crd", image_size=32, samples=[0, -1, 4])


# --- timm classes that are not read


def test_any_timm_classifier_teaches_by_its_logits():
    for name in ("levit_128s", "dla34"):
        net = timm.create_model(name, num_classes=CLASSES)
        distiller = make(teacher=net, method="kd", image_size=224 if name == "levit_128s" else 64)
        x = images(2, distiller.teachers["teacher"].prepare.side)
        assert torch.equal(distiller.teachers["teacher"](x).logits, net(x))


def test_classifiers_that_are_convolutions_are_read():
    net = timm.create_model(
        "resnetv2_50", num_classes=CLASSES, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), stem_chs=8
    )
    taps = tapped(net.eval(), None)(images(), Want(stages=(4,)))
    assert torch.equal(taps.logits, net(images()))
    assert taps.pooled.shape == (4, 16)


def test_the_last_stage_of_a_teacher_that_was_built_for_other_images_is_refused():
    teacher = load_vit(dynamic_img_size=True)
    with pytest.raises(Refused, match="built for maps of 4x4, and at this image size they are 6x6: build the teacher"):
        Distiller(resnet(), teacher, "scalekd", image_size=48)
    assert Distiller(resnet(), teacher, "fd", image_size=48)(images(side=48), LABELS)["feat_s4"].isfinite()


def load_vit(**options):
    return timm.models.VisionTransformer(**VIT | options)


# --- what cannot be given


@pytest.mark.parametrize(
    ("check", "sentence"),  # called alone: the checker of annotations that is on in tests would be first
    [
        (lambda: check_model(None, "student"), r"The student must be a torch\.nn\.Module, got None \(NoneType\)"),
        (lambda: check_model(torch.zeros(3), "teacher"), r"The teacher must be a torch\.nn\.Module, got tensor"),
        (lambda: check_model(nn.LazyLinear(3), "student"), "The student has weights without values"),
        (lambda: check_settings(None, 32.0, False, len), "image_size must be a whole number from 1 to 16384, got 32.0"),
        (lambda: check_settings(True, 32, False, len), "num_classes must be a whole number"),
        (lambda: check_settings(5, 32, "yes", len), "normalize must be True, False or"),
        (lambda: check_settings(5, 32, {"student": ([0.5] * 3, [0.0] * 3)}, len), r"normalize of 'student' must be"),
        (lambda: check_settings(5, 32, True, "ce"), "criterion must be called with"),
        (lambda: check_taps(["body.0"], "taps"), "taps must be like"),
        (lambda: check_taps({"stages": ["body.0"]}, "taps"), "taps: stages must be"),
        (lambda: check_taps({"stages": {"1": "body.0"}}, "taps"), "taps: stages are numbered 1 to 4, got '1'"),
        (lambda: check_taps({"prefix": [0]}, "taps"), "taps: prefix must be a count of tokens"),
        (lambda: check_taps({"final": nn.ReLU()}, "teacher_taps"), "teacher_taps: 'final' must be a text"),
        (lambda: check_batch(None, LABELS, None, Net(), CLASSES), "The images must be a tensor, got None"),
        (lambda: check_batch(images(), [0], None, Net(), CLASSES), r"The targets must be a tensor, got \[0\]"),
    ],
)
def test_arguments_of_wrong_kinds_are_told_in_a_sentence(check, sentence):
    with pytest.raises(UserError, match=sentence):
        check()


def test_what_is_no_model_is_told_when_the_distiller_is_built():
    with pytest.raises(UserError, match="The student has weights without values"):
        hkd.Distiller(nn.LazyLinear(3), Net(), "kd", image_size=32)
    with pytest.raises(UserError, match="normalize of 'student' must be"):
        hkd.Distiller(Net(), Net(), "kd", image_size=32, normalize={"student": ([0.5] * 3, [0.0] * 3)})


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (images()[0], LABELS, r"Images must be \[B, 3, H, W\]"),
        (images()[:, :1], LABELS, r"Images must be \[B, 3, H, W\]"),
        (images()[:0], LABELS[:0], "at least one"),
        (images().to("meta"), LABELS, "The images are on meta, and the student on cpu"),
        (images().to_sparse(), LABELS, "sparse"),
        (images(), LABELS[:3], "Targets of 4 images"),
        (images(), LABELS.float(), "got torch.float32 of shape"),
        (images(), LABELS > 1, "got torch.bool"),
        (images(), F.one_hot(LABELS, CLASSES), "with a point"),
        (images(), torch.rand(4, CLASSES + 1), r"soft ones \[4, 5\]"),
        (images(), LABELS + 2, "There is a label 5, and the student's classes are 0 to 4"),
        (images(), LABELS - 1, "There is a label -1"),
    ],
)
def test_a_batch_that_cannot_be_is_told_in_a_sentence(x, y, sentence):
    with pytest.raises(UserError, match=sentence):
        hkd.Distiller(Net(), Net(), "kd", image_size=32)(x, y)


def test_class_indices_may_be_whole_numbers_of_any_length():
    distiller = hkd.Distiller(Net(), Net(), "kd", image_size=32)
    known = total(distiller(images(), LABELS))
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(total(distiller(images(), LABELS.to(dtype))), known)


@pytest.mark.parametrize(
    ("criterion", "sentence"),
    [
        (lambda logits, y: logits, r"criterion must give one number.*got a tensor of shape \[4, 5\]"),
        (lambda logits, y: None, "criterion must give one number.*got None"),
        (lambda logits: logits.sum(), r"criterion raised TypeError for logits \[4, 5\] and targets \[4\]"),
    ],
)
def test_a_criterion_that_is_none_is_told_in_its_own_words(criterion, sentence):
    distiller = hkd.Distiller(Net(), Net(), "kd", image_size=32, criterion=criterion)
    with pytest.raises(UserError, match=sentence):
        distiller(images(), LABELS)
