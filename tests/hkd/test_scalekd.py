"""ScaleKD: its terms, its switches, and what reaches the student."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.parts.feature_mimicking import mimic_loss
from hkd.methods.scalekd import (
    ScaleKD,
    ScaleKDConfig,
    feature_weights,
    query_views,
    soft_cross_entropy,
    tail_views,
)
from hkd.methods.supervised import Supervised
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import TapInfo, Taps, Want, to_tokens
from hkd.options import NoOptions
from hkd.spec import Recipe

INFO = TapInfo(
    classes=10,
    pooled=6,
    final=(6, 2, 2),
    stages={1: (3, 4, 4), 2: (3, 4, 4), 3: (4, 3, 3), 4: (5, 2, 2)},
)
RECIPE = Recipe(epochs=1, batch_size=2)
FEATURES = ["feat_s3_orig", "feat_s3_alt", "feat_s4_orig", "feat_s4_alt"]


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    return Teacher(ZOO["swin_s_mini"], 10)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return Teacher(ZOO["vit_s16_mini"], 10)


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def build(teacher, info=INFO, **options) -> ScaleKD:
    torch.manual_seed(1)
    options = {"heads_s3": 2, "heads_s4": 2} | options
    return ScaleKD(ScaleKDConfig(**options), info, {"teacher": teacher}, F.cross_entropy)


def student_taps(count: int, dtype=torch.float32) -> Taps:
    """Leaf tensors in place of a student, in the shapes of INFO."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"logits": (10,), "pooled": (6,), "final": (6, 2, 2), 3: (4, 3, 3), 4: (5, 2, 2)}
    leaves = {
        name: torch.randn(count, *shape, generator=generator, dtype=dtype).requires_grad_()
        for name, shape in shapes.items()
    }
    return Taps(
        logits=leaves["logits"],
        pooled=leaves["pooled"],
        final=leaves["final"],
        stages={stage: leaves[stage] for stage in (3, 4)},
    )


def run(method, teacher, x) -> tuple[dict[str, torch.Tensor], Taps, Taps]:
    """Losses, the student's taps (leaves with gradients), the teacher's taps."""
    taps_s, taps_t = student_taps(len(x)), teacher(x)
    batch = Batch(x=x, y=torch.arange(len(x)), index=torch.arange(len(x)))
    return method(batch, taps_s, {"teacher": taps_t}), taps_s, taps_t


# -- the losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits_s", "logits_t", "tau", "value"),
    [
        ([0, 0, 0], [0, 0, 0], 1.0, 0.549306),  # half of ln 3
        ([2, 0, 0], [0, 0, 3], 1.0, 1.074494),
        ([2, 0, 0], [0, 0, 3], 4.0, 9.383433),
    ],
)
def test_the_logit_term_has_its_hand_values_at_alpha_one_half(logits_s, logits_t, tau, value):
    s, t = torch.tensor([logits_s], dtype=torch.float64), torch.tensor([logits_t], dtype=torch.float64)
    assert 0.5 * soft_cross_entropy(s, t, tau=tau).item() == pytest.approx(value, abs=1e-6)


def test_the_logit_term_is_the_kl_divergence_plus_the_teachers_entropy():
    s, t = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum()
    assert 0.5 * (soft_cross_entropy(s, t, tau=1.0) - entropy).item() == pytest.approx(0.891197, abs=1e-6)


def test_the_logit_gradient_agrees_with_finite_differences_and_spares_the_teacher():
    s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, t, tau=2.0), s)
    soft_cross_entropy(s, t, tau=2.0).backward()
    assert t.grad is None


def test_the_logit_term_is_finite_for_extreme_logits():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(s, s.detach().flip(1), tau=1.0)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_the_terms_are_what_the_equations_say(swin, x):
    method = build(swin, alpha=0.3, tau=2.0, w_orig=0.08, w_alt=0.06)
    losses, taps_s, taps_t = run(method, swin, x)
    p, target, tail = method.projectors, to_tokens(taps_t.final), swin.tail()
    assert list(losses) == ["task", "kd", *FEATURES]
    expected = {
        "task": 0.7 * F.cross_entropy(taps_s.logits, torch.arange(3)),
        "kd": 0.3 * 4 * F.cross_entropy(taps_s.logits / 2, (taps_t.logits / 2).softmax(1)),
    }
    for view, weight in (("orig", 0.08), ("alt", 0.06)):
        u = to_tokens(tail(p[f"s3_{view}"](taps_s.stages[3])))
        v = p[f"s4_{view}"](taps_s.final, u)
        for stage, tokens in (("s3", u), ("s4", v)):
            expected[f"feat_{stage}_{view}"] = weight * mimic_loss(tokens, target, centred=view == "alt")
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_alpha_leaves_the_feature_terms_alone(swin, x):
    half, none = (run(build(swin, alpha=alpha), swin, x)[0] for alpha in (0.5, 0.0))
    assert all(torch.equal(half[name], none[name]) for name in FEATURES)
    assert half["task"].item() == pytest.approx(0.5 * none["task"].item())


