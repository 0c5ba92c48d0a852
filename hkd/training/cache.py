"""What the teachers say about a batch: computed on the spot, or looked up where the views are fixed.

With fixed views (`recipe.views`) an image looks the same whenever it is shown, so each teacher sees each view once.
All outputs are computed before training starts, in the order of the data, so that they do not depend on where a run
was interrupted; the tables are indexed by (view, index). A stochastic teacher, or tables beyond MEMORY_LIMIT, stay on
line. Shapes: B batch, N images of the split, K views.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor

from hkd.data.batch import Batch
from hkd.data.loading.loader import Loader
from hkd.files import atomic_write
from hkd.methods.base import Method
from hkd.models.named_taps import PartialTaps
from hkd.models.tap_model import Teacher
from hkd.models.taps import Taps, Want
from hkd.spec import RunSpec

log = logging.getLogger(__name__)

MEMORY_LIMIT = 512 * 2**20  # bytes of one teacher's tables
FILE_LIMIT = 256 * 2**20  # bytes of tables that are kept on disk for other runs

Source = Callable[[Batch], Taps]
Inputs = Callable[[Batch], dict[str, Any]]
Precision = Callable[[], AbstractContextManager[Any]]
WHOLE = ("pooled", "final")  # taps that any model of the zoo has
VIEW_FIELDS = ("batch_size", "crop", "crop_scale", "flip", "shift", "randaugment", "erasing", "views", "precision")


class Online:
    """A teacher that looks at every batch; `inputs` gives further arguments of its forward (a mask)."""

    def __init__(self, teacher: Teacher, want: Want, precision: Precision, inputs: Inputs | None = None):
        self.teacher, self.want, self.precision, self.inputs = teacher, want, precision, inputs

    def __call__(self, batch: Batch) -> Taps:
        """Taps of the batch, without gradients."""
        with self.precision():
            return self.teacher(batch.x, self.want, **(self.inputs(batch) if self.inputs else {}))


class Cached:
    """A teacher's taps of every (view, image), looked up.

    Args:
        tables: taps by flat name, [K * N, ...] each, row view * N + index.
        count: N.
        who: what refusals call the teacher.
    """

    def __init__(self, tables: Mapping[str, Tensor], count: int, who: str = "teacher"):
        self.tables, self.count, self.who = tables, count, who

    def __call__(self, batch: Batch) -> Taps:
        """Taps of the batch; it must carry its views."""
        assert batch.view is not None, "a cached teacher needs batches of fixed views"
        rows = batch.view * self.count + batch.index
        return unflatten({name: table.index_select(0, rows) for name, table in self.tables.items()}, self.who)


class Teachers:
    """All teachers of a run: a batch in, taps by role out."""

    def __init__(self, sources: Mapping[str, Source]):
        self.sources = sources

    def __call__(self, batch: Batch) -> dict[str, Taps]:
        return {role: source(batch) for role, source in self.sources.items()}


def make_teachers(
    teachers: Mapping[str, Teacher],
    wants: Mapping[str, Want],
    loader: Loader,
    *,
    spec: RunSpec,
    fingerprint: str,
    cache_dir: Path | None,
    device: torch.device,
    precision: Precision,
    method: Method | None = None,
) -> Teachers:
    """Each wanted teacher, cached where its outputs are fixed and fit, on line otherwise.

    Args:
        teachers: by role, on `device`; one in training mode (stochastic depth) is never cached.
        wants: the taps that the method reads, by role.
        loader: of the training data.
        spec: names the file of a table; only teachers that are runs are kept on disk, because a run's key covers the
            code that computes the outputs.
        fingerprint: of the data.
        cache_dir: where small tables are kept, or None.
        device: of the tables.
        precision: context in which teachers run.
        method: one that overrides `teacher_inputs` decides what its teachers see, which is then never cached.
    """
    sources: dict[str, Source] = {}
    steered = method is not None and type(method).teacher_inputs is not Method.teacher_inputs
    for role, want in wants.items():
        inputs = partial(method.teacher_inputs, role) if method is not None and steered else None
        online = Online(teachers[role], want, precision, inputs)
        if not loader.views or teachers[role].training or steered:
            sources[role] = online
            continue
        path = None
        if cache_dir is not None and spec.teachers[role].weights.kind == "run":
            path = cache_dir / f"{_name(spec, role, want, fingerprint, device)}.safetensors"
        tables = _load(path) or _fill(online, loader, device)
        if tables is None:
            log.info("the outputs of teacher '%s' exceed %d MiB and are not cached", role, MEMORY_LIMIT >> 20)
        elif path is not None and not path.exists() and _bytes(tables) < FILE_LIMIT:
            _save(tables, path)
        sources[role] = (
            online if tables is None else Cached(_to(tables, device), loader.count, teachers[role].card.name)
        )
    return Teachers(sources)


def _fill(source: Source, loader: Loader, device: torch.device) -> dict[str, Tensor] | None:
    """Tables of all views of all images, or None if they would exceed the limit."""
    count, views = loader.count, loader.views or 0
    tables: dict[str, Tensor] = {}
    for view in range(views):
        for batch in loader.view(view):
            taps = flatten(source(batch.to(device)), len(batch))
            if not tables:
                if _bytes(taps) / len(batch) * views * count > MEMORY_LIMIT:
                    return None
                shape = views * count
                tables = {name: tap.new_zeros(shape, *tap.shape[1:]) for name, tap in taps.items()}
            rows = (view * count + batch.index).to(device)
            for name, tap in taps.items():
                tables[name][rows] = tap
    return tables


def flatten(taps: Taps, count: int) -> dict[str, Tensor]:
    """Taps by name ("logits", "stages.3"), the first dimension of each the batch.

    Windowed attention inputs come as [B * windows, ...] and are kept as [B, windows, ...]; queries, keys and values as
    one tensor [B, 3, ...]. `tokens` are left out: what methods read of them is in `final`. Of somebody's own model
    nobody may have told where pooled and final are: they are left out, too.
    """
    told = [name for name in ("logits", *WHOLE) if name not in getattr(taps, "absent", ())]
    tensors: dict[str, Tensor] = {name: getattr(taps, name) for name in told}
    for kind in ("stages", "prefix", "attention", "outputs"):
        tensors |= {f"{kind}.{key}": tensor for key, tensor in getattr(taps, kind).items()}
    tensors |= {f"qkv.{key}": torch.stack(parts, dim=1) for key, parts in taps.qkv.items()}
    return {
        name: tensor if len(tensor) == count else tensor.unflatten(0, (count, len(tensor) // count))
        for name, tensor in tensors.items()
    }


def unflatten(tensors: Mapping[str, Tensor], who: str = "teacher") -> Taps:
    """The inverse of `flatten`; what was left out refuses to be read, in the name of `who`."""
    logits = tensors["logits"]
    pooled, final = tensors.get("pooled", logits), tensors.get("final", logits[:, :, None, None])
    taps: Taps = Taps(logits, pooled, final)
    if absent := frozenset(WHOLE).difference(tensors):
        taps = PartialTaps(logits, pooled, final).without(absent, who)
    for name, tensor in tensors.items():
        kind, _, key = name.partition(".")
        if key:
            whole = tensor.flatten(0, 1) if kind == "attention" and tensor.ndim == 4 else tensor
            getattr(taps, kind)[int(key)] = whole.unbind(1) if kind == "qkv" else whole
    return taps


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())


def _to(tables: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: table.to(device) for name, table in tables.items()}


def _name(spec: RunSpec, role: str, want: Want, fingerprint: str, device: torch.device) -> str:
    """File name of a table: a hash of all that its numbers depend on."""
    assert spec.recipe is not None
    teacher, recipe = spec.teachers[role], asdict(spec.recipe)
    facts = {
        "weights": asdict(teacher.weights),
        "model": teacher.model.identity(),
        "data": [spec.data.name, spec.data.options, fingerprint, spec.seed, spec.holds_out],
        "views": {name: recipe[name] for name in VIEW_FIELDS},
        "want": asdict(want),
        "made by": [torch.__version__, timm.__version__, device.type],
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return "teacher-" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _load(path: Path | None) -> dict[str, Tensor] | None:
    if path is None or not path.is_file():
        return None
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read (%s); teacher outputs are computed again", path, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None


def _save(tables: Mapping[str, Tensor], path: Path) -> None:
    """Keep tables for other runs; that this is impossible is only said, because they can be computed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save({name: table.cpu() for name, table in tables.items()}))
    except OSError as error:
        log.warning("%s could not be written (%s): other runs will compute it again", path, error.strerror)
