"""RandAugment on batches of bytes: timm's notation and semantics, each operation applied to all images that drew it.

Source: Cubuk et al. 2019, arXiv:1909.13719, in the version of timm (`timm.data.auto_augment`): operations with their
level ranges, application probability, magnitude noise. Rounding follows Pillow, on which timm's operations run.
Deviations: interpolation is always bicubic and uncovered pixels take the mean colour of ImageNet, as published
recipes set it (timm's own default draws bilinear or bicubic and fills with mid-grey); keeping 0 bits gives black,
where Pillow now raises.
Shapes: G images that drew the same operation, H and W sides in px, L layers (operations per image).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hkd.errors import UserError

FILL = (124, 116, 104)  # ImageNet's mean colour
WARPED_PX = 2**16  # of an output at once: what its sixteen reads need then stays in the cache
SCALE = 10.0  # levels run from 0 to 10 unless the notation says `mmax`

Images = UInt8[Tensor, "G 3 H W"]
Levels = Float[Tensor, " G"]  # float64, in [0, mmax]
Signs = Float[Tensor, " G"]  # float64, -1 or 1: the direction of operations that have one
Operation = Callable[..., Tensor]  # (images, levels, signs), some with increasing=


@dataclass(frozen=True)
class Notation:
    """timm's `rand-m9-n2-p0.5-mstd0.5-inc1-mmax10` in words."""

    magnitude: float
    layers: int
    prob: float  # of applying each drawn operation
    std: float  # of the magnitude; infinity draws it uniformly from 0 to magnitude
    most: float  # upper bound of the magnitude
    increasing: bool  # use the forms whose strength grows with the level


def parse(text: str) -> Notation:
    """Read timm's notation. Raises UserError naming the part that is not understood."""
    first, *parts = text.split("-")
    found: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if first != "rand" or not match or match[1] not in ("m", "n", "p", "mstd", "mmax", "inc"):
            raise UserError(
                f"'{part}' in randaugment '{text}' is not understood; write it as in rand-m9-n2-mstd0.5-inc1."
            )
        found[match[1]] = float(match[2])
    if first != "rand":
        raise UserError(f"randaugment '{text}' must start with 'rand', as in rand-m9-n2-mstd0.5-inc1.")
    return Notation(
        magnitude=found.get("m", 10.0),
        layers=int(found.get("n", 2)),
        prob=found.get("p", 0.5),
        std=std if (std := found.get("mstd", 0.0)) <= 100 else math.inf,
        most=found.get("mmax", SCALE),
        increasing=bool(found.get("inc", 0.0)),
    )


@dataclass(frozen=True)
class OpDraws:
    """What RandAugment drew for B images: index into `OPERATIONS` (-1: not applied), level and direction per layer."""

    ops: Int[Tensor, "B L"]
    levels: Float[Tensor, "B L"]
    signs: Float[Tensor, "B L"]


class RandAugment:
    """Draws operations for every image, and applies them in groups.

    Args:
        text: timm's notation.
    """

    def __init__(self, text: str):
        self.notation = parse(text)
        forms = INCREASING if self.notation.increasing else {}
        self.operations = [forms.get(name, operation) for name, operation in OPERATIONS.items()]

    def draw(self, count: int, generator: torch.Generator) -> OpDraws:
        """Operations for `count` images: drawn with replacement, each applied with probability `prob`."""
        n = self.notation
        shape = (count, n.layers)
        ops = torch.randint(len(self.operations), shape, generator=generator)
        applied = torch.rand(shape, generator=generator) < n.prob
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        levels = n.magnitude * uniform if math.isinf(n.std) else n.magnitude + n.std * noise
        signs = torch.randint(2, shape, generator=generator).double() * 2 - 1
        return OpDraws(torch.where(applied, ops, -1), levels.clamp(0.0, n.most), signs)

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], draws: OpDraws) -> UInt8[Tensor, "B 3 H W"]:
        """Every image through its own operations, in order of the layers."""
        images = images.clone()
        for ops, levels, signs in zip(draws.ops.T, draws.levels.T, draws.signs.T, strict=True):
            for op in ops.unique().tolist():
                if op >= 0:
                    group = (ops == op).nonzero().squeeze(1)
                    images[group] = self.operations[op](images[group], levels[group], signs[group])
        return images


def per_image(values: Float[Tensor, " G"]) -> Float[Tensor, "G 1 1 1"]:
    return values.float().view(-1, 1, 1, 1)


