"""What a GPU does with the papers' pairs: steps, precisions, layouts, graphs, loaders, sparse backends, caches.

Ten minutes on one device. Every measurement is one line of `bench.jsonl`, written when it is done, so that a call that
was interrupted, or ran out of its minutes, goes on with what is missing; `bench.md` is the table of what is there.

Shares are of what a large matrix product of the same precision reaches on the same device in the same process
(torch's own count of the multiplications of forward and backward passes over that rate), not of a data sheet's figure.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from experiments.records.environment import cores
from hkd.data.base import Split
from hkd.data.loading.loader import Loader
from hkd.files import atomic_write
from hkd.methods.parts.masks import random_visible
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.train import build
from hkd.training.cost import peak_memory_mib, reset_peak_memory
from hkd.training.distributed import make_fabric
from hkd.training.job import Job, Runtime
from hkd.training.journal import Journal
from hkd.training.loop import update
from hkd.training.session import assembled
from hkd.training.step import Training

Device = Literal["cuda", "cpu"]
Facts = dict[str, Any]
FILE, TABLE = "bench.jsonl", "bench.md"
WARM, ROUNDS = 3, 10  # steps that are not counted, and that are
CLASSES = 100
LEFT_S = 90.0  # that a measurement may take (compiling is the longest): none begins with less left


@dataclass(frozen=True)
class Pair:
    """One pair of a paper. teachers: model and classes by role. labels: whether images have any."""

    paper: str
    student: str
    method: str
    teachers: Mapping[str, tuple[str, int]]
    options: Mapping[str, Any]
    labels: bool = True


PAIRS = (
    Pair("ScaleKD", "convnext_t", "scalekd", {"teacher": ("swin_l", CLASSES)}, {}),
    Pair("HCD", "resnet18", "hcd", {"teacher": ("swin_t_ofa", CLASSES)}, {}),
    Pair("H-GKD", "sparse_resnet50", "hgkd", {"teacher": ("mae_b16", 0)}, {}, labels=False),
    Pair("Hybrid", "hybrid_b16", "hybrid", {"features": ("deit_b16", CLASSES), "relations": ("mae_b16", 0)}, {}, False),
)
TOY: Mapping[str, Mapping[str, Any]] = {  # options that the miniatures need
    "scalekd": {"heads_s3": 4, "heads_s4": 4, "w_orig": None, "w_alt": None},
    "hgkd": {"width": 64},
    "hybrid": {"depth": 4, "class_token": False, "decoder_width": 64, "decoder_heads": 4},
}


@dataclass(frozen=True)
class Scale:
    """What is measured: the papers' models on their images, or miniatures, to try the script on a CPU."""

    device: Device
    toy: bool

    @property
    def batch(self) -> int:
        return 8 if self.toy else 64

    @property
    def side(self) -> int:
        return 32 if self.toy else 224

    def card(self, name: str) -> Any:
        return ZOO[f"{name}_mini" if self.toy else name]

    def images(self) -> np.ndarray:
        """Noise: two batches of images [N, 3, S, S]."""
        shape = (2 * self.batch, 3, self.side, self.side)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Noise:
    """A data set of random images in memory, as far as `build` asks it anything."""

    def __init__(self, scale: Scale, labels: bool):
        self.scale, self.num_classes = scale, CLASSES if labels else 0

    def load(self, split: str, **options: Any) -> Split:
        images = self.scale.images()
        rows = np.arange(len(images))
        return Split(images, None, rows % CLASSES if self.num_classes else np.full(len(images), -1), rows)


