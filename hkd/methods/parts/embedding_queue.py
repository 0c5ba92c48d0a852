"""A first-in, first-out queue of embeddings, the same in all processes and kept in checkpoints.

Shapes: B batch, K entries, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hkd.methods.parts.gathering import SHORTEST, gathered
from hkd.methods.parts.logits import exact
from hkd.methods.parts.on_host import OnHost

UNKNOWN = -1  # sample of an entry of which nobody told


class EmbeddingQueue(nn.Module):
    """Unit vectors in single precision; the newest replace the oldest.

    Buffers, all persistent: `rows` [K, D], `samples` [K] (which training sample an entry is of, -1 where unknown),
    `pointer` (where the next entry goes) and `fill` (how many there are). Memory: 4 K D bytes, 154 MB at the paper's
    50,000 x 768.

    Args:
        size: K.
        width: D.
    """

    rows: Tensor
    samples: Tensor
    pointer: Tensor
    fill: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("samples", torch.full((size,), UNKNOWN))
        self.register_buffer("pointer", torch.tensor(0))
        self.register_buffer("fill", torch.tensor(0))
        self.count = OnHost(int)

    @torch.no_grad()
    def enqueue(self, embeddings: Float[Tensor, "B D"], samples: Int[Tensor, " B"] | None = None) -> None:
        """Add the embeddings of all processes, in the order of their ranks, brought to unit length.

        Of more than K only the last K stay, as if they had come one after the other.

        Args:
            embeddings: of this process; no gradient reaches the queue.
            samples: row of each in the training data.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            new = gathered(F.normalize(exact(embeddings.detach()), dim=1, eps=SHORTEST))
        rows = self.samples.new_full((len(embeddings),), UNKNOWN) if samples is None else samples
        rows, size, count = gathered(rows), len(self.rows), len(new)
        kept = min(count, size)
        places = (self.pointer + torch.arange(count - kept, count, device=self.rows.device)) % size
        self.rows.index_copy_(0, places, new[count - kept :].to(self.rows.dtype))
        self.samples.index_copy_(0, places, rows[count - kept :].to(self.samples.dtype))
        self.pointer.copy_((self.pointer + count) % size)
        held = min(self.count(self.fill) + count, size)
        self.fill.fill_(held)
        self.count.note(self.fill, held)

    def filled(self) -> tuple[Float[Tensor, "k D"], Int[Tensor, " k"]]:
        """Entries so far and their samples, views in no order of age; the rest of the buffer is never read."""
        count = self.count(self.fill)
        return self.rows[:count], self.samples[:count]
