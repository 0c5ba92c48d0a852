"""What a run tells while it trains: loss terms, accuracy, times, and the moment a loss stops being finite.

On a GPU the loss values are read in intervals, because every reading waits for the device.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hkd.errors import Diverged
from hkd.training.distributed import agree, reduce

GPU_INTERVAL = 32  # steps between readings on a GPU
NORM_EPOCHS = 5  # epochs at whose first step gradient norms are measured
REMEMBERED = 2000  # steps whose times the median is over: the latest


class Journal:
    """Collects the values of every step into curves.

    Attributes:
        curves: finished epochs, as described at `Outcome`.
        interval: steps between readings of the device.

    Args:
        fabric: the engine; rank 0 reports, and all ranks agree on a failure.
        epochs, steps: length of the run, and of an epoch in updates.
        report, every_s: called with the latest values at most this often (seconds).
        norms: measure gradient norms. Not in float16, where gradients underflow without the scaler.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        epochs: int,
        steps: int,
        report: Callable[[dict[str, Any]], None],
        every_s: float,
        norms: bool = True,
    ):
        self.fabric, self.epochs, self.steps, self.report, self.every_s = fabric, epochs, steps, report, every_s
        self.interval = 1 if fabric.device.type == "cpu" else GPU_INTERVAL
        spread = {round(i * (epochs - 1) / (NORM_EPOCHS - 1)) for i in range(NORM_EPOCHS)}
        self.norm_epochs = spread if norms else set()
        self.curves: list[dict[str, Any]] = []
        self.norms: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.images = self.read = self.updates = 0
        self.seconds = 0.0
        self.step_s: deque[float] = deque(maxlen=REMEMBERED)
        self._pending: list[Tensor] = []
        self._names: list[str] = []
        self._reported = -math.inf
        # On a CPU what else runs there would be measured too: one step then seems to cost half of another.
        self._step_clock = time.process_time if fabric.device.type == "cpu" else time.perf_counter
        self.resume_clock()

    def resume_clock(self) -> None:
        """Time from here on: what happened since the last step is not training."""
        self._mark, self._step_mark, self._plain = time.perf_counter(), self._step_clock(), True

    def wants_norms(self, epoch: int, step: int) -> bool:
        """Whether the gradient norms of the terms are due at this step (0-based, within the epoch)."""
        return step == 0 and epoch in self.norm_epochs

    def note_norms(self, norms: Mapping[str, float]) -> None:
        """Keep the gradient norms of this epoch; the time of a step that measures is not a step time."""
        self.norms, self._plain = dict(norms), False

    def note(self, losses: Mapping[str, Tensor], hits: Tensor | None, images: int, epoch: int) -> bool:
        """Take the loss terms of one update.

        Args:
            losses: terms by name, scalars on the device.
            hits: correct predictions among the images, or None.
            images: of this process in this update.
            epoch: 0-based.

        Returns:
            Whether the values were read, so that everything known is in `state`.

        Raises:
            Diverged: a term is not finite; in every process.
        """
        values = {name: loss.detach() for name, loss in losses.items()}
        if hits is not None:
            values["hits"] = hits
        self._names = list(values)
        self._pending.append(torch.stack(list(values.values())))
        self.images += images
        if len(self._pending) < self.interval:
            return False
        self._read(epoch)
        return True

    def close_epoch(self, epoch: int, lr: float, more: Mapping[str, float] | None = None) -> None:
        """Turn the sums of an epoch into its line of the curves; `more` are further figures of it."""
        self._read(epoch)
        hits = self.sums.pop("hits", None)
        totals = [*self.sums.values(), *([] if hits is None else [hits]), float(self.images)]
        totals = reduce(self.fabric, torch.tensor(totals, dtype=torch.float64), "sum").tolist()
        means = [total / (self.read * self.fabric.world_size) for total in totals[: len(self.sums)]]
        line: dict[str, Any] = {"epoch": epoch + 1, "loss": math.fsum(means)}
        line |= {f"loss/{name}": mean for name, mean in zip(self.sums, means, strict=True)}
        if hits is not None:
            line["train_top1"] = 100 * totals[-2] / totals[-1]
        line |= {"lr": lr, "seconds": self.seconds}
        line |= {f"grad_norm/{name}": norm for name, norm in self.norms.items()}
        self.curves.append(line | dict(more or {}))
        self.norms, self.sums, self.images, self.read, self.seconds = {}, {}, 0, 0, 0.0

    @property
    def step_ms(self) -> float:
        """Median time of a training step, loading and teachers included; gradient norms and checkpoints not.

        On a CPU it is CPU time of this process, on a GPU the clock's. The mean of all steps in a run so short that each
        of them measured gradient norms.
        """
        if self.step_s:
            return 1e3 * statistics.median(self.step_s)
        return 1e3 * sum(line["seconds"] for line in self.curves) / max(self.updates, 1)

    def state(self) -> dict[str, Any]:
        """Everything noted, as plain values."""
        assert not self._pending, "values on the device are not in the state"
        names = ("curves", "norms", "sums", "images", "read", "updates", "seconds")
        return {name: getattr(self, name) for name in names} | {"step_s": list(self.step_s)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.__dict__.update(state, step_s=deque(state["step_s"], maxlen=REMEMBERED))
        self.resume_clock()

    def _read(self, epoch: int) -> None:
        """Read what is pending from the device, look for what is not finite, add up, and tell."""
        if not self._pending:
            return
        rows = torch.stack(self._pending).tolist()
        self._pending.clear()
        broken = next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row))), None)
        if any(agree(self.fabric, broken is not None)):
            at = len(rows) - 1 if broken is None else broken
            terms = dict(zip(self._names, rows[at], strict=True))
            terms.pop("hits", None)
            raise Diverged(self.updates + at, terms)
        for row in rows:
            for name, value in zip(self._names, row, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.read += len(rows)
        self.updates += len(rows)
        self._time(len(rows))
        self._tell(epoch)

    def _time(self, steps: int) -> None:
        now, step_now = time.perf_counter(), self._step_clock()
        self.seconds += now - self._mark
        if self._plain:
            self.step_s.append((step_now - self._step_mark) / steps)
        self._mark, self._step_mark, self._plain = now, step_now, True

    def _tell(self, epoch: int) -> None:
        if self._mark - self._reported < self.every_s or not self.fabric.is_global_zero:
            return
        self._reported = self._mark
        loss = sum(value for name, value in self.sums.items() if name != "hits") / self.read
        news = {"epoch": epoch + 1, "epochs": self.epochs, "step": self.updates, "steps": self.epochs * self.steps}
        accuracy = {"top1": 100 * self.sums["hits"] / self.images} if "hits" in self.sums else {}
        self.report(news | {"loss": loss} | accuracy)
