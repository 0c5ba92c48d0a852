"""Run by torchrun: trains with methods that keep what they have seen, and compares their buffers between the ranks.

Rank 0 prints how many numbers were compared for each method. Ends with an error where any differs.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import hkd.training.session as session
from hkd.models.cards.zoo import ZOO
from hkd.registry import load, lookup
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks import TASKS
from hkd.training.job import Job, Runtime

# Method: task, data, student, teacher, options, and the buffers that its losses read.
CASES = {
    "crd": ("train", "digits", "resnet18_mini", "swin_s_mini", {"negatives": 4}, ("bank_s", "bank_t", "log_z")),
    "unic": ("train", "digits", "resnet18_mini", "swin_s_mini", {"hidden": 8}, ("sources",)),
    "reviewkd": ("train", "digits", "resnet18_mini", "swin_s_mini", {"teacher_norm": "channel"}, ("norms",)),
    "hgkd": (
        "pretrain",
        "digits_unlabelled",
        "sparse_resnet18_mini",
        "mae_b16_mini",
        {"queue_size": 20, "width": 16},
        ("queue",),
    ),
}


def spec_of(method):
    task, data, student, teacher, options, _ = CASES[method]
    weights = Weights(kind="random", id="7")
    classes = 0 if task == "pretrain" else None
    return RunSpec(
        task=task,
        data=DataSpec(name=data, options={"n_train": 20}),
        student=ZOO[student],
        method=MethodSpec(name=method, options=options),
        recipe=Recipe(epochs=2, batch_size=10),
        teachers={"teacher": TeacherSpec(model=ZOO[teacher], weights=weights, classes=classes)},
    )


def equal(tensor):
    """Whether a tensor is the same in both processes, and that of rank 0."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return torch.equal(*found), found[0]


def main(folder):
    compared, give = {}, session.give_buffers

    def looked_at(fabric, step):
        """In place of `give_buffers`: training has ended, and evaluation has not begun."""
        read = CASES[method][-1]
        for name, buffer in step.method.named_buffers():
            if name.split(".")[0] in read:
                assert equal(buffer)[0], f"{method}: {name} differs between the processes"
                compared[method] = compared.get(method, 0) + buffer.numel()
        statistics = [buffer for name, buffer in step.student.named_buffers() if "running_mean" in name]
        before = [equal(buffer) for buffer in statistics]
        assert not all(same for same, _ in before)  # each process saw its own share of the images
        give(fabric, step)
        for buffer, (_, first) in zip(statistics, before, strict=True):
            assert torch.equal(buffer, first), "not what rank 0 had"

    session.give_buffers = looked_at
    for method in CASES:
        spec, runtime = spec_of(method), Runtime(accelerator="cpu", devices=2)
        load(lookup("task", spec.task, TASKS))(Job(spec, {}, folder / method, runtime, lambda news: None))
    if dist.get_rank() == 0:
        print("compared", compared)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
