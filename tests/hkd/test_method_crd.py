"""Contrastive representation distillation: loss, negatives, banks, checkpoints, several processes."""

import copy
import math
import socket
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing

from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods.base import Samples
from hkd.methods.crd import CRD, CRDConfig, contrast, crd_loss
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 2, 1])
UNSET = torch.tensor(-math.inf)


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, pooled):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=3, pooled=pooled, final=(4, 1, 1), stages={})


def samples(labels=LABELS, classes=3) -> Samples:
    return Samples(labels=labels, classes=classes, epochs=1, steps=1)


def build(labels=LABELS, **options) -> CRD:
    torch.manual_seed(0)
    method = CRD(CRDConfig(**{"negatives": 4, "dim": 8} | options), Side(5).info, {"teacher": Side(6)}, F.cross_entropy)
    method.prepare(samples(labels))
    return method


def inputs(index=(0, 1, 2, 5), seed=1):
    """Features of a student and a teacher, and the batch they belong to."""
    generator = torch.Generator().manual_seed(seed)
    count = len(index)
    taps_s, taps_t = (
        Taps(
            logits=torch.zeros(count, 3),
            pooled=torch.randn(count, width, generator=generator),
            final=torch.zeros(count, 4, 1, 1),
        )
        for width in (5, 6)
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=LABELS[list(index)], index=torch.tensor(index))
    return batch, taps_s, {"teacher": taps_t}


def unit(*shape, seed=0):
    torch.manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_the_loss_has_its_hand_value():
    scores = torch.tensor([[1e-4, 2e-5, 1e-5]], dtype=torch.float64)
    assert crd_loss(scores.log(), 50_000).item() == pytest.approx(0.969458, abs=1e-6)


def test_the_loss_agrees_with_a_loop_over_scores():
    torch.manual_seed(0)
    scores, count = torch.rand(3, 5, dtype=torch.float64) / 10, 40
    noise, expected = 4 / count, 0.0
    for row in scores.tolist():
        expected -= math.log(row[0] / (row[0] + noise + 1e-7)) / 3
        expected -= sum(math.log(noise / (score + noise + 1e-7)) for score in row[1:]) / 3
    assert crd_loss(scores.log(), count).item() == pytest.approx(expected)


@pytest.mark.parametrize("log_z", [UNSET, torch.tensor(1.5)])
def test_a_product_with_the_bank_gives_what_gathered_negatives_give(log_z):
    anchors, bank = unit(4, 8).requires_grad_(), unit(10, 8, seed=1)
    picks = torch.randint(10, (4, 6))
    scores = torch.einsum("bd,bkd->bk", anchors, bank[picks]).div(0.07).exp()
    z = scores.detach().mean() * 10 if log_z.isinf() else log_z.exp()
    expected = crd_loss((scores / z).log(), 10)
    (gradient,) = torch.autograd.grad(expected, anchors)
    found, used = contrast(anchors, bank, picks, log_z.double(), tau=0.07)
    assert found.item() == pytest.approx(expected.item())
    assert used.item() == pytest.approx(z.log().item())
    torch.testing.assert_close(torch.autograd.grad(found, anchors)[0], gradient)


def test_gradients_agree_with_finite_differences():
    anchors, bank, picks = unit(3, 4).requires_grad_(), unit(6, 4, seed=1), torch.randint(6, (3, 4))
    log_z = torch.tensor(2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: contrast(v, bank, picks, log_z, tau=0.5)[0], anchors)


def test_one_step_agrees_with_the_definition_written_out():
    method, (batch, taps_s, taps_t) = build(), inputs()
    bank_s, bank_t = method.bank_s.clone(), method.bank_t.clone()
    state = torch.get_rng_state()
    losses = method(batch, taps_s, taps_t)
    sum(losses.values()).backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters()}

    torch.set_rng_state(state)
    picks = torch.cat([batch.index[:, None], method.negatives(batch.index)], dim=1)
    method.zero_grad()
    expected = {"task": F.cross_entropy(taps_s.logits, batch.y)}
    new = {}
    for side, embed, pooled, bank in (
        ("s", method.embed_s, taps_s.pooled, bank_t),
        ("t", method.embed_t, taps_t["teacher"].pooled, bank_s),
    ):
        v = embed(pooled)
        new[side] = v / v.norm(dim=1, keepdim=True)
        scores = torch.einsum("bd,bkd->bk", new[side], bank[picks]).div(0.07).exp()
        expected[f"crd_{side}"] = crd_loss((scores / (scores.detach().mean() * 10)).log(), 10)
    sum(expected.values()).backward()
    assert list(losses) == list(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    for bank, before, v in ((method.bank_s, bank_s, new["s"]), (method.bank_t, bank_t, new["t"])):
        moved = 0.5 * before[batch.index] + 0.5 * v
        torch.testing.assert_close(bank[batch.index], moved / moved.norm(dim=1, keepdim=True))
        rest = [row for row in range(10) if row not in batch.index]
        assert torch.equal(bank[rest], before[rest])


def test_the_teacher_and_the_banks_get_no_gradient():
    method, (batch, taps_s, taps_t) = build(), inputs()
    taps_s.pooled.requires_grad_()
    taps_t["teacher"].pooled.requires_grad_()
    sum(method(batch, taps_s, taps_t).values()).backward()
    assert taps_s.pooled.grad.abs().sum() > 0
    assert taps_t["teacher"].pooled.grad is None
    assert not method.bank_s.requires_grad
    assert not method.bank_t.requires_grad
    assert all(p.grad is not None for p in method.parameters())


def test_z_is_fixed_by_the_first_batch():
    method = build()
    assert method.log_z.isneginf().all()
    method(*inputs())
    first = method.log_z.clone()
    assert first.isfinite().all()
    method(*inputs(index=(3, 4), seed=9))
    assert torch.equal(method.log_z, first)


def test_banks_start_with_entries_of_expected_length_one_and_stay_at_length_one():
    method = build(labels=torch.arange(500) % 3, dim=128, negatives=16)
    assert method.bank_s.shape == method.bank_t.shape == (500, 128)
    assert method.bank_s.abs().max() <= math.sqrt(3 / 128)
    assert method.bank_s.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(method.bank_s, method.bank_t)
    method(*inputs())
    torch.testing.assert_close(method.bank_s[[0, 1, 2, 5]].norm(dim=1), torch.ones(4))


# --- negatives


@pytest.mark.parametrize("negatives", [1, 6, 7, 50])
def test_negatives_are_of_other_classes_and_differ_while_there_are_enough(negatives):
    method = build(negatives=negatives)  # class 0 has 4 of 10 samples
    index = torch.arange(10)
    drawn = method.negatives(index)
    assert drawn.shape == (10, negatives)
    assert (LABELS[drawn] != LABELS[:, None]).all()
    if negatives <= 6:
        assert all(len(set(row)) == negatives for row in drawn.tolist())


@pytest.mark.parametrize("negatives", [3, 200])
def test_negatives_are_uniform_over_the_samples_of_other_classes(negatives):
    method = build(negatives=negatives)
    torch.manual_seed(0)
    drawn = torch.cat([method.negatives(torch.tensor([4])).flatten() for _ in range(30_000 // negatives)])
    counts = torch.bincount(drawn, minlength=10).double()
    others = LABELS[4] != LABELS
    assert counts[~others].sum() == 0
    expected = counts.sum() / others.sum()
    assert (counts[others] - expected).abs().max() < 5 * expected.sqrt()


def test_negatives_follow_the_global_random_state_that_checkpoints_keep():
    method = build()
    state = torch.get_rng_state()
    first = method.negatives(torch.arange(4))
    torch.set_rng_state(state)
    assert torch.equal(method.negatives(torch.arange(4)), first)


def test_classes_without_samples_are_no_obstacle():
    method = build(labels=torch.tensor([2, 0, 2, 0]), negatives=9)
    assert set(method.negatives(torch.tensor([0])).flatten().tolist()) == {1, 3}


# --- checkpoints


def test_banks_survive_a_checkpoint():
    method = build()
    for seed in range(3):
        method(*inputs(index=(0, 3, 6), seed=seed))
    resumed = build()  # built and prepared as for a fresh run
    resumed.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)
    assert set(method.state_dict()) >= {"bank_s", "bank_t", "log_z"}
    state, losses = torch.get_rng_state(), []
    for each in (method, resumed):
        torch.set_rng_state(state)
        losses.append(each(*inputs(seed=7)))
        assert each.bank_s[:7].isfinite().all()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert torch.equal(method.bank_s, resumed.bank_s)


def test_two_methods_of_one_seed_start_with_the_same_banks():
    assert torch.equal(build().bank_s, build().bank_s)


# --- extremes and mistakes


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_constant_features_are_finite_also_for_a_batch_of_one(size):
    method = build()
    for index in ((0,), (0, 1, 2)):
        batch, taps_s, taps_t = inputs(index)
        taps_s, taps_t = replace(taps_s, pooled=torch.full_like(taps_s.pooled, size)), taps_t
        losses = method(batch, taps_s, taps_t)
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in method.parameters())
    assert method.bank_s.isfinite().all()


def test_a_tiny_temperature_is_finite():
    losses = build(tau=1e-4)(*inputs())
    assert all(loss.isfinite() for loss in losses.values())


def test_an_embedding_of_length_zero_is_finite():
    method, (batch, taps_s, taps_t) = build(), inputs()
    for parameter in method.parameters():
        torch.nn.init.zeros_(parameter)
    sum(method(batch, taps_s, taps_t).values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    assert method.bank_s.isfinite().all()


def test_mixed_precision_does_not_round_the_scores():
    plain, mixed = build(), build()
    state = torch.get_rng_state()
    expected = plain(*inputs())
    torch.set_rng_state(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed(*inputs())
    assert torch.equal(found["crd_s"], expected["crd_s"])
    assert torch.equal(mixed.bank_s, plain.bank_s)


def test_mixup_is_refused_through_its_needs():
    needs = CRD.needs(CRDConfig())
    assert needs.hard_labels
    assert needs.index
    assert list(needs.teachers) == ["teacher"]


def test_a_batch_without_indices_is_a_sentence():
    batch, taps_s, taps_t = inputs()
    batch.index = None
    with pytest.raises(UserError, match=r"Batch\.index, the row of each sample"):
        build()(batch, taps_s, taps_t)


def test_a_method_that_was_not_prepared_is_a_sentence():
    method = CRD(CRDConfig(), Side(5).info, {"teacher": Side(6)}, F.cross_entropy)
    with pytest.raises(UserError, match=r"call prepare\(Samples"):
        method(*inputs())


def test_samples_of_one_class_are_refused():
    with pytest.raises(UserError, match="samples of at least 2"):
        build(labels=torch.zeros(4, dtype=torch.int64))


# --- several processes


def part_of_a_batch(rank, port, folder):
    """Two steps of one of two processes, each with its half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    method = build()
    torch.manual_seed(5 + rank)
    for step in range(2):
        batch, taps_s, taps_t = inputs(index=(0, 1, 2, 5), seed=step)
        mine = slice(2 * rank, 2 * rank + 2)
        halves = [
            Taps(logits=t.logits[mine], pooled=t.pooled[mine], final=t.final[mine]) for t in (taps_s, taps_t["teacher"])
        ]
        method(Batch(batch.x[mine], batch.y[mine], batch.index[mine]), halves[0], {"teacher": halves[1]})
    torch.save(method.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_have_the_banks_and_the_z_of_the_whole_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(part_of_a_batch, args=(port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["log_z"].isfinite().all()
    alone = build()
    for step in range(2):
        alone(*inputs(index=(0, 1, 2, 5), seed=step))
    # What is written to the banks does not depend on the negatives; Z does, and the processes draw their own.
    torch.testing.assert_close(first["bank_s"], alone.bank_s)
    torch.testing.assert_close(first["bank_t"], alone.bank_t)
