"""ImageNet-1K as class folders: `imagenet/train/<wnid>/*.JPEG` and `imagenet/val/<wnid>/*.JPEG`."""

from typing import ClassVar

from hkd.data.folder import ClassFolder, ClassFolderConfig
from hkd.options import FolderName, options


@options
class ImageNet1kConfig(ClassFolderConfig):
    """Options of class folders."""

    folder: FolderName = "imagenet"


class ImageNet1k(ClassFolder):
    """1,000 classes in the order of their WordNet ids; the official validation images are the test split.

    The full counts are checked unless `classes` or `expected` say otherwise.
    The fingerprint covers names and sizes of the files: reading 150 GB to plan a table would take an hour.
    """

    name: ClassVar[str] = "imagenet1k"
    licence: ClassVar[str] = "non-commercial research and education; the photographs belong to their makers"
    source: ClassVar[str] = "https://image-net.org (ILSVRC 2012 classification)"
    expected: ClassVar[dict[str, int]] = {"classes": 1000, "train": 1_281_167, "test": 50_000}
    checksum: ClassVar[dict[str, str]] = {
        "ILSVRC2012_img_train.tar": "md5:1d675b47d978889d74fa0da5fadfb00e",
        "ILSVRC2012_img_val.tar": "md5:29b22e2961454d5413ddabcf34fc5622",
    }
    Config = ImageNet1kConfig
    obtain: ClassVar[str] = "get ILSVRC 2012 from https://image-net.org and sort it as train/<wnid>/ and val/<wnid>/"
    hash_content: ClassVar[bool] = False
