"""Models of a training through `torch.compile`: fewer, larger kernels, where launching small ones takes the time."""

from torch import nn

from hkd.methods.base import Method
from hkd.training.step import Step, TapStep


def compile_models(step: Step) -> None:
    """Have the student's and the teachers' passes compiled, in place, when they are first called.

    What a method puts into passes anew for every batch (masks, views, prompts) is not compiled: such students and
    teachers stay as they are, and so do tasks without taps. Losses are not compiled either. Gradients are those of
    the plain models up to rounding.
    """
    if not isinstance(step, TapStep):
        return
    import torch._functorch.config  # takes seconds, which only this setting should cost

    # Gradient norms of single terms walk through the graph before the step does.
    torch._functorch.config.donated_buffer = False
    kind = type(step.method)
    models: list[nn.Module] = []
    if kind.student_inputs is Method.student_inputs:
        models.append(step.student)
    if kind.teacher_inputs is Method.teacher_inputs:
        models.extend(step.method.teachers.values())  # type: ignore[operator]
    for model in models:
        model.compile(dynamic=False)
