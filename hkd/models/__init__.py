"""Models: the zoo, the families that build it (by the names of their classes), and the taps that all of them yield."""

from hkd.catalogue import NAMED_CLASS, entries

FAMILIES = entries(f"{__name__}.families", f"{__path__[0]}/families", NAMED_CLASS)
