"""Models that are shapes and maps alone, for tests of methods that compare stages."""

import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, stages):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=2, pooled=4, final=(4, 1, 1), stages=stages)


def method_of(kind, config, shapes_s, shapes_t):
    """The method between a student and a teacher whose stages have these shapes, {stage: (D, H, W)}."""
    return kind(config, Side(shapes_s).info, {"teacher": Side(shapes_t)}, F.cross_entropy)


def run(method, maps_s, maps_t):
    """Its losses of one batch with these maps, {stage: [B, D, H, W]}; logits and pooled features are zero."""
    count = len(next(iter(maps_s.values())))
    taps_s, taps_t = (
        Taps(logits=torch.zeros(count, 2), pooled=torch.zeros(count, 4), final=torch.zeros(count, 4, 1, 1), stages=maps)
        for maps in (maps_s, maps_t)
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    return method(batch, taps_s, {"teacher": taps_t})
