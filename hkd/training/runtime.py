"""Where and how a run is executed. Nothing here determines a result, so nothing here enters the key of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The machine's side of a run. Raises ValueError for counts below 1.

    Results are equal to the bit for equal `devices`, `num_nodes`, `micro_batch` and accelerator; everything else
    changes no digit.
    """

    accelerator: Accelerator = "auto"
    devices: int = 1  # processes per node, one device each
    num_nodes: int = 1
    data_root: Path = Path("data")  # folder that holds all data sets
    cache_dir: Path | None = None  # where small teacher outputs are kept for other runs; None: in memory only
    loader_workers: int = 0  # processes that decode images; 0: in this one
    checkpoint_every_s: float = 5.0
    report_every_s: float = 0.25
    on_corrupt: Literal["stop", "skip"] = "stop"  # an image that cannot be read
    # Largest batch of one forward pass; the rest of a device's share is accumulated. Bounds memory. Batch norm and
    # losses between samples then see the micro-batch, as they see a device's share when there are several devices.
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def processes(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes
