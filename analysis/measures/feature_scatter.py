r"""Distance between a student's alternative components and its teacher's (ScaleKD, arXiv:2411.06786, Figure 6).

Per sample, with n each position's direction and c the removal of every channel's spatial mean:

.. math:: \delta = n(c(V)) - n(c(F_T)) \in R^{N C}, \quad \|\delta\|^2 \le 4 N

shown as a point in the plane, of which the origin is agreement. The paper does not name its projection. Here it is one
fixed Gaussian matrix R of entries N(0, 1) / sqrt(2), drawn from a seed and so shared by all students, with
:math:`E \|R \delta\|^2 = \|\delta\|^2`; or, as an option, the first two principal directions (without centring, which
would lose the origin) of the union of some students, found in a Gaussian sketch. A scatter alone is no evidence: the
norms and their quantiles are reported with it.
Shapes: B samples of a batch, S all samples, N positions, C channels, K width of the sketch (2 without).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.measures.base import Result
from analysis.measures.parts.moments import Moments, NotFinite
from hkd.errors import UserError
from hkd.methods.parts.feature_mimicking import directions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SKETCH = 256  # K for principal directions


def difference(tokens: Float[Tensor, "B N C"], tokens_t: Float[Tensor, "B N C"]) -> Float[Tensor, "B N*C"]:
    """delta, a row per sample."""
    return (directions(tokens, centred=True) - directions(tokens_t, centred=True)).flatten(1)


def gaussian(size: int, width: int, seed: int) -> Float[Tensor, "size width"]:
    """R^T: independent entries of variance 1 / width, float32, the same for equal arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, width, generator=generator) / width**0.5


@dataclass(frozen=True)
class ScatterResult(Result):
    """Points and norms of S samples, in the order in which they were taken in (merged ones after those before).

    points: [S, 2]. norm: of delta, [S]. per_position: squared norm over N, [S]; 2 - 2 cos, averaged over positions.
    mean, mean_half: of the norm, with the half width of a 95 % interval over samples. median: of the norm.
    quantiles: of the norm at QUANTILES, [5]. positions: N.
    """

    points: np.ndarray
    norm: np.ndarray
    per_position: np.ndarray
    mean: float
    mean_half: float
    median: float
    quantiles: np.ndarray
    positions: int


