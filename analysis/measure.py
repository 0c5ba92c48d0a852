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
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from analysis.looking import model as models
from analysis.looking.attention import Layer, Seen, attention_layers, observed
from analysis.looking.features import feature_sources, first_not_finite, observed_features, to_map
from analysis.looking.images import ImageFolder
from analysis.looking.model import Subject
from analysis.measures.base import Measure, all_measures, measure_called
from analysis.measures.parts.moments import NotFinite
from analysis.report import Analysis
from hkd.errors import Refused, UserError
from hkd.models.hooks import evaluation_mode
from hkd.models.normalise import Normalise
from hkd.models.tap_model import TapModel

ALL = tuple(all_measures())


def analyse(
    model: str | nn.Module | Subject,
    images: str | Path | ImageFolder | Tensor | Iterable[Any],
    measures: str | Sequence[str] = ALL,
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
        model: a name, or NAME=FILE.safetensors (see `analysis.looking.model`); or a timm model, or one of
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
    kinds = _kinds(measures)
    if isinstance(images, str | Path):
        images = ImageFolder(images, limit, seed)
    if isinstance(model, str):
        model = models.load(model, random=random, seed=seed, image_size=image_size, device=device)
    subject = model if isinstance(model, Subject) else models.given(model)
    if isinstance(images, ImageFolder):
        stream = images.batches(subject.size, subject.crop_pct, batch_size)
    else:
        stream = _batches(images, batch_size)
    first = next((batch for batch in stream if len(batch)), None)
    if first is None:
        raise UserError("No images were measured: give at least one.")

    found = Analysis(model=subject.label, size=(int(first.shape[2]), int(first.shape[3])))
    whole: list[str] = []
    for name, kind in kinds.items():  # one at a time, as one that is refused ends the pass
        trial = Measurement(subject.net, name, mean=subject.mean, std=subject.std)
        try:
            trial.update(first[: kind.most or 1])
        except Refused as error:
            found.refused[name] = str(error)
            continue
        found.results[name] = trial.measures[name].compute()
        found.images = max(found.images, trial.images)
        if kind.most is None:
            whole.append(name)
    if not found.results:
        raise Refused(
            f"{found.model} can be measured by none of {', '.join(kinds)}: {next(iter(found.refused.values()))}"
        )
    if whole:
        measurement = Measurement(subject.net, whole, mean=subject.mean, std=subject.std)
        for batch in chain([first], stream):
            measurement.update(batch)
            if progress is not None:
                progress(len(batch))
        found.results |= measurement.compute()
        found.images = measurement.images
    elif progress is not None:
        progress(len(first))
    return found


def measure(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    measures: str | Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    renormalise: bool = True,
) -> dict[str, Any]:
    """Measure a model, in evaluation mode, without changing it.

    Args:
        model: a timm model, or one of `hkd.models.tap_model`.
        images: RGB in [0, 1]: one tensor [M, 3, Hi, Wi], or any iterable of batches, each a tensor or a tuple or list
            that begins with one. Read once.
        measures: names among ALL; None: all that take any number of images.
        batch_size: most images in one forward pass.
        mean, std: of the model's normalisation, three each; from a timm model's `pretrained_cfg` unless given. A
            TapModel has its own.
        renormalise: whether attention rows sum to one without the prefix tokens. If not, as in the code that Hybrid
            Distill builds on, distances come out too small by what prefix tokens are given.

    Returns:
        The result of each measure; distances are in patches. One image is measured with a warning, its intervals are
        nan.

    Raises:
        Refused: a model that cannot give what a measure needs.
        UserError: no images, images of another form or size, an unknown measure, features that are not finite.
    """
    measurement = Measurement(model, measures, mean=mean, std=std, renormalise=renormalise)
    for batch in _batches(images, batch_size):
        measurement.update(batch)
    return measurement.compute()


@contextmanager
def attended(
    measures: Sequence[Measure],
    layers: Sequence[Layer],
    images: Float[Tensor, "B 3 Hi Wi"],
    size: tuple[int, int],
    *,
    renormalise: bool = True,
) -> Iterator[None]:
    """Let measures see the attention of one forward pass, which is made in this context.

    Args:
        measures: of those that see attention.
        layers: whose attention.
        images: of the pass, as they were given.
        size: (height, width) of what the network sees, in px.
        renormalise: see `measure`.
    """

    def receive(seen: Seen) -> None:
        for each in measures:
            each.attention(seen, layers)

    with observed(layers, len(images), receive, renormalise=renormalise):
        yield
    for each in measures:
        each.end(images, size)


class Measurement:
    """Measures of one model over a stream of batches.

    Attributes:
        measures: by name; these merge and travel between processes.
    """

    def __init__(
        self,
        model: nn.Module,
        measures: str | Sequence[str] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        renormalise: bool = True,
    ) -> None:
        """See `measure`."""
        self.model = model
        self.net: Any = model.net if isinstance(model, TapModel) else model
        self.kinds = _kinds(measures)
        self.measures = {name: kind() for name, kind in self.kinds.items()}
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
        given, size = self.given(images)
        self._check_same(size)
        # A batch goes into measures of its own, so that one that fails leaves no part of itself.
        batch = {name: kind() for name, kind in self.kinds.items()}
        with evaluation_mode(self.model):
            try:
                self._run([*batch.values()], images, given, size)
            except NotFinite as error:
                name = first_not_finite(self.net, lambda: self.final_map(given, size))
                where = f"The first layer of {type(self.net).__name__} with such an output is {name}. " if name else ""
                raise UserError(f"{where}{error} Check the weights and the precision.") from None
        for name, each in self.measures.items():
            each.merge(batch[name])
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

    def _run(self, measures: Sequence[Measure], images: Tensor, given: Tensor, size: tuple[int, int]) -> None:
        """One forward pass, which each of the measures sees."""
        seeing: dict[str, list[Measure]] = {"attention": [], "features": [], "final": []}
        for each in measures:
            seeing[each.sees].append(each)
        layers = attention_layers(self.net, size) if seeing["attention"] else []
        for each in measures:
            if reason := each.refusal(self.net, layers):
                raise Refused(reason)

        def receive(layer: int, name: str, map_: Tensor) -> None:
            for each in seeing["features"]:
                each.features(layer, name, map_)

        with ExitStack() as hooks:
            if layers:
                attention = seeing["attention"]
                hooks.enter_context(attended(attention, layers, images, size, renormalise=self.renormalise))
            if seeing["features"]:
                hooks.enter_context(observed_features(self.net, feature_sources(self.net, size), size, receive))
            final = self.final_map(given, size)
        for each in seeing["final"]:
            each.final(final)

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
        for name, each in self.measures.items():
            each.merge(other.measures[name])
        self.images += other.images

    def compute(self) -> dict[str, Any]:
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
        return {name: each.compute() for name, each in self.measures.items()}


def _kinds(measures: str | Sequence[str] | None) -> dict[str, type[Measure]]:
    """Classes of measures by their names; None: of all that take any number of images."""
    names = ALL if measures is None else [measures] if isinstance(measures, str) else measures
    kinds = {name: measure_called(name) for name in names}
    if not kinds:
        raise UserError(f"No measure was asked for; known are {', '.join(ALL)}.")
    return {name: kind for name, kind in kinds.items() if measures is not None or kind.most is None}


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
