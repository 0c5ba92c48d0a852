"""Hybrid Distill: losses, targets, masks, tasks, refusals, training on data without labels."""

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from hkd.data.base import Split
from hkd.data.batch import Batch
from hkd.data.digits import Digits
from hkd.errors import Refused, UserError
from hkd.methods.hybrid import Hybrid, HybridConfig, kept_counts, late_blocks, mask_blocks
from hkd.methods.parts.relations import projected, relations
from hkd.methods.parts.token_mask import kept_after, redundant_mask
from hkd.methods.parts.token_targets import distance, normalise_tokens
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.tasks.train import TapStep, make_method
from hkd.training.job import Job, Runtime

VIT = "timm.models.vision_transformer:VisionTransformer"
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}
AVERAGE = {"class_token": False, "global_pool": "avg", "fc_norm": False}
RECIPE = Recipe(epochs=1, batch_size=4)
MASKED = {"mask": "progressive", "drop": 0.3}


def card(family="vit", stages=(0, 1, 2, 3), **kwargs):
    """With `stages` as they are, the ends of the first two thirds of four blocks are stages 1 and 2."""
    return ModelCard(
        name="small", family=family, arch=VIT, kwargs=SIZES | kwargs, image_size=16, stages=stages, mean=(0.5,) * 3
    )


STUDENT = card("hybrid_vit")


def jittered(model, seed):
    """With every parameter drawn, so that norms and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def usual_teachers():
    """Frozen, so that tests may share them."""
    return teachers_of(card(), card("mim_vit"))


def teachers_of(tc, tm):
    torch.manual_seed(1)
    return {"features": jittered(Teacher(tc, 5), 1), "relations": jittered(Teacher(tm, 0), 2)}


def build(student=None, tc=None, tm=None, **options):
    torch.manual_seed(0)
    model = jittered(TapModel(student or STUDENT, 0), 0)
    spec = MethodSpec(name="hybrid", options={"depth": 4, "decoder_width": 16, "decoder_heads": 2} | options)
    teachers = teachers_of(tc or card(), tm or card("mim_vit")) if tc or tm else usual_teachers()
    method, needs = make_method(spec, model, teachers, RECIPE)
    return TapStep(model, method, needs).train()


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def taps_of(step, batch):
    needs = step.method.needs(step.method.config)
    return {role: step.method.teachers[role](batch.x, want) for role, want in needs.teachers.items()}


def losses_of(step, x=None):
    batch = batch_of(images() if x is None else x)
    return step(batch, taps_of(step, batch)), batch


def smooth(a, b, beta=2.0):
    """By plain loops."""
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    each = [e * e / (2 * beta) if abs(e) < beta else abs(e) - beta / 2 for e in (x - y for x, y in pairs)]
    return math.fsum(each) / len(each)


def all_tokens(model, x):
    """Of a teacher's last block, by its own modules: prefix first."""
    net = model.net
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(model.prepare(x))))
    inputs = []
    for block in net.blocks:
        inputs.append(tokens)
        tokens = block(tokens)
    return inputs, tokens


# Losses


@pytest.mark.parametrize(
    ("beta", "error", "loss"),
    [(1.0, 0.5, 0.125), (1.0, 1.0, 0.5), (1.0, 3.0, 2.5), (2.0, 0.5, 0.0625), (2.0, 1.0, 0.25), (2.0, 3.0, 2.0)],
)
def test_the_distance_has_the_values_of_the_specification(beta, error, loss):
    assert distance(torch.tensor([error]), torch.zeros(1), beta=beta).item() == loss
    assert distance(torch.tensor([-error]), torch.zeros(1), beta=beta).item() == loss


def test_distances_and_relations_have_the_gradients_of_their_differences():
    generator = torch.Generator().manual_seed(0)
    q, k, r = (torch.randn(1, 2, 3, size, dtype=torch.float64, generator=generator) for size in (4, 4, 3))
    q.requires_grad_()
    k.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: distance(relations(q, k, groups=1), r[:, :1], beta=0.7), (q, k))


