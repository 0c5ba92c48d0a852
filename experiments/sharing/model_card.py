"""The card of an exported student: what it is, how it was made, how good it is, what it cost, what it is not for."""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from experiments.planning import schema
from experiments.records.committed import kept_predictions
from experiments.records.store import Record, Store
from experiments.results import stats
from experiments.results.caption import metric_name, spans
from experiments.results.stats import Estimate
from experiments.sharing.source import WEIGHTS, Found, spec_of
from experiments.sharing.timm_form import TimmForm
from hkd.data import DATASETS
from hkd.data.base import DataSet
from hkd.errors import UserError
from hkd.registry import load, lookup
from hkd.spec import DataSpec, TeacherSpec

# The hub's names of data sets that runs are measured on whole.
HUB_DATA = {"imagenet1k": "ILSVRC/imagenet-1k", "cifar100": "uoft-cs/cifar100"}
PART = ("classes", "n_test", "expected")  # options that leave out a part of a test split


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """A teacher as a card names it. made: where its weights are from. sha256: of the file. top1: in percent, measured
    here."""

    role: str
    spec: TeacherSpec
    made: str
    sha256: str | None
    licence: str | None
    metrics: Mapping[str, float]


def teachers_of(found: Found, store: Store) -> tuple[TeacherFacts, ...]:
    """The teachers of a run, with what the store and the manifest know of them."""
    facts = []
    for role, teacher in found.spec.teachers.items():
        weights = teacher.weights
        metrics: Mapping[str, float] = {}
        sha256 = licence = None
        if weights.kind == "run":
            record = store.load(weights.id)
            made = f"trained here, run `{weights.id}`"
            if record is not None:
                metrics, sha256 = record.metrics, record.artifacts.get(WEIGHTS)
                data = spec_of(record).data
                made += f" on {data.name}"
                licence = f"none but that of its data ({data_class(data).licence})"
        elif weights.kind == "random":
            made, licence = f"random weights of seed {weights.id}", "none: nothing was learnt"
        else:
            entries = schema.load_manifest().teachers.values()
            known = (
                e for e in entries if e.sha256 == weights.id or (e.weights and e.weights == teacher.model.pretrained)
            )
            entry = next(known, None)
            sha256, made = weights.id, teacher.model.pretrained or "a file"
            licence = entry.licence if entry else None
        facts.append(TeacherFacts(role=role, spec=teacher, made=made, sha256=sha256, licence=licence, metrics=metrics))
    return tuple(facts)


def data_class(spec: DataSpec) -> type[DataSet]:
    """The class of a data set, which states its source and licence."""
    found: type[DataSet] = load(lookup("data set", spec.name, DATASETS))
    return found


def over_seeds(found: Found) -> dict[str, Estimate]:
    """Each metric over the seeds that are done, with its interval."""
    return {
        metric: stats.mean([record.metrics[metric] for record in found.seeds.values() if metric in record.metrics])
        for metric in found.record.metrics
    }


def over_images(found: Found) -> Estimate | None:
    """Top-1 accuracy of the exported seed with its interval over test images, where its predictions were kept."""
    store = Store(found.weights.parent.parent)
    arrays = kept_predictions(store, found.record)
    if arrays is None or "top1" not in found.record.metrics or not len(arrays["label"]):
        return None
    return stats.binomial(int((arrays["prediction"] == arrays["label"]).sum()), len(arrays["label"]))


def facts(found: Found, *, params_m: float, gmacs: float, weights: str) -> dict[str, Any]:
    """What config.json says under `hkd`, for programs: `hkd verify` reads its claims there."""
    spec = found.spec
    return {
        "run": found.record.key,
        "name": found.name,
        "method": spec.method.name,
        "seed": spec.seed,
        "metrics": dict(found.record.metrics),
        "seeds": {str(seed): dict(record.metrics) for seed, record in sorted(found.seeds.items())},
        "data": {"name": spec.data.name, "options": spec.data.options, "fingerprint": spec.data.fingerprint},
        "params_m": round(params_m, 6),
        "gmacs": round(gmacs, 6),
        "sha256": weights,
    }