def training(scale: Scale, pair: Pair, folder: Path, *, method: str, precision: str, views: int | None = None) -> Any:
    """A run of a pair that stands at its beginning, under the suite's engine; and one of its batches on the device."""
    own = method == pair.method
    options = {**pair.options, **(TOY.get(method, {}) if scale.toy else {})} if own else {}
    if method == "hgkd":
        options["queue_size"] = 2 * scale.batch  # no larger than the images that fill it
    teachers = {
        role: TeacherSpec(model=scale.card(name), weights=Weights(kind="random", id="0"), classes=classes)
        for role, (name, classes) in pair.teachers.items()
    }
    recipe = Recipe(epochs=1000, batch_size=scale.batch, lr=1e-4, precision=precision, views=views)  # type: ignore[arg-type]
    spec = RunSpec(
        task="train",
        data=DataSpec(name="noise"),
        student=scale.card(pair.student),
        method=MethodSpec(name=method, options=options),
        recipe=recipe,
        teachers={} if method == "supervised" else teachers,
    )
    runtime = Runtime(accelerator=scale.device)
    job, fabric = Job(spec, {}, folder, runtime, lambda news: None), make_fabric(runtime, precision)
    data: Any = Noise(scale, pair.labels or method == "supervised")
    run = assembled(job, fabric, build(job, fabric, data, "noise", measure=lambda run: {}))
    batch = next(iter(run.loader.epoch(0))).to(fabric.device)
    return run, batch


def engine_step(run: Training, batch: Any) -> Callable[[], None]:
    """One step as the suite takes it."""
    journal = Journal(run.fabric, epochs=1000, steps=1000, report=lambda news: None, every_s=1e9, norms=False)
    run.step.train()

    def step() -> None:
        update(run, batch, journal)

    return step