def test_without_logit_distillation_the_task_loss_has_weight_one(swin, x):
    losses, taps_s, _ = run(build(swin, kd=False), swin, x)
    assert torch.equal(losses["task"], F.cross_entropy(taps_s.logits, torch.arange(3)))
    assert "kd" not in losses


def test_the_tail_of_the_teachers_stage_three_is_its_last_map(swin, x):
    taps = swin(x, Want(stages=(3,)))
    torch.testing.assert_close(swin.tail()(to_tokens(taps.stages[3])), taps.final, atol=1e-5, rtol=1e-5)


# -- weights and switches --------------------------------------------------------------------------------------


def weights_of(positions=49, **options):
    return feature_weights(ScaleKDConfig(**options), positions)


def test_weights_follow_the_scale_law_unless_given():
    assert weights_of() == {
        (stage, view): pytest.approx(weight / 49)
        for stage, view, weight in (("s3", "orig", 4), ("s3", "alt", 3), ("s4", "orig", 4), ("s4", "alt", 3))
    }
    assert weights_of(256)["s3", "orig"] == pytest.approx(0.015625)
    assert weights_of(w_orig=0.08, w_alt=0.06)["s4", "alt"] == 0.06


def test_beta_and_lambda_set_the_same_two_weights():
    weights = weights_of(beta=0.571, lambda_=0.14)
    assert weights["s3", "orig"] == pytest.approx(0.08, abs=1e-4)
    assert weights["s3", "alt"] == pytest.approx(0.06, abs=1e-4)
    assert weights_of(beta=4 / 7) == {key: pytest.approx(value) for key, value in weights_of().items()}
    assert weights_of(lambda_=7 / 49) == {key: pytest.approx(value) for key, value in weights_of().items()}


@pytest.mark.parametrize(
    ("dfm", "views"),
    [
        ("off", {"orig": 0.08}),
        ("orig_only", {"orig": 0.14}),
        ("alt_only", {"alt": 0.14}),
        ("two_orig", {"orig": 0.08, "orig2": 0.06}),
        ("full", {"orig": 0.08, "alt": 0.06}),
    ],
)
def test_dfm_sets_the_views_and_their_weights(dfm, views):
    found = weights_of(dfm=dfm, w_orig=0.08, w_alt=0.06, stages=("s4",))
    assert found == {("s4", view): pytest.approx(weight) for view, weight in views.items()}


def test_beta_at_its_ends_is_the_single_view():
    assert weights_of(beta=1.0) == weights_of(beta=1.0, dfm="orig_only")
    assert weights_of(beta=0.0) == weights_of(beta=0.0, dfm="alt_only")


def test_stage_four_can_have_weights_of_its_own_and_a_zero_builds_nothing(swin):
    options = {"w_orig": 0.08, "w_alt": 0.06, "s4_w_alt": 0.0}
    assert list(weights_of(**options)) == [("s3", "orig"), ("s3", "alt"), ("s4", "orig")]
    assert list(build(swin, **options).projectors) == ["s3_orig", "s3_alt", "s4_orig"]


@pytest.mark.parametrize(
    ("tpp", "terms", "queries"),
    [
        ("off", FEATURES[2:], ()),
        ("mimic_only", FEATURES, ()),
        ("query_only", FEATURES[2:], ("orig", "alt")),
        ("full", FEATURES, ("orig", "alt")),
    ],
)
def test_tpp_sets_what_stage_three_does(swin, x, tpp, terms, queries):
    method = build(swin, kd=False, tpp=tpp)
    assert list(run(method, swin, x)[0]) == ["task", *terms]
    assert query_views(method.config) == queries
    learned = [
        name for name, _ in method.named_parameters() if name.startswith("projectors.s4") and name.endswith(".query")
    ]
    assert len(learned) == (0 if queries else 2)


