"""Measures of models by the name of their file; resolved by hkd.registry on first use.

A file of this folder is a measure if it has a line `class X(Measure):` or one of a kind of Measure, such as
`class X(HeadMeasure):`; it is read for that line, never imported.
"""

from hkd.catalogue import entries

MEASURES = entries(__name__, __path__[0], r"^class (?P<attribute>\w+)\(\w*Measure\):")