def to_bytes(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Clipped to 0..255 and cut, not rounded: what Pillow does."""
    return values.clamp(0.0, 255.0).to(torch.uint8)


def auto_contrast(images: Images, levels: Levels, signs: Signs) -> Images:
    """Stretch every channel to 0..255."""
    low = images.amin((2, 3), keepdim=True).double()
    high = images.amax((2, 3), keepdim=True).double()
    scale = 255.0 / (high - low).clamp(min=1.0)
    return torch.where(high > low, to_bytes(images * scale - low * scale), images)


def equalize(images: Images, levels: Levels, signs: Signs) -> Images:
    """Flatten the histogram of every channel."""
    values = images.reshape(-1, images.shape[2] * images.shape[3]).long()
    histogram = torch.zeros(len(values), 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    step = (values.shape[1] - histogram.gather(1, values.amax(1, keepdim=True))) // 255
    table = (step // 2 + histogram.cumsum(1) - histogram) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=images.device))
    return table.gather(1, values).to(torch.uint8).view_as(images)


def invert(images: Images, levels: Levels, signs: Signs) -> Images:
    return 255 - images


def posterize(images: Images, levels: Levels, signs: Signs, *, increasing: bool = False) -> Images:
    """Keep the highest bits: 0 to 4 with the level, or 4 to 0 when increasing in strength."""
    bits = (levels / SCALE * 4).long()
    bits = 4 - bits if increasing else bits
    dropped = 2 ** (8 - bits).clamp(min=0)
    return (images & (256 - dropped).to(torch.uint8).view(-1, 1, 1, 1)).to(torch.uint8)


def solarize(images: Images, levels: Levels, signs: Signs, *, increasing: bool = False) -> Images:
    """Invert pixels at or above a threshold: 0 to 256 with the level, or 256 to 0 when increasing in strength."""
    threshold = (levels / SCALE * 256).long().clamp(max=256)
    threshold = 256 - threshold if increasing else threshold
    return torch.where(images < threshold.view(-1, 1, 1, 1), images, 255 - images)


def solarize_add(images: Images, levels: Levels, signs: Signs) -> Images:
    """Brighten pixels below 128 by up to 110."""
    added = (levels / SCALE * 110).long().clamp(max=128).to(torch.uint8).view(-1, 1, 1, 1)
    return torch.where(images < 128, images + added, images)  # at most 127 + 128: no byte overflows


def enhance(
    images: Images,
    levels: Levels,
    signs: Signs,
    *,
    degenerate: Callable[[Tensor], Tensor],
    increasing: bool = False,
) -> Images:
    """Blend with, or away from, a degenerate form of the image: factor 0.1 to 1.9 with the level.

    When increasing in strength the factor moves from 1 in the drawn direction, down to 0.1 or up to 1.9.
    """
    factor = (1.0 + signs * levels / SCALE * 0.9).clamp(min=0.1) if increasing else levels / SCALE * 1.8 + 0.1
    plain = degenerate(images).float()
    return to_bytes(plain + per_image(factor) * (images - plain))


def black(images: Images) -> Images:
    return torch.zeros_like(images)


def grey(images: Images) -> Int[Tensor, "G 1 H W"]:
    """Luma (ITU-R 601) in 0..255, in Pillow's fixed-point arithmetic."""
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).unsqueeze(1)