@pytest.mark.parametrize(("stages", "terms"), [(("s3",), FEATURES[:2]), (("s4",), FEATURES[2:]), ((), [])])
def test_stages_set_which_terms_there_are(swin, x, stages, terms):
    assert list(run(build(swin, kd=False, stages=stages), swin, x)[0]) == ["task", *terms]


def test_without_stage_three_tpp_has_no_effect(swin, x):
    with_tpp, without = (run(build(swin, stages=("s4",), tpp=tpp), swin, x)[0] for tpp in ("full", "off"))
    assert {name: loss.item() for name, loss in with_tpp.items()} == {
        name: loss.item() for name, loss in without.items()
    }


def test_a_convolution_projector_has_no_query(swin, x):
    full, mimic = (run(build(swin, projector="conv1x1", tpp=tpp), swin, x)[0] for tpp in ("full", "mimic_only"))
    assert [loss.item() for loss in full.values()] == [loss.item() for loss in mimic.values()]


def test_stages_come_as_a_list_from_a_file():
    assert ScaleKDConfig(stages=["s4"]) == ScaleKDConfig(stages=("s4",))


def test_the_raw_tap_is_stage_four_before_the_norm(swin, x):
    method = build(swin, s4_tap="raw")
    assert method.needs(method.config).student.stages == (3, 4)
    assert method.projectors["s4_orig"].proj_student[0].in_channels == INFO.stages[4][0]
    losses, taps_s, _ = run(method, swin, x)
    losses["feat_s4_orig"].backward()
    assert taps_s.final.grad is None
    assert taps_s.stages[4].grad.abs().sum() > 0


def combinations():
    projectors, tpps = ("conv1x1", "conv3x3_bn_relu", "cap_no_pos", "cap"), ("off", "mimic_only", "query_only", "full")
    return list(product(projectors, tpps, ((), ("s3",), ("s4",), ("s3", "s4"))))


@pytest.mark.parametrize(("projector", "tpp", "stages"), combinations())
def test_every_combination_of_switches_trains_every_parameter_or_is_refused(swin, x, projector, tpp, stages):
    empty = (tpp == "off" and stages == ("s3",)) or (
        tpp == "query_only" and (stages == ("s3",) or ("s3" in stages and "conv" in projector))
    )
    for dfm in ("off", "orig_only", "alt_only", "two_orig", "full"):
        options = {"projector": projector, "tpp": tpp, "stages": stages, "dfm": dfm}
        if empty:
            with pytest.raises(ValueError, match=f"tpp={tpp}"):
                ScaleKDConfig(**options)
            continue
        method = build(swin, **options, norm="batch" if dfm == "full" else "layer")
        losses, taps_s, _ = run(method, swin, x)
        assert set(losses) == {"task", "kd"} | {f"feat_{stage}_{view}" for stage, view in method.weights}
        sum(losses.values()).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, (name, options)
            assert parameter.grad.isfinite().all(), (name, options)
            # Some biases cancel in a softmax, a norm or a removed mean; everything else must learn.
            assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, (name, options)
        assert (taps_s.stages[3].grad is not None) == ("s3" in stages and tpp != "off")


def test_with_every_switch_off_a_step_is_the_plain_cross_entropy_step(swin, x):
    config = ScaleKDConfig(stages=(), kd=False)
    assert not ScaleKD.needs(config).teachers
    weights = []
    for kind, own in ((ScaleKD, config), (Supervised, NoOptions())):
        torch.manual_seed(3)
        student = TapModel(ZOO["resnet18_mini"], 10)
        method = kind(own, student.info, {}, F.cross_entropy)
        assert not list(method.parameters())
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        for _ in range(2):
            batch = Batch(x=x, y=torch.arange(3), index=torch.arange(3))
            losses = method(batch, student(x, kind.needs(own).student), {})
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        weights.append(student.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# -- gradients -------------------------------------------------------------------------------------------------


def test_the_stage_four_loss_alone_reaches_stage_three_through_tail_and_query(swin, x):
    losses, taps_s, _ = run(build(swin), swin, x)
    (losses["feat_s4_orig"] + losses["feat_s4_alt"]).backward()
    assert taps_s.stages[3].grad.abs().sum() > 0


def test_with_learned_queries_the_stage_four_loss_does_not_reach_stage_three(swin, x):
    losses, taps_s, _ = run(build(swin, tpp="mimic_only"), swin, x)
    (losses["feat_s4_orig"] + losses["feat_s4_alt"]).backward()
    assert taps_s.stages[3].grad is None


def test_a_step_leaves_the_teacher_byte_identical_and_without_gradients(swin, x):
    before = copy.deepcopy(swin.state_dict())
    method = build(swin)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    sum(run(method, swin, x)[0].values()).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in swin.parameters())
    assert all(torch.equal(value, before[name]) for name, value in swin.state_dict().items())


