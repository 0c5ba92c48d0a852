"""Running means over images with their covariance, from which every measure takes its value and its interval.

Memory does not grow with the number of images, sums are float64, and accumulators of different processes merge.
Shapes: B images, K values per image, L layers, h heads.
"""

from dataclasses import dataclass, fields, replace

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


@dataclass(frozen=True)
class HeadResult:
    """A measure of attention by layer and head; every `_half` is the half width of a 95 % interval over images.

    names: of the L layers, in order. mean, mean_half: per head, [L, h]; nan where a layer has fewer heads than h.
    layer, layer_half: mean over a layer's heads, [L]. spread, spread_half: largest minus smallest head, [L].
    std, std_half: standard deviation over heads (divided by their number), [L]. images: how many.
    patch: pixels that one unit of length stands for, [L]; ones where a measure has no unit of length.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    mean_half: np.ndarray
    layer: np.ndarray
    layer_half: np.ndarray
    spread: np.ndarray
    spread_half: np.ndarray
    std: np.ndarray
    std_half: np.ndarray
    images: int
    patch: np.ndarray

    def pixels(self) -> "HeadResult":
        """The same in pixels of the model's input instead of patches."""
        scaled = {
            item.name: (getattr(self, item.name).T * self.patch).T
            for item in fields(self)
            if item.name not in ("names", "images", "patch")
        }
        return replace(self, **scaled, patch=np.ones_like(self.patch))

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for `numpy.savez`."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}


class HeadAccumulator:
    """One value per image and head of every layer, averaged over images last.

    Layers may be given in any order and may differ in their number of heads.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Moments] = {}
        self.names: dict[int, str] = {}
        self.patch: dict[int, float] = {}

    def add(
        self, layer: int, values: Float[Tensor, "B*windows h"], windows: int = 1, name: str = "", patch: float = 1.0
    ) -> None:
        """Take in a batch.

        Args:
            layer: 0-based index. name: shown in results and errors; `layer <index>` unless given.
            values: per image and head; with windows, those of one image are together and are averaged first.
            patch: pixels of one patch.

        Raises:
            NotFinite: a value is NaN or infinite.
            ValueError: another number of heads than this layer had before.
        """
        name = name or f"layer {layer}"
        if windows > 1:
            values = values.unflatten(0, (-1, windows)).mean(dim=1)
        moments = self.layers.setdefault(layer, Moments(values.shape[1]))
        if len(moments.mean) != values.shape[1]:
            raise ValueError(f"{name} has {values.shape[1]} heads here and had {len(moments.mean)} before.")
        self.names[layer], self.patch[layer] = name, patch
        try:
            moments.update(values)
        except NotFinite as error:
            raise NotFinite(f"The attention of {name} is not finite. {error}") from None

    def merge(self, other: "HeadAccumulator") -> None:
        """Take in what an accumulator of the same model saw elsewhere."""
        for layer, moments in other.layers.items():
            self.layers.setdefault(layer, Moments(len(moments.mean))).merge(moments)
        self.names |= other.names
        self.patch |= other.patch

    def compute(self) -> HeadResult:
        """Values and intervals so far.

        Raises:
            UserError: no images were taken in.
        """
        if not self.layers:
            raise UserError("No images were measured: give at least one.")
        order = sorted(self.layers)
        rows = [_over_heads(self.layers[layer]) for layer in order]
        heads = max(len(row["mean"]) for row in rows)

        def padded(key: str) -> np.ndarray:
            return np.array([np.pad(row[key], (0, heads - len(row[key])), constant_values=np.nan) for row in rows])

        return HeadResult(
            names=tuple(self.names[layer] for layer in order),
            mean=padded("mean"),
            mean_half=padded("mean_half"),
            **{key: np.array([row[key] for row in rows]) for key in rows[0] if not key.startswith("mean")},
            images=self.layers[order[0]].count,
            patch=np.array([self.patch[layer] for layer in order]),
        )


def _over_heads(moments: Moments) -> dict[str, np.ndarray]:
    """The fields of HeadResult for one layer. Mean and spread are weighted sums; the std enters by its gradient."""
    mean = moments.mean
    count, std, unit = len(mean), mean.std(), np.eye(len(mean))
    average = np.full(count, 1 / count)
    gradient = (mean - mean.mean()) / (count * std) if std > 0 else np.zeros(count)
    return {
        "mean": mean,
        "mean_half": moments.half(unit),
        "layer": mean.mean(),
        "layer_half": moments.half(average),
        "spread": np.ptp(mean),
        "spread_half": moments.half(unit[mean.argmax()] - unit[mean.argmin()]),
        "std": std,
        "std_half": moments.half(gradient),
    }
