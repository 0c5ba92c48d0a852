"""What large memory pages are worth to a worker: training steps in fresh processes with and without them.

Whether the system gives large pages is its own affair; so the ratio is reported, not required.
"""

import json
import os
import subprocess
import sys
from statistics import median

from experiments.execution.pools import LARGE_PAGES

PROCESSES, STEPS = 3, 30  # of each kind, in turn

SCRIPT = f"""
import json, time, torch
from hkd.models.tap_model import TapModel
from hkd.models.cards.zoo import ZOO
torch.set_num_threads(1)
model = TapModel(ZOO["resnet18_mini"], 100)
images, times = torch.rand(50, 3, 32, 32), []
for _ in range({STEPS}):
    start = time.perf_counter()
    model(images).logits.square().mean().backward()
    times.append(1e3 * (time.perf_counter() - start))
print(json.dumps(times))
"""


def step_ms(tunables: str) -> float:
    """Median time in ms of the second half of a new process's steps."""
    env = {**os.environ, "GLIBC_TUNABLES": tunables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    return median(json.loads(done.stdout)[STEPS // 2 :])


def test_steps_with_large_pages_against_steps_without(benchmark):
    """Reported: step time with large pages over step time without, process by process."""
    pairs = [(step_ms(LARGE_PAGES), step_ms("")) for _ in range(PROCESSES)]
    benchmark.extra_info["with, ms"] = [round(large, 1) for large, _ in pairs]
    benchmark.extra_info["without, ms"] = [round(plain, 1) for _, plain in pairs]
    benchmark.extra_info["ratio, median"] = median(large / plain for large, plain in pairs)
    benchmark.pedantic(step_ms, args=(LARGE_PAGES,), rounds=1)
