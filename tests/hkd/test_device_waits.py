"""No step waits for a GPU: on torch's meta device, where there are no values, whatever would read one is an error.

Reading a value is what makes the host wait. A batch of figures that is read now and then (the journal's) is not meant.
"""

import pytest
import torch

import hkd
from hkd.contract.checks import CLASSES, LABEL_FREE, SAMPLES, batch_of, build, card, images, subject_of
from hkd.data.loading.augment import Patch, paste, sent_at_once
from hkd.methods.base import method_of
from hkd.methods.parts.on_host import OnHost, Passes
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.options import configured
from hkd.training.step import TapStep

META = torch.device("meta")
OPTIONS = {"crd": {"negatives": 4}, "hybrid": {"depth": 4, "mask": "random"}, "hcd": {"warmup": 3}}
# Their codebooks move codes that nothing is near: which, they must look.
LOOKS = ("beit", "cae")
ALWAYS = ("kd", "fitnet", "crd", "scalekd", "hcd", "hgkd", "hybrid")  # the others with -m long


class NoAutocast:
    """In the place of torch.autocast, which does not know the meta device."""

    def __init__(self, *_, **__): ...

    def __enter__(self): ...

    def __exit__(self, *_): ...


def step_of(method, **options):
    """A step on the CPU, its teachers, and what it asks of them."""
    kind = method_of(method)
    given, family = LABEL_FREE.get(method, (subject_of(method).options, "resnet"))
    config = configured(kind.Config, method, {**given, **OPTIONS.get(method, {}), **options})
    needs = kind.needs(config)
    torch.manual_seed(0)
    model = ZOO["mae_b16_mini" if method == "hybrid" else "swin_t_mini"]
    teachers = {role: Teacher(model, CLASSES) for role in needs.teachers}
    student = TapModel(card(family), CLASSES)
    learner = build(kind, config, student, teachers)
    learner.prepare(SAMPLES)
    return TapStep(student, learner, needs), teachers


def run(step, teachers, batch):
    taps_t = {
        role: teachers[role](batch.x, want, **step.method.teacher_inputs(role, batch))
        for role, want in step.method.needs(step.method.config).teachers.items()
    }
    sum(step(batch, taps_t).values()).backward()


def to_meta(step, teachers):
    """Move all there; what the host knew of buffers it knows still."""
    known = [
        (value, module, name, value(buffer))
        for module in step.modules()
        for value in vars(module).values()
        if isinstance(value, OnHost) and value.known
        for name, buffer in module._buffers.items()
        if buffer is value.known[0]
    ]
    for module in (step, *teachers.values()):
        module.to(META)
    for value, module, name, read in known:
        value.note(getattr(module, name), read)


def without_values(monkeypatch, method, **options):
    """Two training steps on the meta device, after one that had values."""
    step, teachers = step_of(method, **options)
    run(step, teachers, batch_of(images()))
    to_meta(step, teachers)
    monkeypatch.setattr(torch, "autocast", NoAutocast)
    for _ in range(2):
        run(step, teachers, batch_of(images()).to(META))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=[] if method in ALWAYS else pytest.mark.long)
        for method in sorted(set(hkd.METHODS) - set(LOOKS))
    ],
)
def test_a_step_reads_nothing_of_the_device(monkeypatch, method):
    without_values(monkeypatch, method)


@pytest.mark.parametrize("method", LOOKS)
def test_methods_that_look_are_known(monkeypatch, method):
    with pytest.raises(RuntimeError, match="meta"):
        without_values(monkeypatch, method)


def test_a_mask_that_a_teacher_decides_on_the_device_is_looked_at(monkeypatch):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        without_values(monkeypatch, "hybrid", mask="progressive")


@pytest.mark.parametrize(("task", "decoder"), [("masked", "linear"), ("dbot", "attn1")])
def test_masked_tasks_of_hybrid_read_nothing(monkeypatch, task, decoder):
    without_values(monkeypatch, "hybrid", mask="none", task=task, targets="m", decoder=decoder)


def test_all_patches_are_sent_by_one_copy(monkeypatch):
    sizes = []
    monkeypatch.setattr("hkd.data.loading.augment.sent", lambda value, device: sizes.append(len(value)) or value)
    noises = [torch.rand(3, 2, 3), torch.rand(3, 1, 1), torch.rand(3, 4, 4)]
    found = sent_at_once(noises, torch.device("cpu"))
    assert sizes == [18 + 3 + 48]
    assert all(map(torch.equal, found, noises))


def test_patches_are_pasted_on_a_device():
    patches = [Patch(0, 1, 2, torch.rand(3, 2, 3)), Patch(2, 7, 7, torch.rand(3, 1, 1))]
    assert paste(torch.zeros(3, 3, 8, 8, device=META), patches).shape == (3, 3, 8, 8)


def test_what_is_known_of_a_buffer_is_read_once_until_somebody_changes_it():
    read = []
    known = OnHost(lambda buffer: read.append(1) or int(buffer))
    buffer = torch.tensor(3)
    assert [known(buffer), known(buffer)] == [3, 3]
    assert len(read) == 1
    buffer.fill_(5)
    assert (known(buffer), len(read)) == (5, 2)
    other = torch.tensor(5)
    assert (known(other), len(read)) == (5, 3)
    known.note(buffer, 5)
    assert (known(buffer), len(read)) == (5, 3)


def test_passes_are_counted_in_the_buffer_and_known_without_reading_it():
    passed, buffer = Passes(), torch.tensor(7)
    passed.step(buffer)
    passed.read = None
    passed.step(buffer)
    assert passed(buffer) == int(buffer) == 9


def test_a_loaded_count_is_the_one_that_counts():
    method = step_of("reviewkd", warmup=5)[0].method
    before = method.rise()
    method.load_state_dict({**method.state_dict(), "passes": torch.tensor(10**6)})
    assert before < method.rise() == 1


def test_in_inference_mode_what_is_known_is_read_each_time():
    known = OnHost(int)
    with torch.inference_mode():
        buffer = torch.tensor(1)
        assert known(buffer) == 1
        buffer += 1
        assert known(buffer) == 2
