"""Each method's losses with and without `torch.compile`; `python -m tests.hkd.compiled kd fd` prints what differs.

In a process of its own, because the checkers of annotations that tests have on cannot be compiled.
"""

import argparse
import copy
import warnings

import torch

import hkd
from hkd.contract.checks import CLASSES, LABEL_FREE, SAMPLES, card, images, subject_of
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.registry import load

LABELS = torch.arange(4)


def distiller_of(method: str) -> hkd.Distiller:
    """A small distiller of any method."""
    options, family = LABEL_FREE.get(method, ({}, "resnet"))
    options = {name: value for name, value in options.items() if name != "image_size"}
    if method == "crd":
        options = {"negatives": 2}
    kind = load(hkd.METHODS[method])
    torch.manual_seed(0)
    model = ZOO["mae_b16_mini" if method == "hybrid" else "swin_t_mini"]
    teachers = {role: Teacher(model, CLASSES) for role in kind.needs(subject_of(method).config).teachers}
    return hkd.Distiller(TapModel(card(family), CLASSES), teachers, method, samples=SAMPLES, **options)


def difference(method: str, backend: str) -> str:
    """What is not equal of losses and gradients of one step, or what was raised; empty where all is equal."""
    first = distiller_of(method)
    second = copy.deepcopy(first)
    found = []
    for distiller, call in ((first, first), (second, torch.compile(second, backend=backend))):
        torch.manual_seed(1)
        try:
            losses = call(images(), LABELS, index=LABELS)
            sum(losses.values()).backward()
        except Exception as error:  # what a compiler does not take
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        found.append((losses, [x.grad for x in distiller.parameters()]))
    (losses, slopes), (compiled, compiled_slopes) = found
    if odd := [name for name, loss in losses.items() if not torch.equal(loss, compiled[name])]:
        return f"losses {odd} differ"
    same = all(a is b is None or torch.equal(a, b) for a, b in zip(slopes, compiled_slopes, strict=True))
    return "" if same else "gradients differ"


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description="Compare methods with and without torch.compile.")
    parser.add_argument("methods", nargs="*", default=list(hkd.METHODS))
    parser.add_argument("--backend", default="eager")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for method in given.methods:
        torch.compiler.reset()
        print(f"{method}: {difference(method, given.backend) or 'equal'}", flush=True)


if __name__ == "__main__":
    main()