def card(
    found: Found,
    teachers: tuple[TeacherFacts, ...],
    *,
    form: TimmForm,
    params_m: float,
    gmacs: float,
    onnx: bool,
    hub: bool,
    licence: str | None,
) -> str:
    """README.md."""
    spec, record = found.spec, found.record
    name = spec.student.name
    taught = " and ".join(teacher.spec.model.name for teacher in teachers)
    lines = [
        head(found, licence) if hub else "",
        f"# {name}, {spec.method.name}" + (f" from {taught}" if taught else ""),
    ]
    lines += ["", summary(found, taught), "", "## How to load", "", "```python", *usage(form), "```", ""]
    if form.own:
        lines += [
            f"timm has no name for this architecture: `modeling.py` in this folder teaches it `{form.architecture}`. "
            "Without it timm refuses the folder.",
            "",
        ]
    if onnx:
        lines += ["`model.onnx` takes the same normalised images as `images` and gives `logits`.", ""]
    lines += ["## Accuracy", "", *accuracy(found), "", "## Student", ""]
    lines += [
        f"- Architecture: `{form.architecture}` of timm"
        + (" with modeling.py" if form.own else "")
        + f", {params_m:.3f} M parameters, {gmacs:.4g} GMACs at {spec.student.image_size} px.",
        f"- Input: RGB, {spec.student.image_size} x {spec.student.image_size} px, mean {list(spec.student.mean)}, "
        f"std {list(spec.student.std)}.",
        "- Only the student is here: adapters, which exist while it is trained, are not.",
        "",
        "## Teacher",
        "",
        *(map(teacher_line, teachers) if teachers else ["- None."]),
        "",
        "## How it was trained",
        "",
        *training(found),
        "",
        "## Data",
        "",
        *data_lines(spec.data),
        "",
        "## Cost",
        "",
        *cost(record),
        "",
        "## Limits",
        "",
        *limits(found),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def summary(found: Found, taught: str) -> str:
    """What this is, in a sentence or two."""
    spec = found.spec
    what = f"A {spec.student.name} trained on {spec.data.name} by the method `{spec.method.name}`"
    what += f" from {taught}" if taught else ""
    where = f' It is a cell of "{found.title}": `{found.name}`.' if found.title else ""
    return f"{what}, seed {spec.seed}.{where}"


def usage(form: TimmForm) -> list[str]:
    """The code that loads it."""
    own = ["import sys", "", "sys.path.insert(0, FOLDER)", "import modeling  # of this folder: names for timm", ""]
    return [
        'FOLDER = "."  # this folder',
        *(own if form.own else []),
        "import timm",
        "",
        'model = timm.create_model(f"local-dir:{FOLDER}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]


def accuracy(found: Found) -> list[str]:
    """A table of the metrics, and how their intervals are to be read."""
    lines = ["| metric | this student | mean over seeds | seeds |", "| --- | ---: | ---: | --- |"]
    seeds = sorted(found.seeds)
    for metric, estimate in over_seeds(found).items():
        mean = f"{estimate.mean:.2f}"
        mean += f" ({estimate.reason})" if estimate.reason else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
        lines.append(f"| {metric_name(metric)} | {found.record.metrics[metric]:.2f} | {mean} | {spans(seeds)} |")
    lines += ["", f"In brackets: 95 % t-interval over {len(seeds)} seeds." if len(seeds) > 1 else "One seed was run."]
    images = over_images(found)
    if images is not None:
        lines.append(
            f"Of this student over its {images.n} test images: {images.mean:.2f} [{images.low:.2f}, "
            f"{images.high:.2f}] (Wilson, 95 %)."
        )
    if len(seeds) > 1:
        lines.append("The student here is the first of the seeds unless another was asked for, not the best.")
    return lines


def teacher_line(teacher: TeacherFacts) -> str:
    """One teacher: architecture, weights, licence, accuracy."""
    measured = ", ".join(f"{metric_name(name)} {value:.2f}" for name, value in teacher.metrics.items())
    return (
        f"- {teacher.role}: {teacher.spec.model.name} (`{teacher.spec.model.arch}`), {teacher.made}; "
        f"SHA-256 of its weights {teacher.sha256 or 'not known here'}; licence: {teacher.licence or 'not known here'}"
        + (f"; measured: {measured}." if measured else ".")
    )


def training(found: Found) -> list[str]:
    """Method, options, recipe, seed and where it started."""
    spec, environment = found.spec, found.record.environment
    options = ", ".join(f"{key} {value}" for key, value in sorted(spec.method.options.items())) or "its defaults"
    lines = [f"- Method `{spec.method.name}`: {options}.", f"- Task `{spec.task}`, seed {spec.seed}."]
    if spec.init is not None:
        lines.append(f"- Started from {spec.init.kind} `{spec.init.id}`.")
    if spec.recipe is not None:
        recipe = ", ".join(f"{key} {value}" for key, value in vars(spec.recipe).items() if value is not None)
        lines.append(f"- Recipe: {recipe}.")
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    dirty = ", with changes that were not committed" if environment.get("dirty") else ""
    lines += [
        f"- Code: commit {environment.get('commit') or 'not recorded'}{dirty}; run `{found.record.key}`.",
        f"- Versions: {versions or 'not recorded'}.",
    ]
    return lines


def data_lines(spec: DataSpec) -> list[str]:
    """The data set with its licence and fingerprint."""
    kind = data_class(spec)
    options = ", ".join(f"{key} {value}" for key, value in sorted(spec.options.items())) or "defaults"
    return [
        f"- {spec.name} ({options}): {kind.source}; licence: {kind.licence}.",
        f"- Fingerprint of its content and options: `{spec.fingerprint or 'not known'}`.",
    ]


def cost(record: Record) -> list[str]:
    """Seconds, memory and machine of this run."""
    names = {"wall_s": "wall s", "cpu_s": "CPU s", "gpu_s": "GPU s", "step_ms": "ms a step", "steps": "steps"}
    names |= {"peak_memory_mib": "MiB at the peak", "extra_params_m": "M parameters of adapters while training"}
    values = ", ".join(f"{record.cost[name]:.4g} {unit}" for name, unit in names.items() if record.cost.get(name))
    environment = record.environment
    gpu = ", ".join(environment.get("gpu", ())) if environment.get("device", "cpu") != "cpu" else ""
    machine = gpu or environment.get("cpu") or "not recorded"
    return [f"- {values or 'Not recorded'}.", f"- Machine: {machine}; {time_of(record)}."]


def time_of(record: Record) -> str:
    """The day a run ended, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(record.finished))


def limits(found: Found) -> list[str]:
    """What this student is not."""
    spec = found.spec
    lines = [
        f"- It was measured on {spec.data.name} alone; nothing is known of it on other images.",
        "- Images of another side than its own were resized bilinearly after the data set's own resize and crop when "
        "it was measured; timm's transform resizes once.",
        "- Intervals over seeds hold data and teacher fixed.",
    ]
    if spec.evaluate_on == "val":
        lines.append("- It was measured on validation images while settings were chosen: its accuracy is too good.")
    if any(value.image_size < 64 for value in (spec.student,)):
        lines.append("- It is a small model for small images, made to compare methods with, not to be used.")
    return lines


def head(found: Found, licence: str | None) -> str:
    """The YAML that the hub reads at the top of README.md."""
    spec = found.spec
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {
                "type": hub_data(spec.data) or spec.data.name,
                "name": spec.data.name,
                "split": spec.evaluate_on,
            },
            "metrics": [
                {"type": "accuracy", "name": metric_name(metric), "value": value}
                for metric, value in found.record.metrics.items()
                if metric in ("top1", "top5")
            ],
        }
    ]
    document: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "image-classification", "knowledge-distillation"],
        "license": licence or "other",
    }
    if hub_data(spec.data):
        document["datasets"] = [hub_data(spec.data)]
    document |= {"metrics": ["accuracy"], "model-index": [{"name": spec.student.name, "results": results}]}
    return f"---\n{yaml_of(document)}---\n"


def hub_data(spec: DataSpec) -> str | None:
    """The hub's name of a data set that is measured on whole, where it has one."""
    whole = not any(spec.options.get(name) is not None for name in PART)
    return HUB_DATA.get(spec.name) if whole else None


def eval_results(found: Found, benchmark: str | None) -> tuple[str | None, str]:
    """A file of `.eval_results/` as the hub reads it, or None and why there is none.

    Args:
        found: the run.
        benchmark: `OWNER/NAME` or `OWNER/NAME:TASK`; None: the hub's name of the data, if it has one.

    Raises:
        UserError: a benchmark of another form.
    """
    spec = found.spec
    name = benchmark or hub_data(spec.data)
    if name is None:
        return None, (
            f"No .eval_results is written: the hub has no data set that is the test split of '{spec.data.name}' as it "
            "was used; name one with --benchmark OWNER/NAME:TASK if it has."
        )
    dataset, _, task = name.partition(":")
    if dataset.count("/") != 1 or not all(dataset.split("/")):
        raise UserError(
            f"--benchmark is '{benchmark}'; it names a data set of the hub, as OWNER/NAME or OWNER/NAME:TASK."
        )
    if "top1" not in found.record.metrics:
        return None, "No .eval_results is written: the run has no top-1 accuracy."
    estimate, seeds = over_seeds(found)["top1"], sorted(found.seeds)
    spread = f"{estimate.mean:.2f} " + (
        f"({estimate.reason})" if estimate.reason else f"[{estimate.low:.2f}, {estimate.high:.2f}]"
    )
    entry = {
        "dataset": {"id": dataset, "task_id": task or "default"},
        "value": round(found.record.metrics["top1"], 4),
        "date": time_of(found.record),
        "notes": f"top-1 accuracy in percent, seed {spec.seed}; mean over seeds {spans(seeds)}: {spread}",
    }
    return yaml_of([entry]), ""


def yaml_of(value: Any) -> str:
    """A value as YAML, in the order given."""
    yaml, stream = YAML(), io.StringIO()
    yaml.width, yaml.default_flow_style = 4096, False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(value, stream)
    return stream.getvalue()
