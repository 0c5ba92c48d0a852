"""Distillation methods by the name of their file; resolved by hkd.registry on first use.

A file of this folder is a method if it has a line `class X(Method):`; it is read for that line, never imported.
"""

from hkd.catalogue import entries

METHODS = entries(__name__, __path__[0], r"^class (?P<attribute>\w+)\(Method\):")
