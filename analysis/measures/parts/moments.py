"""Running means over images with their covariance, from which every measure takes its value and its interval.

Memory does not grow with the number of images, sums are float64, and accumulators of different processes merge.
Shapes: B images, K values per image.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from hkd.errors import UserError


class NotFinite(UserError):
    """A measure met NaN or infinite values."""


def _quantile(count: int) -> float:
    """97.5 % quantile of Student's t for `count` images; nan below two."""
    return float(stdtrit(count - 1, 0.975)) if count > 1 else float("nan")


class Moments:
    """Mean and covariance of K values per image, updated batch by batch (Chan, Golub & LeVeque 1983).

    Attributes:
        count: images seen. mean: [K]. scatter: sum of (x - mean)(x - mean)^T over images, [K, K].
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    def update(self, values: Float[Tensor, "B K"]) -> None:
        """Take in one row per image.

        Raises:
            NotFinite: a value is NaN or infinite; nothing is taken in.
        """
        rows = values.detach().double().cpu().numpy()
        if not np.isfinite(rows).all():
            image = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise NotFinite(f"Image {image} of a batch (counted from 0) gives values that are not finite.")
        if len(rows):
            mean = rows.mean(axis=0)
            self._join(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: "Moments") -> None:
        """Take in what another accumulator saw."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total, apart = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def half(self, weights: Float[np.ndarray, "... K"]) -> np.ndarray:
        """Half width of the 95 % t-interval over images of each weighted sum of the values; nan for one image.

        For a function of the means its gradient is the weights (delta method).
        """
        if self.count < 2:
            return np.full(weights.shape[:-1], np.nan)
        variance = np.einsum("...i,ij,...j->...", weights, self.scatter / (self.count - 1), weights)
        return _quantile(self.count) * np.sqrt(np.maximum(variance, 0) / self.count)


def ratio(moments: Moments, above: int, below: int) -> tuple[float, float]:
    """Mean of value `above` over mean of value `below`, and the half width of its 95 % interval (delta method).

    Both are nan where the latter mean is zero.
    """
    if moments.mean[below] == 0:
        return float("nan"), float("nan")
    value = moments.mean[above] / moments.mean[below]
    gradient = np.zeros(len(moments.mean))
    gradient[above], gradient[below] = 1 / moments.mean[below], -value / moments.mean[below]
    return float(value), float(moments.half(gradient))
