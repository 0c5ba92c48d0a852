"""Image files that are decoded once, as evaluation shows them, and remembered beside the data.

For small models decoding costs more than training does. Shapes: N image files, S the side of an image in memory in px.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from hkd.data.folder import arrays_of, keep_arrays
from hkd.data.images import Unreadable

Decoded = tuple[UInt8[np.ndarray, "n 3 S S"], Int[np.ndarray, " n"], dict[str, str]]


def remembered(path: Path, count: int, side: int, decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` gives, as it was kept at `path` before, or kept there now.

    Args:
        path: in the cache folder, named by the content and by all that decides how it is shown.
        count: N.
        side: S.
        decode: gives the readable images, their places below N, and the others: path -> reason.
    """
    kinds = {"images": np.uint8, "kept": np.int64, "corrupt": np.str_}
    stored = arrays_of(path, kinds, {"kept": count}, side)
    if stored is not None:
        return stored["images"], stored["kept"], dict(stored["corrupt"].tolist())
    images, kept, corrupt = decode()
    pairs = np.array(list(corrupt.items()), dtype=np.str_).reshape(-1, 2)
    keep_arrays(path, {"images": images, "kept": kept, "corrupt": pairs})
    return images, kept, corrupt


def decode(paths: Sequence[Path], size: int, crop_pct: float, view: Callable[[int, Any], Any] | None = None) -> Decoded:
    """Images in colour as evaluation shows them, the places of the readable ones, and the others: path -> reason.

    Args:
        paths: of the N images.
        size: S.
        crop_pct: share of the resized short side that the centre crop takes.
        view: (place, image [3, H, W]) -> the part of it that is shown; None shows whole images.
    """
    # Imported late, as planning asks for fingerprints and must not wait for torch.
    from hkd.data import sources

    evaluation = sources.FileSource(paths, size, crop_pct, None, fill=False)
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    kept: list[int] = []
    corrupt: dict[str, str] = {}
    for place, path in enumerate(paths):
        try:
            image = sources.decode(path)
            shown = image if view is None else view(place, image)
            images[len(kept)] = evaluation.fit(shown, None).numpy()
        except Unreadable as error:
            corrupt[str(path)] = str(error)
            continue
        kept.append(place)
    return images[: len(kept)], np.array(kept, dtype=np.int64), corrupt
