"""BEiT: masks by blocks, the codebook of patches, loss, figures, resumption, several processes."""

import copy
import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.beit import BEiT, BEiTConfig, blockwise_visible
from hkd.methods.parts.patch_codebook import PatchCodebook
from hkd.methods.parts.patches import patchify
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import TapInfo
from hkd.spec import ModelCard, Recipe
from hkd.training.recipe import make_optimizer
from hkd.training.step import TapStep

CARD = ModelCard(
    name="tiny",
    family="beit",
    arch="timm.models.beit:Beit",
    kwargs={
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": False,
        "use_fc_norm": False,
        "init_values": 0.1,
    },
    image_size=16,
    stages=(0, 0, 1, 1),
)
SMALL = {"image_size": 16, "codes": 12}
RECIPE = Recipe(epochs=1, batch_size=4)
CPU = torch.device("cpu")


def build(**options):
    torch.manual_seed(0)
    student = TapModel(CARD, 0)
    config = BEiTConfig(**SMALL | options)
    method = BEiT(config, student.info, {}, lambda *_: torch.zeros(()))
    return TapStep(student, method, method.needs(config)).train()


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def images(count=4):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=40)
@given(grid=st.integers(2, 14), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_every_image_hides_exactly_the_same_number_of_patches(grid, ratio, seed):
    torch.manual_seed(seed)
    hidden = round(ratio * grid**2)
    visible = blockwise_visible(6, grid, hidden, CPU)
    assert visible.shape == (6, 1, grid, grid)
    assert visible.dtype == torch.bool
    assert (~visible).sum((1, 2, 3)).tolist() == [hidden] * 6


def masks_by_loops(count, grid, hidden, seed):
    """The same algorithm with loops over images and cells, from the same draws."""
    torch.manual_seed(seed)
    least, masks = max(1, round(16 / 196 * grid**2)), np.zeros((count, grid, grid), dtype=bool)
    while any(mask.sum() < hidden for mask in masks):
        draws = torch.rand(4, count, 1, 1)[:, :, 0, 0].tolist()
        for image in range(count):
            missing = hidden - masks[image].sum()
            area = least + draws[0][image] * max(missing - least, 0)
            aspect = 0.3 ** (1 - 2 * draws[1][image])
            height = min(max(round(math.sqrt(area * aspect)), 1), grid)
            width = min(max(round(math.sqrt(area / aspect)), 1), grid)
            top, left = int(draws[2][image] * (grid - height + 1)), int(draws[3][image] * (grid - width + 1))
            for row in range(top, top + height):
                for column in range(left, left + width):
                    if missing > 0 and not masks[image, row, column]:
                        masks[image, row, column] = True
                        missing -= 1
    return masks


@pytest.mark.parametrize(("grid", "hidden"), [(14, 78), (8, 26), (4, 6), (3, 8)])
def test_masks_are_those_of_plain_loops(grid, hidden):
    torch.manual_seed(7)
    assert np.array_equal((~blockwise_visible(9, grid, hidden, CPU))[:, 0].numpy(), masks_by_loops(9, grid, hidden, 7))


def test_blocks_hide_neighbours_more_often_than_random_patches_do():
    def neighbours(visible):
        hidden = ~visible[:, 0]
        return (hidden[:, 1:] & hidden[:, :-1]).sum().item() / hidden.sum().item()

    torch.manual_seed(0)
    method = build().method
    batch = batch_of(torch.rand(500, 3, 16, 16))
    blocks = neighbours(method.student_inputs(batch, {})["visible"])
    scattered = neighbours(build(blockwise=False).method.student_inputs(batch, {})["visible"])
    assert blocks > 1.3 * scattered
    assert (~batch.extra["visible"]).sum((1, 2, 3)).unique().tolist() == [6]


def codebook(codes=5, width=3, **options):
    return PatchCodebook(codes, width, **options).train()


def test_a_patch_gets_the_nearest_code():
    torch.manual_seed(0)
    book = codebook(codes=7)
    book(torch.rand(40, 3))
    patches = torch.rand(50, 3)
    codes, distances = book.assign(patches)
    for patch, code, distance in zip(patches, codes.tolist(), distances.tolist(), strict=True):
        all_distances = [float(((patch - vector) ** 2).sum()) for vector in book.vectors]
        assert code == min(range(7), key=all_distances.__getitem__)
        assert distance == pytest.approx(all_distances[code])


def test_the_first_codes_are_distinct_patches_also_over_several_batches():
    book = codebook(codes=4, decay=0.0, dead=0.0)
    two = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    book(two[[0, 0, 1, 0]])
    assert book.filled == 2
    assert sorted(book.vectors.tolist()) == two.tolist()
    book(torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]))
    assert book.filled == 4
    assert sorted(book.vectors.tolist()) == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]]


