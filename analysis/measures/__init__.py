"""Measures of models by the name of their file; resolved by hkd.registry on first use.

A file of this folder is a measure if it has a line `class X(Measure):` or one of a kind of Measure, such as
`class X(HeadMeasure):`; it is read for that line, never imported.
"""

import re
from pathlib import Path

MEASURES = {
    path.stem: f"analysis.measures.{path.stem}:{found[1]}"
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if (found := re.search(r"^class (\w+)\(\w*Measure\):", path.read_text(encoding="utf-8"), re.MULTILINE))
}