def test_the_four_projectors_are_independent_and_the_teacher_is_not_stored(swin):
    method = build(swin)
    assert list(method.projectors) == ["s3_orig", "s3_alt", "s4_orig", "s4_alt"]
    weights = [projector.v.weight for projector in method.projectors.values()]
    assert len({weight.data_ptr() for weight in weights}) == 4
    assert not torch.equal(weights[0], weights[1])
    assert all(name.startswith("projectors.") for name in method.state_dict())


def test_the_feature_path_agrees_with_finite_differences():
    torch.manual_seed(0)
    teacher = Teacher(ZOO["swin_t_mini"], 10).double()
    method = build(teacher, norm="layer").double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    taps_t = teacher(x)
    taps_s = student_taps(1, torch.float64)

    def feature_loss(stage3, final):
        taps = Taps(logits=taps_s.logits, pooled=taps_s.pooled, final=final, stages={3: stage3})
        losses = method(
            Batch(x=x.float(), y=torch.zeros(1).long(), index=torch.zeros(1).long()), taps, {"teacher": taps_t}
        )
        return sum(loss for name, loss in losses.items() if name.startswith("feat"))

    assert torch.autograd.gradcheck(feature_loss, (taps_s.stages[3], taps_s.final), fast_mode=True)


def test_one_batch_can_be_fitted_with_every_term_falling(x):
    torch.manual_seed(0)
    teacher = Teacher(ZOO["swin_s_mini"], 10)
    with torch.no_grad():
        teacher.net.get_classifier().weight.mul_(30)  # a fresh teacher is all but uniform: nothing to learn from
    student = TapModel(ZOO["resnet18_mini"], 10)
    method = build(teacher, student.info)
    batch, taps_t = Batch(x=x, y=torch.arange(3), index=torch.arange(3)), {"teacher": teacher(x)}
    optimizer = torch.optim.Adam([*student.parameters(), *method.parameters()], lr=2e-3)
    curve = []
    for _ in range(50):
        losses = method(batch, student(x, method.needs(method.config).student), taps_t)
        curve.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert list(curve[0]) == ["task", "kd", *FEATURES]
    for name in FEATURES:
        assert curve[-1][name] < 0.5 * curve[0][name], name
    assert all(curve[-1][name] < 0.9 * curve[0][name] for name in ("task", "kd"))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_maps_and_extreme_logits_stay_finite(swin, x, value):
    method, taps_t = build(swin), swin(x)
    leaves = [torch.full((3, *shape), value, requires_grad=True) for shape in (INFO.stages[3], INFO.final)]
    logits = torch.tensor([[1e4] + [-1e4] * 9] * 3, requires_grad=True)
    taps_s = Taps(logits=logits, pooled=torch.zeros(3, 6), final=leaves[1], stages={3: leaves[0]})
    losses = method(Batch(x=x, y=torch.arange(3), index=torch.arange(3)), taps_s, {"teacher": taps_t})
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in (*leaves, logits, *method.parameters()))


def test_under_mixed_precision_the_features_are_still_compared_in_single_precision(swin, x):
    method = build(swin)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _, _ = run(method, swin, x)
    assert all(losses[name].dtype == torch.float32 for name in FEATURES)
    exact = run(method, swin, x)[0]
    assert all(losses[name].item() == pytest.approx(exact[name].item(), rel=0.05) for name in FEATURES)


