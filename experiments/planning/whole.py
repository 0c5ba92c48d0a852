"""Whether all of a data set is there: where values are compared with the paper's, a piece must not pass for the whole.

ImageNet-1K, CUB-200, Aircraft and Stanford Cars count their images themselves when they are read. CIFAR-100, COCO and
ADE20K take what there is, so that a part of them can be tried; here their files are counted, and not opened.
"""

from hkd.data.ade20k import Ade20k
from hkd.data.base import DataSet
from hkd.data.cifar100 import OFFICIAL, PIXELS, Cifar100
from hkd.data.coco import PARTS, Coco
from hkd.data.dense import file_sizes


def piece(data: DataSet) -> str | None:
    """What keeps a data set from being all that its options ask for; None where nothing does, or it looks itself.

    Args:
        data: that is there.
    """
    data = getattr(data, "labelled", data)  # that unlabelled data takes its images from
    if not isinstance(data, Cifar100 | Coco | Ade20k):
        return None
    found = images(data)
    whole = OFFICIAL if isinstance(data, Cifar100) else data.expected
    for split, count in found.items():
        if getattr(data.options, f"n_{split}") is None and count < whole[split]:
            return (
                f"'{data.name}' at {data.folder} has {count} {split} images, and the paper's has {whole[split]}: "
                "complete it, or take a profile whose values are not compared with the paper's."
            )
    return None


def images(data: Cifar100 | Coco | Ade20k) -> dict[str, int]:
    """Images of the splits of the three data sets of which all classes are asked for; of a long enough file, all."""
    if isinstance(data, Cifar100) and data.options.classes is None:
        if data.pickles is not None:
            sizes = {split: (data.pickles / split).stat().st_size // PIXELS for split in OFFICIAL}
            return {split: min(sizes[split], OFFICIAL[split]) for split in OFFICIAL}
        parts = {split: f"{data.part(split).name}/" for split in OFFICIAL}
        return {split: sum(name.startswith(part) for name in data.image_files()) for split, part in parts.items()}
    if isinstance(data, Coco):
        return {split: len(file_sizes(data.folder / part)) for split, part in PARTS.items()}
    if isinstance(data, Ade20k) and data.num_classes == data.expected["classes"]:
        return {split: len(data.files(split, "images")) for split in ("train", "test")}
    return {}