def mean_grey(images: Images) -> Float[Tensor, "G 1 1 1"]:
    return (grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()


def smooth(images: Images) -> Tensor:
    """3x3 smoothing with weight 5 in the centre; the outermost pixels stay."""
    x = images.int()
    if min(x.shape[2:]) < 3:
        return x
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    box = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    x = x.clone()
    x[:, :, 1:-1, 1:-1] = (2 * (box + 4 * x[:, :, 1:-1, 1:-1]) + 13) // 26  # rounded thirteenths
    return x


def warp(images: Images, matrix: Float[Tensor, "G 2 3"]) -> Images:
    """Affine transform with bicubic interpolation.

    Args:
        images: [G, 3, H, W].
        matrix: float64; (x, y, 1) of an output pixel's centre -> position in the source, both in px.

    Returns:
        [G, 3, H, W]; pixels whose source lies outside take `FILL`.
    """
    at_once = max(1, WARPED_PX // (images.shape[2] * images.shape[3]))
    straight = not matrix[:, [0, 1], [1, 0]].any()
    parts = zip(images.split(at_once), matrix.split(at_once), strict=True)
    return torch.cat([(warp_straight if straight else warp_part)(*part) for part in parts])


def warp_part(images: Images, matrix: Float[Tensor, "G 2 3"]) -> Images:
    """Images that are warped at once."""
    height, width = images.shape[2:]
    x, y = positions(matrix, centres(width).expand(height, width), centres(height).unsqueeze(1).expand(height, width))
    columns, dx, inside_x = taps(x, width)
    rows, dy, inside_y = taps(y, height)
    begins = [row.mul_(width) for row in rows]
    source = images.flatten(2).float()

    def along_x(begin: Tensor) -> Tensor:
        def read(column: Tensor) -> Tensor:
            return source.gather(2, (begin + column).unsqueeze(1).expand(-1, 3, -1))

        return cubic([read(column) for column in columns], dx.unsqueeze(1)) if dx.any() else read(columns[1])

    values = cubic([along_x(begin) for begin in begins], dy.unsqueeze(1)) if dy.any() else along_x(begins[1])
    return filled(values, (inside_x & inside_y).unsqueeze(1)).view_as(images)


def warp_straight(images: Images, matrix: Float[Tensor, "G 2 3"]) -> Images:
    """As `warp_part` where a column of the source depends on the column alone and a row on the row: equal to the bit,
    one after the other.
    """
    height, width = images.shape[2:]
    columns, dx, inside_x = taps(positions(matrix, centres(width), torch.ones(width, dtype=torch.float64))[0], width)
    rows, dy, inside_y = taps(positions(matrix, torch.ones(height, dtype=torch.float64), centres(height))[1], height)
    values = images.float()
    if dx.any():
        read = [values.gather(3, column[:, None, None].expand(-1, 3, height, -1)) for column in columns]
        values = cubic(read, dx[:, None, None])
    else:
        values = values.gather(3, columns[1][:, None, None].expand(-1, 3, height, -1))
    if dy.any():
        read = [values.gather(2, row[:, None, :, None].expand(-1, 3, -1, width)) for row in rows]
        values = cubic(read, dy[:, None, :, None])
    else:
        values = values.gather(2, rows[1][:, None, :, None].expand(-1, 3, -1, width))
    return filled(values, inside_x[:, None, None] & inside_y[:, None, :, None])


def centres(size: int) -> Float[Tensor, " size"]:
    """Of the pixels of a side, in px."""
    return torch.arange(size, dtype=torch.float64) + 0.5


def positions(
    matrix: Float[Tensor, "G 2 3"], x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"]
) -> tuple[Float[Tensor, "G P"], Float[Tensor, "G P"]]:
    """Where the P pixels with these centres come from: x and y in the source."""
    across, down = (matrix @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)).unbind(1)
    return across, down


def taps(at: Float[Tensor, "G P"], size: int) -> tuple[list[Tensor], Float[Tensor, "G P"], Bool[Tensor, "G P"]]:
    """Of positions along a side: the four pixels that are read, the distance from the second, and whether inside."""
    second = (at - 0.5).floor()
    read = [(second.long() + tap).clamp(0, size - 1) for tap in (-1, 0, 1, 2)]
    return read, (at - 0.5 - second).float(), (at >= 0) & (at < size)


def filled(values: Float[Tensor, "G 3 *P"], inside: Bool[Tensor, "G 1 *P"]) -> UInt8[Tensor, "G 3 *P"]:
    """As bytes, with `FILL` outside."""
    fill = torch.tensor(FILL, dtype=torch.float32).view(1, 3, *[1] * (values.ndim - 2))
    return to_bytes(torch.where(inside, values, fill))


def cubic(taps: list[Tensor], d: Tensor) -> Tensor:
    """At distance d from the second of four taps, with Pillow's coefficient (-1); exact where all four are equal."""
    v0, v1, v2, v3 = taps  # v1 + d (v2 - v0 + d (2 (v0 - v1) + v2 - v3 + d (v1 - v0 + v3 - v2))), in three buffers
    third = (v1 - v0).add_(v3).sub_(v2).mul_(d)
    second = (v0 - v1).mul_(2.0).add_(v2).sub_(v3).add_(third).mul_(d)
    first = torch.sub(v2, v0, out=third).add_(second).mul_(d)
    return first.add_(v1)


def affine(levels: Levels, **entries: Tensor | float) -> Float[Tensor, "G 2 3"]:
    """(a, b, c; d, e, f) per image, the identity where nothing is given."""
    values = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0} | entries
    return torch.stack([torch.zeros_like(levels) + values[name] for name in "abcdef"], dim=1).view(-1, 2, 3)


def rotate(images: Images, levels: Levels, signs: Signs) -> Images:
    """About the centre, up to 30 degrees."""
    angle = -torch.deg2rad(signs * levels / SCALE * 30.0)
    cos, sin = angle.cos(), angle.sin()
    cx, cy = images.shape[3] / 2, images.shape[2] / 2
    matrix = affine(levels, a=cos, b=sin, c=cx - cos * cx - sin * cy, d=-sin, e=cos, f=cy + sin * cx - cos * cy)
    return warp(images, matrix)


def shear(images: Images, levels: Levels, signs: Signs, *, entry: str) -> Images:
    """Along x (entry b) or y (entry d), up to 0.3, with the upper left corner fixed."""
    return warp(images, affine(levels, **{entry: signs * levels / SCALE * 0.3}))


def translate(images: Images, levels: Levels, signs: Signs, *, entry: str) -> Images:
    """Along x (entry c) or y (entry f), up to 0.45 of the side."""
    side = images.shape[3] if entry == "c" else images.shape[2]
    return warp(images, affine(levels, **{entry: signs * levels / SCALE * 0.45 * side}))


# Worker processes get these by pickling: named functions and partials of them, no closures.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": partial(enhance, degenerate=grey),
    "Contrast": partial(enhance, degenerate=mean_grey),
    "Brightness": partial(enhance, degenerate=black),
    "Sharpness": partial(enhance, degenerate=smooth),
    "ShearX": partial(shear, entry="b"),
    "ShearY": partial(shear, entry="d"),
    "TranslateXRel": partial(translate, entry="c"),
    "TranslateYRel": partial(translate, entry="f"),
}
INCREASING: dict[str, Operation] = {
    name: partial(OPERATIONS[name], increasing=True)
    for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
}
