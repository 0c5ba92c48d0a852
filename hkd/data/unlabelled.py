"""Data sets without their labels, for pre-training: the same images, no classes.

A model of such data has no classifier, and no method, loader or curve of a run on it can read a label.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hkd.data.base import DataSet, OnCorrupt, Split, SplitName, digest
from hkd.data.cifar100 import Cifar100, Cifar100Config
from hkd.data.digits import Digits, DigitsConfig
from hkd.data.imagenet1k import ImageNet1k, ImageNet1kConfig
from hkd.data.numbers import Numbers100, NumbersConfig


class Unlabelled(DataSet):
    """Base: all that `kind` says of its images, with its options; every label is -1."""

    kind: ClassVar[type[DataSet]]

    def __init__(self, options: dict[str, Any], root: Path):
        self.labelled = self.kind(options, root)
        super().__init__(options, root)

    @property
    def num_classes(self) -> int:
        return 0

    @property
    def image_size(self) -> int:
        return self.labelled.image_size

    def missing(self) -> str | None:
        return self.labelled.missing()

    def fingerprint(self) -> str:
        return digest("unlabelled", self.labelled.fingerprint())

    def counts(self) -> dict[str, int]:
        return self.labelled.counts()

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        held = self.labelled.load(split, seed=seed, select=select, on_corrupt=on_corrupt)
        return replace(held, labels=np.full(len(held), -1))


class UnlabelledDigits(Unlabelled):
    """`digits` without labels."""

    kind = Digits
    name, licence, source = "digits_unlabelled", Digits.licence, Digits.source
    expected, checksum = Digits.expected, Digits.checksum
    Config = DigitsConfig


class UnlabelledNumbers100(Unlabelled):
    """`numbers100` without labels."""

    kind = Numbers100
    name, licence, source = "numbers100_unlabelled", Numbers100.licence, Numbers100.source
    expected, checksum = Numbers100.expected, Numbers100.checksum
    Config = NumbersConfig


class UnlabelledCifar100(Unlabelled):
    """`cifar100` without labels."""

    kind = Cifar100
    name, licence, source = "cifar100_unlabelled", Cifar100.licence, Cifar100.source
    expected, checksum = Cifar100.expected, Cifar100.checksum
    Config = Cifar100Config


class UnlabelledImageNet1k(Unlabelled):
    """`imagenet1k` without labels."""

    kind = ImageNet1k
    name, licence, source = "imagenet1k_unlabelled", ImageNet1k.licence, ImageNet1k.source
    expected, checksum = ImageNet1k.expected, ImageNet1k.checksum
    Config = ImageNet1kConfig