def test_the_distance_keeps_the_teacher_out_of_the_gradient_and_is_finite_at_extremes():
    target = torch.randn(3, 4).requires_grad_()
    predicted = torch.full((3, 4), 1e30).requires_grad_()
    distance(predicted, target, beta=2.0).backward()
    assert target.grad is None
    assert predicted.grad.isfinite().all()
    assert distance(target, target, beta=2.0).item() == 0.0
    assert normalise_tokens(torch.full((1, 2, 8), 1e15)).isfinite().all()


def test_the_target_norm_has_the_unbiased_variance():
    found = normalise_tokens(torch.tensor([[[1.0, 2.0, 3.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[-1.0, 0.0, 1.0]]]), atol=1e-5, rtol=0.0)


# Masks


@pytest.mark.parametrize(("drop", "counts"), [(0.5, [98, 49, 25]), (0.3, [138, 97, 68]), (0.1, [177, 160, 144])])
def test_the_paper_sizes_keep_what_the_specification_says(drop, counts):
    config = HybridConfig(mask="progressive", drop=drop)
    assert mask_blocks(config) == (0, 4, 8)
    assert kept_counts(config, 196) == counts
    assert mask_blocks(HybridConfig(depth=24, mask="progressive")) == (0, 8, 16)


@pytest.mark.parametrize("mask_tokens", ["block", "normed"])
def test_the_progressive_mask_looks_at_the_inputs_of_tms_blocks(mask_tokens):
    step = build(**MASKED, mask_tokens=mask_tokens, tm=card("mim_vit"))
    _, batch = losses_of(step)
    teacher = step.method.teachers["relations"]
    with torch.no_grad():
        inputs, _ = all_tokens(teacher, batch.x)
        if mask_tokens == "normed":
            inputs = [block.norm1(tokens) for block, tokens in zip(teacher.net.blocks, inputs, strict=True)]
    expected = redundant_mask([inputs[index][:, 1:] for index in (0, 1, 2)], kept_after(16, 0.3, 3))
    assert torch.equal(batch.extra["visible"].flatten(1), expected)
    assert expected.sum(1).tolist() == [7] * 3  # 16, 12, 9, 7


def test_the_direct_mask_looks_at_the_output_of_tms_last_layer():
    step = build(mask="direct", keep=0.35)
    _, batch = losses_of(step)
    with torch.no_grad():
        _, last = all_tokens(step.method.teachers["relations"], batch.x)
    assert torch.equal(batch.extra["visible"].flatten(1), redundant_mask([last[:, 1:]], [6]))


def test_random_masks_differ_between_images():
    _, batch = losses_of(build(mask="random", keep=0.35), images(8))
    visible = batch.extra["visible"].flatten(1)
    assert visible.sum(1).tolist() == [6] * 8
    assert len(visible.unique(dim=0)) > 1


def test_a_mask_that_drops_nothing_is_no_mask():
    whole, masked = losses_of(build())[0], losses_of(build(mask="progressive", drop=0.0))[0]
    torch.testing.assert_close(masked, whole)


def test_the_student_runs_on_kept_tokens_only_and_dropped_pixels_reach_no_loss():
    step, x = build(**MASKED), images()
    lengths = []
    step.student.net.blocks[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    losses, batch = losses_of(step, x)
    assert lengths == [1 + 7]
    taps_t = taps_of(step, batch)
    shown = batch.extra["visible"].repeat_interleave(4, 2).repeat_interleave(4, 3)
    step.method.visible = lambda *_: batch.extra["visible"]
    blind = step(batch_of(torch.where(shown, x, 0.1)), taps_t)
    assert all(torch.equal(blind[name], loss) for name, loss in losses.items())


# Terms


@pytest.mark.parametrize("options", [{}, MASKED, {"mask": "random"}, {"class_token": False, **MASKED}])
@pytest.mark.parametrize("scale", ["raw", "1/sqrt(d)"])
def test_both_terms_are_those_of_full_outputs_gathered_by_loops(options, scale):
    step = build(relation_scale=scale, alpha=0.5, **options).eval()
    losses, batch = losses_of(step)
    tc, tm = step.method.teachers["features"], step.method.teachers["relations"]
    visible = batch.extra.get("visible", torch.ones(3, 1, 4, 4, dtype=torch.bool)).flatten(1)
    first = 0 if step.method.config.class_token else 1
    feat, late = [], {1: [], 2: []}
    with torch.no_grad():
        _, f_c = all_tokens(tc, batch.x)
        inputs, _ = all_tokens(tm, batch.x)
        kept = {} if options == {} or options.get("mask", "none") == "none" else {"visible": batch.extra["visible"]}
        taps_s = step.student(batch.x, Want(qkv=(1, 2)), **kept)
        for image in range(3):
            places = [0, *(1 + visible[image].nonzero()[:, 0]).tolist()][first:]
            targets = torch.stack([(f_c[image, p] - f_c[image, p].mean()) / f_c[image, p].std() for p in places])
            feat.append(smooth(taps_s.tokens[image, first:], targets))
            for block in (1, 2):
                module = tm.net.blocks[block]
                q_t, k_t, _ = projected(module.attn, module.norm1(inputs[block][image : image + 1]))
                full = (q_t @ k_t.transpose(2, 3))[0]
                r_t = torch.stack([torch.stack([full[:, i, j] for j in places], 1) for i in places], 1)
                q_s, k_s, _ = (part[image, :, first:] for part in taps_s.qkv[block])
                factor = 1.0 if scale == "raw" else 12**-0.5
                late[block].append(smooth(factor * (q_s @ k_s.transpose(1, 2)), factor * r_t))
    assert losses["feat"].item() == pytest.approx(sum(feat) / 3, rel=1e-4)
    assert losses["late"].item() == pytest.approx(0.5 * (sum(late[1]) + sum(late[2])) / 6, rel=1e-4)


def test_without_the_late_term_it_is_the_distillation_of_tc_alone():
    assert losses_of(build(alpha=0.0))[0] == losses_of(build(targets="c"))[0]


def test_a_student_that_is_its_teachers_has_no_loss():
    step = build(target_norm=False, student_norm=False)
    step.method.teachers.update(copy.deepcopy(step.method.teachers))
    for teacher in step.method.teachers.values():
        teacher.net.load_state_dict(step.student.net.state_dict(), strict=False)
    losses, _ = losses_of(step)
    assert losses["feat"].item() == pytest.approx(0.0, abs=1e-9)
    assert losses["late"].item() == pytest.approx(0.0, abs=1e-9)


def test_permuted_patches_leave_the_losses_as_they_are():
    step = build(**MASKED)
    batch = batch_of(images())
    taps_t = taps_of(step, batch)
    taps_s = step.student(batch.x, step.want, **step.method.student_inputs(batch, taps_t))
    before = step.method(batch, taps_s, taps_t)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    places = batch.extra["visible"].flatten(1).nonzero()[:, 1].view(3, 7)

    def swap(tokens, start):
        """Kept patches of a teacher's tokens in another order."""
        source, target = start + places[:, order], start + places
        picked = tokens.gather(1, source[:, :, None].expand(-1, -1, tokens.shape[2]))
        return tokens.scatter(1, target[:, :, None].expand(-1, -1, tokens.shape[2]), picked)

    chosen = [0, *(1 + order).tolist()]
    taps_s.tokens = taps_s.tokens[:, chosen]
    taps_s.qkv = {block: tuple(part[:, :, chosen] for part in parts) for block, parts in taps_s.qkv.items()}
    late, final = taps_t["relations"], taps_t["features"]
    late.attention = {block: swap(tokens, 1) for block, tokens in late.attention.items()}
    map_ = final.stages[4]
    final.stages[4] = swap(map_.flatten(2).transpose(1, 2), 0).transpose(1, 2).view_as(map_)
    torch.testing.assert_close(step.method(batch, taps_s, taps_t), before)


@pytest.mark.parametrize(
    ("targets", "roles", "terms"),
    [
        ("c", {"features"}, {"feat"}),
        ("m", {"relations"}, {"feat"}),
        ("c+c", {"features"}, {"feat", "late"}),
        ("m+m", {"relations"}, {"feat", "late"}),
        ("c+m", {"features", "relations"}, {"feat", "late"}),
    ],
)
def test_each_choice_of_targets_reads_the_teachers_it_names(targets, roles, terms):
    step = build(targets=targets)
    assert set(step.method.needs(step.method.config).teachers) == roles
    losses, _ = losses_of(step)
    assert set(losses) == terms
    assert all(loss > 0 for loss in losses.values())


def test_attended_values_are_the_teachers_own_at_kept_tokens():
    step = build(late_target="msa", late_layers=[3], **MASKED).eval()
    losses, batch = losses_of(step)
    seen = []
    teacher = step.method.teachers["relations"]
    for model in (teacher, step.student):
        model.net.blocks[2].attn.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        teacher(batch.x)
        step.student(batch.x, visible=batch.extra["visible"])
    visible = batch.extra["visible"].flatten(1)
    target = torch.stack([seen[0][i, [0, *(1 + visible[i].nonzero()[:, 0]).tolist()]] for i in range(3)])
    assert losses["late"].item() == pytest.approx(smooth(seen[1], target), rel=1e-4)


@pytest.mark.parametrize("layers", [[2, 3], [4]])
def test_block_outputs_are_compared_with_the_normalised_ones_of_the_teacher(layers):
    step = build(late_target="feature", late_layers=layers).eval()
    losses, batch = losses_of(step)
    with torch.no_grad():
        inputs, last = all_tokens(step.method.teachers["relations"], batch.x)
        student = step.student(batch.x, Want(outputs=tuple(layer - 1 for layer in layers)))
    outputs = [*inputs[1:], last]
    expected = [smooth(student.outputs[i - 1], normalise_tokens(outputs[i - 1])) for i in layers]
    assert losses["late"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-3)


def test_both_last_compares_the_final_features_of_both_teachers():
    losses, _ = losses_of(build(late_target="both_last"))
    assert losses["late"].item() == losses_of(build(targets="m"))[0]["feat"].item()


def test_other_widths_and_heads_are_served_by_their_options():
    wide = card("mim_vit", embed_dim=36, num_heads=3)
    step = build(tc=replace(wide, family="vit"), tm=wide, relation_heads=1, relation_scale="1/sqrt(d)")
    assert step.method.head.weight.shape == (36, 24)
    losses_of(step)[0]["late"].backward()
    assert step.student.net.blocks[1].attn.qkv.weight.grad.isfinite().all()


# Decoders and tasks


@pytest.mark.parametrize("decoder", ["linear", "attn1"])
def test_decoders_stand_between_student_and_features_and_learn(decoder):
    step = build(decoder=decoder, **MASKED)
    losses, _ = losses_of(step)
    sum(losses.values()).backward()
    parameters = dict(step.method.named_parameters())
    assert parameters
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.parametrize(("task", "decoder"), [("masked", "linear"), ("masked", "attn1"), ("dbot", "attn1")])
def test_tasks_with_hidden_patches_learn_features_there_and_nowhere_else(task, decoder):
    step = build(task=task, decoder=decoder, targets="c", mask_ratio=0.75)
    batch = batch_of(images())
    taps_t = taps_of(step, batch)
    losses = step(batch, taps_t)
    visible = batch.extra["visible"]
    assert visible.sum((1, 2, 3)).tolist() == [4] * 3
    losses["feat"].backward()
    assert all(parameter.grad is not None for parameter in step.method.parameters())
    step.method.visible = lambda *_: visible
    map_ = taps_t["features"].stages[4]
    taps_t["features"].stages[4] = torch.where(visible, 100.0, map_)
    torch.testing.assert_close(step(batch, taps_t)["feat"], losses["feat"])
    taps_t["features"].stages[4] = torch.where(visible, map_, map_.flip(1))
    assert step(batch, taps_t)["feat"] != losses["feat"]
    x = torch.where(visible.repeat_interleave(4, 2).repeat_interleave(4, 3), batch.x, 0.3)
    taps_t["features"].stages[4] = map_
    torch.testing.assert_close(step(batch_of(x), taps_t)["feat"], losses["feat"])


# Training


def test_every_tensor_of_the_student_learns_and_no_teacher_moves():
    step = build(**MASKED)
    before = {role: copy.deepcopy(teacher.state_dict()) for role, teacher in step.method.teachers.items()}
    losses, _ = losses_of(step)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in step.parameters())
    for role, teacher in step.method.teachers.items():
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(torch.equal(value, before[role][name]) for name, value in teacher.state_dict().items())


def test_mixed_precision_compares_in_single_precision():
    step = build(**MASKED)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = losses_of(step)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_diagnostics_are_unweighted_means_of_the_training_batches():
    step = build(alpha=0.1, **MASKED)
    first, second = losses_of(step)[0], losses_of(step, images().flip(3))[0]
    step.eval()
    losses_of(step)
    step.train()
    found = step.method.diagnostics()
    assert set(found) == {"feat_size", "late_raw", "late_scaled", "kept"}
    assert found["feat_size"] == pytest.approx((first["feat"] + second["feat"]).item() / 2, rel=1e-5)
    assert found["late_raw"] == pytest.approx((first["late"] + second["late"]).item() / 0.2, rel=1e-5)
    assert found["kept"] == pytest.approx(7 / 16)
    assert step.method.diagnostics() == {}
    scaled = losses_of(build(relation_scale="1/sqrt(d)", **MASKED))[0]["late"]
    again = build(**MASKED)
    losses_of(again)
    assert again.method.diagnostics()["late_scaled"] == pytest.approx(scaled.item(), rel=1e-5)


def test_raw_relations_of_random_vits_dominate_as_the_specification_computed():
    """Its figures for random ViT-Bs: .47 for the features, 1.88 for raw and .046 for scaled relations."""
    size = {"embed_dim": 192, "num_heads": 3}
    torch.manual_seed(0)
    student = TapModel(card("hybrid_vit", **size), 0)
    found = Teacher(card("hybrid_vit", **size), 0), Teacher(card("hybrid_vit", **size), 0)
    teachers = dict(zip(("features", "relations"), found, strict=True))
    method = Hybrid(HybridConfig(depth=4), student.info, teachers, F.cross_entropy)
    step = TapStep(student, method, Hybrid.needs(method.config)).train()
    losses_of(step)
    sizes = method.diagnostics()
    assert sizes["late_raw"] > 2 * sizes["feat_size"] > 4 * sizes["late_scaled"]


def test_pre_training_looks_teachers_up_where_views_are_fixed(tmp_path, monkeypatch):
    whole = Digits.load

    def few(self, split, *, seed, select, on_corrupt="stop"):
        found = whole(self, "train", seed=seed, select=select)
        return Split(found.images[:20], None, found.labels[:20], found.rows[:20])

    monkeypatch.setattr(Digits, "load", few)
    passes = []
    monkeypatch.setattr(Teacher, "forward", lambda self, x, *args, **kwargs: passes.append(x) or plain(self, x, *args))
    plain = TapModel.forward
    random = Weights(kind="random", id="7")
    spec = RunSpec(
        task="pretrain",
        data=DataSpec(name="digits_unlabelled", options={"n_train": 20}),
        student=STUDENT,
        method=MethodSpec(name="hybrid", options={"depth": 4, **MASKED}),
        recipe=Recipe(epochs=3, batch_size=10, views=1),
        teachers={
            "features": TeacherSpec(model=card(), weights=random, classes=0),
            "relations": TeacherSpec(model=card("mim_vit"), weights=random, classes=0),
        },
    )
    found = pretrain(Job(spec, {}, tmp_path, Runtime(accelerator="cpu"), lambda news: None))
    # Each measures its taps once, sees both batches once for the table, and both held-out batches.
    assert len(passes) == 2 * (1 + 2 + 2)
    assert set(found.metrics) == {"heldout_loss", "heldout_feat", "heldout_late"}
    assert {"feat_size", "late_raw", "late_scaled", "kept"} <= set(found.curves[-1])


# Bad input


@pytest.mark.parametrize(
    ("models", "options", "sentence"),
    [
        ({"student": card("vit")}, {}, "'beit', 'hybrid_beit', 'hybrid_vit' or 'mim_vit', not 'vit'"),
        ({"student": ZOO["resnet18_mini"]}, {}, "not 'resnet'"),
        ({}, {"depth": 5}, "set depth to it"),
        ({"tm": ZOO["swin_t_mini"]}, {}, "plain ViTs"),
        ({"tc": replace(card(img_size=24), image_size=24)}, {}, "6x6 patches, the student 4x4: .* image_size"),
        ({"tc": card(**AVERAGE)}, {}, "set class_token to false"),
        ({"tm": card(depth=3, stages=(0, 0, 1, 2))}, {}, "student's depth"),
        ({"tm": card(num_heads=3)}, {}, "set relation_heads"),
        ({"tm": card(embed_dim=36)}, {}, "set relation_scale to"),
        ({"tm": card(embed_dim=36)}, {"relation_heads": 5}, "relation_heads=5 does not divide"),
        ({"tm": card(stages=(0, 2, 2, 3))}, MASKED, "set mask_tokens to normed"),
        ({}, {"encoder": "asymmetric", "targets": "c"}, "set encoder to plain"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence_with_what_would_do(models, options, sentence):
    with pytest.raises(Refused, match=sentence) as caught:
        build(**models, **options)
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0


def test_a_missing_teacher_is_named():
    config = HybridConfig(depth=4)
    assert "role 'relations'" in Hybrid.refuse(config, STUDENT, {"features": card()}, RECIPE)
    assert Hybrid.refuse(HybridConfig(depth=4, alpha=0.0), STUDENT, {"features": card()}, RECIPE) is None


def test_options_come_from_tables_as_lists_and_unknown_ones_are_told():
    assert build(late_layers=[1, 2]).method.config.late_layers == (1, 2)
    with pytest.raises(UserError, match="has no option 'masks'"):
        build(masks="none")


def test_teachers_stay_cacheable_and_what_they_give_is_named_in_advance():
    config = HybridConfig(depth=12, **MASKED)
    assert "teacher_inputs" not in vars(Hybrid)
    assert Hybrid.needs(config).teachers == {
        "features": Want(stages=(4,)),
        "relations": Want(stages=(1, 2), attention=(9, 10)),
    }
    normed = HybridConfig(mask_tokens="normed", **MASKED)
    assert Hybrid.needs(normed).teachers["relations"] == Want(attention=(0, 4, 8, 9, 10))


@pytest.mark.parametrize(
    ("span", "of_twelve", "of_four"),
    [
        (None, (10, 11), (2, 3)),
        ("all", tuple(range(1, 12)), (1, 2, 3)),
        ("front", (1, 2, 3), (1,)),
        ("middle", (5, 6, 7), (2,)),
        ("back", (9, 10, 11), (3,)),
        ("last", (11,), (3,)),
    ],
)
def test_spans_are_the_layers_of_table_7_and_lie_at_the_same_share_of_another_depth(span, of_twelve, of_four):
    for depth, layers in ((12, of_twelve), (4, of_four)):
        assert late_blocks(HybridConfig(depth=depth, late_layers=span)) == tuple(layer - 1 for layer in layers)
