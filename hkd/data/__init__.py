"""Data sets by the names that their classes in this folder have, augmentation on whole batches, and the loader."""

from hkd.catalogue import NAMED_CLASS, entries

DATASETS = entries(__name__, __path__[0], NAMED_CLASS)