# -- teachers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["final", "raw"])
def test_a_plain_transformer_teacher_serves_its_last_blocks_as_tail(vit, x, tap):
    method = build(vit, s4_tap=tap)
    assert method.tail.in_grid == method.tail.out_grid == (4, 4)
    assert method.weights["s3", "orig"] == 4 / 16
    assert all(loss.isfinite() for loss in run(method, vit, x)[0].values())


def test_the_length_of_the_tail_is_an_option(vit, x):
    one, two, default = (run(build(vit, vit_tail=k), vit, x)[0]["feat_s3_orig"].item() for k in (1, 2, None))
    assert one != two
    assert two == default
    with pytest.raises(Refused, match="blocks"):
        build(vit, vit_tail=99)


def test_stage_four_can_have_a_tail_of_its_own(vit, x):
    method = build(vit, s4_tail=1)
    losses, taps_s, taps_t = run(method, vit, x)
    u = to_tokens(vit.tail(2)(method.projectors["s3_orig"](taps_s.stages[3])))
    v = to_tokens(vit.tail(1)(method.projectors["s4_orig"](taps_s.final, u)))
    assert losses["feat_s4_orig"].item() == pytest.approx((mimic_loss(v, to_tokens(taps_t.final)) / 4).item(), rel=1e-5)


@pytest.mark.parametrize("option", ["s4_tail", "vit_tail"])
def test_a_number_of_blocks_is_refused_for_a_teacher_whose_tail_is_a_stage(swin, option):
    with pytest.raises(Refused, match="whole last stage"):
        build(swin, **{option: 1})


def test_the_teacher_sleeps_unless_its_training_mode_is_asked_for():
    torch.manual_seed(0)
    card = ZOO["swin_s_mini"]
    teacher = Teacher(replace(card, kwargs={**card.kwargs, "drop_path_rate": 0.5}), 10)
    build(teacher).train()
    assert not teacher.net.training
    build(teacher, teacher_mode="train")
    x = torch.rand(8, 3, 32, 32)
    assert not torch.equal(teacher(x).final, teacher(x).final)


# -- refusals --------------------------------------------------------------------------------------------------


def refusal(teacher="resnet50_mini", recipe=RECIPE, **options):
    cards = {"teacher": ZOO[teacher]} if teacher else {}
    return ScaleKD.refuse(ScaleKDConfig(**options), ZOO["vit_s16_mini"], cards, recipe)


def test_a_teacher_without_a_tail_is_refused_only_where_the_tail_is_used():
    assert "resnet teacher" in refusal()
    assert refusal(tpp="off") is None
    assert refusal(stages=("s4",)) is None
    assert refusal(stages=()) is None
    assert refusal(teacher="swin_s_mini") is None
    assert "needs a teacher" in refusal(teacher=None)
    assert refusal(teacher=None, stages=(), kd=False) is None


def test_a_stochastic_teacher_is_refused_for_fixed_views():
    cached = replace(RECIPE, views=2)
    assert "fixed views" in refusal("swin_s_mini", cached, teacher_mode="train")
    assert refusal("swin_s_mini", cached) is None


def test_heads_that_do_not_divide_the_teachers_width_are_refused(swin):
    with pytest.raises(Refused, match="7 attention heads do not divide the teacher's width 32"):
        build(swin, heads_s3=7)
    with pytest.raises(Refused, match="7 attention heads do not divide the teacher's width 64"):
        build(swin, heads_s4=7)


def test_a_teacher_map_of_one_position_has_no_alternative_view():
    teacher = Teacher(ZOO["convnext_t_mini"], 10)
    teacher.info = replace(teacher.info, final=(128, 1, 1))
    with pytest.raises(Refused, match="DC-free view is zero"):
        build(teacher, tpp="off")
    assert build(teacher, tpp="off", dfm="orig_only").weights == {("s4", "orig"): 7.0}


def test_a_student_map_of_one_position_is_refused(swin):
    info = replace(INFO, final=(6, 1, 1))
    with pytest.raises(Refused, match="s4 map is 1x1"):
        build(swin, info)
    assert list(build(swin, info, stages=("s3",)).projectors) == ["s3_orig", "s3_alt"]


def test_views_through_the_tail_are_those_compared_or_asked_for():
    assert tail_views(ScaleKDConfig()) == ("orig", "alt")
    assert tail_views(ScaleKDConfig(tpp="query_only", s4_w_alt=0.0)) == ("orig",)
    assert tail_views(ScaleKDConfig(tpp="off")) == ()
