"""Drawings of figures by the name of their file; resolved by hkd.registry on first use.

A file of this folder draws a figure if it has a line `def draw(`; it is read for that line, never imported. A table of
`kind: figure` is drawn by the file that has its name, or by the one that it names (`drawing:`).
"""

from pathlib import Path

DRAWINGS = {
    path.stem: f"experiments.drawings.{path.stem}:draw"
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if "\ndef draw(" in path.read_text(encoding="utf-8")
}