def bare_step(scale: Scale, pair: Pair, precision: str, *, layout: str = "card", compiled: bool = False) -> Any:
    """The supervised step that one would write by hand: timm model, normalisation, fused AdamW."""
    card = scale.card(pair.student)
    torch.manual_seed(0)
    model = TapModel(card, CLASSES)
    last = layout == "last" or (layout == "card" and card.channels_last)
    net: Any = model.net.to(scale.device).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    x = torch.rand(scale.batch, 3, scale.side, scale.side, device=scale.device)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = torch.arange(scale.batch, device=scale.device) % CLASSES
    forward: Any = torch.compile(net) if compiled else net

    def backward() -> None:
        with torch.autocast(scale.device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return step, backward, net


def wait(scale: Scale) -> None:
    """Until the device has done what it was given."""
    if scale.device == "cuda":
        torch.cuda.synchronize()


def milliseconds(scale: Scale, step: Callable[[], Any]) -> float:
    """The median of a step's wall-clock times after warm-up, the device waited for."""
    times = []
    for turn in range(WARM + ROUNDS):
        wait(scale)
        began = time.perf_counter()
        step()
        wait(scale)
        if turn >= WARM:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def counted(step: Callable[[], Any]) -> float:
    """Floating-point operations of a step: two a multiplication, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def matrix_rate(scale: Scale, precision: str) -> float:
    """Operations a second of a large matrix product."""
    side = 512 if scale.toy else 8192
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a, b = (torch.randn(side, side, device=scale.device, dtype=kind) for _ in range(2))
    return 2 * side**3 / (1e-3 * milliseconds(scale, lambda: a @ b))


# -- measurements ---------------------------------------------------------------------------------------------------


def steps(scale: Scale, pair: Pair, precision: str) -> Facts:
    """The bare supervised step, the suite's, and the method's, in one process; share of the matrix rate."""
    with tempfile.TemporaryDirectory() as folder:
        bare = milliseconds(scale, bare_step(scale, pair, precision)[0])
        suite = milliseconds(
            scale, engine_step(*training(scale, pair, Path(folder), method="supervised", precision=precision))
        )
        reset_peak_memory()
        step = engine_step(*training(scale, pair, Path(folder), method=pair.method, precision=precision))
        taken, flops = milliseconds(scale, step), counted(step)
    return {
        "bare supervised, ms": bare,
        "suite's supervised, ms": suite,
        f"{pair.method}, ms": taken,
        "over bare": taken / bare,
        "images/s": 1e3 * scale.batch / taken,
        "share of matrix rate": flops / (1e-3 * taken) / matrix_rate(scale, precision),
        "peak MiB": peak_memory_mib(torch.device(scale.device)),
    }


def layouts(scale: Scale, pair: Pair, precision: str) -> Facts:
    """The bare step in both memory formats."""
    found = {each: milliseconds(scale, bare_step(scale, pair, precision, layout=each)[0]) for each in ("first", "last")}
    return {
        "contiguous, ms": found["first"],
        "channels_last, ms": found["last"],
        "ratio": found["last"] / found["first"],
    }


def compiled(scale: Scale, pair: Pair, precision: str) -> Facts:
    """The bare step through torch.compile; the seconds of its first step are told apart."""
    eager = milliseconds(scale, bare_step(scale, pair, precision)[0])
    step = bare_step(scale, pair, precision, compiled=True)[0]
    began = time.perf_counter()
    step()
    wait(scale)
    first = time.perf_counter() - began
    fast = milliseconds(scale, step)
    return {"eager, ms": eager, "compiled, ms": fast, "ratio": fast / eager, "first step, s": first}


def captured(scale: Scale, pair: Pair, precision: str) -> Facts:
    """Forward and backward pass of the method as one CUDA graph, where it can be captured."""
    if scale.device != "cuda":
        return {"why not": "CUDA graphs need a GPU"}
    with tempfile.TemporaryDirectory() as folder:
        run, batch = training(scale, pair, Path(folder), method=pair.method, precision=precision)
    run.step.train()

    def passes() -> None:
        losses = run.forward(batch, run.teachers(batch))
        sum(losses.values()).backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run.optimizer.zero_grad()
            passes()
    torch.cuda.current_stream().wait_stream(side)
    eager = milliseconds(scale, passes)
    run.optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes()
    fast = milliseconds(scale, graph.replay)
    return {"eager passes, ms": eager, "captured, ms": fast, "ratio": fast / eager}


def loading(scale: Scale, recipe: Recipe) -> Facts:
    """Images a second of the suite's loader: JPEG files of 400 px to batches of 224 px, with up to twelve workers."""
    workers, count = min(cores(), 12), 64 if scale.toy else 2048
    size, side = (48, 32) if scale.toy else (400, 224)
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        paths = []
        for number in range(count):
            paths.append(Path(folder, f"{number}.jpg"))
            image.save(paths[-1], quality=90)
        split = Split(None, paths, np.arange(count) % CLASSES, np.arange(count), image_size=side)
        loader = Loader(split, recipe, num_classes=CLASSES, seed=0, workers=workers)
        for _ in loader.epoch(0):  # workers start, files come into memory
            pass
        began = time.perf_counter()
        shown = sum(len(batch.x) for batch in loader.epoch(1))
        taken = time.perf_counter() - began
    return {"images/s": shown / taken, "workers": workers, "a worker": shown / taken / workers}


def sparse(scale: Scale, backend: str) -> Facts:
    """One step of H-GKD's sparse ResNet-50 at 60 % hidden cells by one backend."""
    torch.manual_seed(0)
    model = TapModel(scale.card("sparse_resnet50"), CLASSES).to(scale.device).train()
    x = torch.rand(scale.batch, 3, scale.side, scale.side, device=scale.device)
    grid = 4 if scale.toy else 7
    visible = random_visible(scale.batch, grid, round(0.4 * grid**2), torch.device(scale.device))
    masked = {} if backend == "dense network" else {"visible": visible, "backend": backend}

    def step() -> None:
        taps = model(x, Want(stages=(1, 2, 3, 4)), **masked)
        (taps.logits.square().mean() + sum(feature.mean() for feature in taps.stages.values())).backward()
        model.zero_grad(set_to_none=True)

    return {"ms": milliseconds(scale, step)}


def cached(scale: Scale, precision: str) -> Facts:
    """A KD step with the teacher on line, and with its outputs kept for two fixed views."""
    pair, found = PAIRS[1], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, views in (("on line, ms", None), ("cached, ms", 2)):
            run, batch = training(scale, pair, Path(folder), method="kd", precision=precision, views=views)
            found[name] = milliseconds(scale, engine_step(run, batch))
    return {**found, "ratio": found["cached, ms"] / found["on line, ms"]}


def measurements(scale: Scale) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """All of them, by name, those that tell most first."""
    precisions = ("bf16-mixed", "32-true")
    plain = Recipe(epochs=1, batch_size=scale.batch, crop="resized", flip=True)
    strong = Recipe(
        epochs=1, batch_size=scale.batch, crop="resized", flip=True, randaugment="rand-m9-n2-mstd0.5-inc1", erasing=0.25
    )
    for precision in precisions:
        for pair in PAIRS:
            yield f"step: {pair.paper}, {precision}", partial(steps, scale, pair, precision)
    yield "loader: crop and flip", partial(loading, scale, plain)
    yield "loader: RandAugment and erasing too", partial(loading, scale, strong)
    for backend in ("dense network", "masked", "rows", "spconv"):
        yield f"sparse: {backend}", partial(sparse, scale, backend)
    yield "teacher: KD, bf16-mixed", partial(cached, scale, "bf16-mixed")
    for pair in PAIRS:
        yield f"layout: {pair.student}, bf16-mixed", partial(layouts, scale, pair, "bf16-mixed")
        yield f"graph: {pair.paper}, bf16-mixed", partial(captured, scale, pair, "bf16-mixed")
    for pair in PAIRS:
        yield f"compile: {pair.student}, bf16-mixed", partial(compiled, scale, pair, "bf16-mixed")


# -- one call -------------------------------------------------------------------------------------------------------


def bench(scale: Scale, folder: Path, *, minutes: float, tell: Callable[[str], None]) -> list[str]:
    """Measure what `folder` has no line of yet, on this device with these versions; the names of what is left.

    Args:
        scale: device and size.
        folder: of the results, made if needed.
        minutes: none is begun that might not end within them.
        tell: told each line as it is done.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    setting = settings(scale)
    done = {line["name"] for line in lines(folder) if line["setting"] == setting}
    left = [(name, measure) for name, measure in measurements(scale) if name not in done]
    while left and 60 * minutes - (time.monotonic() - began) > LEFT_S:
        name, measure = left.pop(0)
        try:
            with thread_count():
                facts = measure()
        except (RuntimeError, ValueError, OSError, NotImplementedError) as error:  # what this device cannot is a result
            facts = {"why not": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"}
        if scale.device == "cuda":
            torch.cuda.empty_cache()
        with open(folder / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "setting": setting, "facts": facts}) + "\n")
        tell(f"{name}: {said(facts)}")
        write_table(folder, setting)
    return [name for name, _ in left]


@contextmanager
def thread_count() -> Iterator[None]:
    """One thread, as runs have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settings(scale: Scale) -> str:
    """What must be equal for lines to stand in one table."""
    name = (
        torch.cuda.get_device_name() if scale.device == "cuda" else f"one thread of a CPU with {os.cpu_count()} cores"
    )
    size = "toy size: miniatures, 32 px, batch 8" if scale.toy else "the papers' models, 224 px, batch 64"
    return f"{name}, torch {torch.__version__}, {size}"


def lines(folder: Path) -> list[Facts]:
    """What was measured so far; a line that was cut off is none."""
    found = []
    if (folder / FILE).is_file():
        for text in (folder / FILE).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
    return found


def said(facts: Facts) -> str:
    """`eager, ms 3.2; ratio .9`: three digits that matter."""
    return "; ".join(f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in facts.items())


def write_table(folder: Path, setting: str) -> None:
    """The lines of one setting as Markdown."""
    held = [line for line in lines(folder) if line["setting"] == setting]
    rows = [f"| {line['name']} | {said(line['facts'])} |" for line in held]
    with atomic_write(folder / TABLE) as temporary:
        temporary.write_text(
            "\n".join([f"{setting}.", "", "| measured | |", "| --- | --- |", *rows, ""]), encoding="utf-8"
        )
