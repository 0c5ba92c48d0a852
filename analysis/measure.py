"""All measures of any model over any images, in three lines:

    import timm
    from analysis.measure import measure
    found = measure(timm.create_model("vit_small_patch16_224"), images)  # images: [M, 3, 224, 224] in [0, 1]

One forward pass per batch serves all measures. Maps and features are reduced as they come by, so memory depends on
the batch size and never on the number of images. `analyse` does the same with names of models and folders of images:

    from analysis.measure import analyse
    found = analyse("vit_small_patch16_224", "photographs/")
    found.save("analysis/")  # table, arrays and figures; found.table() is a frame

Shapes: B images of a batch, M all images, C channels, H W grid.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from analysis.accumulate import HeadResult, NotFinite
from analysis.attention import Seen, attention_layers, attention_rows, observed
from analysis.attention_distance import AttentionDistance, attention_distance, grid_distances
from analysis.attention_nmi import AttentionNMI, attention_nmi
from analysis.dct_spectrum import DCTResult, DCTSpectrum
from analysis.features import feature_sources, first_not_finite, observed_features, to_map
from analysis.fourier import Fourier, FourierResult
from analysis.images import ImageFolder
from analysis.model import Subject, load
from analysis.report import SHOWN, Analysis, AttentionMaps
from hkd.errors import Refused, UserError
from hkd.models.hooks import evaluation_mode
from hkd.models.normalise import Normalise
from hkd.models.tap_model import TapModel
from hkd.registry import lookup

Result = HeadResult | FourierResult | DCTResult

MEASURES: dict[str, Callable[[], Any]] = {
    "distance": AttentionDistance,
    "nmi": AttentionNMI,
    "fourier": Fourier,
    "dct": DCTSpectrum,
}

# What `analyse` offers, and what it is called above; rows of attention are kept of a few images only.
ANALYSES = {"attention_distance": "distance", "attention_nmi": "nmi", "fourier": "fourier", "dct_spectrum": "dct"}
MAPS = "attention_maps"
ALL = (*ANALYSES, MAPS)


def analyse(
    model: str | nn.Module | Subject,
    images: str | Path | ImageFolder | Tensor | Iterable[Any],
    measures: Sequence[str] = ALL,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    random: bool = False,
    image_size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Analysis:
    """Measure a model over images, leaving out the measures that it cannot give.

    Args:
        model: a name, or NAME=FILE.safetensors (see `analysis.model`); or a timm model, or one of
            `hkd.models.tap_model`, which stays where it is.
        images: a folder; or RGB in [0, 1] as `measure` takes them.
        measures: names among ALL.
        batch_size: most images in one forward pass.
        limit: at most so many images of a folder, drawn by the seed.
        seed: of that draw, and of random weights.
        random: random weights for a model that is named without a file, instead of its published ones.
        image_size: (height, width) in px that a named model sees; its own unless given.
        device: of a named model.
        progress: called with the number of images of every batch that is done.

    Returns:
        Results by measure and reasons of refusal by measure. One image is measured with a warning, its intervals are
        nan.

    Raises:
        Refused: no measure at all can be had of this model.
        UserError: what was named does not exist or fit; no images; an unknown measure; features that are not finite.
    """
    names = [measures] if isinstance(measures, str) else list(dict.fromkeys(measures))
    for name in names:
        lookup("measure", name, dict.fromkeys(ALL))
    if not names:
        raise UserError(f"No measure was asked for; known are {', '.join(ALL)}.")
    if isinstance(images, str | Path):
        images = ImageFolder(images, limit, seed)
    if isinstance(model, str):
        model = load(model, random=random, seed=seed, image_size=image_size, device=device)
    net = model.net if isinstance(model, Subject) else model
    normalisation: dict[str, Any] = {"mean": model.mean, "std": model.std} if isinstance(model, Subject) else {}
    if isinstance(images, ImageFolder):
        if isinstance(model, Subject):
            stream = images.batches(model.size, model.crop_pct, batch_size)
        else:
            stream = images.batches(_own_size(net), _own_crop(net), batch_size)
    else:
        stream = _batches(images, batch_size)

    first = next((batch for batch in stream if len(batch)), None)
    if first is None:
        raise UserError("No images were measured: give at least one.")
    label = model.label if isinstance(model, Subject) else type(net).__name__
    found = Analysis(model=label, size=(int(first.shape[2]), int(first.shape[3])))
    streamed = _possible(net, first[:1], [name for name in names if name in ANALYSES], normalisation, found.refused)
    measurement = Measurement(net, [ANALYSES[name] for name in streamed], **normalisation) if streamed else None
    if MAPS in names:
        try:
            found.results[MAPS] = _maps(Measurement(net, "dct", **normalisation), first[:SHOWN])
        except Refused as error:
            found.refused[MAPS] = str(error)
    if not streamed and MAPS not in found.results:
        raise Refused(f"{label} can be measured by none of {', '.join(names)}: {next(iter(found.refused.values()))}")
    for batch in chain([first], stream if measurement is not None else []):
        if measurement is not None:
            measurement.update(batch)
        found.images += len(batch) if measurement is not None else len(batch[:SHOWN])
        if progress is not None:
            progress(len(batch))
    if measurement is not None:
        results = measurement.compute()
        found.results = {**{name: results[ANALYSES[name]] for name in streamed}, **found.results}
        if "attention_distance" in streamed:
            found.uniform = _uniform(measurement.net, measurement.given(first[:1])[1])
    return found


def _possible(
    net: nn.Module, image: Tensor, names: Sequence[str], normalisation: dict[str, Any], refused: dict[str, str]
) -> list[str]:
    """The measures that a model gives of an image; the reasons of the others go to `refused`."""
    possible = []
    for name in names:
        try:
            Measurement(net, ANALYSES[name], **normalisation).update(image)
        except Refused as error:
            refused[name] = str(error)
        else:
            possible.append(name)
    return possible


def _own_size(net: Any) -> tuple[int, int]:
    """(height, width) that a model says its images have."""
    if isinstance(net, TapModel):
        return (net.card.image_size,) * 2
    fixed = getattr(getattr(net, "patch_embed", None), "img_size", None)
    side = ((getattr(net, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224))[1:]
    return tuple(fixed or side)


def _own_crop(net: Any) -> float:
    """Share of the resized image that a model says its centre crop takes."""
    return float((getattr(net, "pretrained_cfg", None) or {}).get("crop_pct") or 1.0)


def _maps(measurement: "Measurement", images: Tensor) -> AttentionMaps:
    """What the central patch attends to at a quarter, half and five sixths of the depth and in the last block."""
    given, size = measurement.given(images)
    layers = attention_layers(measurement.net, size)
    if layers[0].windowed:
        kind = type(measurement.net).__name__
        raise Refused(f"{kind} attends within windows: what a patch attends to is no image.")
    depth, grid = len(layers), layers[0].grid
    query = (grid[0] // 2, grid[1] // 2)
    rows: dict[int, list[Tensor]] = {
        block: [] for block in sorted({max(1, round(share * depth)) - 1 for share in (1 / 4, 1 / 2, 5 / 6, 1)})
    }

    def receive(seen: Seen) -> None:
        if seen.layer in rows:
            rows[seen.layer].append(attention_rows(seen.maps, query, grid).clone())

    with torch.no_grad(), evaluation_mode(measurement.model), observed(layers, len(images), receive):
        measurement.final_map(given, size)
    return AttentionMaps(
        images=images.movedim(1, -1).cpu().numpy(),
        maps={block + 1: torch.cat(parts).cpu().numpy() for block, parts in rows.items()},
        query=query,
        patch=layers[0].patch,
        size=size,
    )


def _uniform(net: nn.Module, size: tuple[int, int]) -> np.ndarray:
    """Mean distance in px of attention that is the same everywhere, by layer."""
    found = [
        layer.patch * grid_distances(layer.grid, torch.float64, torch.device("cpu")).mean().item()
        for layer in attention_layers(net, size)
    ]
    return np.array(found)


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
        means = mean or known.get("mean") or IMAGENET_DEFAULT_MEAN
        stds = std or known.get("std") or IMAGENET_DEFAULT_STD
        for name, values in (("mean", means), ("std", stds)):
            if len(values) != 3:
                raise UserError(f"The {name} of a normalisation has three values, one per channel; got {len(values)}.")
        self.normalise = Normalise(means, stds, weight)
        self.renormalise = renormalise
        self.images = 0
        self.size: tuple[int, int] | None = None  # (height, width) that the network sees

    @torch.no_grad()
    def update(self, images: Float[Tensor, "B 3 Hi Wi"]) -> None:
        """Take in a batch of RGB images in [0, 1]; none is taken in when it raises.

        Raises:
            Refused, UserError: see `measure`.
        """
        _check_form(images)
        # One pass without memory of its own; which image is asked only then. Half precision cannot hold the sum.
        if not images.sum(dtype=torch.promote_types(images.dtype, torch.float32)).isfinite():
            bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
            if len(bad):
                number = self.images + int(bad[0].item())
                raise UserError(f"Image {number} (counted from 0) holds values that are not finite.")
        if not len(images):
            return
        images, size = self.given(images)
        self._check_same(size)
        # A batch goes into accumulators of its own, so that one that fails leaves no part of itself.
        batch = {name: MEASURES[name]() for name in self.accumulators}
        with evaluation_mode(self.model):
            try:
                self._run(batch, images, size)
            except NotFinite as error:
                name = first_not_finite(self.net, lambda: self.final_map(images, size))
                where = f"The first layer of {type(self.net).__name__} with such an output is {name}. " if name else ""
                raise UserError(f"{where}{error} Check the weights and the precision.") from None
        for name, accumulator in self.accumulators.items():
            accumulator.merge(batch[name])
        self.images += len(images)
        self.size = size

    def given(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What `model` is given of images in [0, 1], and the size that its network sees."""
        images = images.to(self.device, self.dtype)
        size = (int(images.shape[2]), int(images.shape[3]))
        if isinstance(self.model, TapModel):
            return images, (self.model.card.image_size,) * 2
        _check_size(self.net, size)
        return self.normalise(images), size

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
            final = self.final_map(images, size)
        for name, by_layer in heads.items():
            for index, values in by_layer.items():
                found, layer = torch.cat(values), layers[index]
                windows = len(found) // len(images)
                patch = layer.patch if name == "distance" else 1.0
                accumulators[name].add(index, found, windows, layer.name, patch)
        if "dct" in accumulators:
            accumulators["dct"].update(final)

    def final_map(self, images: Tensor, size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The last feature map, from what `given` returns."""
        if isinstance(self.model, TapModel):
            return self.model(images).final
        return to_map(self.net, self.net.forward_features(images), size)

    def _check_same(self, size: tuple[int, int] | None) -> None:
        """Values of grids that differ have no mean."""
        if self.size not in (None, size) and size is not None:
            (was, across), (height, width) = self.size or size, size
            raise UserError(f"Images of {height}x{width} px follow images of {was}x{across} px: give all one size.")

    def merge(self, other: "Measurement") -> None:
        """Take in what another measurement of the same model and measures saw.

        Raises:
            UserError: it saw images of another size.
        """
        self._check_same(other.size)
        self.size = self.size or other.size
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