def test_codes_move_by_the_moving_averages_of_vq_vae():
    book = codebook(codes=2, width=1, decay=0.9, dead=0.0)
    book.counts.copy_(torch.tensor([2.0, 4.0]))
    book.sums.copy_(torch.tensor([[0.0], [4.0]]))
    book.filled.fill_(2)
    assert book(torch.tensor([[0.1], [0.3], [0.9]])).tolist() == [0, 0, 1]
    torch.testing.assert_close(book.counts, torch.tensor([2.0, 3.7]))
    torch.testing.assert_close(book.sums, torch.tensor([[0.04], [3.69]]))
    torch.testing.assert_close(book.vectors, torch.tensor([[0.02], [3.69 / 3.7]]))


def test_a_dead_code_is_moved_to_a_badly_coded_patch():
    book = codebook(codes=3, width=1, decay=0.5, dead=0.1)
    book.counts.copy_(torch.tensor([4.0, 4.0, 0.01]))
    book.sums.copy_(torch.tensor([[0.0], [4.0], [0.09]]))  # codes 0, 1 and 9
    book.filled.fill_(3)
    book(torch.tensor([[0.0], [0.0], [1.0], [1.0], [3.0]]))
    assert book.vectors[2].item() == pytest.approx(3.0)
    assert book.counts[2] == pytest.approx((3.0 + 3.5 + 0.005) * 1 / 3, rel=0.1)


def test_a_dead_code_stays_while_all_patches_are_coded_exactly():
    book = codebook(codes=3, width=1, decay=0.5, dead=0.1)
    book.counts.copy_(torch.tensor([4.0, 4.0, 0.01]))
    book.sums.copy_(torch.tensor([[0.0], [4.0], [0.09]]))
    book.filled.fill_(3)
    book(torch.tensor([[0.0], [1.0]]))
    assert book.vectors[2].item() == pytest.approx(9.0)


def test_codes_that_start_apart_end_at_the_centres_of_their_clusters():
    torch.manual_seed(0)
    centres = torch.eye(6)
    book = codebook(codes=6, width=6, decay=0.8)
    book(centres + 0.2 * torch.randn(6, 6))
    assert torch.cdist(centres, book.vectors).min(1).values.min() > 0.2
    for _ in range(60):
        book(centres[torch.randint(6, (200,))] + 0.01 * torch.randn(200, 6))
    nearest = torch.cdist(centres, book.vectors).min(1)
    assert nearest.values.max() < 0.01
    assert sorted(nearest.indices.tolist()) == list(range(6))


def test_patches_are_coded_better_and_better():
    torch.manual_seed(0)
    patches, book = torch.rand(300, 4), codebook(codes=20, width=4, decay=0.7)
    book(patches)
    errors = []
    for _ in range(30):
        errors.append(book.assign(patches)[1].mean().item())
        book(patches)
    assert errors[-1] < 0.85 * errors[0]


def test_evaluation_moves_nothing_and_an_empty_codebook_is_told():
    book = codebook().eval()
    with pytest.raises(UserError, match="codebook is empty"):
        book(torch.rand(4, 3))
    book.train()(torch.rand(20, 3))
    before = copy.deepcopy(book.state_dict())
    book.eval()(torch.rand(20, 3))
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_the_loss_agrees_with_a_loop_over_hidden_patches():
    step, batch = build(), batch_of(images())
    step(batch, {})
    step.eval()
    inputs = step.method.student_inputs(batch, {})
    taps = step.student(batch.x, **inputs)
    loss = step.method(batch, taps, {})["codes"]
    vectors, terms = step.method.codebook.vectors, []
    for b in range(4):
        for i, shown in enumerate(inputs["visible"][b].flatten().tolist()):
            if shown:
                continue
            row, column = divmod(i, 4)
            patch = batch.x[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            code = int((vectors - patch).square().sum(1).argmin())
            logits = step.method.head(taps.final[b, :, row, column])
            terms.append(-logits.log_softmax(0)[code].item())
    assert len(terms) == 4 * 6
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_one_step_trains_every_parameter():
    step = build()
    start = {name: value.detach().clone() for name, value in step.named_parameters()}
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2, weight_decay=0.0)
    losses = step(batch_of(images()), {})
    assert list(losses) == ["codes"]
    losses["codes"].backward()
    optimizer.step()
    for name, value in step.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name  # noqa: PT018
        assert not torch.equal(value, start[name]), name


