"""The training loop: one for every method, model and data set."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.training.checkpoint import Checkpoints
from hkd.training.journal import Journal
from hkd.training.step import Training


def fit(run: Training, journal: Journal, checkpoints: Checkpoints, after_epoch: Callable[[int], None]) -> None:
    """Train from where `run.position` stands to the end of the last epoch.

    Args:
        run: what trains.
        journal: that its losses go to.
        checkpoints: that it can be continued from.
        after_epoch: called with each epoch (0-based) once its line is in the journal; its time is not training.

    Raises:
        Diverged: a loss is not finite.
    """
    here = run.position
    run.step.train()
    journal.resume_clock()
    while here.epoch < run.recipe.epochs:
        for batch in run.loader.epoch(here.epoch, start=here.step):
            run.schedule.step_update(here.updates)
            losses, hits = update(run, batch.to(run.fabric.device), journal)
            if run.ema is not None:
                run.ema.update(run.step.averaged)
            here.step, here.updates = here.step + 1, here.updates + 1
            if journal.note(losses, hits, len(batch), here.epoch) and checkpoints.due(run.fabric):
                checkpoints.save(run, journal)
                journal.resume_clock()
        lr = max(group["lr"] for group in run.optimizer.param_groups)
        journal.close_epoch(here.epoch, lr=lr, more=run.step.diagnostics())
        after_epoch(here.epoch)
        here.epoch, here.step = here.epoch + 1, 0
        if checkpoints.due(run.fabric):  # on a GPU no step of a short epoch is read from the device before its end
            checkpoints.save(run, journal)
        journal.resume_clock()


def update(run: Training, batch: Batch, journal: Journal) -> tuple[dict[str, Tensor], Tensor | None]:
    """One update of student and adapters; returns the loss terms (batch means) and the correct predictions."""
    run.optimizer.zero_grad()
    total: dict[str, Tensor] = {}
    hits: Tensor | None = None
    for part, share, last in parts(batch, run.micro_batch):
        with run.fabric.no_backward_sync(run.forward, enabled=not last):
            losses = run.forward(part, run.teachers(part))
            if last and journal.wants_norms(run.position.epoch, run.position.step):
                journal.note_norms(gradient_norms(losses, run.step.student))
            run.fabric.backward(share * sum(losses.values()))
        total = {name: share * loss.detach() + total.get(name, 0) for name, loss in losses.items()}
        hits = run.step.hits if hits is None or run.step.hits is None else hits + run.step.hits
    if run.recipe.clip_grad is not None:
        run.fabric.clip_gradients(run.forward, run.optimizer, max_norm=run.recipe.clip_grad, error_if_nonfinite=False)
    run.optimizer.step()
    return total, hits


def parts(batch: Batch, size: int | None) -> Iterator[tuple[Batch, float, bool]]:
    """The batch in pieces of at most `size` images, each with its share of the batch, and whether it is the last."""
    count = len(batch)
    if size is None or size >= count:
        yield batch, 1.0, True
        return
    for start in range(0, count, size):
        part = batch.rows(slice(start, start + size))
        yield part, len(part) / count, start + size >= count


def gradient_norms(losses: Mapping[str, Tensor], student: nn.Module) -> dict[str, float]:
    """L2 norm of each term's gradient with respect to the student's parameters, on the graph as it stands.

    The graph stays, no `.grad` is touched, nothing random is drawn: the step that follows is what it would have been.
    Under several processes these are the norms of this one's share.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    norms = {}
    for name, loss in losses.items():
        reaches = bool(parameters) and loss.requires_grad  # a frozen student has none
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if reaches else ()
        each = [grad.norm() for grad in grads if grad is not None]
        norms[name] = float(torch.linalg.vector_norm(torch.stack(each))) if each else 0.0
    return norms
