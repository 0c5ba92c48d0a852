r"""A small tokeniser of patches: a codebook of their pixels by k-means with moving averages, learned while it is used.

Source: the codebook update of VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1) with decay gamma:

.. math::
    N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
    m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{z \to k} z, \quad e_k = m_k / N_k

Decided here: the first codes are distinct patches of the first batches; a code that hardly any patch chooses is moved
to a patch of the running batch, drawn in proportion to its squared distance from its own code (k-means++'s rule, which
draws none that is coded well). Both use torch's global generator, so a run with the same seed repeats them.
Shapes: M patches, V values per patch, K codes.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.methods.parts.gathering import several_processes

ROWS = 8192  # patches whose distances to all codes are in memory at once
EQUAL = (1 / 255) ** 2  # squared distance under which patches count as equal: one grey level of one value


class PatchCodebook(nn.Module):
    """Codes of patches, all of it in buffers: a checkpoint goes on exactly. Equal in all processes.

    Attributes:
        counts: N_k [K], moving averages of patches per step over all processes.
        sums: m_k [K, V].
        filled: codes in use [], from the front; K once enough distinct patches were seen.
        usage: patches per code [K] since `usage` was last cleared, over all processes.

    Args:
        codes: K.
        width: V.
        decay: gamma, in [0, 1).
        dead: a code is moved when it has less than this share of the mean count, in [0, 1).
    """

    counts: Tensor
    sums: Tensor
    filled: Tensor
    usage: Tensor

    def __init__(self, codes: int, width: int, *, decay: float = 0.99, dead: float = 0.01) -> None:
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("usage", torch.zeros(codes, dtype=torch.long))

    @property
    def vectors(self) -> Float[Tensor, "k V"]:
        """The codes in use, e_k."""
        filled = int(self.filled)
        return self.sums[:filled] / self.counts[:filled, None]

    def assign(self, patches: Float[Tensor, "M V"]) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """Nearest code of each patch, and its squared distance.

        Raises:
            UserError: there are no codes yet.
        """
        vectors = self.vectors
        if not len(vectors):
            raise UserError("The codebook is empty: it is learned in training mode, so take a training step first.")
        # |x - e|^2 without |x|^2, which does not matter for which code is the nearest.
        bias = vectors.square().sum(1) / 2
        codes = torch.cat([(part @ vectors.T - bias).argmax(1) for part in patches.split(ROWS)])
        return codes, (patches - vectors[codes]).square().sum(1)

    @torch.no_grad()
    def forward(self, patches: Float[Tensor, "M V"]) -> Int[Tensor, " M"]:
        """Codes of patches; in training mode the codebook then moves towards them."""
        patches = patches.detach().to(self.sums.dtype)
        with torch.autocast(patches.device.type, enabled=False):
            if self.training and self.filled < len(self.counts):
                self._start(patches)
            codes, distances = self.assign(patches)
            if self.training:
                self._move(patches, codes, distances)
        return codes

    def _start(self, patches: Tensor) -> None:
        """Make patches that differ from the codes so far, and from each other, the next codes."""
        filled = int(self.filled)
        new = patches if filled == 0 else patches[self.assign(patches)[1] > EQUAL]
        new = torch.unique(new, dim=0)
        new = new[torch.randperm(len(new), device=new.device)[: len(self.counts) - filled]]
        rows = slice(filled, filled + len(new))
        share = self._total(len(patches)) / len(self.counts)
        self.counts[rows], self.sums[rows] = share, share * new
        self.filled += len(new)
        self._agree()

    def _move(self, patches: Tensor, codes: Tensor, distances: Tensor) -> None:
        """One step of the moving averages; dead codes are moved to badly coded patches."""
        chosen = torch.bincount(codes, minlength=len(self.counts))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, patches)
        if several_processes():
            dist.all_reduce(chosen)
            dist.all_reduce(sums)
        self.usage += chosen
        self.counts.lerp_(chosen.to(self.counts.dtype), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        filled = int(self.filled)
        mean = self.counts.sum() / filled
        dead = (self.counts[:filled] < self.dead * mean).nonzero()[:, 0]
        if not len(dead):
            return
        weights = distances.masked_fill(distances <= EQUAL, 0)
        count = min(len(dead), int(weights.count_nonzero()))
        if count:
            dead = dead[:count]
            self.counts[dead] = mean
            self.sums[dead] = mean * patches[weights.multinomial(count)]
        self._agree()

    def _total(self, count: int) -> int:
        return count * (dist.get_world_size() if several_processes() else 1)

    def _agree(self) -> None:
        """Take the codebook of the first process, whose patches were drawn."""
        if several_processes():
            for buffer in (self.counts, self.sums, self.filled):
                dist.broadcast(buffer, 0)
