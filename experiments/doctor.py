"""Is everything there? Versions, machine, folders, data sets and weights, with the step that gets what is missing."""

import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from experiments import places
from experiments.planning import schema
from experiments.planning.plan import how_to_get
from experiments.records import environment
from hkd.data import DATASETS
from hkd.data.base import DataSet
from hkd.data.folder import ClassFolder
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.registry import load, lookup


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination.

    step: what to do about it, empty where nothing is wrong. profiles: that cannot start without it; () is all of them.
    """

    group: str
    name: str
    state: Literal["ok", "missing", "note"]
    text: str
    step: str = ""
    profiles: tuple[str, ...] = ()


def readiness(findings: Sequence[Finding]) -> str:
    """`laptop: ready; paper: 3 data sets and 15 weights missing`: what every profile lacks, in one sentence."""
    words = {"data": ("data set", "data sets"), "weights": ("weights file", "weights files"),
             "versions": ("package", "packages"), "folders": ("folder", "folders")}  # fmt: skip
    parts = []
    for name in schema.names("profiles"):
        lacking = Counter(
            finding.group
            for finding in findings
            if finding.state == "missing" and (not finding.profiles or name in finding.profiles)
        )
        counts = [f"{count} {words[group][count > 1]}" for group, count in lacking.items()]
        parts.append(f"{name}: {' and '.join(counts)} missing" if counts else f"{name}: ready")
    return "; ".join(parts)


def examine() -> list[Finding]:
    """Everything that a run needs from this machine. Imports no torch, and reads no data beyond what planning reads."""
    return [*machine(), *folders(), *data_sets(), *weights()]


def machine() -> Iterator[Finding]:
    """Versions, cores, threads, GPUs."""
    yield Finding(group="versions", name="python", state="ok", text=platform.python_version())
    for package in environment.PACKAGES:
        version = environment.versions().get(package)
        if version:
            yield Finding(group="versions", name=package, state="ok", text=version)
        else:
            step = "pip install -c constraints.txt -e '.[dev]'"
            yield Finding(group="versions", name=package, state="missing", text="not installed", step=step)
    yield Finding(group="machine", name="processor", state="ok", text=environment.cpu())
    cores, threads = environment.cores(), os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding(group="machine", name="cores", state="ok", text=f"{cores}, so {cores} runs at once, one thread each")
    yield Finding(group="machine", name="threads", state="ok", text=f"OMP_NUM_THREADS here: {threads}; in workers: 1")
    gpus = environment.gpus()
    text = ", ".join(gpus) if gpus else "none found; the laptop profile needs none"
    yield Finding(group="machine", name="GPU", state="ok" if gpus else "note", text=text)
    commit = environment.commit()
    state = "not a git checkout" if commit["commit"] is None else commit["commit"][:12]
    yield Finding(group="machine", name="commit", state="ok", text=state + (" with changes" if commit["dirty"] else ""))


def folders() -> Iterator[Finding]:
    """Where things are read and written, and whether they can be."""
    yield Finding(group="folders", name="repository", state="ok", text=str(places.repository()))
    for name, variable, path in (
        ("runs", "HKD_RUNS", places.runs()),
        ("results", "HKD_RESULTS", places.results()),
    ):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if os.access(there, os.W_OK):
            yield Finding(group="folders", name=name, state="ok", text=str(path))
        else:
            step = f"set {variable} to a folder that can be written"
            yield Finding(group="folders", name=name, state="missing", text=f"{path} is read-only", step=step)
    for name, path in (("data", places.data()), ("weights", places.weights())):
        text = str(path) if path.is_dir() else f"{path} (not there; only needed for what is listed below)"
        yield Finding(group="folders", name=name, state="ok" if path.is_dir() else "note", text=text)


def data_sets() -> Iterator[Finding]:
    """Every data set that a profile uses, with the profiles that do."""
    used: dict[str, tuple[dict, list[str]]] = {}
    for name in schema.names("profiles"):
        for mapping in schema.load_profile(name).data.values():
            options, profiles = used.setdefault(mapping.name, (dict(mapping.options), []))
            if name not in profiles:
                profiles.append(name)
    for name, (options, profiles) in sorted(used.items()):
        missing = lacking(load(lookup("data set", name, DATASETS))(options, places.data()))
        text = f"used by {', '.join(profiles)}"
        if missing:
            yield Finding(group="data", name=name, state="missing", text=text, step=missing, profiles=tuple(profiles))
        else:
            yield Finding(group="data", name=name, state="ok", text=text)


def lacking(data: DataSet) -> str | None:
    """What a data set lacks, as far as a look at its folders tells: its class folders too, not the images in them."""
    data = getattr(data, "labelled", data)  # that unlabelled data takes its images from
    missing = data.missing()
    if missing is None and isinstance(data, ClassFolder) and data.part("train").is_dir():
        try:
            data.class_names  # noqa: B018 (reading them checks them)
        except UserError as error:
            return str(error)
    return missing


def broken(path: Path) -> str | None:
    """Why a file of weights cannot be one, as far as its head tells."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="numpy"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{path} is truncated or not a safetensors file ({error}): get it again"


def weights() -> Iterator[Finding]:
    """Every weights file that a profile's teachers come from."""
    used: dict[str, tuple[str, list[str]]] = {}
    for name in schema.names("profiles"):
        profile = schema.load_profile(name)
        for entry, mapping in profile.teachers.items():
            slug = entry.partition("@")[0]
            if mapping.weights:
                model = profile.models.get(slug, slug)
                used.setdefault(mapping.weights, (model, []))[1].append(name)
    for file, (model, profiles) in sorted(used.items()):
        text = f"used by {', '.join(dict.fromkeys(profiles))}"
        path = places.weights() / file
        step = broken(path) if path.is_file() else how_to_get(lookup("model", model, ZOO), path)
        if step is None:
            yield Finding(group="weights", name=file, state="ok", text=text)
        else:
            yield Finding(group="weights", name=file, state="missing", text=text, step=step, profiles=tuple(profiles))
