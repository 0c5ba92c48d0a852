"""Embeddings of all processes: what a comparison among samples needs where a batch is shared.

Shapes: B batch of one process.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

SHORTEST = 1e-5  # length of an embedding that still has a direction


def several_processes() -> bool:
    """Whether others share the batch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(tensor: Float[Tensor, "B ..."] | Int[Tensor, " B"]) -> Tensor:
    """The tensors of all processes, one after the other by rank; equally many rows in each. Without gradients."""
    if not several_processes():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)