def test_the_mask_token_is_exempt_from_decay():
    step = build()
    optimizer = make_optimizer(replace(RECIPE, decay_1d=True), step.student.net, step.method)
    group = [
        group
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter is step.method.mask_token
    ]
    assert [g["weight_decay"] for g in group] == [0.0]


def overfit(step, count):
    batch = batch_of(images(8) * torch.linspace(0.1, 1, 8).view(8, 1, 1, 1))
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = step(batch, {})["codes"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_few_images_are_learned_and_the_figures_show_it():
    step = build()
    torch.manual_seed(1)
    losses = overfit(step, 20)
    early = step.method.diagnostics()
    losses += overfit(step, 60)
    late = step.method.diagnostics()
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    assert late["hidden_top1"] > early["hidden_top1"]


def test_figures_are_means_since_the_last_call():
    step = build()
    assert step.method.diagnostics() == {}
    step(batch_of(images()), {})
    figures = step.method.diagnostics()
    codes = step.method.codebook.eval()(patchify(images(), 4, 4).flatten(0, 1))
    assert figures["codes_used"] == 12
    assert 1 <= figures["codes_perplexity"] <= 12
    assert codes.max() < 12
    assert step.method.diagnostics() == {}


def test_figures_have_their_hand_values():
    method = build().method
    method.guesses.copy_(torch.tensor([3, 12]))
    method.codebook.usage[:3] = torch.tensor([2, 1, 1])
    figures = method.diagnostics()
    assert figures["hidden_top1"] == 25
    assert figures["codes_used"] == 3
    assert figures["codes_perplexity"] == pytest.approx(2**1.5)


def test_a_resumed_run_goes_on_bit_for_bit_codebook_and_figures_included():
    def go(step, optimizer, count):
        for number in range(count):
            optimizer.zero_grad()
            step(batch_of(images() ** (number + 1)), {})["codes"].backward()
            optimizer.step()

    options = {"codes": 100, "codebook_decay": 0.5, "dead": 0.5}  # filled over several batches, and moved
    whole = build(**options)
    adam = torch.optim.AdamW(whole.parameters(), lr=1e-3)
    torch.manual_seed(5)
    go(whole, adam, 1)
    assert 0 < whole.method.codebook.filled < 100
    saved = copy.deepcopy((whole.student.net.state_dict(), whole.method.state_dict(), adam.state_dict()))
    rng = torch.get_rng_state()
    go(whole, adam, 4)
    resumed = build(**options)
    again = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    resumed.student.net.load_state_dict(saved[0])
    resumed.method.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    torch.set_rng_state(rng)
    go(resumed, again, 4)
    assert whole.method.codebook.filled == 100
    for one, other in ((whole.student.net, resumed.student.net), (whole.method, resumed.method)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert whole.method.diagnostics() == resumed.method.diagnostics()


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16), torch.full((2, 3, 16, 16), 1e4)])
def test_flat_and_extreme_images_stay_finite(x):
    step = build()
    for _ in range(3):
        loss = step(batch_of(x), {})["codes"]
        loss.backward()
    assert loss.isfinite()
    assert step.method.codebook.vectors.isfinite().all()
    if x.max() <= 1:  # beyond, single precision tells a patch from its own code
        assert step.method.codebook.filled == 1
        assert step.method.diagnostics()["codes_perplexity"] == 1


def in_a_process(rank, world, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=world)
    torch.manual_seed(rank)
    book = PatchCodebook(6, 3, decay=0.5, dead=0.3).train()
    generator = torch.Generator().manual_seed(3)
    for number in range(4):
        everything = torch.rand(world * (3 if number == 0 else 20), 3, generator=generator)
        book(everything.chunk(world)[rank])
    torch.save(book.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_several_processes_share_one_codebook(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    multiprocessing.start_processes(in_a_process, (2, port, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["usage"].sum() == 2 * 3 + 3 * 40
    assert first["filled"] == 6


def test_students_that_cannot_be_masked_are_refused():
    assert "not 'swin'" in BEiT.refuse(BEiTConfig(**SMALL), ZOO["swin_t_mini"], {}, RECIPE)
    assert BEiT.refuse(BEiTConfig(**SMALL), CARD, {}, RECIPE) is None
    info = TapInfo(classes=0, pooled=8, final=(8, 1, 1), stages={})
    with pytest.raises(Refused, match="would hide none of the 1x1 cells"):
        BEiT(BEiTConfig(**SMALL), info, {}, lambda *_: torch.zeros(()))