class _Rows:
    """Rows that grow by doubling.

    A small array kept from every batch would lie between the large ones that come and go, and the freed room beside it
    would be too small for the next: measured, the process grew by the size of delta with every batch.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._memory = np.empty((1024, *shape), dtype)
        self.count = 0

    def append(self, rows: np.ndarray) -> None:
        needed = self.count + len(rows)
        if needed > len(self._memory):
            memory = np.empty((max(needed, 2 * len(self._memory)), *self._memory.shape[1:]), self._memory.dtype)
            memory[: self.count] = self.rows()
            self._memory = memory
        self._memory[self.count : needed] = rows
        self.count = needed

    def rows(self) -> np.ndarray:
        """What was appended; a view."""
        return self._memory[: self.count]

    def __getstate__(self) -> dict[str, object]:
        """Without the room that is not used."""
        return {"_memory": self.rows(), "count": self.count}


class FeatureScatter:
    """Projections and norms of delta over a stream of samples; delta itself is never kept.

    Memory: R, and (K + 1) floats per sample. Equal seeds and widths give equal R.

    Args:
        seed: of R.
        width: K; 2 for the plane itself, SKETCH for `principal_points`.
    """

    def __init__(self, seed: int = 0, width: int = 2) -> None:
        self.seed, self.width = seed, width
        self.positions = 0
        self.norm = Moments(1)
        self._projection: Tensor | None = None
        self._sketches, self._norms = _Rows((width,), "float32"), _Rows((), "float64")

    def __getstate__(self) -> dict[str, object]:
        """Without R, which the seed brings back: what travels between processes is small."""
        return self.__dict__ | {"_projection": None}

    def update(self, tokens: Float[Tensor, "B N C"], tokens_t: Float[Tensor, "B N C"]) -> None:
        """Take in a batch.

        Args:
            tokens: V, the student's last tokens in the teacher's space.
            tokens_t: F_T of the same images.

        Raises:
            NotFinite: a feature is NaN or infinite.
            ValueError: shapes differ from each other or from those before.
        """
        if tokens.shape != tokens_t.shape:
            raise ValueError(f"Tokens of student and teacher differ: {tuple(tokens.shape)}, {tuple(tokens_t.shape)}.")
        delta = difference(tokens.detach(), tokens_t.detach())
        if self._projection is None:
            self._projection = gaussian(delta.shape[1], self.width, self.seed)
        if len(self._projection) != delta.shape[1] or self.positions not in (0, tokens.shape[1]):
            raise ValueError(f"Samples have {delta.shape[1]} values here and had {len(self._projection)} before.")
        self._projection = self._projection.to(delta.device, delta.dtype)
        norm = torch.linalg.vector_norm(delta, dim=1, dtype=torch.float64)
        try:
            self.norm.update(norm[:, None])
        except NotFinite as error:
            raise NotFinite(f"The features compared with the teacher's are not finite. {error}") from None
        self.positions = tokens.shape[1]
        self._norms.append(norm.cpu().numpy())
        self._sketches.append((delta @ self._projection).float().cpu().numpy())

    def merge(self, other: "FeatureScatter") -> None:
        """Take in the samples of another part, after those that are here.

        Raises:
            ValueError: another projection or another grid, with which no point could be compared.
        """
        if (self.seed, self.width) != (other.seed, other.width):
            raise ValueError("Scatters of different projections do not merge: give both the same seed and width.")
        if 0 not in (self.positions, other.positions) and self.positions != other.positions:
            raise ValueError(f"Scatters of {self.positions} and {other.positions} positions do not merge.")
        self.positions = self.positions or other.positions
        self.norm.merge(other.norm)
        self._norms.append(other._norms.rows())
        self._sketches.append(other._sketches.rows())

    def sketch(self) -> Float[np.ndarray, "S K"]:
        """R delta of all samples, float32.

        Raises:
            UserError: no samples were taken in.
        """
        if not self._sketches.count:
            raise UserError("No samples were compared: give at least one.")
        return self._sketches.rows().copy()

    def compute(self, points: Float[np.ndarray, "S 2"] | None = None) -> ScatterResult:
        """Points and norms so far.

        Args:
            points: those of `principal_points`; the sketch itself unless given, which then has width 2.

        Raises:
            UserError: no samples were taken in.
            ValueError: a sketch wider than the plane, and no points.
        """
        sketch = self.sketch()
        if points is None and self.width != 2:
            raise ValueError(f"A sketch of width {self.width} has no points of its own: give principal_points' ones.")
        norm = self._norms.rows().copy()
        quantiles = np.quantile(norm, QUANTILES)
        return ScatterResult(
            points=sketch if points is None else points,
            norm=norm,
            per_position=norm**2 / self.positions,
            mean=float(self.norm.mean[0]),
            mean_half=float(self.norm.half(np.ones(1))),
            median=float(np.median(norm)),
            quantiles=quantiles,
            positions=self.positions,
        )


def principal_points(scatters: Sequence[FeatureScatter]) -> list[Float[np.ndarray, "S 2"]]:
    """Samples of several students on the first two principal directions of their union, without centring.

    Args:
        scatters: with one seed and width (SKETCH is enough).

    Raises:
        ValueError: different projections.
    """
    if len({(scatter.seed, scatter.width) for scatter in scatters}) != 1:
        raise ValueError("Students share principal directions only if their seed and width are the same.")
    sketches = [scatter.sketch().astype(np.float64) for scatter in scatters]
    _, vectors = np.linalg.eigh(sum(sketch.T @ sketch for sketch in sketches))
    axes = vectors[:, :-3:-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)  # signs are free: the same every time
    return [sketch @ axes for sketch in sketches]


def draws(samples: int, *, size: int = 6400, count: int = 8, seed: int = 0) -> Int[np.ndarray, "count size"]:
    """Random subsets of samples, each without replacement, the same for equal arguments.

    Args:
        samples: how many there are. size: of a subset, at most all of them. count: of subsets. seed: of the draws.

    Raises:
        UserError: no samples.
    """
    if samples < 1:
        raise UserError("No samples to draw from: give at least one.")
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(samples, min(size, samples), replace=False) for _ in range(count)])
