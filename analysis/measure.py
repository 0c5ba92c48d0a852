"""All measures of any model over any images, in three lines:

    import timm
    from analysis.measure import measure
    found = measure(timm.create_model("vit_small_patch16_224"), images)  # images: [M, 3, 224, 224] in [0, 1]

One forward pass per batch serves all measures. Maps and features are reduced as they come by, so memory depends on
the batch size and never on the number of images.
Shapes: B images of a batch, M all images, C channels, H W grid.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from analysis.accumulate import HeadResult, NotFinite
from analysis.attention import Seen, attention_layers, observed
from analysis.attention_distance import AttentionDistance, attention_distance
from analysis.attention_nmi import AttentionNMI, attention_nmi
from analysis.dct_spectrum import DCTResult, DCTSpectrum
from analysis.features import feature_sources, first_not_finite, observed_features, to_map
from analysis.fourier import Fourier, FourierResult
from hkd.errors import UserError
from hkd.models.tap_model import TapModel
from hkd.registry import lookup

Result = HeadResult | FourierResult | DCTResult

MEASURES: dict[str, Callable[[], Any]] = {
    "distance": AttentionDistance,
    "nmi": AttentionNMI,
    "fourier": Fourier,
    "dct": DCTSpectrum,
}


def measure(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    measures: Sequence[str] = tuple(MEASURES),
    *,
    batch_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    renormalise: bool = True,
) -> dict[str, Result]:
    """Measure a model, in evaluation mode, without changing it.

    Args:
        model: a timm model, or one of `hkd.models.tap_model`.
        images: RGB in [0, 1]: one tensor [M, 3, Hi, Wi], or any iterable of batches, each a tensor or a tuple or list
            that begins with one. Read once.
        measures: names among MEASURES.
        batch_size: most images in one forward pass.
        mean, std: of the model's normalisation, three each; from a timm model's `pretrained_cfg` unless given. A
            TapModel has its own.
        renormalise: whether attention rows sum to one without the prefix tokens. If not, as in the code that Hybrid
            Distill builds on, distances come out too small by what prefix tokens are given.

    Returns:
        By measure: `HeadResult` for distance (in patches) and nmi, `FourierResult`, `DCTResult`. One image is
        measured with a warning, its intervals are nan.

    Raises:
        Refused: a model that cannot give what a measure needs.
        UserError: no images, images of another form or size, an unknown measure, features that are not finite.
    """
    measurement = Measurement(model, measures, mean=mean, std=std, renormalise=renormalise)
    for batch in _batches(images, batch_size):
        measurement.update(batch)
    return measurement.compute()


class Measurement:
    """Measures of one model over a stream of batches.

    Attributes:
        accumulators: by measure; these merge and travel between processes.
    """

    def __init__(
        self,
        model: nn.Module,
        measures: Sequence[str] = tuple(MEASURES),
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        renormalise: bool = True,
    ) -> None:
        """See `measure`."""
        self.model = model
        self.net: Any = model.net if isinstance(model, TapModel) else model
        names = [measures] if isinstance(measures, str) else measures
        self.accumulators: dict[str, Any] = {name: lookup("measure", name, MEASURES)() for name in names}
        if not self.accumulators:
            raise UserError(f"No measure was asked for; known are {', '.join(MEASURES)}.")
        weight = next(model.parameters(), torch.zeros(()))
        self.device, self.dtype = weight.device, weight.dtype
        if isinstance(model, TapModel) and (mean is not None or std is not None):
            raise UserError("A TapModel normalises images itself: leave mean and std out.")
        known = getattr(self.net, "pretrained_cfg", None) or {}
        means = self._channels(mean or known.get("mean") or IMAGENET_DEFAULT_MEAN, "mean")
        stds = self._channels(std or known.get("std") or IMAGENET_DEFAULT_STD, "std")
        # (x - mean) / std as one fused multiply-add: shift + scale * x.
        self.scale, self.shift = 1 / stds, -means / stds
        self.renormalise = renormalise
        self.images = 0

    def _channels(self, values: Sequence[float], name: str) -> Tensor:
        if len(values) != 3:
            raise UserError(f"The {name} of a normalisation has three values, one per channel; got {len(values)}.")
        return torch.tensor(tuple(values), device=self.device, dtype=self.dtype).view(1, 3, 1, 1)

    @torch.no_grad()
    def update(self, images: Float[Tensor, "B 3 Hi Wi"]) -> None:
        """Take in a batch of RGB images in [0, 1]; none is taken in when it raises.

        Raises:
            Refused, UserError: see `measure`.
        """
        _check_form(images)
        if not images.sum().isfinite():  # one pass without memory of its own; which image is asked only then
            bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
            raise UserError(f"Image {bad[0].item()} of a batch (counted from 0) holds values that are not finite.")
        if not len(images):
            return
        images = images.to(self.device, self.dtype)
        size = (int(images.shape[2]), int(images.shape[3]))
        if isinstance(self.model, TapModel):
            size = (self.model.card.image_size,) * 2
        else:
            _check_size(self.net, size)
            images = torch.addcmul(self.shift, images, self.scale)
        # A batch goes into accumulators of its own, so that one that fails leaves no part of itself.
        batch = {name: MEASURES[name]() for name in self.accumulators}
        with _evaluation_mode(self.model):
            try:
                self._run(batch, images, size)
            except NotFinite as error:
                name = first_not_finite(self.net, lambda: self._final_map(images, size))
                where = f"The first layer of {type(self.net).__name__} with such an output is {name}. " if name else ""
                raise UserError(f"{where}{error} Check the weights and the precision.") from None
        for name, accumulator in self.accumulators.items():
            accumulator.merge(batch[name])
        self.images += len(images)

    def _run(self, accumulators: dict[str, Any], images: Tensor, size: tuple[int, int]) -> None:
        """One forward pass, hooked for what the measures need."""
        heads: dict[str, dict[int, list[Tensor]]] = {name: {} for name in ("distance", "nmi") if name in accumulators}
        layers = attention_layers(self.net, size) if heads else []

        scratch = torch.empty(0)

        def attend(seen: Seen) -> None:
            # Values wait for the end of the pass: taking them in image by image would cost more than making them.
            nonlocal scratch
            if "distance" in heads:
                found = attention_distance(seen.maps, layers[seen.layer].grid)
                heads["distance"].setdefault(seen.layer, []).append(found)
            if "nmi" in heads:
                if scratch.shape != seen.maps.shape:
                    scratch = torch.empty_like(seen.maps)
                heads["nmi"].setdefault(seen.layer, []).append(attention_nmi(seen.maps, scratch))

        with ExitStack() as hooks:
            if heads:
                hooks.enter_context(observed(layers, len(images), attend, renormalise=self.renormalise))
            if "fourier" in accumulators:

                def transform(layer: int, name: str, map_: Tensor) -> None:
                    grid = (map_.shape[2], map_.shape[3])
                    accumulators["fourier"].update(layer, map_.flatten(2).transpose(1, 2), grid, name=name)

                sources = feature_sources(self.net, size)
                hooks.enter_context(observed_features(self.net, sources, size, transform))
            final = self._final_map(images, size)
        for name, by_layer in heads.items():
            for index, values in by_layer.items():
                found, layer = torch.cat(values), layers[index]
                windows = len(found) // len(images)
                patch = layer.patch if name == "distance" else 1.0
                accumulators[name].add(index, found, windows, layer.name, patch)
        if "dct" in accumulators:
            accumulators["dct"].update(final)

    def _final_map(self, images: Tensor, size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        if isinstance(self.model, TapModel):
            return self.model(images).final
        return to_map(self.net, self.net.forward_features(images), size)

    def merge(self, other: "Measurement") -> None:
        """Take in what another measurement of the same model and measures saw."""
        for name, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[name])
        self.images += other.images

    def compute(self) -> dict[str, Result]:
        """Results so far, by measure.

        Raises:
            UserError: no images were taken in.
        """
        if not self.images:
            raise UserError("No images were measured: give at least one.")
        if self.images == 1:
            warnings.warn(
                "One image was measured, so no value has an interval (they are nan): give at least two.", stacklevel=2
            )
        return {name: accumulator.compute() for name, accumulator in self.accumulators.items()}


def _batches(images: Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Tensors of at most `batch_size` images."""
    if batch_size < 1:
        raise UserError(f"A batch has at least one image; got batch_size {batch_size}.")
    for batch in [images] if isinstance(images, Tensor) else images:
        tensor = batch[0] if isinstance(batch, tuple | list) else batch
        _check_form(tensor)
        yield from tensor.split(batch_size)


def _check_form(images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"Images are batches [B, 3, height, width] of floats in [0, 1]; got {got}.")


def _check_size(net: Any, size: tuple[int, int]) -> None:
    """Refuse a size that a model with fixed positions would stop at with an assertion."""
    embed = getattr(net, "patch_embed", None) or getattr(net, "stem", None)
    fixed = getattr(embed, "img_size", None)
    if fixed is not None and getattr(embed, "strict_img_size", False) and tuple(fixed) != size:
        raise UserError(
            f"{type(net).__name__} takes images of {fixed[0]}x{fixed[1]} pixels, got {size[0]}x{size[1]}: resize them, "
            f"or build the model with img_size=({size[0]}, {size[1]})."
        )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for all modules, each as it was on leaving."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
