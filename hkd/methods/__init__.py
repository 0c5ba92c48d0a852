"""Distillation methods by the name of their file; resolved by hkd.registry on first use.

A file of this folder is a method if it has a line `class X(Method):`; it is read for that line, never imported.
"""

import re
from pathlib import Path

METHODS = {
    path.stem: f"hkd.methods.{path.stem}:{found[1]}"
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if (found := re.search(r"^class (\w+)\(Method\):", path.read_text(encoding="utf-8"), re.MULTILINE))
}
