"""What ScaleKD's projectors, and its way through the teacher's last stage, add to a training step and to a file.

They are as large as the student, or larger: without them a run is planned at half of what it is. Worked out from the
options and the shapes of the maps, without torch; a test counts both on the real modules. Other methods' adapters are
small and are not counted.

Shapes: D width, S side of a map, P = S * S positions of the student (keys), N positions of the teacher (queries).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.planning.declared import meaning, options_of
from hkd.models.cards.maps import MAPS, Map
from hkd.options import configured
from hkd.spec import ModelCard, RunSpec

TRAINED, THROUGH = 3, 2  # passes: forward and both backward ones; of frozen weights only that to the input
BLOCK = 12  # multiplications of a transformer block by D * D, a token: 4 of attention, 8 of the feed-forward layer
TAIL = 2  # blocks of a plain transformer's tail, unless the options say otherwise
LAST_STAGE, WINDOW = 2, 7  # blocks and window of a Swin's last stage, unless its card says otherwise
MODULE = "hkd.methods.scalekd"


@dataclass(frozen=True)
class Adapters:
    """macs: multiplications (millions) of one training image, backward passes included. params_m: millions of numbers
    in the adapters' file, running statistics included."""

    macs: float = 0.0
    params_m: float = 0.0

    def __add__(self, other: "Adapters") -> "Adapters":
        return Adapters(self.macs + other.macs, self.params_m + other.params_m)


def adapters(spec: RunSpec) -> Adapters:
    """Of a training by ScaleKD between models of ours; nothing for any other run."""
    teacher = spec.teachers.get("teacher")
    if spec.method.name != "scalekd" or teacher is None or not {spec.student.name, teacher.model.name} <= MAPS.keys():
        return Adapters()
    config: Any = configured(options_of("method", "scalekd"), "Method 'scalekd'", spec.method.options)
    s3, s4 = MAPS[spec.student.name]
    swin = teacher.model.family == "swin"
    begin, end = MAPS[teacher.model.name]
    begin = begin if swin else end
    tail = swin_tail(teacher.model, begin, end) if swin else plain_tail(end, config.vit_tail or TAIL)
    project = partial(attention if config.attends else convolution, config)
    found = Adapters()
    for _ in meaning(MODULE, "tail_views")(config):
        found += project(s3, begin, learned=True) + Adapters(macs=THROUGH * tail)
    queries = meaning(MODULE, "query_views")(config)
    for stage, view in meaning(MODULE, "feature_weights")(config, positions(end)):
        if stage == "s4":
            after = plain_tail(end, config.s4_tail) if config.s4_tail else 0.0
            found += project(s4, end, learned=view not in queries) + Adapters(macs=THROUGH * after)
    return found


def attention(config: Any, map_s: Map, map_t: Map, *, learned: bool) -> Adapters:
    """A cross attention projector (hkd/methods/parts/cross_attention.py).

    Args:
        config: ScaleKD's.
        map_s, map_t: of the student's map, and of the tokens that it becomes.
        learned: whether its queries are its own; they are then projected once a batch, which is not counted.
    """
    d, width, p, n = map_s[0], map_t[0], positions(map_s), positions(map_t)
    keys = 9 * d * d * p + 2 * d * width * p
    asked = 0 if learned else 2 * width * width * n
    macs = keys + asked + 2 * n * p * width + 9 * width * width * n
    numbers = 9 * d * d + d + 2 * d * (2 if config.norm == "batch" else 1) + (d * p if config.projector == "cap" else 0)
    numbers += (n * width if learned else 0) + 3 * (width * width + width) + 2 * (d * width + width)
    numbers += 2 * width + 8 * width * width + 5 * width
    return Adapters(TRAINED * macs / 1e6, numbers / 1e6)


def convolution(config: Any, map_s: Map, map_t: Map, *, learned: bool) -> Adapters:
    """A convolution on the map at the teacher's size: 1x1, or 3x3 with a batch norm. `learned` says nothing here."""
    kernel, norm = (1, 0) if config.projector == "conv1x1" else (9, 4)
    product = kernel * map_s[0] * map_t[0]
    return Adapters(TRAINED * product * positions(map_t) / 1e6, (product + (1 + norm) * map_t[0]) / 1e6)


def plain_tail(map_t: Map, blocks: int) -> float:
    """Millions of multiplications of a plain transformer's last blocks, on one image."""
    return blocks * transformer_block(map_t[0], positions(map_t), positions(map_t)) / 1e6


def swin_tail(card: ModelCard, begin: Map, end: Map) -> float:
    """Millions of multiplications of a Swin's last stage, on one image: it merges 2x2 patches, then come its blocks."""
    blocks = card.kwargs.get("depths", (LAST_STAGE,))[-1]
    seen = min(card.kwargs.get("window_size", WINDOW), end[1]) ** 2
    merging = 4 * begin[0] * end[0] * positions(end)
    return (merging + blocks * transformer_block(end[0], positions(end), seen)) / 1e6


def transformer_block(width: int, tokens: int, seen: int) -> float:
    """Multiplications of one block in which every token looks at `seen` others."""
    return BLOCK * width * width * tokens + 2 * tokens * seen * width


def positions(map_: Map) -> int:
    """How many a map has."""
    return map_[1] * map_[1]
