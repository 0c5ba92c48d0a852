"""Compose images from small glyphs: several digits on one canvas, each in its own box, in its own colour.

Everything is float64 until the last rounding, so that the bytes do not depend on the machine.
Shapes: K glyphs, H and W sides of the canvas in px; colours are RGB in [0, 1].
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt8

CUBIC = -0.5  # Keys' coefficient: Catmull-Rom


@lru_cache(maxsize=256)
def cubic_matrix(n_out: int, n_in: int) -> Float[np.ndarray, "n_out n_in"]:
    """Bicubic interpolation along one axis as a matrix: half-pixel centres, edges repeated, rows sum to 1."""
    centre = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    matrix = np.zeros((n_out, n_in))
    for tap in range(-1, 3):
        position = np.floor(centre).astype(int) + tap
        d = np.abs(centre - position)
        near = (CUBIC + 2) * d**3 - (CUBIC + 3) * d**2 + 1
        far = CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(n_out), position.clip(0, n_in - 1)), np.where(d <= 1, near, far))
    matrix.setflags(write=False)
    return matrix


def draw(
    glyphs: Float[np.ndarray, "K h w"],
    boxes: Int[np.ndarray, "K 4"],
    inks: Float[np.ndarray, "K 3"],
    background: Float[np.ndarray, "3"],
    side: tuple[int, int],
) -> tuple[Float[np.ndarray, "3 H W"], Float[np.ndarray, "K H W"]]:
    """Paint glyphs over a plain background, later ones over earlier ones.

    Args:
        glyphs: coverage in [0, 1], [K, h, w]; scaled bicubically to their boxes.
        boxes: x, y, width, height of each glyph in px, [K, 4]; what lies outside the canvas is cut off.
        inks: colour of each glyph, [K, 3].
        background: colour of the canvas, [3].
        side: H, W of the canvas.

    Returns:
        The canvas [3, H, W], and each glyph's own coverage in [0, 1] before others cover it, [K, H, W].
    """
    height, width = side
    canvas = np.repeat(background, height * width).reshape(3, height, width)
    coverage = np.zeros((len(glyphs), height, width))
    for glyph, (x, y, w, h), ink, cover in zip(glyphs, boxes.tolist(), inks, coverage, strict=True):
        scaled = (cubic_matrix(h, glyph.shape[0]) @ glyph @ cubic_matrix(w, glyph.shape[1]).T).clip(0.0, 1.0)
        top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)
        if top < bottom and left < right:
            cover[top:bottom, left:right] = scaled[top - y : bottom - y, left - x : right - x]
            canvas += cover * (ink[:, None, None] - canvas)
    return canvas, coverage


def to_bytes(canvas: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Colours in [0, 1] as bytes, clipped and rounded."""
    return np.rint(canvas.clip(0.0, 1.0) * 255.0).astype(np.uint8)
