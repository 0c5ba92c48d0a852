"""Drawings of figures by the name of their file; resolved by hkd.registry on first use.

A file of this folder draws a figure if it has a line `def draw(`; it is read for that line, never imported. A table of
`kind: figure` is drawn by the file that has its name, or by the one that it names (`drawing:`).
"""

from hkd.catalogue import entries

DRAWINGS = entries(__name__, __path__[0], r"^def (?P<attribute>draw)\(")
